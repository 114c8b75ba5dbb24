# SPDX-License-Identifier: Apache-2.0
"""Checks of HDF5's bytes, where the library trusts them.

HDF5 2.0 allocates up to 4 GiB for a string by its stated length, and loops
forever over a damaged heap.  So lengths are read from the object header first,
and heaps are walked once.  Source: the HDF5 File Format Specification 3.0,
III.E (global heap) and IV.A (object headers, messages 0x0C and 0x10).
"""

import io
from collections.abc import Iterator
from typing import BinaryIO

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
_SHARED = 2  # a flag: the message is elsewhere
_MAX_BLOCKS = 100
_HEAP = b'GCOL\x01'  # a heap's signature and version
_MAX_OBJECTS = 200_000  # in heaps; ResNet-152 with everything has 2,000
_BLOCK = 2**22  # bytes searched at once


def check_heaps(stream: BinaryIO) -> None:
  """Raises a ValueError if a heap is circular or holds too many objects."""
  size = stream.seek(0, io.SEEK_END)
  objects = 0
  for start in _places(stream, _HEAP, size):
    length = _number(_read(stream, start + 8, 8))
    if not 16 <= length <= size - start:
      raise ValueError(f'the heap at {start} states {length} bytes')
    at, end = start + 16, start + length
    # A remainder too small for an object is free space.
    while at + 16 <= end:
      header = _read(stream, at, 16)
      width = _number(header[8:])
      # A free object's size includes its header.
      step = 16 + -(-width // 8) * 8 if _number(header[:2]) else width
      if step < 16 or at + step > end:
        raise ValueError(f'an object in the heap at {start} is {width} bytes')
      at += step
      objects += 1
      if objects > _MAX_OBJECTS:
        raise ValueError(f'its heaps hold more than {_MAX_OBJECTS} objects')


def text_length(stream: BinaryIO, address: int, name: str) -> int:
  """The stated length, in bytes, of a string of variable length.

  Args:
    stream: the file.
    address: of the object header that holds the attribute.
    name: of the attribute.

  Raises:
    ValueError: the attribute is not in the header.
  """
  for kind, flags, body in _messages(stream, address):
    if kind == _ATTRIBUTE and not flags & _SHARED:
      found, data = _attribute(body)
      if found == name.encode():
        return _number(data[:4])
  raise ValueError('it is not in its object header')


def _attribute(body: bytes) -> tuple[bytes, bytes]:
  """The name and the data."""
  version = body[0]
  sizes = [_number(body[at : at + 2]) for at in (2, 4, 6)]
  start = 9 if version == 3 else 8
  name = body[start : start + sizes[0]].rstrip(b'\0')
  if version == 1:
    sizes = [-(-size // 8) * 8 for size in sizes]
  return name, body[start + sum(sizes) :]


def _messages(
  stream: BinaryIO, address: int
) -> Iterator[tuple[int, int, bytes]]:
  """Yields type, flags and bytes of the messages of an object header."""
  head = _read(stream, address, 16)
  second = head[:4] == b'OHDR'
  if second:
    flags = head[5]
    at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = _number(_read(stream, address + at, width))
    blocks = [(address + at + width, size)]
    prefix = 6 if flags & 4 else 4
  else:
    blocks = [(address + 16, _number(head[8:12]))]
    prefix = 8
  # A block can lead on to others, and to itself.
  for number, (start, size) in enumerate(blocks):
    if number > _MAX_BLOCKS:
      raise ValueError('an object header has too many blocks')
    at, end = start, start + size
    while at + prefix <= end:
      header = _read(stream, at, prefix)
      if second:
        kind, length, message_flags = header[0], header[1:3], header[3]
      else:
        kind, length = _number(header[:2]), header[2:4]
        message_flags = header[4]
      body = _read(stream, at + prefix, _number(length))
      yield kind, message_flags, body
      if kind == _CONTINUATION:
        place, more = _number(body[:8]), _number(body[8:16])
        # Version 2 has a signature before it and a checksum after it.
        blocks.append((place + 4, more - 8) if second else (place, more))
      at += prefix + len(body)


def _read(stream: BinaryIO, at: int, count: int) -> bytes:
  stream.seek(at)
  data = stream.read(count)
  if len(data) != count:
    raise ValueError(f'it ends before byte {at + count}')
  return data


def _number(data: bytes) -> int:
  return int.from_bytes(data, 'little')


def _places(stream: BinaryIO, wanted: bytes, size: int) -> Iterator[int]:
  """Yields the offsets of some bytes in a stream."""
  for begin in range(0, size, _BLOCK):
    stream.seek(begin)
    block = stream.read(_BLOCK + len(wanted) - 1)
    at = block.find(wanted)
    while at >= 0:
      yield begin + at
      at = block.find(wanted, at + 1)
