# SPDX-License-Identifier: Apache-2.0
"""What is asked of a server: facts, listings and ranges, by fsspec."""

import dataclasses
import fnmatch
import urllib.parse
from typing import Any

from resnet_jax.codecs import tar
from resnet_jax.data import decoding, remote_faults, remote_http
from resnet_jax.system import errors
from resnet_jax.system.text import one_line

# Seconds that a server may be silent.
WAIT = 30.0
_BYTES_PER_SECOND = 10_000
# The largest range.
_MOST_BYTES = 1 << 30
# What other files of the same name and size have differently.
_VERSIONS = (
  *('ETag', 'etag', 'generation', 'blob_id', 'md5Hash', 'sha256', 'mtime'),
  *('LastModified', 'last_modified', 'updated', 'modified', 'created'),
)


@dataclasses.dataclass(frozen=True)
class Info:
  """What a server states of an address.

  Attributes:
    kind: 'file', 'folder', or '': there is nothing.
    size: of a file.
    version: of a file, '' if none is stated.
  """

  kind: str
  size: int = -1
  version: str = ''


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
  """A file that a listing names.

  Attributes:
    path: as the store takes it.
    size: in bytes.
  """

  path: str
  size: int


class Store:
  """The files that are reached by one protocol."""

  is_web = False

  def __init__(self, protocol: str, system: Any) -> None:
    self._protocol = protocol
    self._system = system

  def shown(self, path: str) -> str:
    """An address for messages, without what might be secret."""
    return f'{self._protocol}://{path.lstrip("/")}'

  def name(self, path: str) -> str:
    """The name of a file."""
    return path.rpartition('/')[2]

  def quoted(self, name: str) -> str:
    """A relative path as part of an address."""
    return name

  def split(self, path: str) -> tuple[str, str]:
    """The bucket, with a slash, and the path in it."""
    lead = len(path) - len(path.lstrip('/'))
    bucket, slash, rest = path[lead:].partition('/')
    return f'{path[:lead]}{bucket}{slash or "/"}', rest

  def info(self, path: str) -> Info:
    """What is there; a UserError if the server does not say."""
    try:
      return self._info(path)
    except remote_faults.GoneError:
      return Info('')

  def _info(self, path: str) -> Info:
    found = self._call('info', path, path, seconds=2 * WAIT)
    return self._stated(path, found)

  def _stated(self, path: str, found: dict[str, Any]) -> Info:
    if found.get('type') == 'directory':
      return Info('folder')
    size = found.get('size')
    if not isinstance(size, int) or size < 0:
      raise errors.UserError(
        f'the server does not state the size of {self.shown(path)}. Download'
        ' it and give its path.'
      )
    version = next((str(found[v]) for v in _VERSIONS if found.get(v)), '')
    return Info('file', size, version)

  def find(self, path: str, depth: int | None = None) -> list[Listed]:
    """The files below a folder, in the order of their paths.

    Raises:
      UserError: it cannot be listed, or a name leads out of it.
    """
    try:
      found = self._call('find', path, path, maxdepth=depth, detail=True)
    except remote_faults.GoneError:
      return []
    root, result = f'{path.rstrip("/")}/', []
    for name, facts in sorted(found.items()):
      # S3's consoles make folders by empty files whose names end in a slash.
      if facts.get('type') == 'directory' or name.endswith('/'):
        continue
      below = name.removeprefix(root)
      if not name.startswith(root) or not tar.is_relative(below):
        raise errors.UserError(
          f'{self.shown(path)} has a file {one_line(name[:200])!r}, whose name'
          ' leads out of the folder. Rename it, or give a list.'
        )
      result.append(Listed(name, self._stated(name, facts).size))
    return result

  def read(
    self, path: str, start: int, end: int, most: int | None = None
  ) -> bytes:
    """A range of a file.

    Args:
      path: of the file.
      start: the first byte.
      end: after the last.
      most: the bytes that must come; None: all.

    Raises:
      ImageError: there is no such file, or the range is too large.
      UserError: it cannot be read.
    """
    if end - start - 1 > _MOST_BYTES:
      raise decoding.ImageError(
        f'{end - start} bytes of it are wanted at once, more than {_MOST_BYTES}'
      )
    least = end - start if most is None else most

    def once() -> bytes:
      data = self._read(path, start, end)
      if len(data) < least:
        raise remote_faults.CutError
      return data

    try:
      data = remote_faults.tried(self.shown(path), once)
    except remote_faults.GoneError as error:
      raise decoding.ImageError('there is no such file') from error
    return data

  def _read(self, path: str, start: int, end: int) -> bytes:
    seconds = 2 * WAIT + (end - start) / _BYTES_PER_SECOND
    return self._once('cat_file', path, start=start, end=end, seconds=seconds)

  def _call(self, name: str, path: str, *given: Any, **more: Any) -> Any:
    return remote_faults.tried(
      self.shown(path), lambda: self._once(name, *given, **more)
    )

  def _once(
    self, name: str, *given: Any, seconds: float | None = None, **more: Any
  ) -> Any:
    """One call of fsspec's, in at most so many seconds where it can be."""
    system = self._system
    if not system.async_impl:
      return getattr(system, name)(*given, **more)
    from fsspec import asyn  # noqa: PLC0415

    call = getattr(system, f'_{name}')
    return asyn.sync(system.loop, call, *given, timeout=seconds, **more)


class WebStore(Store):
  """The files at http or https addresses, which cannot be listed."""

  is_web = True

  def shown(self, path: str) -> str:
    """The address without user, password and query, which may be a token."""
    parts = urllib.parse.urlsplit(path)
    host = parts.netloc.rpartition('@')[2]
    return f'{parts.scheme}://{host}{parts.path}'

  def name(self, path: str) -> str:
    """The name of a file."""
    return urllib.parse.unquote(super().name(urllib.parse.urlsplit(path).path))

  def quoted(self, name: str) -> str:
    """A relative path as part of an address."""
    return urllib.parse.quote(name)

  def split(self, path: str) -> tuple[str, str]:
    """The scheme and host, and the path."""
    parts = urllib.parse.urlsplit(path)
    return f'{parts.scheme}://{parts.netloc}/', parts.path.lstrip('/')

  def find(self, path: str, depth: int | None = None) -> list[Listed]:
    """Raises a UserError."""
    raise errors.UserError(
      f'{self.shown(path)}: the files at {self._protocol} addresses cannot be'
      ' listed. Give a list file with one image per line, an archive, or shards'
      " by their numbers, such as 'https://host/val-{000..049}.tar'."
    )

  def _info(self, path: str) -> Info:
    if urllib.parse.urlsplit(path).path.endswith('/'):
      self.find(path)
    found = remote_faults.tried(
      self.shown(path), lambda: self._answer(path, 0, 1)
    )
    return self._stated(path, {'size': found.size, 'ETag': found.version})

  def _read(self, path: str, start: int, end: int) -> bytes:
    return self._answer(path, start, end).body

  def _answer(self, path: str, start: int, end: int) -> remote_http.Answer:
    from fsspec import asyn  # noqa: PLC0415

    return asyn.sync(
      self._system.loop,
      remote_http.get,
      self._system,
      path,
      range(start, end),
      WAIT,
    )


def check_web(data: str) -> None:
  """Raises a UserError unless an http or https address has a host."""
  try:
    host = urllib.parse.urlsplit(data).hostname
  except ValueError:
    host = ''
  if not host:
    raise errors.UserError(
      f"data='{data}' is not an address. Give one such as https://host/val.txt."
    )


def fits(parts: list[str], patterns: list[str]) -> bool:
  """Whether a path fits a pattern as the shell's, part by part."""
  return len(parts) == len(patterns) and all(
    fnmatch.fnmatchcase(part, pattern)
    and (pattern.startswith('.') or not part.startswith('.'))
    for part, pattern in zip(parts, patterns, strict=True)
  )
