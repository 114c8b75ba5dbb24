# SPDX-License-Identifier: Apache-2.0
"""The folder of a report: made beside its place, then moved there.

A report that a run replaces is recognised by its page, and removed only when
the new one is whole.
"""

import os
import pathlib
import re
import shutil

from resnet_jax.system import errors, files

PAGE = 'report.html'

# What a report consists of, besides a folder an image.
_FILES = {PAGE, 'filters.png'}
_FOLDER = re.compile(r'\d{3}(_.*)?')
_PLOT = re.compile(r'(predictions|grad_cam|maps_\w+)\.png')


def checked(text: str) -> pathlib.Path:
  """The folder that a report goes to.

  Raises:
    UserError: it, or what is beside it, holds something else.
  """
  path = pathlib.Path(os.path.normpath(os.path.expanduser(text)))
  if path.is_symlink():
    path = path.resolve()
  if not text or not path.name or path.name == '..':
    raise errors.UserError(
      f"report='{text}': name a folder of its own, such as report."
    )
  for place in (path, part(path)):
    _check_ours(place)
  return path


def part(path: pathlib.Path) -> pathlib.Path:
  """Where a report is made."""
  return path.with_name(path.name + files.PART)


def create(path: pathlib.Path) -> None:
  """Makes the folder that a run works in; `checked` has looked."""
  shutil.rmtree(part(path), ignore_errors=True)
  part(path).mkdir(parents=True)


def publish(path: pathlib.Path) -> None:
  """Gives a report its name, in the place of an earlier one."""
  _check_ours(path)
  if path.exists():
    old = part(path).with_name(part(path).name + '.old')
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(part(path), path)
    shutil.rmtree(old)
  else:
    os.replace(part(path), path)


def _check_ours(path: pathlib.Path) -> None:
  try:
    if not os.path.lexists(path):
      return
    if not path.is_dir():
      raise errors.UserError(f'report={path} is a file; name a folder.')
    foreign = [found for found in path.iterdir() if not _is_ours(found)]
  except OSError as error:
    raise errors.UserError(
      f'cannot look into {path}: {error.strerror}. Choose another report.'
    ) from error
  if foreign:
    raise errors.UserError(
      f'{path} holds something that is not a report of this program:'
      f' {min(foreign).name}. Choose another report, or remove it.'
    )


def _is_ours(path: pathlib.Path) -> bool:
  if path.is_dir() and not path.is_symlink():
    return bool(_FOLDER.fullmatch(path.name)) and all(
      _PLOT.fullmatch(file.name) for file in path.iterdir()
    )
  return path.name in _FILES
