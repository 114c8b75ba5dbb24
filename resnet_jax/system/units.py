# SPDX-License-Identifier: Apache-2.0
"""Units of work: ranges of a run's rows, and the part of them for a worker."""

import dataclasses
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping

from resnet_jax.system import errors

# A unit of a long run has several batches, so that a folder has no more marks.
MOST = 4096


@dataclasses.dataclass(frozen=True)
class Unit:
  """The rows from `start` up to `stop`."""

  number: int
  start: int
  stop: int

  def __str__(self) -> str:
    return f'unit {self.number} (rows {self.start} to {self.stop - 1})'


@dataclasses.dataclass(frozen=True)
class Units:
  """A run in units.

  Attributes:
    rows: of the run.
    size: rows of a unit; the last may have fewer.
  """

  rows: int
  size: int

  def __len__(self) -> int:
    return math.ceil(self.rows / self.size)

  def __getitem__(self, number: int) -> Unit:
    if not 0 <= number < len(self):
      raise IndexError(number)
    start = number * self.size
    return Unit(number, start, min(start + self.size, self.rows))

  def of(self, row: int) -> Unit:
    """The unit of a row."""
    return self[row // self.size]

  def without(self, numbers: Container[int]) -> list[Unit]:
    """All units but some."""
    return [self[n] for n in range(len(self)) if n not in numbers]

  def count(self, numbers: Iterable[int]) -> int:
    """The rows of some units."""
    return sum(self[number].stop - self[number].start for number in numbers)


def split(rows: int, batch_rows: int) -> Units:
  """Units of whole batches, and so of whole chunks; at most `MOST`."""
  batches = -(-rows // batch_rows)
  return Units(rows, batch_rows * max(1, -(-batches // MOST)))


@dataclasses.dataclass(frozen=True)
class Part:
  """One of several equal parts of the units, which follow each other.

  Attributes:
    index: from 0.
    count: parts.
    source: what named it; '' for all units.
  """

  index: int = 0
  count: int = 1
  source: str = ''

  def of(self, number: int) -> range:
    """The units of this part, of `number` in all."""
    first, last = (
      n * number // self.count for n in (self.index, self.index + 1)
    )
    return range(first, last)

  def __str__(self) -> str:
    return f'part {self.index}/{self.count} ({self.source})'


def part(
  text: str,
  environment: Mapping[str, str],
  processes: Callable[[], tuple[int, int]],
) -> Part:
  """The part that a setting names.

  Args:
    text: '' for all units, 'i/n', or 'auto'.
    environment: with SLURM's variables, for 'auto'.
    processes: gives the number of this process and how many there are, if
      'auto' finds none of them.

  Raises:
    UserError: there is no such part.
  """
  if not text:
    return Part()
  if text != 'auto':
    found = re.fullmatch(r'(\d{1,9})/(\d{1,9})', text)
    if not found or not int(found[1]) < int(found[2]):
      raise errors.UserError(
        f"part='{text}' is no part. Of n parts, name one by i/n, i from 0 to"
        " n-1, such as 0/4 to 3/4; or 'auto', which asks SLURM."
      )
    return Part(int(found[1]), int(found[2]), f'part={text}')
  for index, count, least in (
    ('SLURM_ARRAY_TASK_ID', 'SLURM_ARRAY_TASK_COUNT', 'SLURM_ARRAY_TASK_MIN'),
    ('SLURM_PROCID', 'SLURM_NTASKS', ''),
  ):
    if index in environment and count in environment:
      names = [name for name in (index, count, least) if name in environment]
      return _stated({name: environment[name] for name in names})
  number, total = processes()
  return Part(number, total, 'JAX: no variables of SLURM')


def _stated(stated: Mapping[str, str]) -> Part:
  """The part that variables state: a number, how many, and the first."""
  source = ', '.join(f'{name}={value}' for name, value in stated.items())
  try:
    index, count, *least = map(int, stated.values())
  except ValueError:
    index, count, least = -1, 0, []
  index -= sum(least)
  if not 0 <= index < count:
    raise errors.UserError(
      f'part=auto found {source}, which number no part: tasks must follow each'
      ' other, as in --array=0-15. Set part=i/n.'
    )
  return Part(index, count, source)
