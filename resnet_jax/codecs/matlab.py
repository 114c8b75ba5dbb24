# SPDX-License-Identifier: Apache-2.0
"""Arrays of structures in MATLAB's files.

SciPy's reader makes an object of each element, descends without a limit, and
believes stated dimensions; this one reads the numbers and texts of the fields
that are asked for, and skips the others.  Source: MAT-File Format, Level 5.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_HEADER_BYTES = 128
_ORDERS = {b'IM': '<', b'MI': '>'}
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMBERS = {
  **{1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4'},
  **{9: 'f8', 12: 'i8', 13: 'u8'},
}
_TEXTS = {2: 'utf-8', 4: 'utf-16', 16: 'utf-8', 17: 'utf-16', 18: 'utf-32'}
_MAX_DIMENSIONS = 32


@dataclasses.dataclass(frozen=True)
class _Element:
  kind: int
  data: memoryview


def structures(
  data: bytes, name: str, fields: Sequence[str], most: int
) -> list[tuple[float | str, ...]]:
  """The fields of a variable that is an array of structures, an entry each.

  Args:
    data: of the file.
    name: of the variable.
    fields: in the order wanted; each is a number or a text.
    most: bytes that the file may have when it is unpacked.

  Raises:
    ValueError: it is damaged or too large, or has no such variable.
  """
  order = _ORDERS.get(data[126:_HEADER_BYTES])
  if order is None:
    raise ValueError('it is not a Level 5 MAT-file')
  view = memoryview(data)[_HEADER_BYTES:]
  for element in _elements(view, order):
    if element.kind == _COMPRESSED:
      unpacker = zlib.decompressobj()
      try:
        unpacked = unpacker.decompress(element.data, max(most, 1))
      except zlib.error as error:
        raise ValueError(str(error)) from error
      if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError(f'it breaks off, or unpacks to more than {most} bytes')
      most -= len(unpacked)
      element = next(_elements(memoryview(unpacked), order))  # noqa: PLW2901
    if element.kind == _MATRIX:
      kind, count, found, rest = _matrix(element.data, order)
      if found == name and kind == _STRUCT:
        return _rows(rest, count, fields, order)
  raise ValueError(f'it has no {name} with {", ".join(fields)}')


def _elements(view: memoryview, order: str) -> Iterator[_Element]:
  at = 0
  while at + 8 <= len(view):
    kind, size = map(int, np.frombuffer(view, f'{order}u4', 2, at))
    if kind >> 16:
      # A small one: four bytes at most, beside their size and type.
      kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
      start = at + 8
      end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(view):
      raise ValueError(f'an element of {size} bytes breaks off')
    yield _Element(kind, view[start : start + size])
    at = end


def _matrix(
  view: memoryview, order: str
) -> tuple[int, int, str, Iterator[_Element]]:
  """Class, number of entries, name, and the elements that follow them."""
  parts = _elements(view, order)
  flags, sizes, name = (next(parts, None) for _ in range(3))
  if not flags or not sizes or not name or len(sizes.data) % 4:
    raise ValueError('a variable breaks off')
  (word,) = np.frombuffer(flags.data[:4], f'{order}u4')
  dimensions = np.frombuffer(sizes.data, f'{order}i4')
  if len(dimensions) > _MAX_DIMENSIONS or dimensions.min(initial=0) < 0:
    raise ValueError('a variable has impossible dimensions')
  count = math.prod(dimensions.tolist())
  return int(word) & 0xFF, count, bytes(name.data).decode('latin-1'), parts


def _rows(
  parts: Iterator[_Element], count: int, fields: Sequence[str], order: str
) -> list[tuple[float | str, ...]]:
  width, names = next(parts, None), next(parts, None)
  if not width or not names or len(width.data) < 4:
    raise ValueError('a structure breaks off')
  (length,) = np.frombuffer(width.data[:4], f'{order}i4').tolist()
  if length < 1:
    raise ValueError('a structure has fields without names')
  text = bytes(names.data).decode('latin-1')
  known = [
    text[at : at + length].partition('\0')[0]
    for at in range(0, len(text), length)
  ]
  if missing := [field for field in fields if field not in known]:
    raise ValueError(f'its structure has no {", ".join(missing)}')
  rows = []
  for _ in range(count):
    held = dict(zip(known, parts, strict=False))
    if len(held) < len(known):
      raise ValueError('a structure breaks off')
    rows.append(tuple(_value(held[field], order) for field in fields))
  return rows


def _value(element: _Element, order: str) -> float | str:
  """A number or a text."""
  if element.kind != _MATRIX:
    raise ValueError('a field is no array')
  kind, count, _, parts = _matrix(element.data, order)
  data = next(parts, None)
  if kind == _CHAR and data and data.kind in _TEXTS:
    end = {'<': '-le', '>': '-be'}[order] if data.kind not in (2, 16) else ''
    return bytes(data.data).decode(_TEXTS[data.kind] + end)
  if data and data.kind in _NUMBERS:
    values = np.frombuffer(data.data, order + _NUMBERS[data.kind])
    if count == len(values) == 1:
      return float(values[0])
  raise ValueError('a field is neither a number nor a text')
