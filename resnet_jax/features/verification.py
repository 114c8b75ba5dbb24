# SPDX-License-Identifier: Apache-2.0
"""How far a store's units are made, and whether their rows are as marked."""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence

from resnet_jax.codecs.zarr import strings
from resnet_jax.features import digests, store
from resnet_jax.system import errors, files, ledger
from resnet_jax.system.units import Unit, Units

# Of an array, read at a time.
_BLOCK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run is.

  Attributes:
    path: the folder, whose name says whether it is published.
    finished: whether it is.
    units: all of them.
    marks: of those that are made.
  """

  path: pathlib.Path
  finished: bool
  units: Units
  marks: Sequence[ledger.Mark]

  @property
  def missing(self) -> list[Unit]:
    """The units without a mark."""
    return self.units.without({mark.unit for mark in self.marks})

  @property
  def last(self) -> ledger.Mark | None:
    """The mark that is the newest by the clock of its host."""
    return max(self.marks, key=lambda mark: mark.ended, default=None)

  def rates(self) -> dict[str, float]:
    """Images per second of each worker, from the times of its own clock."""
    by_worker: dict[str, list[ledger.Mark]] = {}
    for mark in self.marks:
      by_worker.setdefault(mark.worker, []).append(mark)
    found = {}
    for worker, own in by_worker.items():
      seconds = max(m.ended for m in own) - min(m.begun for m in own)
      # A clock that was set back says nothing.
      if seconds > 0:
        found[worker] = sum(mark.stop - mark.start for mark in own) / seconds
    return found


def progress(directory: pathlib.Path) -> Progress:
  """Reads the marks of a run, finished or not.

  Raises:
    UserError: there is no run that is made by units, or it is damaged.
  """
  for path in (directory, files.part(directory)):
    if store.read_settings(path) is None:
      continue
    try:
      found = ledger.Ledger(path)
      marks = tuple(found.marks().values())
    except (ValueError, OSError) as error:
      raise errors.UserError(
        f'{path} is damaged, or has no units of work: {error}. Remove what is'
        ' named, if it is a mark: starting the job again makes its unit anew.'
      ) from error
    finished = path == directory and path.suffix != files.PART
    return Progress(path, finished, found.units, marks)
  raise errors.UserError(
    f'there is no Zarr store at {directory}, finished or not. Other formats'
    ' have no units of work.'
  )


def damaged(found: Progress) -> Iterator[tuple[ledger.Mark, str]]:
  """Reads all rows; yields each mark, and why they are not its rows, or ''.

  Raises:
    UserError: an array is damaged as a whole.
  """
  path = found.path
  try:
    stored = {
      entry.name: store.StoredLayer(entry)
      for entry in sorted(path.iterdir())
      if entry.is_dir() and _has_rows_of_values(entry)
    }
    stored['status'] = store.StoredLayer(path / 'status')
  except (ValueError, OSError, KeyError, TypeError) as error:
    raise errors.UserError(
      f'{path} is damaged: {error}. Extract the features again.'
    ) from error
  for mark in found.marks:
    yield mark, _damage(path, stored, found.units.rows, mark)


def _has_rows_of_values(path: pathlib.Path) -> bool:
  """Whether an array is a layer, or crops, and not a column."""
  stated = files.read_json(path / 'zarr.json')
  return len(stated.get('shape', ())) > 1


def _damage(
  path: pathlib.Path,
  stored: Mapping[str, store.StoredLayer],
  rows: int,
  mark: ledger.Mark,
) -> str:
  digest = digests.Digest()
  try:
    for name, layer in stored.items():
      row_bytes = math.prod(layer.shape[1:]) * layer.dtype.itemsize
      step = max(1, _BLOCK_BYTES // row_bytes)
      for start in range(mark.start, mark.stop, step):
        stop = min(start + step, mark.stop)
        digest.add({name: layer[start:stop]})
    digest.add(
      {},
      strings.read(
        path / 'reason', rows, whole=False, span=(mark.start, mark.stop)
      ),
    )
  except (
    *(ValueError, OSError, KeyError, TypeError, struct.error),
    errors.UserError,
  ) as error:
    return str(error)
  if digest.hex() != mark.sha256:
    return 'its rows are other than those that were marked'
  return ''
