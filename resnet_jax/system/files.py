# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from resnet_jax.system import errors

PART = '.part'


def write_atomically(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file by `data`; whatever happens it is the old or the new."""
  part = path.with_name(path.name + PART)
  with open(part, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path)


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


def lock(file: IO[bytes], path: pathlib.Path) -> None:
  """Keeps other processes from a file; a killed one keeps nobody.

  Args:
    file: open for writing.
    path: its name.

  Raises:
    UserError: another process has it.
  """
  try:
    import fcntl  # noqa: PLC0415 - not on Windows
  except ImportError:
    return
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Between the opening and the lock another process may have finished it.
    ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
  except (BlockingIOError, FileNotFoundError):
    ours = False
  if not ours:
    raise errors.UserError(
      f'another process is at work on {path}. Wait for it, or choose another'
      ' file (results, predictions).'
    )
