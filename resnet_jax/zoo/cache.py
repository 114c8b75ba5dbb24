# SPDX-License-Identifier: Apache-2.0
"""Downloaded files on this computer, and how far each is verified.

A file lies at `CACHE/msra-50/NAME`.  Beside it: `NAME.json`, its receipt;
`NAME.lock`, empty; until it is whole, `NAME.part` and `NAME.part.json`.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from resnet_jax.system import errors, files
from resnet_jax.zoo import records

_YES, _NO = ('1', 'true', 'yes'), ('', '0', 'false', 'no')
# What is taken of a file whose size nobody stated.
_MOST_BYTES = 2 << 30
_PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Receipt:
  """What is written beside a file that was verified.

  Attributes:
    address: where it was asked for; None: somebody put it there.
    bytes: its size.
    sha256: 64 hexadecimal digits.
    date: UTC, as ISO 8601 has it.
    verified: what it was compared with.
  """

  address: str | None
  bytes: int
  sha256: str
  date: str
  verified: str


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a file is found to hold.

  Attributes:
    bytes: its size.
    digests: hexadecimal digits by algorithm; 'sha256' is there.
  """

  bytes: int
  digests: dict[str, str]


def is_offline() -> bool:
  """Whether the user forbids downloads.

  Raises:
    UserError: the variable says neither yes nor no.
  """
  given = os.environ.get('RESNET_JAX_OFFLINE', '')
  if given.strip().lower() in _YES:
    return True
  if given.strip().lower() in _NO:
    return False
  raise errors.UserError(
    f"RESNET_JAX_OFFLINE='{given}': set it to 1, true or yes to forbid"
    ' downloads, to 0, false or no (or unset it) to allow them.'
  )


def place(file: records.File, name: str) -> pathlib.Path:
  """Where a file of the checkpoint `name` belongs."""
  return files.cache_directory() / name / file.name


def cached(file: records.File, name: str) -> pathlib.Path | None:
  """The file of the checkpoint `name`, if it is there, verified again.

  Args:
    file: what is known of it.
    name: such as `msra-50`.

  Raises:
    UserError: it is there, but not as it was downloaded or published.
  """
  path = place(file, name)
  if not os.path.exists(path):
    return None
  again = f'Remove it to have it downloaded again, or give weights={path}'
  if not path.is_file():
    raise errors.UserError(f'{path} is not a file. Remove it.')
  try:
    found = contents(path, file)
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror}. Make it readable, or name'
      ' another folder in RESNET_JAX_CACHE.'
    ) from error
  receipt = _read_receipt(path)
  if receipt and (change := _change(found, receipt)):
    raise errors.UserError(
      f'{path} has changed since its receipt was written ({receipt.date}):'
      f' {change}. {again} to take it as it is.'
    )
  if wrong := fault(found, file):
    raise errors.UserError(
      f'{path} is not the published file: {wrong}. {again} to take it as it is.'
    )
  if receipt is None and file.hash is None:
    raise errors.UserError(
      f'{path} has no receipt of a download, and no hash is published to check'
      f' it against. {again} if it is yours.'
    )
  if receipt is None:
    # A cache that others share read-only is verified without one each time.
    with contextlib.suppress(OSError):
      write_receipt(path, None, found, file)
  return path


def contents(path: pathlib.Path, file: records.File) -> Contents:
  """Reads a file once, for all that it is to be compared by."""
  algorithms = {'sha256'} | ({file.hash.algorithm} if file.hash else set())
  # MD5 is what is published, not what keeps anybody out.
  sums = {a: hashlib.new(a, usedforsecurity=False) for a in algorithms}
  size = 0
  with open(path, 'rb') as opened:
    while piece := opened.read(_PIECE_BYTES):
      size += len(piece)
      for digest in sums.values():
        digest.update(piece)
  return Contents(size, {a: digest.hexdigest() for a, digest in sums.items()})


def size_limits(file: records.File) -> tuple[int, int]:
  """The least and the most bytes that a published file may have."""
  if file.size is None:
    return 1, _MOST_BYTES
  # 2 percent, where somebody rounded it.
  slack = 0 if file.exact else file.size // 50
  return file.size - slack, file.size + slack


def size_fault(size: int, file: records.File) -> str | None:
  """What is wrong with a file of `size` bytes; None: nothing."""
  least, most = size_limits(file)
  if least <= size <= most:
    return None
  if file.size is None:
    return f'{size:,} bytes, where {least:,} to {most:,} are taken'
  about = '' if file.exact else 'about '
  return f'{size:,} bytes, where {about}{file.size:,} are published'


def fault(found: Contents, file: records.File) -> str | None:
  """What of a file differs from what is published; None: nothing."""
  if wrong := size_fault(found.bytes, file):
    return wrong
  if file.hash is None:
    return None
  digits = found.digests[file.hash.algorithm]
  if digits.startswith(file.hash.digits):
    return None
  return f'its {file.hash.algorithm} is {digits}, published is {file.hash}'


def verified_by(file: records.File) -> str:
  """What a file without a fault has been compared with."""
  if file.hash is not None:
    return str(file.hash)
  return 'nothing' if file.size is None else 'its size'


def verdict(file: records.File, found: Contents) -> str:
  """The same for a person, who is to know what was not compared."""
  if file.hash is None:
    size = '' if file.size is None else ' (its size fits)'
    return (
      f'NOT verified: no hash of it is published{size}; its SHA-256 is'
      f' {found.digests["sha256"]}'
    )
  if file.hash.is_full:
    return f'verified: {file.hash}'
  return f'verified as far as is published, {file.hash}'


def write_receipt(
  path: pathlib.Path, address: str | None, found: Contents, file: records.File
) -> None:
  """Writes the receipt of a verified file; an OSError if that cannot be."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  sha256 = found.digests['sha256']
  receipt = Receipt(address, found.bytes, sha256, now, verified_by(file))
  _write_json(_receipt_path(path), dataclasses.asdict(receipt))


@dataclasses.dataclass(frozen=True)
class Part:
  """What there is of a file that is not whole, and of which version it is.

  Attributes:
    whole: where the file will be.
  """

  whole: pathlib.Path

  @property
  def path(self) -> pathlib.Path:
    """Where the bytes are."""
    return self.whole.with_name(self.whole.name + files.PART)

  @property
  def bytes(self) -> int:
    """How many there are."""
    return self.path.stat().st_size if self.path.exists() else 0

  @property
  def _origin(self) -> pathlib.Path:
    return self.path.with_name(self.path.name + '.json')

  @property
  def can_be_resumed(self) -> bool:
    """Whether there are bytes that need not be sent again."""
    return self.bytes > 0 and self._origin.exists()

  def version(self, address: str) -> str:
    """What `address` named the bytes by; '': they are not known to be its."""
    origin = _read_json(self._origin, {'address', 'version'})
    if origin is None or origin['address'] != address:
      return ''
    return str(origin['version'])

  def begin(self, address: str, version: str) -> None:
    """Starts with no bytes; '' for a version: they cannot be resumed."""
    self.discard()
    self.path.touch()
    if version:
      _write_json(self._origin, {'address': address, 'version': version})

  def discard(self) -> None:
    """Removes it."""
    # In this order: a part of an unknown version is never gone on with.
    self._origin.unlink(missing_ok=True)
    self.path.unlink(missing_ok=True)

  def publish(self, address: str, found: Contents, file: records.File) -> None:
    """Gives the verified file its name."""
    with open(self.path, 'rb+') as part:
      os.fsync(part.fileno())
    # First: a receipt without a file does no harm.
    write_receipt(self.whole, address, found, file)
    os.replace(self.path, self.whole)
    self.discard()


def check_space(folder: pathlib.Path, needed: int) -> None:
  """Raises a UserError if a folder has no room for `needed` more bytes."""
  usage = shutil.disk_usage(folder)
  # File systems without a size say so when they are written to.
  if usage.total and needed > usage.free:
    raise errors.UserError(
      f'{needed:,} bytes are to be written to {folder}, and {usage.free:,} are'
      ' free there. Make room, or name another folder in RESNET_JAX_CACHE.'
    )


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Turns the system's errors (full, read-only) into one that names both."""
  try:
    yield
  except BrokenPipeError:
    # Of whoever listens to what is said.
    raise
  except OSError as error:
    raise errors.UserError(
      f'cannot keep a download in {folder}: {error.strerror or error}. Make'
      ' room or make it writable, or name another folder in RESNET_JAX_CACHE.'
    ) from error


@contextlib.contextmanager
def lock(path: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
  """Lets one process at a time download a file; a killed one stops nobody."""
  try:
    import fcntl  # noqa: PLC0415 - not on Windows
  except ImportError:
    yield
    return
  name = path.with_name(path.name + '.lock')
  handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f'waiting for another process that is downloading {path.name}')
      fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
      # Some network file systems know no locks; what two processes would
      # garble there is found by the hash.
      say(f'{path.parent} cannot be locked: download to it from one process')
    yield
  finally:
    os.close(handle)


def _receipt_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + '.json')


def _write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
  files.write_atomically(path, (json.dumps(data, indent=2) + '\n').encode())


def _read_json(path: pathlib.Path, keys: set[str]) -> dict[str, Any] | None:
  """An object with these keys; None: there is none, or it is damaged."""
  try:
    data = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return None
  return data if isinstance(data, dict) and set(data) == keys else None


def _read_receipt(path: pathlib.Path) -> Receipt | None:
  keys = {field.name for field in dataclasses.fields(Receipt)}
  data = _read_json(_receipt_path(path), keys)
  return Receipt(**data) if data else None


def _change(found: Contents, receipt: Receipt) -> str | None:
  """What of a file differs from its receipt; None: nothing."""
  if found.bytes != receipt.bytes:
    return f'{found.bytes:,} bytes, where there were {receipt.bytes}'
  if (digits := found.digests['sha256']) != receipt.sha256:
    return f'its SHA-256 is {digits}, and was {receipt.sha256}'
  return None
