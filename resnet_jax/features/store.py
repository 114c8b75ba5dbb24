# SPDX-License-Identifier: Apache-2.0
"""The feature store: a Zarr 3 group that any Zarr reader opens.

A directory with an array per layer, (rows, C, H, W), and `keys`, `labels`,
`status` (0 pending, 1 done, 2 failed) and `reason`, one entry per row, in the
order of the data.  The group's attributes `settings` and `record` say how the
values were computed.  Chunks carry a CRC-32C, which readers check.  The folder
`units` has a mark for each unit of work that is made (`system.ledger`).
"""

import dataclasses
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.codecs.zarr import arrays, chunks, strings
from resnet_jax.features import digests, output, table
from resnet_jax.system import errors, files, ledger, units
from resnet_jax.system import settings as settings_lib
from resnet_jax.system.text import plain

# A chunk is stored whole: the last one's padding has at most these bytes, or
# this share of the layer's.
_MAX_PADDING_BYTES, _MAX_PADDING = 1 << 20, 0.1
# What a store has beside layers.
_COLUMNS = ('keys', 'labels', 'reason', 'status', ledger.FOLDER)
# Of a mark, at most.
_MARK_BYTES = 600


def planned_bytes(plan: table.FeatureTable, rows: int) -> int:
  """Bytes that `rows` more rows take, with the padding of the last chunks."""
  batches = -(-rows // plan.batch_rows)
  # Labels, status, reason and checksums take a few bytes per row.
  few = batches * plan.batch_rows * (24 + 4 * len(plan.layers))
  few += len(units.split(rows, plan.batch_rows)) * _MARK_BYTES
  values = sum(
    -(-rows // chunk) * chunk * plan.row_bytes(name)
    for name, chunk in ((n, _chunk_rows(plan, n)) for n in plan.layers)
  )
  return few + values + sum(len(key.encode()) + 4 for key in plan.keys)


@arrays.system_errors()
def create(
  path: pathlib.Path, plan: table.FeatureTable, facts: table.Facts
) -> None:
  """Fills an empty directory with a store whose rows are all pending."""
  for name, grid in _planned(plan).items():
    dimensions = (axis.format(name) for axis in plan.dimensions)
    arrays.create(path / name, grid, ('row', *dimensions)[: len(grid.shape)])
  arrays.create_column(path / 'labels', np.array(plan.labels, np.int32))
  strings.create(path / 'keys', plan.rows, plan.rows)
  strings.write_chunk(path / 'keys', 0, plan.keys, plan.rows)
  strings.create(path / 'reason', plan.rows, plan.batch_rows)
  ledger.Ledger.create(path, units.split(plan.rows, plan.batch_rows))
  group = {
    'zarr_format': 3,
    'node_type': 'group',
    'attributes': dataclasses.asdict(facts),
  }
  files.write_json(path / 'zarr.json', group)


def read_settings(path: pathlib.Path) -> Mapping[str, Any] | None:
  """The settings of the run in a store; None if it is not a store."""
  return settings_lib.read(path / 'zarr.json', 'attributes', 'settings')


class StoreWriter:
  """Writes the rows of a store; see `table.Writer`.

  Several processes may write one store, each the units that `starts` gives it.
  """

  def __init__(self, path: pathlib.Path, plan: table.FeatureTable) -> None:
    self._path = path
    self._plan = plan
    try:
      _check_planned(path, plan)
      self._arrays = {
        name: arrays.opened(path / name, whole=False)
        for name in (*plan.layers, 'status')
      }
      self._ledger = ledger.Ledger(path)
      self._units = self._ledger.units
      if self._units.rows != plan.rows or self._units.size % plan.batch_rows:
        raise ValueError(f'its units are {self._units}')
      marks = self._ledger.marks()
    except (ValueError, OSError) as error:
      raise errors.UserError(
        f'{path} is damaged: {error}. Remove it to start over.'
      ) from error
    missing = self._units.without(marks)
    self.done = missing[0].start if missing else plan.rows
    self.failed = sum(mark.failed for mark in marks.values())
    self._marked = marks.keys()
    self._digest = digests.Digest()
    self._failed = 0

  @property
  def batch_rows(self) -> int:
    """Rows written at a time."""
    return self._plan.batch_rows

  def rows(self, part: units.Part) -> tuple[int, int]:
    """The rows of a part, and how many of them were there before."""
    own = part.of(len(self._units))
    marked = [number for number in own if number in self._marked]
    return self._units.count(own), self._units.count(marked)

  def starts(self, part: units.Part) -> Iterator[int]:
    """Takes the units of a part that are left, one by one."""
    for unit in self._ledger.claimed(part.of(len(self._units))):
      yield from range(unit.start, unit.stop, self._plan.batch_rows)

  def write(
    self, start: int, values: Mapping[str, np.ndarray], reasons: Sequence[str]
  ) -> None:
    """Adds rows, then their status, and after a unit's last row its mark."""
    rows = slice(start, start + len(reasons))
    unit = self._units.of(start)
    failed = [bool(reason) for reason in reasons]
    status = np.where(failed, table.FAILED, table.DONE).astype(np.uint8)
    chunk = start // self._plan.batch_rows
    if start == unit.start:
      self._digest, self._failed = digests.Digest(), 0
    with (
      files.writing(self._plan.kind.what, self._path),
      arrays.system_errors(),
    ):
      # TensorStore would make the folder again, with nothing else in it.
      self._ledger.check_there()
      pending = [
        self._arrays[name][rows].write(
          array, can_reference_source_data_indefinitely=True
        )
        for name, array in values.items()
      ]
      self._digest.add({**values, 'status': status}, reasons)
      for write in pending:
        write.result()
      if any(reasons):
        strings.write_chunk(
          self._path / 'reason', chunk, reasons, self._plan.batch_rows
        )
      else:
        # A killed run may have failed at rows of this batch.
        strings.remove_chunk(self._path / 'reason', chunk)
      self._arrays['status'][rows].write(status).result()
      self._failed += sum(failed)
      if rows.stop == unit.stop:
        self._ledger.write(unit.number, self._failed, self._digest.hex())
    self.done = rows.stop
    self.failed += sum(failed)

  def close(self) -> None:
    """Gives back the units that are not whole."""
    self._ledger.close()

  def missing(self) -> list[units.Unit]:
    """The units without a mark, of whatever part."""
    return self._ledger.missing()

  def finish(self) -> None:
    """Checks that every unit is there, and counts the failed rows of all.

    Raises:
      UserError: a unit is missing, or files hold less than the marks say.
    """
    with (
      arrays.system_errors(),
      files.writing(self._plan.kind.what, self._path),
    ):
      try:
        marks = self._ledger.marks()
        if len(marks) < len(self._units):
          raise ValueError('units are missing')
        for name, grid in _planned(self._plan).items():
          if chunks.held(self._path / name, grid) < grid.whole_bytes:
            raise ValueError(f'{name} lacks a chunk, or a part of one')
      except ValueError as error:
        raise errors.UserError(
          f'{self._path} is damaged: {error}. --job=status with verify=true'
          ' names the unit; remove its mark, and start the same job again.'
        ) from error
      self._ledger.clear()
    self.failed = sum(mark.failed for mark in marks.values())


class StoredLayer:
  """An array of a store, read as it is indexed: `layer[10:20]` is NumPy.

  Attributes:
    shape: (rows, C, H, W).
    dtype: NumPy's.
    whole: whether its files are as large as all chunks.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    grid = chunks.read(path)
    # A made-up shape would claim any amount of memory.  Nothing is compressed,
    # and all-NaN chunks have files, too.
    self.whole = grid.whole_bytes <= chunks.held(path, grid)
    self._array = arrays.opened(path)
    self.shape: tuple[int, ...] = tuple(self._array.shape)
    self.dtype = self._array.dtype.numpy_dtype

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: Any) -> np.ndarray:
    """The values at `index`: any NumPy index of rows, then ints or slices.

    Reads only those rows.
    """
    parts = index if isinstance(index, tuple) else (index,)
    first, *rest = parts or (slice(None),)
    plain = all(isinstance(part, int | np.integer | slice) for part in rest)
    if not plain or first is None or (first is Ellipsis and rest):
      raise IndexError('index the rows first, then channels and positions')
    rows = index = np.arange(len(self))[first]
    if rows.ndim == 1 and rows.size and (np.diff(rows) == 1).all():
      # Faster than an array of indices.
      index = slice(int(rows[0]), int(rows[-1]) + 1)
    try:
      values = self._array[index].read().result()
    except (ValueError, OSError) as error:
      raise errors.UserError(
        f'{self._path} is damaged: {error}. Extract the features again.'
      ) from error
    return values[(*[slice(None)] * rows.ndim, *rest)]

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    del copy  # Reading always copies.
    return self[:].astype(dtype or self.dtype, copy=False)

  def __repr__(self) -> str:
    return f'StoredLayer(shape={self.shape}, dtype={self.dtype})'


class Features(Mapping[str, StoredLayer]):
  """A finished feature store: a mapping of layers, and facts per row.

  Attributes:
    rows: the keys: paths relative to the list or folder.
    labels: (rows,) int32, -1 for no label.
    status: (rows,) uint8, 1 done, 2 failed (a row of NaN).
    reasons: why a row failed, '' for the others.
    settings: what determined the values.
    record: everything else noted about the run.
  """

  def __init__(self, path: pathlib.Path) -> None:
    attributes = files.read_json(path / 'zarr.json')['attributes']
    self.settings = settings_lib.current(attributes['settings'])
    self.record: Mapping[str, Any] = attributes['record']
    self.rows = strings.read(path / 'keys')
    rows = len(self.rows)
    # Batches without a failed row have none.
    self.reasons = strings.read(path / 'reason', rows, whole=False)
    # From the folders, never from a name in a file.
    self._layers = {
      entry.name: StoredLayer(entry)
      for entry in sorted(path.iterdir())
      if entry.is_dir() and entry.name not in _COLUMNS
    }
    for name, layer in self._layers.items():
      if layer.shape[:1] != (len(self.rows),):
        raise ValueError(f'{name} is {layer.shape}, of {len(self.rows)} rows')
    self.labels = arrays.read_column(path / 'labels', rows, 'int32')
    # What is pending has no files.
    self.status = arrays.read_column(
      path / 'status', rows, 'uint8', whole=False
    )
    for name, layer in self._layers.items():
      if not layer.whole:
        raise ValueError(
          f'{name} states {layer.shape}, and its files hold less'
        )

  def __getitem__(self, layer: str) -> StoredLayer:
    if layer not in self._layers:
      raise errors.unknown('layer of this store', layer, self._layers)
    return self._layers[layer]

  def __contains__(self, layer: object) -> bool:
    return layer in self._layers

  def __iter__(self) -> Iterator[str]:
    return iter(self._layers)

  def __len__(self) -> int:
    return len(self._layers)

  def __repr__(self) -> str:
    layers = ', '.join(f'{k}: {v.shape}' for k, v in self.items())
    return plain(f'Features({len(self.rows)} rows, {layers})')


def load_features(directory: str | pathlib.Path) -> Features:
  """Opens a finished feature store; values are read as they are indexed.

      features = load_features('features')
      features['avgpool'][:]   # (rows, C, H, W)
      features.rows[0]         # the first row's key

  Raises:
    UserError: there is no store, or it is unfinished or damaged.
  """
  path = pathlib.Path(directory)
  output.check_finished(path)
  if not path.is_dir():
    raise errors.UserError(f'there is no feature store at {path}.')
  if (read_settings(path) or {}).get('contents', 'features') != 'features':
    raise errors.UserError(
      f'{path} is a store of crops, not of features. Images are data of'
      f' --job=extract, as in data={path}.'
    )
  try:
    features = Features(path)
  except (
    *(KeyError, ValueError, OSError, TypeError, AttributeError),
    struct.error,
  ) as error:
    raise errors.UserError(
      f'{path} is not a feature store, or is damaged: {error}.'
    ) from error
  if (features.status == table.PENDING).any():
    raise errors.UserError(f'{path} is not finished: it has pending rows.')
  return features


def _planned(plan: table.FeatureTable) -> dict[str, chunks.Grid]:
  """The arrays that are filled as rows are written."""
  status = chunks.Grid((plan.rows,), (plan.batch_rows,), 'uint8')
  return {
    name: chunks.Grid(
      (plan.rows, *shape), (_chunk_rows(plan, name), *shape), plan.dtype
    )
    for name, shape in plan.layers.items()
  } | {'status': status}


def _check_planned(path: pathlib.Path, plan: table.FeatureTable) -> None:
  """Raises a ValueError unless an unfinished store has the plan's arrays."""
  planned = _planned(plan)
  for name, grid in planned.items():
    if (found := chunks.read(path / name)) != grid:
      raise ValueError(f'{name} is {found}, not {grid}')
  chunks.held(path / 'status', planned['status'])


def _chunk_rows(plan: table.FeatureTable, layer: str) -> int:
  """Rows per chunk: the most that divide a batch and keep a chunk small."""
  row_bytes = plan.row_bytes(layer)
  most = max(1, plan.chunk_bytes // row_bytes)
  padding = max(_MAX_PADDING_BYTES // row_bytes, int(_MAX_PADDING * plan.rows))
  fitting = range(1, min(most, plan.batch_rows) + 1)
  return max(
    rows
    for rows in fitting
    if plan.batch_rows % rows == 0 and -plan.rows % rows <= padding
  )
