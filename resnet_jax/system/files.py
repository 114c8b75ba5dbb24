# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Self

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


def hold(file: IO[bytes], wait: Callable[[], None] | None = None) -> bool:
  """Locks an open file until it is closed; a killed process unlocks it.

  Args:
    file: open for writing.
    wait: called before waiting for another process; None: do not wait.

  Returns:
    Whether it is ours; False: another process holds it.

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


def lock(file: IO[bytes], path: pathlib.Path) -> None:
  """Keeps other processes from a file; a killed one keeps nobody.

  Args:
    file: open for writing.
    path: its name.

  Raises:
    UserError: another process has it.
  """
  ours = hold(file)
  # Between the opening and the lock another process may have finished it.
  with contextlib.suppress(FileNotFoundError):
    if ours and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      return
  raise errors.UserError(
    f'another process is at work on {path}. Wait for it, or choose another'
    ' file (results, predictions).'
  )


class Appended:
  """A file in the making, `NAME.part`, added to at its end; a context manager.

  A run that was stopped leaves it, and is gone on with.
  """

  def __init__(
    self,
    what: str,
    path: pathlib.Path,
    named: pathlib.Path,
    whole: Callable[[pathlib.Path], int],
  ) -> None:
    """Opens it, made if it is not there, and keeps other processes from it.

    Args:
      what: it holds, for messages.
      path: of the finished file.
      named: what messages call it where it cannot be written.
      whole: says how many bytes of what is there are kept.

    Raises:
      UserError: it cannot be written, another process writes it, or what
        `whole` raises.
    """
    self._what, self._path, self._named = what, path, named
    self._part = path.with_name(path.name + PART)
    with writing(what, named):
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file: IO[bytes] = open(self._part, 'ab')  # noqa: SIM115
    try:
      lock(self._file, self._part)
      end = whole(self._part)
      with writing(what, named):
        self._file.truncate(end)
    except BaseException:
      self._file.close()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()

  def close(self) -> None:
    """Leaves it as it is."""
    # What could not be written has been said by then.
    with contextlib.suppress(OSError):
      self._file.close()

  def add(self, data: bytes) -> None:
    """Adds bytes; when it returns they outlive a killed process."""
    with writing(self._what, self._named):
      self._file.write(data)
      self._file.flush()

  def publish(self) -> None:
    """Gives the file its name, when all is in it."""
    with writing(self._what, self._path):
      os.fsync(self._file.fileno())
      os.replace(self._part, self._path)
