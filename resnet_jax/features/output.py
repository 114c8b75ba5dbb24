# SPDX-License-Identifier: Apache-2.0
"""The output directory of a run: new, unfinished, or finished.

A run writes to `NAME.part`, renamed to `NAME` after the last row, so that a
directory that looks complete is complete.
"""

import contextlib
import dataclasses
import glob
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from resnet_jax.system import errors, files, ledger
from resnet_jax.system import settings as settings_lib

ReadSettings = Callable[[pathlib.Path], Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a run writes, for messages.

  Attributes:
    what: a noun in the plural.
    setting: names the directory.
    smaller: the settings that make it smaller.
  """

  what: str
  setting: str
  smaller: str


FEATURES = Kind(
  'features', 'output_dir', 'fewer layers, pool=avg or dtype=float16'
)


def check_finished(directory: pathlib.Path) -> None:
  """Raises a UserError if there is only an unfinished run."""
  resumed = 'Start the same extract job again; it resumes.'
  if directory.suffix == files.PART and directory.exists():
    raise errors.UserError(
      f'{directory} is not finished{_missing(directory)}. {resumed}'
    )
  unfinished = files.part(directory)
  if not directory.exists() and unfinished.exists():
    raise errors.UserError(
      f'{directory} is not finished: there is only {unfinished}'
      f'{_missing(unfinished)}. {resumed}'
    )


def _missing(unfinished: pathlib.Path) -> str:
  """What an unfinished run misses, if it is made by units; else ''."""
  try:
    missing = ledger.Ledger(unfinished).missing()
  except (ValueError, OSError):
    return ''
  return f'; {ledger.described(missing)}' if missing else ''


def is_finished(
  directory: pathlib.Path,
  settings: Mapping[str, Any],
  read: ReadSettings,
  kind: Kind = FEATURES,
) -> bool:
  """Whether the directory holds a finished run with these settings.

  Args:
    directory: the output directory.
    settings: of the run to be made.
    read: returns the settings of the run in a directory; None without a run.
    kind: what it writes.

  Raises:
    UserError: the directory, or that of the unfinished run, holds something
      else, or a run with other settings.
  """
  for path in (directory, files.part(directory)):
    try:
      if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        continue
    except OSError as error:
      raise errors.UserError(
        f'cannot read {path}: {error.strerror}. Choose another {kind.setting}.'
      ) from error
    found = read(path)
    if found is None:
      raise errors.UserError(
        f'{path} holds something that is not a run of this program. Choose'
        f' another {kind.setting}.'
      )
    if different := settings_lib.differences(found, settings):
      raise errors.UserError(
        f'{path} holds a run with other settings: {different}.'
        f' Choose another {kind.setting}, remove it, or use its settings.'
      )
    if path == directory:
      return True
  return False


def batch_rows(directory: pathlib.Path, read: ReadSettings) -> int:
  """The batch size of the run, finished or not; 0 without a run."""
  for path in (directory, files.part(directory)):
    if (found := read(path)) is not None:
      return settings_lib.batch_rows(found)
  return 0


def is_started(directory: pathlib.Path) -> bool:
  """Whether there is an unfinished run, which `is_finished` has checked."""
  return _holds(files.part(directory))


def _holds(path: pathlib.Path) -> bool:
  return path.is_dir() and any(path.iterdir())


@contextlib.contextmanager
def lock(directory: pathlib.Path, kind: Kind = FEATURES) -> Iterator[None]:
  """Locks a run against other processes, as long as this one lives.

  Raises:
    UserError: another process has the lock.
  """
  path = files.part(directory)
  handle = os.open(path, os.O_RDONLY)
  try:
    files.lock(handle, path, kind.setting)
    yield
  finally:
    os.close(handle)


def make_part(
  directory: pathlib.Path,
  create: Callable[[pathlib.Path], None],
  kind: Kind = FEATURES,
) -> pathlib.Path:
  """Returns `NAME.part`, filled by `create` unless the run has started.

  Of several processes one creates it; its settings are those of the run, and
  may not be the caller's.
  """
  path = files.part(directory)
  if is_started(directory):
    return path
  with files.writing(kind.what, path):
    # A mount point, which cannot be replaced, fails now rather than after the
    # last row.
    _remove_empty(directory)
    # Created elsewhere and renamed: a `.part` always has its settings.
    new = files.own_new(path)
    new.mkdir(parents=True)
    try:
      create(new)
      # Only an empty folder is replaced.
      os.replace(new, path)
    except OSError:
      shutil.rmtree(new, ignore_errors=True)
      # Unless another process came first, or has even finished.
      if not is_started(directory) and not _holds(directory):
        raise
    else:
      if _holds(directory):
        # Others have begun and finished meanwhile.
        shutil.rmtree(path)
  return path


def publish(directory: pathlib.Path, kind: Kind = FEATURES) -> None:
  """Renames `NAME.part` to `NAME`; does nothing if another process has."""
  path = files.part(directory)
  with files.writing(kind.what, directory):
    try:
      _remove_empty(directory)
      os.replace(path, directory)
    except OSError:
      if path.exists() or not _holds(directory):
        raise
    for left in directory.parent.glob(f'{glob.escape(path.name)}.new*'):
      # Of a process that was killed before the run began.
      shutil.rmtree(left, ignore_errors=True)


def _remove_empty(directory: pathlib.Path) -> None:
  if directory.is_dir():
    directory.rmdir()


def check_space(
  directory: pathlib.Path, needed: int, kind: Kind = FEATURES
) -> int:
  """Returns the free bytes for a directory that need not exist yet.

  Raises:
    UserError: fewer than `needed` bytes are free.
  """
  path = directory.absolute()
  while not path.exists():
    path = path.parent
  usage = shutil.disk_usage(path)
  free = usage.free
  # File systems without a size, such as /proc, fail when they are written to.
  if usage.total and needed > free:
    raise errors.UserError(
      f'{needed:,} bytes are to be written to {directory}, and {free:,} are'
      f' free there. Make room, choose another {kind.setting},'
      f' {kind.smaller}.'
    )
  return free
