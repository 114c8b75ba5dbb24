# SPDX-License-Identifier: Apache-2.0
"""The archive in which Paddle's directories were published.

`resnet_50.tar.gz`: a tar of the directory of `paddle`, packed by gzip.  It is
read twice: once for names and sizes, to the end, so that gzip's checksum has
been seen; and once, when these are known to be those of a ResNet, for the
values.  Nothing is unpacked to the disk.  Sources: RFC 1952 (gzip), POSIX.1
`pax` (ustar and extended headers).
"""

import functools
import gzip
import io
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

from resnet_jax.system import errors
from resnet_jax.weights import assemble, paddle

_GZIP = b'\x1f\x8b'
_BLOCK = 512
_CHUNK = 1 << 20
# Weights do not pack to less than nine tenths.
_MAX_RATIO = 20
_MAX_FOLDERS = 2
_MAX_EXTENDED = 1 << 16
# What an extended header may not say otherwise than the header behind it.
_OVERRIDES = (b' path=', b' linkpath=', b' size=', b' GNU.sparse')
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS = {
  tarfile.SYMTYPE: 'a symbolic link',
  tarfile.LNKTYPE: 'a hard link',
  tarfile.CHRTYPE: 'a device',
  tarfile.BLKTYPE: 'a device',
  tarfile.FIFOTYPE: 'a pipe',
}


class _RefusedError(Exception):
  """What a sound archive holds and no archive of weights does."""


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file begins as a tar, packed by gzip or not."""
  del path
  if head.startswith(_GZIP):
    try:
      head = zlib.decompressobj(wbits=31).decompress(head, _BLOCK)
    except zlib.error:
      return False
  try:
    member = _header(head[:_BLOCK])
  except tarfile.HeaderError:
    return False
  # PyTorch wrote tars once, without a folder.
  return (
    member.type in (*_EXTENDED, tarfile.DIRTYPE)
    or '/' in member.name
    or member.name in paddle.known_files()
  )


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads an archive.

  Raises:
    UserError: it is damaged, holds anything else than the files of a ResNet,
      or files that `paddle.load` refuses.
  """
  # Read when all names and sizes are known to be right.
  contents = functools.cache(
    lambda: {name: data for name, _, data in _members(path, keep=True)}
  )

  def file(name: str, size: int) -> paddle.File:
    return paddle.File(lambda: size, lambda _: contents()[name])

  found = {name: file(name, size) for name, size in _sizes(path).items()}
  return paddle.load_files(path, found, 'Paddle archive (tar)', options)


class _Member(NamedTuple):
  """A file of an archive.

  Attributes:
    name: without the folder.
    size: bytes.
    data: them, or none.
  """

  name: str
  size: int
  data: bytes


class _Stream:
  """Unpacked bytes, one after the other."""

  def __init__(self, file: BinaryIO, most: int) -> None:
    self._file = file
    self._most = most
    self.position = 0

  def some(self, count: int) -> bytes:
    """At most so many bytes; none at the end."""
    data = self._file.read(count)
    self.position += len(data)
    if self.position > self._most:
      raise _RefusedError(
        f'it unpacks to more than {_MAX_RATIO} times its size, as no weights do'
      )
    return data

  def read(self, count: int) -> bytes:
    """So many bytes."""
    parts = []
    while count:
      data = self.some(min(count, _CHUNK))
      if not data:
        raise EOFError
      parts.append(data)
      count -= len(data)
    return b''.join(parts)

  def skip_to(self, position: int) -> None:
    """Leaves bytes out."""
    while self.position < position:
      self.read(min(position - self.position, _CHUNK))


def _header(block: bytes) -> tarfile.TarInfo:
  # Names that are no UTF-8 are not ours.
  return tarfile.TarInfo.frombuf(block, 'utf-8', 'backslashreplace')


def _sizes(path: pathlib.Path) -> dict[str, int]:
  sizes: dict[str, int] = {}
  for name, size, _ in _members(path, keep=False):
    if name in sizes:
      raise errors.UserError(
        f'{path} is refused: it holds {name} twice. Get it again.'
      )
    sizes[name] = size
  return sizes


def _members(path: pathlib.Path, keep: bool) -> Iterator[_Member]:
  """The files of an archive; their bytes if these are to be kept.

  Raises:
    UserError: the archive is damaged, or holds something else.
  """
  try:
    with open(path, 'rb') as file:
      packed = file.read(2) == _GZIP
      size = file.seek(0, io.SEEK_END)
      file.seek(0)
      plain = gzip.GzipFile(fileobj=file) if packed else file
      most = _MAX_RATIO * size + _CHUNK
      yield from _walk(_Stream(cast(BinaryIO, plain), most), keep)
  except _RefusedError as error:
    raise errors.UserError(
      f'{path} is refused: {error}. Get it again from its publisher.'
    ) from error
  except (
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    tarfile.HeaderError,
  ) as error:
    why = 'it breaks off' if isinstance(error, EOFError) else error
    raise errors.UserError(
      f'{path} is damaged: {why}. Get it again.'
    ) from error
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}.'
    ) from error


def _walk(stream: _Stream, keep: bool) -> Iterator[_Member]:
  while (block := stream.read(_BLOCK)).strip(b'\0'):
    member = _header(block)
    if member.size < 0:
      raise tarfile.HeaderError('a member of negative size')
    # Bytes come in whole blocks.
    end = stream.position + -(-member.size // _BLOCK) * _BLOCK
    if member.type in _EXTENDED:
      _check_extended(stream, member.size)
    elif (name := _name(member)) is not None:
      data = stream.read(member.size) if keep else b''
      yield _Member(name, member.size, data)
    stream.skip_to(end)
  # To the very end, behind which gzip has its checksum.
  while block := stream.some(_CHUNK):
    if block.strip(b'\0'):
      raise tarfile.HeaderError('it goes on behind its end')


def _check_extended(stream: _Stream, size: int) -> None:
  if size > _MAX_EXTENDED:
    raise _RefusedError(f'it holds an extended header of {size} bytes')
  text = stream.read(size)
  if any(word in text for word in _OVERRIDES):
    raise _RefusedError('it holds an extended header with a name or size')


def _name(member: tarfile.TarInfo) -> str | None:
  """The name of a file; None: a folder."""
  shown = member.name[:99]
  if member.type not in (*_FILES, tarfile.DIRTYPE):
    kind = _KINDS.get(member.type, f'a member of type {member.type!r}')
    raise _RefusedError(f'it holds {kind}, {shown}')
  parts = [part for part in member.name.split('/') if part != '.']
  if '..' in parts or '' in parts[:-1] or member.name.startswith('/'):
    raise _RefusedError(f'it holds the path {shown}, which leads out of it')
  if member.isdir():
    return None
  if len(parts) > 1 + _MAX_FOLDERS:
    raise _RefusedError(f'it holds {shown}, more than two folders deep')
  if parts[-1] not in paddle.known_files():
    raise _RefusedError(f'it holds {shown}, which is no file of a ResNet')
  return parts[-1]
