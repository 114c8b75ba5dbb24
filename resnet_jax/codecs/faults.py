# SPDX-License-Identifier: Apache-2.0
"""Faults of a file: unreadable, damaged or refused, in one message.

A parser does not know its file's name: it raises a ValueError for damage and a
RefusedError for what is never read, and `reported` names the file.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from resnet_jax.system import errors, files

# The first bytes of what Git has instead of a large file.
GIT_LFS = b'version https://git-lfs'
GIT_LFS_SAYS = 'a Git LFS pointer; `git lfs pull` gets the file'


class RefusedError(Exception):
  """An undamaged file with contents that are never read."""


@contextlib.contextmanager
def reported(
  path: pathlib.Path,
  damaged: str = '{path} is damaged: {error}. Get it again.',
  refused: str = '{path} is refused: {error}.',
) -> Iterator[None]:
  """Turns a parser's error into a UserError.

  Args:
    path: of the file.
    damaged: the message for a ValueError.
    refused: the message for a RefusedError.
  """
  try:
    yield
  except RefusedError as error:
    raise errors.UserError(refused.format(path=path, error=error)) from error
  except ValueError as error:
    raise errors.UserError(damaged.format(path=path, error=error)) from error
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}.'
    ) from error


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file, open for reading.

  Raises:
    UserError: it cannot be opened.
  """
  with reported(path):
    file = files.opened(path)
  with file:
    yield file
