# SPDX-License-Identifier: Apache-2.0
"""The members of a tar archive, by its headers alone.

Source: POSIX.1-2017, pax interchange format; GNU tar manual, "Basic Tar
Format" (long names, numbers in base 256).  The standard library's reader takes
a header that is cut off or damaged for the end of the archive, and an accuracy
over the images before it would look whole; here it is an error.
"""

import dataclasses
import io
import re
import shlex
from collections.abc import Iterator
from typing import BinaryIO

from resnet_jax.system import errors

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_NAME = 4096
_MAX_EXTENSION = 1 << 20
_CHECKSUM = slice(148, 156)
_REGULAR = b'0\0\x37'
_WITHOUT_DATA = b'123456'
# GNU's sparse file, whose map may go on in more blocks, and where they say so.
_SPARSE = b'S'
_MAP_GOES_ON, _MORE_GOES_ON = 482, 504
_SPARSE_NAME = 'GNU.sparse.name'
# A record of an extended header: its length, its name, its value.
_RECORD = re.compile(rb'([0-9]{1,7}) ([^=]+)=')
_AGAIN = 'Get or make the archive again.'


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
  """What a header says.

  Attributes:
    name: its path, relative, without a leading './'.
    offset: of its first byte in the archive.
    size: in bytes.
    kind: 'file', 'folder', or 'special': a link, a device, a sparse file.
  """

  name: str
  offset: int
  size: int
  kind: str


def is_tar(head: bytes) -> bool:
  """Whether these are the first 512 bytes of a tar archive."""
  if len(head) < _BLOCK:
    return False
  return head == _ZEROS or _checksum_fits(head)


def is_relative(name: str) -> bool:
  """Whether a name from an archive stays below wherever it is put."""
  parts = re.split(r'[/\\]', name)
  drive = bool(re.match(r'[A-Za-z]:', name))
  return not drive and '\0' not in name and bool(parts[0]) and '..' not in parts


def members(
  file: BinaryIO, path: object, end: int | None = None
) -> Iterator[Member]:
  """Yields the members in the order of the archive; reads headers only.

  The file is read forward, so it may be a gzip stream.  Between two members the
  caller may read it anywhere, a stream up to the end of the member.

  Args:
    file: the archive, open.
    path: its name in messages.
    end: its size, of a stream the largest allowed; None: the file's.

  Raises:
    UserError: the archive is damaged or cut off, or a member's name is
      absolute, leads out of the archive or too long.
  """
  mends = end is None
  if end is None:
    end = file.seek(0, io.SEEK_END)
  return _Headers(file, path, end, mends=mends).members()


class _Headers:
  """A position in an archive."""

  def __init__(
    self, file: BinaryIO, path: object, end: int, *, mends: bool
  ) -> None:
    self._file = file
    self._path = path
    self._end = end
    self._mends = mends
    self._offset = 0

  def members(self) -> Iterator[Member]:
    stated: dict[str, str] = {}
    while (block := self._block()) != _ZEROS:
      if not _checksum_fits(block):
        raise self._error('there is no header of a member')
      kind, size = block[156:157], self._number(block[124:136])
      if kind in b'xgLK':
        stated |= self._extension(kind, self._data(size))
        self._skip(size)
        continue
      size = int(stated.get('size', size))
      goes_on = kind == _SPARSE and block[_MAP_GOES_ON]
      while goes_on:
        goes_on = self._block()[_MORE_GOES_ON]
      member = self._member(block, kind, stated, size)
      stated = {}
      # Some writers give a link the size of what it leads to.
      if kind not in _WITHOUT_DATA:
        self._skip(size, member.name)
      yield member
    if stated:
      raise self._error('no member follows an extended header')
    self._check_rest()

  def _block(self) -> bytes:
    """The next 512 bytes."""
    self._file.seek(self._offset)
    block = self._file.read(_BLOCK)
    if not block and self._mends and 0 < self._offset == self._end:
      mend = f'tar -rf {shlex.quote(str(self._path))} -T /dev/null'
      raise self._error(
        'it ends there without an end mark, after a whole member: it is cut'
        f' off, or was written so. If nothing is missing, `{mend}` (GNU tar)'
        ' adds the mark'
      )
    if len(block) < _BLOCK:
      raise self._error('it ends there without an end mark, so it is cut off')
    self._advance(_BLOCK)
    return block

  def _advance(self, count: int) -> None:
    self._offset += count
    if self._offset > self._end:
      raise self._error(
        f'it unpacks to more than {self._end} bytes, the limit for its size'
      )

  def _data(self, size: int) -> bytes:
    """The contents of an extended header; the position stays."""
    if size > _MAX_EXTENSION:
      raise self._error(f'an extended header claims {size} bytes')
    return self._file.read(size)

  def _skip(self, size: int, name: str = 'an extended header') -> None:
    start = self._offset
    if size > self._end - start:
      raise self._error(
        f'{name} has {size} bytes by its header, and the archive at most'
        f' {self._end - start} more; it is cut off or damaged'
      )
    self._offset = start + -(-size // _BLOCK) * _BLOCK

  def _member(
    self, block: bytes, kind: bytes, stated: dict[str, str], size: int
  ) -> Member:
    name = stated.get(_SPARSE_NAME, stated.get('path'))
    if name is None:
      raw = block[:100].partition(b'\0')[0]
      # GNU's magic number ends in blanks, and its prefix field is another.
      prefix = block[345:500].partition(b'\0')[0]
      if block[257:263] == b'ustar\0' and prefix:
        raw = prefix + b'/' + raw
      name = self._text(raw)
    is_folder = kind == b'5' or (kind in _REGULAR and name.endswith('/'))
    while name.startswith('./'):
      name = name[2:].lstrip('/')
    name = name.rstrip('/')
    if name not in ('', '.') and not is_relative(name):
      raise self._error(
        f'the name {name!r} is not a path relative to the archive'
      )
    is_file = kind in _REGULAR and not any('sparse' in key for key in stated)
    form = 'folder' if is_folder else 'file' if is_file else 'special'
    return Member(name, self._offset, size, form)

  def _extension(self, kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header states of the next member."""
    if kind == b'L':
      return {'path': self._text(data.partition(b'\0')[0])}
    if kind == b'K':
      return {'linkpath': ''}
    stated = {}
    records = list(self._records(data))
    # POSIX's word for names in no known encoding; others are UTF-8.
    strict = (b'hdrcharset', b'BINARY') not in records
    for name, value in records:
      if name == b'path':
        stated['path'] = self._text(value, strict=strict)
      elif name == b'size':
        if not re.fullmatch(rb'[0-9]{1,18}', value):
          raise self._error(f'{value[:20]!r} is not a size')
        stated['size'] = value.decode()
      elif name == b'GNU.sparse.name':
        stated[_SPARSE_NAME] = self._text(value)
      elif name == b'linkpath' or name.startswith(b'GNU.sparse.'):
        stated[name.decode(errors='replace')] = ''
    if kind == b'g' and stated:
      raise self._error(
        f'a header for all members states their {next(iter(stated))}'
      )
    return stated

  def _records(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(data):
      match = _RECORD.match(data, start)
      end = start + int(match[1]) if match else 0
      value = data[match.end() : end] if match else b''
      if not match or end > len(data) or value[-1:] != b'\n':
        raise self._error('an extended header is damaged')
      yield match[2], value[:-1]
      start = end

  def _text(self, raw: bytes, *, strict: bool = False) -> str:
    """A name; outside of pax headers its encoding is not known."""
    if len(raw) > _MAX_NAME:
      raise self._error(f'a name has {len(raw)} bytes, more than {_MAX_NAME}')
    try:
      return raw.decode('utf-8', 'strict' if strict else 'backslashreplace')
    except UnicodeDecodeError as error:
      raise self._error(f'the name {raw!r} is not UTF-8') from error

  def _number(self, field: bytes) -> int:
    """A number in octal digits, or in base 256 after a byte 0x80."""
    if field[0] == 0x80:
      return int.from_bytes(field[1:], 'big')
    digits = field.strip(b' \0')
    if not re.fullmatch(rb'[0-7]*', digits):
      raise self._error(f'{field!r} is not a size')
    return int(digits or b'0', 8)

  def _check_rest(self) -> None:
    """Only zeros may follow the end: no second archive, unread."""
    start = self._offset
    self._file.seek(start)
    while chunk := self._file.read(1 << 20):
      self._advance(len(chunk))
      if chunk.count(0) != len(chunk):
        self._offset = start + _BLOCK
        raise self._error(
          'its end is marked there, and more follows, as in concatenated'
          ' archives'
        )

  def _error(self, what: str) -> errors.UserError:
    at = max(self._offset - _BLOCK, 0)
    return errors.UserError(
      f'the tar archive {self._path} cannot be used: at byte {at}: {what}.'
      f' {_AGAIN}'
    )


def _checksum_fits(block: bytes) -> bool:
  digits = block[_CHECKSUM].strip(b' \0')
  if not re.fullmatch(rb'[0-7]{1,7}', digits):
    return False
  # The sum counts its own field as blanks.
  total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(' ')
  return total == int(digits, 8)
