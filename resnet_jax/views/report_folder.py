# SPDX-License-Identifier: Apache-2.0
"""The folder of a report: written beside its place, then moved there.

An earlier report is removed only when the new one is complete; a folder that
holds anything else is refused.
"""

import os
import pathlib
import re
import shutil

from resnet_jax.system import errors, files

PAGE = 'report.html'

# A report consists of these, and of a folder of plots an image.
_FILES = {PAGE, 'filters.png'}
_FOLDER = re.compile(r'\d{3}(_.*)?')
_PLOT = re.compile(r'(predictions|grad_cam|maps_\w+)\.png')


def checked(text: str) -> pathlib.Path:
  """The folder of a report.

  Raises:
    UserError: it, or its `NAME.part`, holds something else.
  """
  path = files.own_folder(text, 'report')
  for place in (path, files.part(path)):
    _check_ours(place)
  return path


def create(path: pathlib.Path) -> None:
  """Creates an empty `NAME.part`; `checked` has looked at the old one."""
  shutil.rmtree(files.part(path), ignore_errors=True)
  files.part(path).mkdir(parents=True)


def publish(path: pathlib.Path) -> None:
  """Moves a report to its folder, in place of an earlier one."""
  _check_ours(path)
  old = path.with_name(f'{path.name}{files.PART}.old')
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    os.replace(path, old)
  os.replace(files.part(path), path)
  shutil.rmtree(old, ignore_errors=True)


def _check_ours(path: pathlib.Path) -> None:
  try:
    if not os.path.lexists(path):
      return
    if not path.is_dir():
      raise errors.UserError(f'report={path} is a file; name a folder.')
    foreign = [found for found in path.iterdir() if not _is_ours(found)]
  except OSError as error:
    raise errors.UserError(
      f'cannot list {path}: {error.strerror}. Choose another report.'
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
