# SPDX-License-Identifier: Apache-2.0
"""One-dimensional Zarr arrays of strings, which TensorStore cannot write.

Data type `string` and codec `vlen-utf8` of the Zarr extensions registry: a
chunk holds the number of its strings (uint32, little-endian) and, for each, the
number of its UTF-8 bytes (uint32) and the bytes.  A CRC-32C follows, which
stores of earlier versions lack.
"""

import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from resnet_jax.codecs.zarr import arrays, chunks
from resnet_jax.system import files

_STRINGS, _CHECKSUM = 'vlen-utf8', 'crc32c'
# The keys of millions of images, in one chunk.
_MAX_CHUNK_BYTES = 1 << 32


def create(path: pathlib.Path, rows: int, chunk: int) -> None:
  """Creates an array of `rows` empty strings, `chunk` per file."""
  grid = {'name': 'regular', 'configuration': {'chunk_shape': [chunk]}}
  keys = {'name': 'default', 'configuration': {'separator': '/'}}
  metadata = {
    'zarr_format': 3,
    'node_type': 'array',
    'shape': [rows],
    'data_type': 'string',
    'chunk_grid': grid,
    'chunk_key_encoding': keys,
    'fill_value': '',
    'codecs': [{'name': _STRINGS}, {'name': _CHECKSUM}],
    'attributes': {},
    'dimension_names': ['row'],
  }
  (path / 'c').mkdir(parents=True, exist_ok=True)
  files.write_json(path / 'zarr.json', metadata)


def write_chunk(
  path: pathlib.Path, index: int, values: Sequence[str], chunk: int
) -> None:
  """Writes one chunk; the last one is padded with empty strings.

  A run that an earlier version began goes on without checksums.
  """
  checked = _is_checked(path, files.read_json(path / 'zarr.json'))
  padding = [''] * (chunk - len(values))
  texts = [text.encode() for text in (*values, *padding)]
  parts = [struct.pack('<I', len(text)) + text for text in texts]
  data = b''.join([struct.pack('<I', chunk), *parts])
  if checked:
    data += arrays.checksum(data)
  files.write_atomically(path / 'c' / str(index), data)


def remove_chunk(path: pathlib.Path, index: int) -> None:
  """Makes the strings of a chunk empty again."""
  (path / 'c' / str(index)).unlink(missing_ok=True)


def read(
  path: pathlib.Path,
  rows: int | None = None,
  *,
  whole: bool = True,
  span: tuple[int, int] | None = None,
) -> list[str]:
  """Reads the strings of an array.

  Args:
    path: the array.
    rows: the expected number, if known.
    whole: whether chunks without a file are an error, and not empty strings.
      `rows` must be known for these: a made-up number would claim any memory.
    span: the first row, and the one after the last; None: all.

  Raises:
    ValueError, OSError: the array is damaged.
  """
  metadata = files.read_json(path / 'zarr.json')
  (stated,) = metadata['shape']
  (chunk,) = metadata['chunk_grid']['configuration']['chunk_shape']
  checked = _is_checked(path, metadata)
  if rows not in (None, stated) or not 0 < chunk <= stated:
    raise ValueError(f'{path.name} states {stated} rows in chunks of {chunk}')
  first, stop = span or (0, stated)
  begin = first // chunk
  values: list[str] = []
  for index in range(begin, -(-stop // chunk)):
    file = path / 'c' / str(index)
    if whole or file.exists():
      data = files.read(file, _MAX_CHUNK_BYTES)
      values += _decode(_verified(data, file) if checked else data, chunk)
    else:
      values += [''] * min(chunk, stated - index * chunk)
  return values[first - begin * chunk : stop - begin * chunk]


def _is_checked(path: pathlib.Path, metadata: Any) -> bool:
  """Whether the chunks of an array end with a checksum."""
  names = [codec['name'] for codec in metadata['codecs']]
  if names not in ([_STRINGS], [_STRINGS, _CHECKSUM]):
    raise ValueError(
      f'{path.name} has other codecs than {_STRINGS} and {_CHECKSUM}'
    )
  return len(names) > 1


def _verified(data: bytes, file: pathlib.Path) -> bytes:
  """What a checksum follows."""
  values, stated = (
    data[: -chunks.CHECKSUM_BYTES],
    data[-chunks.CHECKSUM_BYTES :],
  )
  if not values or arrays.checksum(values) != stated:
    where = file.relative_to(file.parents[2]).as_posix()
    raise ValueError(f'{where}: its strings do not match their checksum')
  return values


def _decode(data: bytes, chunk: int) -> Iterator[str]:
  (count,) = struct.unpack_from('<I', data)
  if count != chunk:
    raise ValueError(f'a chunk of {count} strings, where {chunk} are expected')
  start = 4
  for _ in range(count):
    (size,) = struct.unpack_from('<I', data, start)
    text = data[start + 4 : start + 4 + size]
    if len(text) < size:
      raise ValueError('a chunk of strings breaks off')
    yield text.decode()
    start += 4 + size
  if start < len(data):
    raise ValueError('a chunk of strings has more bytes than they')
