# SPDX-License-Identifier: Apache-2.0
"""Arrays of numbers, written and read through TensorStore.

Chunks are not compressed and carry a CRC-32C, which every reader checks.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resnet_jax.codecs.zarr import chunks


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
  """Raises TensorStore's file system errors as OSError."""
  try:
    yield
  except ValueError as error:
    raise OSError(str(error)) from error


def create(
  path: pathlib.Path, grid: chunks.Grid, dimensions: Sequence[str]
) -> None:
  """Creates an array that holds nothing yet."""
  # A chunk is a file, written under another name and then renamed.
  metadata = _metadata(grid) | {'dimension_names': dimensions}
  _open(path, create=True, metadata=metadata)


def _metadata(grid: chunks.Grid) -> dict[str, Any]:
  return {
    'shape': grid.shape,
    'data_type': grid.dtype,
    'chunk_grid': {
      'name': 'regular',
      'configuration': {'chunk_shape': grid.chunk},
    },
    'fill_value': 'NaN' if grid.dtype.startswith('float') else 0,
    'codecs': [
      {'name': 'bytes', 'configuration': {'endian': 'little'}},
      {'name': 'crc32c'},
    ],
  }


def create_column(path: pathlib.Path, values: np.ndarray) -> None:
  """Creates an array of one number a row, in one chunk."""
  rows = values.shape
  grid = chunks.Grid(rows, rows, values.dtype.name)
  create(path, grid, ('row',))
  opened(path).write(values).result()


def read_column(
  path: pathlib.Path, rows: int, dtype: str, *, whole: bool = True
) -> np.ndarray:
  """Reads an array of one number a row.

  Args:
    path: the array.
    rows: their number, which the caller trusts.
    dtype: NumPy's name.
    whole: whether chunks without a file are an error, and not zeros.

  Raises:
    ValueError, OSError: it is damaged, or another array.
  """
  grid = chunks.read(path)
  if (grid.shape, grid.dtype) != ((rows,), dtype):
    raise ValueError(
      f'{path.name} is {grid.dtype} {grid.shape}, not {dtype} of {rows} rows'
    )
  if chunks.held(path, grid) < grid.whole_bytes and whole:
    raise ValueError(f'{path.name} states {rows} rows, and its files hold less')
  return opened(path, whole=whole).read().result()


def opened(path: pathlib.Path, *, whole: bool = True) -> Any:
  """An array whose metadata `chunks` has checked, as TensorStore's.

  Args:
    path: the array.
    whole: whether to read a chunk without a file is a ValueError; otherwise it
      is the fill value, as in an array that is being written.
  """
  return _open(path, fill_missing_data_reads=not whole)


def read_into(array: Any, start: int, out: np.ndarray) -> None:
  """Fills `out` with the rows from `start` on, without a copy between.

  Raises:
    ValueError: a chunk is damaged or missing, or cannot be read.
  """
  target = _tensorstore().array(out)
  target.write(array[start : start + len(out)]).result()


def checksum(data: bytes) -> bytes:
  """The CRC-32C of bytes, of which there is one at least, as a chunk ends."""
  # TensorStore computes it only as a part of a chunk.
  spec = {
    'driver': 'zarr3',
    'kvstore': {'driver': 'memory'},
    'store_data_equal_to_fill_value': True,
    'metadata': _metadata(chunks.Grid((len(data),), (len(data),), 'uint8')),
  }
  array = _tensorstore().open(spec, create=True).result()
  array.write(np.frombuffer(data, np.uint8)).result()
  stored: bytes = array.kvstore.read('c/0').result().value
  return stored[-chunks.CHECKSUM_BYTES :]


def _open(path: pathlib.Path, *, create: bool = False, **more: Any) -> Any:
  spec = {
    'driver': 'zarr3',
    'kvstore': {'driver': 'file', 'path': str(path.absolute())},
    # Reads see the file's present state, and memory stays flat.
    'recheck_cached_data': True,
    'store_data_equal_to_fill_value': True,
    **more,
  }
  opening = _tensorstore().open(spec, open=not create, create=create)
  return opening.result()


def _tensorstore() -> Any:
  # Images that are not crops do not need it, and it takes a while to import.
  import tensorstore  # noqa: PLC0415

  return tensorstore
