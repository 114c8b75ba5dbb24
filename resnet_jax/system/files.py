# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent, and the one lock."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from resnet_jax.system import errors

PART = '.part'

# The failed rows of a run of millions of images take some 100 MB.
_MAX_JSON_BYTES = 1 << 28


def part(path: pathlib.Path) -> pathlib.Path:
  """The name of a file or folder until it is complete."""
  return path.with_name(path.name + PART)


def write_atomically(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file by `data`; a crash leaves the old file or the new one."""
  with open(part(path), 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(part(path), path)


def sha256(path: pathlib.Path) -> str:
  """The digest of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(source: pathlib.Path | bytes | str) -> Any:
  """The value of a JSON file, or of JSON text.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not JSON in UTF-8, is nested too deeply or too large.
  """
  if isinstance(source, pathlib.Path):
    if source.stat().st_size > _MAX_JSON_BYTES:
      raise ValueError(f'it has more than {_MAX_JSON_BYTES} bytes')
    source = source.read_bytes()
  try:
    return json.loads(source)
  except RecursionError as error:
    raise ValueError('its JSON is nested too deeply') from error


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a file by a value as indented JSON."""
  write_atomically(path, json.dumps(value, indent=2).encode())


def own_folder(text: str, setting: str) -> pathlib.Path:
  """The path of a folder that a run creates, normalised, links resolved.

  Raises:
    UserError: the path has no name of its own, as `.` has none.
  """
  path = pathlib.Path(os.path.normpath(os.path.expanduser(text)))
  if path.is_symlink():
    path = path.resolve()
  if not text or not path.name or path.name == '..':
    raise errors.UserError(
      f"{setting}='{text}': name a folder of its own, such as new."
    )
  return path


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
