# SPDX-License-Identifier: Apache-2.0
"""The folder with the marks of a run's units.

A unit is made by one process and then marked: `units/000012.json` says what it
holds, who made it and when.  Several processes work on one run; each takes the
units of its part that nobody has marked or is making.
"""

import contextlib
import dataclasses
import datetime
import math
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from resnet_jax.system import files
from resnet_jax.system.text import counted, some
from resnet_jax.system.units import Unit, Units

# In the folder of a run.
FOLDER = 'units'
_GROUP, _LOCK = 'zarr.json', 'lock'
_MARK = re.compile(r'(\d{6,9})\.json')


@dataclasses.dataclass(frozen=True)
class Mark:
  """What is known of a unit that is made.

  Attributes:
    unit: its number.
    start, stop: its rows.
    done, failed: how many of them are values, and how many are none.
    sha256: the digest of its rows.
    host, pid: who made it.
    begun, ended: when, by that host's clock, in seconds since 1970.
  """

  unit: int
  start: int
  stop: int
  done: int
  failed: int
  sha256: str
  host: str
  pid: int
  begun: float
  ended: float

  @property
  def worker(self) -> str:
    """Who made it."""
    return f'{self.host}, process {self.pid}'

  @property
  def date(self) -> str:
    """When it was made; of a clock that no calendar has, the number."""
    try:
      moment = datetime.datetime.fromtimestamp(self.ended, datetime.UTC)
    except (ValueError, OverflowError, OSError):
      return f'{self.ended:g} s since 1970'
    return moment.isoformat(' ', 'seconds')


def described(missing: Sequence[Unit]) -> str:
  """Names the units that are missing."""
  names = some([str(unit) for unit in missing])
  return f'{counted(len(missing), "unit")} of work missing: {names}'


class Ledger:
  """The marks of a run's units, in its folder.

  Attributes:
    path: the folder of the marks.
    units: of the run.
  """

  def __init__(self, run: pathlib.Path) -> None:
    """Opens what `create` made in the folder of a run.

    Raises:
      ValueError, OSError: it is damaged.
    """
    self.path = path = run / FOLDER
    self._lock: Any = None
    # When this process took the units that it makes.
    self._begun: dict[int, float] = {}
    self._identity = self._stated()
    try:
      stated = files.read_json(path / _GROUP)['attributes']
      rows, size = stated['rows'], stated['unit_rows']
    except (LookupError, TypeError) as error:
      raise ValueError(
        f'{path.name}/{_GROUP} does not state {error}'
      ) from error
    if not all(type(n) is int and 0 < n < 1 << 48 for n in (rows, size)):
      raise ValueError(f'{path.name}/{_GROUP} states {rows!r} and {size!r}')
    self.units = Units(rows, size)

  @classmethod
  def create(cls, run: pathlib.Path, units: Units) -> Self:
    """Makes the folder; in a Zarr store it is a group without arrays."""
    path = run / FOLDER
    path.mkdir()
    stated = {'rows': units.rows, 'unit_rows': units.size}
    group = {'zarr_format': 3, 'node_type': 'group', 'attributes': stated}
    files.write_json(path / _GROUP, group)
    return cls(run)

  def _stated(self) -> tuple[int, ...]:
    status = (self.path / _GROUP).stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns

  def check_there(self) -> None:
    """Raises an OSError if the run was published, removed or begun anew."""
    if self._stated() != self._identity:
      raise OSError('it was removed and begun anew, by another process')

  def mark(self, number: int) -> Mark | None:
    """The mark of a unit; None if it is not made.

    Raises:
      ValueError, OSError: it is damaged.
    """
    path = self._mark(number)
    where = f'{self.path.name}/{path.name}'
    try:
      found = files.read_json(path)
    except FileNotFoundError:
      return None
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from error
    kinds = {field.name: field.type for field in dataclasses.fields(Mark)}
    fits = (
      isinstance(found, dict)
      and {key: type(value) for key, value in found.items()} == kinds
    )
    if not fits or not math.isfinite(found['begun'] + found['ended']):
      raise ValueError(f'{where} does not state {", ".join(kinds)}')
    mark, unit = Mark(**found), self.units[number]
    rows = mark.done + mark.failed
    if (
      Unit(mark.unit, mark.start, mark.stop) != unit
      or min(mark.done, mark.failed) < 0
      or rows != unit.stop - unit.start
    ):
      raise ValueError(f'{where} is of other rows than {unit}')
    return mark

  def marks(self) -> dict[int, Mark]:
    """All marks, in the order of their units; raises what `mark` does."""
    found = (_MARK.fullmatch(name) for name in sorted(os.listdir(self.path)))
    numbers = sorted(int(match[1]) for match in found if match)
    if numbers and numbers[-1] >= len(self.units):
      raise ValueError(f'{self.path.name} has a mark of no unit: {numbers[-1]}')
    marks = {number: self.mark(number) for number in numbers}
    return {number: mark for number, mark in marks.items() if mark}

  def missing(self) -> list[Unit]:
    """The units without a mark; raises what `mark` does."""
    return self.units.without(self.marks())

  def claimed(self, numbers: Iterable[int]) -> Iterator[Unit]:
    """Takes unit after unit, until each is marked or another's.

    Those that another process was making are looked at once more at the end:
    it may have been killed.
    """
    skipped = []
    for number in numbers:
      if self._claim(number):
        yield self.units[number]
      else:
        skipped.append(number)
    for number in skipped:
      if self._claim(number):
        yield self.units[number]

  def _claim(self, number: int) -> bool:
    if self._mark(number).exists() or not self._locked(number):
      return False
    if self._mark(number).exists():
      # Marked between the two.
      self._unlock(number)
      return False
    self._begun[number] = time.time()
    return True

  def write(self, number: int, failed: int, sha256: str) -> None:
    """Marks a unit that is made."""
    self.check_there()
    unit, ended = self.units[number], time.time()
    host, pid = platform.node(), os.getpid()
    begun = self._begun.get(number, ended)
    done = unit.stop - unit.start - failed
    ids = unit.number, unit.start, unit.stop
    mark = Mark(*ids, done, failed, sha256, host, pid, begun, ended)
    path = self._mark(number)
    # Without locks, two processes may make the same unit.
    own = path.with_name(f'{path.name}.{host}.{pid}{files.PART}')
    files.write_json(path, dataclasses.asdict(mark), own)
    self._unlock(number)

  def close(self) -> None:
    """Gives back the units that are not made."""
    if self._lock:
      self._lock.close()
      self._lock = None

  def clear(self) -> None:
    """Removes what processes that were killed have left."""
    for path in self.path.iterdir():
      if path.name == _LOCK or path.suffix == files.PART:
        path.unlink(missing_ok=True)

  def _mark(self, number: int) -> pathlib.Path:
    return self.path / f'{number:06}.json'

  def _locked(self, number: int) -> bool:
    """Locks a unit; False: another process has it.

    The system unlocks it when this process ends, however it ends.  Where there
    are no locks, a unit may be made twice, to the same bytes.
    """
    try:
      import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
      return True
    # A byte a unit of one file, which is never closed: that would unlock all.
    self._lock = self._lock or files.writable(self.path / _LOCK, 'ab')
    try:
      fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except (BlockingIOError, PermissionError):
      return False
    except OSError:
      return True
    return True

  def _unlock(self, number: int) -> None:
    with contextlib.suppress(ImportError, OSError):
      import fcntl  # noqa: PLC0415

      if self._lock:
        fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, number)
