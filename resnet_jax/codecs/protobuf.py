# SPDX-License-Identifier: Apache-2.0
"""The wire format of Protocol Buffers, read strictly and without copies.

A message is a sequence of fields, each a key (field number and wire type) and a
value; it does not state the meaning of the numbers.  Every error is a
ValueError.  Source: protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_WIDTHS = {FIXED64: 8, FIXED32: 4}
_KINDS = {
  VARINT: 'an integer',
  FIXED64: '8 bytes',
  BYTES: 'a string of bytes',
  FIXED32: '4 bytes',
}
_GROUPS = (3, 4)
_MAX_NUMBER = 2**29 - 1
_MAX_VARINT_BYTES = 10


class Field(NamedTuple):
  """A field of a message; the methods check the wire type.

  Attributes:
    number: in the message's description.
    wire: VARINT, FIXED64, BYTES or FIXED32.
    value: of a VARINT, unsigned; else 0.
    data: of the other types, little-endian; empty for a VARINT.
  """

  number: int
  wire: int
  value: int
  data: memoryview

  def integer(self) -> int:
    """The value of an integer."""
    self._check(VARINT)
    return self.value

  def message(self) -> memoryview:
    """The bytes of a message or a string."""
    self._check(BYTES)
    return self.data

  def text(self) -> str:
    """A string."""
    try:
      return bytes(self.message()).decode()
    except UnicodeDecodeError as error:
      raise ValueError(f'field {self.number} is not UTF-8') from error

  def float32(self) -> float:
    """One 32-bit floating point number."""
    self._check(FIXED32)
    return float(struct.unpack('<f', self.data)[0])

  def fixed(self, wire: int) -> memoryview:
    """One FIXED32 or FIXED64 value of a repeated field, or packed values."""
    if self.wire == wire:
      return self.data
    packed = self.message()
    if len(packed) % _WIDTHS[wire]:
      raise ValueError(
        f'field {self.number} has {len(packed)} bytes, not a multiple of'
        f' {_WIDTHS[wire]}'
      )
    return packed

  def integers(self, most: int) -> list[int]:
    """One integer of a repeated field, or up to `most` packed ones."""
    if self.wire == VARINT:
      return [self.value]
    packed, at, found = self.message(), 0, []
    while at < len(packed):
      value, at = varint(packed, at)
      found.append(value)
      if len(found) > most:
        raise ValueError(f'field {self.number} has more than {most} values')
    return found

  def _check(self, wire: int) -> None:
    if self.wire != wire:
      raise ValueError(
        f'field {self.number} is {_KINDS[self.wire]}, not {_KINDS[wire]}'
      )


def varint(view: memoryview, at: int) -> tuple[int, int]:
  """An unsigned integer of variable length, and its end."""
  value = 0
  for count, byte in enumerate(view[at : at + _MAX_VARINT_BYTES]):
    value |= (byte & 0x7F) << (7 * count)
    if byte < 0x80:
      if value >= 2**64:
        raise ValueError('an integer has more than 64 bits')
      return value, at + count + 1
  if len(view) - at < _MAX_VARINT_BYTES:
    raise ValueError('it breaks off in an integer')
  raise ValueError(f'an integer has more than {_MAX_VARINT_BYTES} bytes')


def key(view: memoryview, at: int) -> tuple[int, int, int]:
  """A field's number and wire type, and the offset of its value."""
  both, at = varint(view, at)
  number, wire = both >> 3, both & 7
  if wire in _GROUPS:
    raise ValueError(f'field {number} is a group, which is not supported')
  if wire not in _KINDS:
    raise ValueError(f'field {number} has the wire type {wire}')
  if not 1 <= number <= _MAX_NUMBER:
    raise ValueError(f'a field has the number {number}')
  return number, wire, at


def fields(view: memoryview) -> Iterator[Field]:
  """The fields of a message, in its order.

  Raises:
    ValueError: the message is damaged or cut off.
  """
  at, none = 0, view[:0]
  while at < len(view):
    number, wire, at = key(view, at)
    if wire == VARINT:
      value, at = varint(view, at)
      yield Field(number, wire, value, none)
      continue
    length = _WIDTHS.get(wire)
    if length is None:
      length, at = varint(view, at)
    if length > len(view) - at:
      raise ValueError(
        f'field {number} needs {length} bytes, and {len(view) - at} are left'
      )
    yield Field(number, wire, 0, view[at : at + length])
    at += length
