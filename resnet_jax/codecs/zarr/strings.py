# SPDX-License-Identifier: Apache-2.0
"""One-dimensional Zarr arrays of strings, which TensorStore cannot write.

Data type `string` and codec `vlen-utf8` of the Zarr extensions registry: a
chunk holds the number of its strings (uint32, little-endian) and, for each, the
number of its UTF-8 bytes (uint32) and the bytes.
"""

import pathlib
import struct
from collections.abc import Iterator, Sequence

from resnet_jax.system import files

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
    'codecs': [{'name': 'vlen-utf8'}],
    'attributes': {},
    'dimension_names': ['row'],
  }
  (path / 'c').mkdir(parents=True, exist_ok=True)
  files.write_json(path / 'zarr.json', metadata)


def write_chunk(
  path: pathlib.Path, index: int, values: Sequence[str], chunk: int
) -> None:
  """Writes one chunk; the last one is padded with empty strings."""
  padding = [''] * (chunk - len(values))
  texts = [text.encode() for text in (*values, *padding)]
  data = [struct.pack('<I', len(text)) + text for text in texts]
  data.insert(0, struct.pack('<I', chunk))
  files.write_atomically(path / 'c' / str(index), b''.join(data))


def remove_chunk(path: pathlib.Path, index: int) -> None:
  """Makes the strings of a chunk empty again."""
  (path / 'c' / str(index)).unlink(missing_ok=True)


def read(path: pathlib.Path, rows: int | None = None) -> list[str]:
  """Reads all strings of an array.

  Args:
    path: the array.
    rows: the expected number, in chunks that may be missing (empty strings);
      without it no chunk may be missing, so that a made-up size claims no
      memory.

  Raises:
    ValueError, OSError: the array is damaged.
  """
  metadata = files.read_json(path / 'zarr.json')
  (stated,) = metadata['shape']
  (chunk,) = metadata['chunk_grid']['configuration']['chunk_shape']
  if metadata['codecs'] != [{'name': 'vlen-utf8'}]:
    raise ValueError(f'{path.name} has other codecs than vlen-utf8')
  if rows not in (None, stated) or not 0 < chunk <= stated:
    raise ValueError(f'{path.name} states {stated} rows in chunks of {chunk}')
  values: list[str] = []
  for index in range(-(-stated // chunk)):
    file = path / 'c' / str(index)
    if rows is None or file.exists():
      values += _decode(files.read(file, _MAX_CHUNK_BYTES), chunk)
    else:
      values += [''] * min(chunk, stated - len(values))
  return values[:stated]


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
