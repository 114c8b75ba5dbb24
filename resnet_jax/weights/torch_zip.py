# SPDX-License-Identifier: Apache-2.0
"""The zip archives that PyTorch writes, with members that are stored only.

Source: PKWARE's APPNOTE 6.3, section 4.3, with zip64.  Python's `zipfile` is
no place for files that nobody vouches for: it makes an object of each entry,
however many a file claims, and unpacks.
"""

import binascii
import dataclasses
import struct
from collections.abc import Iterator
from typing import BinaryIO

_END = struct.Struct('<4s4H2LH')
_LOCATOR = struct.Struct('<4sLQL')
_END64 = struct.Struct('<4sQ2H2L4Q')
_ENTRY = struct.Struct('<4s6H3L5H2L')
_LOCAL = struct.Struct('<4s5H3L2H')
_EXTRA = struct.Struct('<2H')
_ZIP64, _HERE_NOT = 1, 0xFFFFFFFF
_ENCRYPTED, _STORED = 1, 0
# ResNet-152 with AdamW's state has 2339 entries of 60 bytes or so.
MAX_DIRECTORY = 4 << 20


@dataclasses.dataclass(frozen=True)
class Member:
  """An entry of an archive's directory.

  Attributes:
    name: with its folders.
    header: where the member begins, bytes.
    size: of its contents, bytes.
    stored: whether it is neither compressed nor encrypted.
    checksum: CRC-32 of its contents; 0: PyTorch was told to compute none.
  """

  name: str
  header: int
  size: int
  stored: bool
  checksum: int


def directory(file: BinaryIO, size: int) -> dict[str, Member]:
  """The members by name.

  Args:
    file: open for reading.
    size: of the file, bytes.

  Raises:
    ValueError: it is no archive of PyTorch's kind; says why.
  """
  offset, length, count = _find_directory(file, size)
  if length > MAX_DIRECTORY:
    raise ValueError(
      f'its zip directory has {length} bytes, more than {MAX_DIRECTORY}'
    )
  if offset + length > size:
    raise ValueError('its zip directory lies outside the file')
  members: dict[str, Member] = {}
  for member in _entries(_at(file, offset, length), count):
    _check(member, members, size)
    members[member.name] = member
  return members


def read(file: BinaryIO, member: Member) -> bytes:
  """The contents of a member of `directory`.

  Raises:
    ValueError: they are not stored, or not what the directory states.
  """
  if not member.stored:
    raise ValueError(
      f'{member.name!r:.99} is compressed or encrypted, not stored as is'
    )
  header = _at(file, member.header, _LOCAL.size)
  signature, *_, name_size, extra_size = _LOCAL.unpack(header)
  name = _at(file, member.header + _LOCAL.size, name_size)
  if signature != b'PK\3\4' or name != member.name.encode():
    raise ValueError(
      f'{member.name!r:.99} is not where the zip directory has it'
    )
  start = member.header + _LOCAL.size + name_size + extra_size
  data = _at(file, start, member.size)
  if member.checksum not in (0, binascii.crc32(data)):
    raise ValueError(f'{member.name!r:.99} does not have its checksum')
  return data


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
  # The caller has held the size against that of the file.
  file.seek(offset)
  data = file.read(size)
  if len(data) != size:
    raise ValueError('it breaks off')
  return data


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
  """Where the directory is, its bytes, its entries."""
  start = size - _END.size
  end = _at(file, start, _END.size) if start >= 0 else b''
  if not end.startswith(b'PK\5\6'):
    raise ValueError('it breaks off: its end is not that of a zip archive')
  *_, count, length, offset, _ = _END.unpack(end)
  if start >= _LOCATOR.size:
    locator = _at(file, start - _LOCATOR.size, _LOCATOR.size)
    signature, _, where, _ = _LOCATOR.unpack(locator)
    if signature == b'PK\6\7':
      if where + _END64.size > size:
        raise ValueError('its zip64 record lies outside the file')
      end = _at(file, where, _END64.size)
      signature, *_, count, length, offset = _END64.unpack(end)
      if signature != b'PK\6\6':
        raise ValueError('it has no zip64 record where it states one')
  return offset, length, count


def _entries(data: bytes, count: int) -> Iterator[Member]:
  at = 0
  for _ in range(count):
    if at + _ENTRY.size > len(data):
      raise ValueError('its zip directory breaks off')
    fields = _ENTRY.unpack_from(data, at)
    signature, flags, method, checksum = (fields[i] for i in (0, 3, 4, 7))
    packed, size, name_size, extra_size, comment_size = fields[8:13]
    header = fields[-1]
    if signature != b'PK\1\2':
      raise ValueError('its zip directory has something that is no entry')
    at += _ENTRY.size
    name_end = at + name_size
    extra = data[name_end : name_end + extra_size]
    try:
      name = data[at:name_end].decode()
    except UnicodeDecodeError as error:
      raise ValueError('its zip directory has a name not in UTF-8') from error
    size, packed, header = _wide(extra, size, packed, header)
    # TorchScript compresses its code, which is not read.
    stored = method == _STORED and not flags & _ENCRYPTED and packed == size
    yield Member(name, header, size, stored, checksum)
    at = name_end + extra_size + comment_size


def _wide(extra: bytes, *values: int) -> list[int]:
  """The values, those that do not fit into 32 bits from the zip64 field."""
  found, at = b'', 0
  while at + _EXTRA.size <= len(extra):
    kind, length = _EXTRA.unpack_from(extra, at)
    at += _EXTRA.size
    if kind == _ZIP64:
      found = extra[at : at + length]
    at += length
  result = []
  for value in values:
    wide = value
    if value == _HERE_NOT:
      if len(found) < 8:
        raise ValueError('its zip directory has no zip64 field for an entry')
      wide, found = int.from_bytes(found[:8], 'little'), found[8:]
    result.append(wide)
  return result


def _check(member: Member, known: dict[str, Member], size: int) -> None:
  name = f'{member.name!r:.99}'
  if member.name in known:
    raise ValueError(f'it has two entries {name}')
  escapes = member.name.startswith('/') or '..' in member.name.split('/')
  if escapes or '\\' in member.name or not member.name.isprintable():
    raise ValueError(f'its entry {name} is not a name within the archive')
  held = member.size if member.stored else 0
  if member.header + _LOCAL.size + held > size:
    raise ValueError(
      f'its entry {name} has {member.size} bytes, which lie outside the file'
    )
