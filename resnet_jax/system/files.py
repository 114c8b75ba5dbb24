# SPDX-License-Identifier: Apache-2.0
"""Files: opened safely, complete or absent, and the one lock."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, BinaryIO, cast

from resnet_jax.system import errors

PART = '.part'
# That tell apart the new folders of several processes.
_OWN_BYTES = 3

# Of a file or folder that has other endings until it is complete, bytes.
_MAX_NAME = 240
# Letters of a long path in a message.
_SHOWN = 300

# The failed rows of a run of millions of images take some 100 MB.
_MAX_JSON_BYTES = 1 << 28
# A network's configuration has about ten.
_MAX_JSON_DEPTH = 100

# Half of a letter, in JSON.
_HALF = re.compile(r'\\u[dD][89a-fA-F]')

# A file of more bytes must have stored a part of them: nothing read here packs
# better, and zeros that are stored nowhere take as long to read as others.
_SPARSE_FROM = 1 << 32
_MAX_EXPANSION = 64


def part(path: pathlib.Path) -> pathlib.Path:
  """The name of a file or folder until it is complete."""
  return path.with_name(path.name + PART)


def own_new(path: pathlib.Path) -> pathlib.Path:
  """What a process calls a folder that others may be making, too."""
  return path.with_name(f'{path.name}.new{secrets.token_hex(_OWN_BYTES)}')


def write_atomically(
  path: pathlib.Path, data: bytes, new: pathlib.Path | None = None
) -> None:
  """Replaces a file by `data`; a crash leaves the old file or the new one.

  Args:
    path: the file.
    data: its bytes.
    new: what it is called before; None: NAME.part.
  """
  new = new or part(path)
  with writable(new, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
  """Opens a regular file for reading; each file from outside is opened here.

  Anything else may never end, or wait for another process.

  Raises:
    OSError: it cannot be opened, is something else, or has hardly a byte of
      what its size says.
  """
  file = cast(io.BufferedReader, _regular(path, 'rb'))
  try:
    _check_stored(file.fileno(), os.fstat(file.fileno()).st_size)
  except BaseException:
    file.close()
    raise
  return file


def writable(path: str | os.PathLike[str], mode: str) -> BinaryIO:
  """Opens a regular file for writing, which need not exist.

  Args:
    path: of the file.
    mode: of `open`, binary.

  Raises:
    OSError: it cannot be opened, or is something else.
  """
  return cast(BinaryIO, _regular(path, mode))


def _regular(path: str | os.PathLike[str], mode: str) -> IO[bytes]:
  # Without the flag, opening a pipe waits for the process at its other end.
  flags = getattr(os, 'O_NONBLOCK', 0)

  def opener(name: str, own: int) -> int:
    return os.open(name, own | flags, 0o666)

  file: IO[bytes] = open(path, mode, opener=opener)  # noqa: SIM115
  try:
    _check_regular(os.fstat(file.fileno()))
  except BaseException:
    file.close()
    raise
  return file


def size(path: pathlib.Path) -> int:
  """The bytes of a file that a library opens; raises what `opened` does."""
  status = path.stat()
  _check_regular(status)
  if status.st_size >= _SPARSE_FROM:
    opened(path).close()
  return status.st_size


def _check_regular(status: os.stat_result) -> None:
  if not stat.S_ISREG(status.st_mode):
    raise OSError('it is a pipe or a device, not a regular file')


def _check_stored(handle: int, size: int) -> None:
  """Raises an OSError if nearly all of a large file is a hole."""
  if size < _SPARSE_FROM or not hasattr(os, 'SEEK_DATA'):
    return
  stored = end = 0
  # Past the last data, the search for more is an error.
  with contextlib.suppress(OSError):
    while stored * _MAX_EXPANSION < size:
      start = os.lseek(handle, end, os.SEEK_DATA)
      end = os.lseek(handle, start, os.SEEK_HOLE)
      stored += end - start
  os.lseek(handle, 0, os.SEEK_SET)
  if stored * _MAX_EXPANSION < size:
    raise OSError(
      f'of its {size} bytes only {stored} are stored, as in a download that'
      ' was not finished'
    )


def read(path: pathlib.Path, most: int) -> bytes:
  """The bytes of a file, of which there may be `most`.

  Raises:
    OSError: the file cannot be read.
    ValueError: it has more.
  """
  with opened(path) as file:
    if os.fstat(file.fileno()).st_size > most:
      raise ValueError(f'it has more than {most} bytes')
    return file.read(most)


def read_text(path: pathlib.Path, most: int, encoding: str = 'utf-8') -> str:
  """The text of a file of at most `most` bytes; its lines end as Python's.

  Raises:
    OSError: the file cannot be read.
    ValueError: it has more, or is not text in the encoding.
  """
  with io.TextIOWrapper(io.BytesIO(read(path, most)), encoding) as text:
    return text.read()


def sha256(path: pathlib.Path) -> str:
  """The digest of a file."""
  with opened(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(source: pathlib.Path | bytes | str) -> Any:
  """The value of a JSON file, or of JSON text.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not JSON in UTF-8, is nested too deeply or too large.
  """
  if isinstance(source, pathlib.Path):
    source = read(source, _MAX_JSON_BYTES)
  try:
    value = json.loads(source)
  except RecursionError as error:
    raise ValueError('its JSON is nested too deeply') from error
  # What is read must also be comparable and printable, which recurses, too.
  level: list[Any] = [value]
  for _ in range(_MAX_JSON_DEPTH):
    level = [inner for outer in level for inner in _inner(outer)]
    if not level:
      break
  else:
    raise ValueError('its JSON is nested too deeply')
  text = source if isinstance(source, str) else source.decode(errors='replace')
  if _HALF.search(text):
    # One without the other cannot be written in UTF-8.
    json.dumps(value, ensure_ascii=False).encode()
  return value


def _inner(value: Any) -> Iterable[Any]:
  if isinstance(value, dict):
    return value.values()
  return value if isinstance(value, list) else ()


def write_json(
  path: pathlib.Path, value: Any, new: pathlib.Path | None = None
) -> None:
  """Replaces a file by a value as indented JSON; see `write_atomically`."""
  write_atomically(path, json.dumps(value, indent=2).encode(), new)


def own_folder(text: str, setting: str) -> pathlib.Path:
  """The path of a folder that a run creates, normalised, links resolved.

  Raises:
    UserError: the path has no name of its own, as `.` has none, or cannot be
      one.
  """
  path = pathlib.Path(os.path.normpath(os.path.expanduser(text)))
  if path.name:
    check_path(path, setting)
  if path.is_symlink():
    path = path.resolve()
  if not text or not path.name or path.name == '..':
    raise errors.UserError(
      f"{setting}='{text}': name a folder of its own, such as new."
    )
  return path


def check_path(path: pathlib.Path, setting: str) -> None:
  """Raises a UserError if nothing can be written under a path.

  The links on the way lead in a circle, or the name is too long, or only long
  enough without what it ends with until the file or folder is complete.
  """
  for place in (path, own_new(part(path))):
    try:
      place.stat()
    except (FileNotFoundError, NotADirectoryError):
      continue
    except OSError as error:
      raise errors.UserError(
        f'{setting}={str(path)[:_SHOWN]} cannot be used:'
        f' {error.strerror or error}. Choose another; a name may have'
        f' {_MAX_NAME} bytes.'
      ) from error


@contextlib.contextmanager
def writing(what: str, path: pathlib.Path) -> Iterator[None]:
  """Turns the system's errors (full, read-only) into one that names `path`."""
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f'cannot write {what} to {path}: {error.strerror or error}. Choose'
      ' another place, or make room, and start again.'
    ) from error


def hold(file: IO[bytes] | int, wait: Callable[[], None] | None = None) -> bool:
  """Locks an open file or folder until it is closed.

  The system unlocks it when the process ends, however it ends.

  Args:
    file: a file, or a descriptor.
    wait: called before waiting for another process; None: do not wait.

  Returns:
    False: another process holds it.

  Raises:
    OSError: the file system has no locks.
  """
  try:
    import fcntl  # noqa: PLC0415 - not on Windows
  except ImportError:
    return True
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    if wait is None:
      return False
    wait()
    fcntl.flock(file, fcntl.LOCK_EX)
  return True


def lock(file: IO[bytes] | int, path: pathlib.Path, settings: str) -> None:
  """Locks an open file or folder, or fails.

  Args:
    file: a file, or a descriptor.
    path: its name.
    settings: those that choose another place, for the message.

  Raises:
    UserError: another process holds it.
  """
  ours = hold(file)
  descriptor = file if isinstance(file, int) else file.fileno()
  # Another process may have renamed it before it was locked.
  with contextlib.suppress(FileNotFoundError):
    if ours and os.path.samestat(os.fstat(descriptor), path.stat()):
      return
  raise errors.UserError(
    f'another process is at work on {path}. Wait for it, or choose another'
    f' place ({settings}).'
  )
