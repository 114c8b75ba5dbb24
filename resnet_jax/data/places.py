# SPDX-License-Identifier: Apache-2.0
"""Where images lie: a path on the disk, or an address such as s3://bucket/x.

Sources open, list and look up files here and nowhere else.  A local path goes
straight to `system.files`; only an address imports `data.remote` and fsspec.
"""

import dataclasses
import glob
import io
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar, cast

from resnet_jax.data import decoding
from resnet_jax.system import files

if TYPE_CHECKING:
  from resnet_jax.data import remote

Place: TypeAlias = 'pathlib.Path | remote.Address'
# Size, and what a file's replacement has differently: a time, or a version.
Stamp: TypeAlias = tuple[int, int | str]
_T = TypeVar('_T')
_U = TypeVar('_U')

MAX_BYTES = 1 << 30

# A protocol as RFC 3986 writes it.  Of one letter it is a drive of Windows.
_PROTOCOL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+)://')
_CHAINED = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*::.*://')
# What the position moves beyond the buffer without a longer next read.
_FIRST_BYTES = 1 << 14
_MOST_BYTES = 1 << 20
_PIECE_BYTES = 1 << 26


def place(data: str) -> Place:
  """The place that the user names.

  Raises:
    UserError: it is an address of an unknown protocol, of a local file or of
      one protocol on another.
  """
  if protocol(data):
    from resnet_jax.data import remote  # noqa: PLC0415 - fsspec is optional

    return remote.address(data)
  return pathlib.Path(os.path.expanduser(data))


def protocol(text: str) -> str:
  """The protocol that an address begins with, or ''; `A::B://` has two."""
  if _CHAINED.match(text):
    return text.partition('://')[0].lower()
  match = _PROTOCOL.match(text)
  return match[1].lower() if match else ''


def kind(path: Place) -> str:
  """What is there: 'folder', 'file', 'other' (a device), or '' (nothing)."""
  if not isinstance(path, pathlib.Path):
    return path.kind
  if path.is_dir():
    return 'folder'
  if not path.exists():
    return ''
  return 'file' if path.is_file() else 'other'


def text(path: Place) -> str:
  """The path on the disk or at the server, as `files_named` takes it."""
  return os.fspath(path) if isinstance(path, pathlib.Path) else path.path


def shown(path: Place, name: str) -> str:
  """For messages, one of the names that `files_named` takes."""
  return name if isinstance(path, pathlib.Path) else path.store.shown(name)


def opened(path: Place) -> BinaryIO:
  """Opens a file for reading; see `system.files.opened`."""
  if isinstance(path, pathlib.Path):
    return files.opened(path)
  return path.opened()


def read_text(path: Place, most: int, encoding: str) -> str:
  """See `system.files.read_text`."""
  if isinstance(path, pathlib.Path):
    return files.read_text(path, most, encoding)
  with path.opened() as file:
    if file.size > most:
      raise ValueError(f'it has more than {most} bytes')
    data = b''.join(iter(lambda: file.read(_PIECE_BYTES), b''))
  with io.TextIOWrapper(io.BytesIO(data), encoding) as text:
    return text.read()


def relative(path: Place, root: Place) -> str:
  """The path below a folder, with slashes."""
  if isinstance(path, pathlib.Path):
    return path.relative_to(cast(pathlib.Path, root)).as_posix()
  return path.below(cast('remote.Address', root))


def files_named(path: Place, names: Sequence[str]) -> list[list[Place]]:
  """For each name, a path or a shell's pattern, the files that there are.

  Args:
    path: a place; the names are of the same disk or server.
    names: as text.
  """
  if isinstance(path, pathlib.Path):
    return [
      [pathlib.Path(n) for n in sorted(filter(os.path.isfile, glob.glob(name)))]
      for name in names
    ]
  from resnet_jax.data import remote  # noqa: PLC0415

  return [list(found) for found in remote.files_named(path, names)]


def below(
  root: 'remote.Address', hides: Callable[[str], str]
) -> Iterator[Place]:
  """Yields the files below an address, and hidden folders once each.

  Args:
    root: the folder.
    hides: tells whether a name is hidden.
  """
  from resnet_jax.data import remote  # noqa: PLC0415

  seen = set()
  for one in remote.below(root):
    parts = one.below(root).split('/')
    number = next((n for n, part in enumerate(parts) if hides(part)), None)
    if number is None:
      yield one
      continue
    hidden = '/'.join((root.path, *parts[: number + 1]))
    if hidden not in seen:
      seen.add(hidden)
      yield dataclasses.replace(one, path=hidden)


def looked_up(paths: Sequence[Place]) -> list[Place]:
  """The same places; addresses know then which of them are files."""
  if not paths or isinstance(paths[0], pathlib.Path):
    return list(paths)
  from resnet_jax.data import remote  # noqa: PLC0415

  return list(remote.looked_up(cast('list[remote.Address]', paths)))


def is_file(path: Place) -> bool:
  """Whether a place that was looked up is a file."""
  if isinstance(path, pathlib.Path):
    return os.path.isfile(path)
  return path.size >= 0


def each(function: Callable[[Any], _U], paths: Sequence[_T]) -> list[_U]:
  """`function` of each; of addresses several at a time, as each one waits."""
  if not paths or isinstance(paths[0], pathlib.Path):
    return list(map(function, paths))
  from resnet_jax.data import remote  # noqa: PLC0415

  return remote.each(function, paths)


def readers(
  slices: 'Sequence[Slice]',
) -> Sequence[Callable[[], bytes]]:
  """What reads each slice; neighbours in the sequence are read soon after."""
  if not slices or isinstance(slices[0].path, pathlib.Path):
    return slices
  from resnet_jax.data import ahead  # noqa: PLC0415

  return ahead.readers(slices)


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
  """Reads a part of a file that has not changed since it was indexed.

  Each call opens the file, so that threads and processes share nothing and a
  thousand shards do not exhaust the open files; that takes microseconds.

  Attributes:
    path: the file.
    stamp: its size and version when it was indexed; None: the slice is the
      whole file, of whatever version, as long as it has this size.
    offset: of the first byte.
    size: in bytes; -1: not known.
  """

  path: Place
  stamp: Stamp | None
  offset: int
  size: int

  def __call__(self) -> bytes:
    """The bytes.

    Raises:
      ImageError: the file has changed, or the part is too large.
    """
    check_size(self.size)
    if self.stamp is None:
      return whole(self.path, self.size)
    with opened(self.path) as file:
      check_unchanged(file, self.stamp)
      file.seek(self.offset)
      return file.read(self.size)


def whole(path: Place, size: int = -1) -> bytes:
  """The bytes of an image's file; a pipe or a device may never end.

  Args:
    path: of the file.
    size: what an address was found to have; -1: not known.
  """
  if not isinstance(path, pathlib.Path):
    return path.read(size)
  status = path.stat()
  if not stat.S_ISREG(status.st_mode):
    raise decoding.ImageError('it is not a regular file')
  check_size(status.st_size)
  return path.read_bytes()


def check_size(size: int) -> None:
  """Raises an ImageError if an image's file has too many bytes."""
  if size > MAX_BYTES:
    raise decoding.ImageError(f'its {size} bytes are more than {MAX_BYTES}')


def stamp_of(file: BinaryIO) -> Stamp:
  """Size and version, which tell a file from its replacement."""
  if isinstance(file, RangeFile):
    return file.size, file.version
  status = os.fstat(file.fileno())
  return status.st_size, status.st_mtime_ns


def check_unchanged(file: BinaryIO, stamp: Stamp) -> None:
  """Raises an ImageError unless a file is still the one that was indexed."""
  if stamp_of(file) != stamp:
    raise decoding.ImageError(
      'its archive was changed while the program was running'
    )


class RangeFile(io.BufferedIOBase, BinaryIO):
  """A file of which ranges are fetched, as a file that is open for reading.

  A short read, as of a header, fetches 16 KiB; where the next one goes on from
  there, twice as much each time, up to 1 MiB; a read of more fetches just that.

  Attributes:
    size: in bytes, as the server states it.
    version: as the server states it.
  """

  def __init__(
    self, fetch: Callable[[int, int], bytes], size: int, version: str
  ) -> None:
    self._fetch = fetch
    self.size = size
    self.version = version
    self._position = 0
    self._start = 0
    self._buffer = b''
    self._next = _FIRST_BYTES

  def readable(self) -> bool:
    """True."""
    return True

  def seekable(self) -> bool:
    """True."""
    return True

  def tell(self) -> int:
    """The position."""
    return self._position

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    """Moves the position; reads nothing."""
    base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self.size)
    if base + offset < 0:
      raise ValueError('a position before the file')
    self._position = base + offset
    return self._position

  def read(self, size: int | None = -1) -> bytes:
    """The next bytes, all of them unless the file ends."""
    left = max(self.size - self._position, 0)
    size = left if size is None or size < 0 else min(size, left)
    offset = self._position - self._start
    if size and not 0 <= offset <= len(self._buffer) - size:
      self._fill(size)
      offset = 0
    self._position += size
    return self._buffer[offset : offset + size] if size else b''

  def _fill(self, size: int) -> None:
    at = self._position
    beyond = at - self._start - len(self._buffer)
    goes_on = self._buffer and -_FIRST_BYTES < beyond < _FIRST_BYTES
    self._next = min(self._next * 2, _MOST_BYTES) if goes_on else _FIRST_BYTES
    end = min(at + max(size, self._next), self.size)
    if size >= _MOST_BYTES:
      end = at + size
    self._buffer = self._fetch(at, end)
    self._start = at
