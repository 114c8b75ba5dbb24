# SPDX-License-Identifier: Apache-2.0
"""Zip archives on the standard library's `zipfile`, bounded.

`zipfile` makes an object of every entry of the directory, and inflates without
a limit; here the sizes of both are checked first.  Stored members are read in
place.  Source: PKWARE's APPNOTE 6.3, section 4.3.
"""

import contextlib
import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from resnet_jax.codecs import faults
from resnet_jax.system import files

MAGIC = b'PK\x03\x04'

_LOCAL = struct.Struct('<4s5H3L2H')
_ENCRYPTED = 1


def holds(
  path: pathlib.Path,
  head: bytes,
  wanted: Callable[[str], bool],
  max_directory: int,
) -> bool:
  """Whether a file is a zip archive with a member of a wanted name.

  The head has the first one's name, so that a truncated file is recognised.
  """
  if not head.startswith(MAGIC):
    return False
  first = head[30 : 30 + int.from_bytes(head[26:28], 'little')]
  if wanted(first.decode(errors='replace')):
    return True
  try:
    with files.opened(path) as file:
      return any(map(wanted, ZipArchive(file, max_directory).members))
  except (OSError, ValueError):
    return False


class ZipArchive:
  """An open archive.

  Attributes:
    members: by name.
  """

  def __init__(self, file: BinaryIO, max_directory: int) -> None:
    """Reads the directory.

    Args:
      file: open for reading; stays the caller's.
      max_directory: bytes that the directory may have.

    Raises:
      ValueError: the archive is damaged or its directory too large.
    """
    self._file = file
    size = file.seek(0, io.SEEK_END)
    bounded = _Bounded(file, max_directory)
    self.members: dict[str, zipfile.ZipInfo] = {}
    with _damage():
      self._zip = zipfile.ZipFile(bounded)
    bounded.most = size
    for info in self._zip.infolist():
      name = f'{info.filename!r:.99}'
      if info.filename in self.members:
        raise ValueError(f'it has two entries {name}')
      end = info.header_offset + _LOCAL.size + info.compress_size
      if info.header_offset < 0 or end > size:
        raise ValueError(
          f'its entry {name} has {info.file_size} bytes, which lie outside the'
          ' file'
        )
      self.members[info.filename] = info

  def read(self, name: str) -> bytes:
    """The contents of a stored member.

    A CRC-32 of 0 is not checked: PyTorch can be told to compute none.

    Raises:
      ValueError: the member is damaged, compressed or encrypted.
      OSError: the file cannot be read.
    """
    info, shown = self.members[name], f'{name!r:.99}'
    if (
      info.compress_type != zipfile.ZIP_STORED
      or info.flag_bits & _ENCRYPTED
      or info.compress_size != info.file_size
    ):
      raise ValueError(f'{shown} is compressed or encrypted, not stored as is')
    self._file.seek(info.header_offset)
    header = self._file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(MAGIC):
      raise ValueError(f'{shown} is not where the zip directory has it')
    *_, name_size, extra_size = _LOCAL.unpack(header)
    self._file.seek(name_size + extra_size, io.SEEK_CUR)
    data = self._file.read(info.file_size)
    if len(data) < info.file_size:
      raise ValueError(f'it breaks off in {shown}')
    if info.CRC not in (0, zlib.crc32(data)):
      raise ValueError(f'Bad CRC-32 for {shown}')
    return data

  def inflate(self, name: str, most: int) -> bytes:
    """The contents of a member that is stored or deflated.

    Args:
      name: of the member.
      most: bytes that it may have.

    Raises:
      RefusedError: it states more, or is compressed in another way.
      ValueError: it is damaged, or not in the archive.
    """
    with _damage():
      info = self._zip.getinfo(name)
      known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
      if info.file_size > most or not known:
        raise faults.RefusedError(
          f'its member {name} states {info.file_size} bytes, compressed to'
          f' {info.compress_size} by method {info.compress_type}; {most} bytes,'
          ' and methods 0 and 8, are allowed'
        )
      with self._zip.open(info) as member:
        # Reading to the end would inflate without a limit.
        data = member.read(info.file_size)
      if len(data) != info.file_size:
        raise EOFError(f'{name} has {len(data)} bytes, not {info.file_size}')
      return data


class _Bounded:
  """A file that refuses to read more than `most` bytes at once.

  `zipfile` reads the whole directory at once, by its stated size.
  """

  def __init__(self, file: BinaryIO, most: int) -> None:
    self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
    self._read = file.read
    self.most = most

  def read(self, count: int = -1) -> bytes:
    if count > self.most:
      raise zipfile.BadZipFile(
        f'its zip directory has {count} bytes, more than {self.most}'
      )
    return self._read(count)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
  """Turns what `zipfile` raises for damaged archives into a ValueError."""
  try:
    yield
  except (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError),
    *(RuntimeError, NotImplementedError, struct.error),
  ) as error:
    text = error.args[0] if isinstance(error, KeyError) else error
    raise ValueError(f'{text}'[:300]) from error
