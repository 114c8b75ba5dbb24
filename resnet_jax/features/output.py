# SPDX-License-Identifier: Apache-2.0
"""The output directory of a run: new, to be gone on with, or finished.

A run works in `NAME.part`, which becomes `NAME` when the last row is written,
so that what looks whole is whole.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from resnet_jax.system import errors, files

ReadSettings = Callable[[pathlib.Path], Mapping[str, Any] | None]


def checked(directory: str) -> pathlib.Path:
  """The path of an output directory, without `..` in it.

  Raises:
    UserError: it has no name of its own, as the working directory.
  """
  path = pathlib.Path(os.path.normpath(os.path.expanduser(directory)))
  if path.is_symlink():
    path = path.resolve()
  if not path.name or path.name == '..':
    raise errors.UserError(
      f"output_dir='{directory}': name a folder of its own, such as features."
    )
  return path


def part(directory: pathlib.Path) -> pathlib.Path:
  """Where a run works before it is finished."""
  return directory.with_name(directory.name + files.PART)


def check_finished(directory: pathlib.Path) -> None:
  """Raises a UserError if a run for this directory was started only."""
  if not directory.exists() and part(directory).exists():
    raise errors.UserError(
      f'{directory} is not finished: {part(directory)} is what there is. Start'
      ' the same extract job again; it goes on where it stopped.'
    )


def is_finished(
  directory: pathlib.Path, settings: Mapping[str, Any], read: ReadSettings
) -> bool:
  """Whether a run with these settings is finished; prepares for one if not.

  Args:
    directory: the output directory.
    settings: those of the run to be made.
    read: gives the settings of a run in a directory, None if there is none.

  Raises:
    UserError: it holds something else, or a run with other settings.
  """
  for place in (directory, part(directory)):
    try:
      occupied = place.exists() and (not place.is_dir() or any(place.iterdir()))
    except OSError as error:
      raise errors.UserError(
        f'cannot look into {place}: {error.strerror}. Choose another'
        ' output_dir.'
      ) from error
    if not occupied:
      continue
    found = read(place) if place.is_dir() else None
    if found is None:
      raise errors.UserError(
        f'{place} holds something that is not a run of this program. Choose'
        ' another output_dir.'
      )
    if different := _differences(found, settings):
      raise errors.UserError(
        f'{place} holds a run with other settings: {"; ".join(different)}.'
        ' Choose another output_dir, remove it, or use its settings.'
      )
    if place == directory:
      return True
  return False


def found_settings(
  directory: pathlib.Path, read: ReadSettings
) -> Mapping[str, Any]:
  """The settings of a run that is there, finished or not; {}: there is none."""
  for place in (directory, part(directory)):
    if place.is_dir() and (found := read(place)) is not None:
      return found
  return {}


def is_started(directory: pathlib.Path) -> bool:
  """Whether there is a run to be gone on with; `is_finished` has looked."""
  path = part(directory)
  return path.is_dir() and any(path.iterdir())


@contextlib.contextmanager
def lock(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from a run; a killed one keeps nobody.

  Raises:
    UserError: another process is at work.
  """
  path = part(directory)
  try:
    import fcntl  # noqa: PLC0415 - not on Windows
  except ImportError:
    yield
    return
  handle = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(handle)
    raise errors.UserError(
      f'another process is at work on {path}. Wait for it, or choose another'
      ' output_dir.'
    ) from error
  try:
    yield
  finally:
    os.close(handle)


def make_part(
  directory: pathlib.Path, create: Callable[[pathlib.Path], None]
) -> pathlib.Path:
  """Returns `NAME.part`, made by `create` unless it is there already."""
  path = part(directory)
  if is_started(directory):
    return path
  # Made elsewhere, then moved: a `.part` always has its settings.
  new = path.with_name(path.name + '.new')
  with files.writing('features', path):
    if directory.is_dir():
      # Now, rather than after the last row, a mount point says that it cannot
      # be replaced.
      directory.rmdir()
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    create(new)
    os.replace(new, path)
  return path


def publish(directory: pathlib.Path) -> None:
  """Turns `NAME.part` into `NAME`."""
  with files.writing('features', directory):
    if directory.is_dir():
      directory.rmdir()
    os.replace(part(directory), directory)


def check_space(directory: pathlib.Path, needed: int) -> int:
  """Returns the free bytes for a directory that need not be there yet.

  Raises:
    UserError: fewer than `needed` are free.
  """
  place = directory.absolute()
  while not place.exists():
    place = place.parent
  usage = shutil.disk_usage(place)
  free = usage.free
  # File systems without a size (/proc) say so when they are written to.
  if usage.total and needed > free:
    raise errors.UserError(
      f'{needed:,} bytes are to be written to {directory}, and {free:,} are'
      ' free there. Make room, choose another output_dir, fewer layers,'
      ' pool=avg or dtype=float16.'
    )
  return free


def _differences(
  found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
  return [
    f'{key} is {found.get(key)!r} there, {wanted.get(key)!r} now'
    for key in sorted({*found, *wanted})
    if found.get(key) != wanted.get(key)
  ]
