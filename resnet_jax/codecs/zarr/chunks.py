# SPDX-License-Identifier: Apache-2.0
"""What a stored array states of itself, checked before TensorStore opens it.

TensorStore overflows the stack on deeply nested JSON, ends the process when it
cannot allocate a chunk as large as stated, and waits for a pipe.
"""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from resnet_jax.system import files
from resnet_jax.system.text import some

# What an array of ours may be coded by: neither changes its size by much.
_CODECS = ('bytes', 'crc32c')
CHECKSUM_BYTES = 4
_DTYPES = ('float32', 'float16', 'int32', 'int64', 'uint8')
# How chunks are named, such as c/0/1, and the default of its separator.
_NAMING = 'default', '/'
_SEPARATOR = 'separator', '/'


@dataclasses.dataclass(frozen=True)
class Grid:
  """An array in chunks.

  Attributes:
    shape: of the array.
    chunk: the shape of a chunk, which is a file.
    dtype: NumPy's name.
  """

  shape: tuple[int, ...]
  chunk: tuple[int, ...]
  dtype: str

  def bytes_of(self, shape: tuple[int, ...]) -> int:
    """Bytes of values of a shape."""
    return math.prod(shape) * np.dtype(self.dtype).itemsize

  @property
  def whole_bytes(self) -> int:
    """Bytes of all chunks, with the padding of the last, without checksums."""
    parts = zip(self.shape, self.chunk, strict=True)
    return self.bytes_of(
      tuple(-(-whole // part) * part for whole, part in parts)
    )


def read(path: pathlib.Path) -> Grid:
  """What the `zarr.json` of an array states.

  Raises:
    ValueError, OSError: it is damaged, or not of an array of this program.
  """
  stated = files.read_json(path / 'zarr.json')
  try:
    shape = sizes(stated['shape'])
    chunk = sizes(stated['chunk_grid']['configuration']['chunk_shape'])
    dtype = str(stated['data_type'])
    codecs = [str(codec['name']) for codec in stated['codecs']]
    naming = stated['chunk_key_encoding']
    named = naming['name'], naming.get('configuration', {}).get(*_SEPARATOR)
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError(f'{path.name} does not state {error}') from error
  if unknown := [name for name in codecs if name not in _CODECS]:
    raise ValueError(f'{path.name} has the codec {some(unknown)}')
  if named != _NAMING:
    raise ValueError(f'{path.name} names its chunks by {some([repr(named)])}')
  if dtype not in _DTYPES:
    raise ValueError(f'{path.name} has the data type {dtype[:99]}')
  fits = len(chunk) == len(shape) and all(
    1 <= part <= max(whole, 1) for part, whole in zip(chunk, shape, strict=True)
  )
  if not fits:
    raise ValueError(
      f'{path.name} states the shape {shape} in chunks of {chunk}'
    )
  return Grid(shape, chunk, dtype)


def held(path: pathlib.Path, grid: Grid) -> int:
  """The bytes in the files of an array; each must fit into a chunk.

  Raises:
    ValueError, OSError: one does not, or is not a regular file.
  """
  most = grid.bytes_of(grid.chunk) + CHECKSUM_BYTES
  total = 0
  for file in (path / 'c').rglob('*'):
    if file.is_dir():
      continue
    try:
      size = files.size(file)
    except OSError as error:
      where = file.relative_to(path.parent).as_posix()
      raise ValueError(f'{where}: {error.strerror or error}') from error
    if size > most:
      where = file.relative_to(path.parent).as_posix()
      raise ValueError(f'{where} has {size} bytes, and a chunk {most}')
    total += size
  return total


def sizes(stated: Any) -> tuple[int, ...]:
  """A stated shape; raises a TypeError if it is none."""
  shape = tuple(stated)
  if not all(type(size) is int and 0 <= size < 2**62 for size in shape):
    raise TypeError('its sizes as whole numbers')
  return shape
