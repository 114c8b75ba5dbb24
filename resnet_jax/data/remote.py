# SPDX-License-Identifier: Apache-2.0
"""Files at addresses (s3://, gs://, hf://, https:// and others), by fsspec.

fsspec is imported here, and only when an address is opened.  Its caches and the
retries of its libraries are off: `remote_faults.tried` is the one that tries
again, and a listing is never older than the question.
"""

import collections
import concurrent.futures
import dataclasses
import glob
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from resnet_jax.data import decoding, places, remote_faults, remote_stores
from resnet_jax.system import errors

# Questions at once: each waits for its answer, and takes no core.
_AT_ONCE = 16
# Entries of a list in one folder that are looked up each by itself.
_FEW = 32

# What a user installs for a protocol; for the others fsspec says it.
_EXTRA = "'resnet-jax-zoo[remote]'"
_PACKAGES = {
  **dict.fromkeys(('s3', 's3a', 'http', 'https', 'memory'), _EXTRA),
  **dict.fromkeys(('gs', 'gcs'), 'gcsfs'),
  'hf': 'huggingface_hub',
  **dict.fromkeys(('az', 'abfs', 'abfss'), 'adlfs'),
}
_WEB = ('http', 'https')
# They read local files, or what another address names.
_REFUSED = frozenset(
  (
    *('file', 'local', 'dir', 'zip', 'tar', 'libarchive', 'archive'),
    *('simplecache', 'filecache', 'blockcache', 'cached', 'cache'),
    *('reference', 'generic', 'async_wrapper', 'data', 'git', 'jlab'),
    *('jupyter', 'dask', 'root', 'asynclocal'),
  )
)
# Of Windows, too.
_ABSOLUTE = re.compile(r'[/\\]|[A-Za-z]:[/\\]')
_T = TypeVar('_T')
_U = TypeVar('_U')


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
  """A file or folder at a server.

  Attributes:
    store: its server.
    path: as the store takes it.
    size: of a file that was looked up; -1: not known.
  """

  store: remote_stores.Store
  path: str
  size: int = -1

  def __str__(self) -> str:
    return self.store.shown(self.path)

  def __fspath__(self) -> str:
    return str(self)

  def __lt__(self, other: 'Address') -> bool:
    return self.path.split('/') < other.path.split('/')

  @property
  def name(self) -> str:
    """The last part."""
    return self.store.name(self.path)

  @property
  def stem(self) -> str:
    """The name without the suffix."""
    return posixpath.splitext(self.name)[0]

  @property
  def suffix(self) -> str:
    """The suffix of the name, with its dot."""
    return posixpath.splitext(self.name)[1]

  @property
  def parent(self) -> 'Address':
    """The folder."""
    folder = self.path.partition('?')[0] if self.store.is_web else self.path
    return Address(self.store, folder.rpartition('/')[0])

  @property
  def kind(self) -> str:
    """What is there: 'folder', 'file', or '' (nothing)."""
    checked = self.path if self.store.is_web else self.store.split(self.path)[0]
    if re.search(r'\{.*\}', checked):
      # A pattern; a server may refuse such an address or bucket.
      return ''
    return self.store.info(self.path).kind

  def below(self, root: 'Address') -> str:
    """The path below a folder."""
    return self.path.removeprefix(root.path).lstrip('/')

  def listed(self, name: str) -> 'Address':
    """The address that a list in this folder calls `name`.

    Raises:
      UserError: it is not relative to the list, or leads out of the bucket.
    """
    is_path = not places.protocol(name) and not _ABSOLUTE.match(name)
    top, path = self.store.split(self.path)
    joined = posixpath.normpath(posixpath.join(path, self.store.quoted(name)))
    if not is_path or re.match(r'\.\.(/|$)', joined) or '\0' in name:
      raise errors.UserError(
        f'a list in {self} names {name[:200]!r}. A list at an address names'
        ' paths relative to it, in the same bucket or at the same host.'
        ' Correct the list.'
      )
    return Address(self.store, top + joined)

  def opened(self) -> places.RangeFile:
    """Opens the file; ranges are read when they are needed."""
    info = self.store.info(self.path)
    if info.kind != 'file':
      raise decoding.ImageError('there is no such file')

    def fetch(start: int, end: int) -> bytes:
      return self.store.read(self.path, start, end)

    return places.RangeFile(fetch, info.size, info.version)

  def read(self, size: int) -> bytes:
    """All bytes of the file, which has `size`; -1: not known.

    Raises:
      ImageError: there is no such file, or it has another size.
      UserError: it cannot be read.
    """
    if size < 0:
      with self.opened() as file:
        places.check_size(file.size)
        return file.read()
    # With one byte more than it has, a file that has grown is noticed.
    data = self.store.read(self.path, 0, size + 1, most=size) if size else b''
    if len(data) != size:
      raise decoding.ImageError('its size has changed since it was listed')
    return data


def address(data: str) -> Address:
  """The place that the user gives as PROTOCOL://PATH.

  Raises:
    UserError: the protocol is not known, not installed or not of a server.
  """
  protocol = places.protocol(data)
  if protocol in _REFUSED or '::' in protocol:
    raise errors.UserError(
      f"data='{data}': {protocol}:// is no protocol of a server. Give a local"
      ' file by its path, and any other by its own address alone, such as'
      ' s3://bucket/images.'
    )
  system = _system(protocol, data)
  if protocol in _WEB:
    remote_stores.check_web(data)
    return Address(remote_stores.WebStore(protocol, system), data)
  path = system._strip_protocol(data).rstrip('/')
  return Address(remote_stores.Store(protocol, system), path)


def _system(protocol: str, data: str) -> Any:
  """Fsspec's file system; each has its own connections and no cache."""
  package = _PACKAGES.get(protocol, '')
  try:
    import fsspec  # noqa: PLC0415
    from fsspec import config  # noqa: PLC0415

    kind = fsspec.get_filesystem_class(protocol)
  except ImportError as error:
    what = package or f'what fsspec needs for it ({error})'
    raise errors.UserError(
      f"data='{data}' is read with fsspec, and for {protocol}:// a package is"
      f' missing. Install it with: pip install {_EXTRA}'
      f'{"" if what == _EXTRA else f", and {what}"}'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f"data='{data}': fsspec knows no protocol {protocol}://. Give"
      ' an address such as s3://, gs://, hf:// or https://, or a path.'
    ) from error
  given = {
    **kind._get_kwargs_from_urls(data),
    'skip_instance_cache': True,
    'use_listings_cache': False,
  }
  if protocol in ('s3', 's3a'):
    given['config_kwargs'] = {
      'retries': {'total_max_attempts': 1},
      'connect_timeout': remote_stores.WAIT,
      'read_timeout': remote_stores.WAIT,
      'max_pool_connections': 2 * _AT_ONCE,
      **config.conf.get('s3', {}).get('config_kwargs', {}),
    }
  try:
    system = kind(**given)
  except Exception as error:
    # Each library's own errors of its settings.
    fault = remote_faults.of(error)
    raise errors.UserError(
      f"data='{data}' cannot be opened: {fault.what}. {fault.kind.value}."
    ) from error
  if protocol in ('s3', 's3a'):
    system.retries = 1
  return system


def each(function: Callable[[_T], _U], values: Iterable[_T]) -> list[_U]:
  """`function` of each, several at a time, in order."""
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    try:
      return list(pool.map(function, values))
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def looked_up(found: Sequence[Address]) -> list[Address]:
  """The same addresses with their sizes, -1 for those that are no files."""
  if not found:
    return []
  store = found[0].store
  folders = collections.Counter(one.parent.path for one in found)

  def sizes(folder: str) -> dict[str, int]:
    if store.is_web or folders[folder] <= _FEW:
      return {}
    return {one.path: one.size for one in store.find(folder, 1)}

  known: dict[str, int] = {}
  for some in each(sizes, folders):
    known |= some

  def size(one: Address) -> Address:
    if not store.is_web and folders[one.parent.path] > _FEW:
      return dataclasses.replace(one, size=known.get(one.path, -1))
    info = store.info(one.path)
    return dataclasses.replace(one, size=info.size)

  return each(size, found)


def below(root: Address) -> list[Address]:
  """The files below a folder, in the order of their paths."""
  return [
    Address(root.store, one.path, one.size)
    for one in root.store.find(root.path)
  ]


def files_named(like: Address, names: Sequence[str]) -> list[list[Address]]:
  """For each name, a path or a pattern at the same server, its files."""
  store = like.store
  for name in names:
    if store.is_web and '*' in name:
      # It says that it cannot.
      store.find(name)
  plain = [n for n in names if store.is_web or not glob.has_magic(n)]
  known = {
    one.path: one for one in looked_up([Address(store, name) for name in plain])
  }
  return [
    [one for one in [known[name]] if one.size >= 0]
    if name in known
    else _matching(store, name)
    for name in names
  ]


def _matching(store: remote_stores.Store, pattern: str) -> list[Address]:
  """The files that `*`, `?` and `[...]` match, as the shell's."""
  parts = pattern.split('/')
  fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
  root, wanted = '/'.join(parts[:fixed]), parts[fixed:]
  return [
    Address(store, one.path, one.size)
    for one in store.find(root, len(wanted))
    if remote_stores.fits(one.path[len(root) + 1 :].split('/'), wanted)
  ]
