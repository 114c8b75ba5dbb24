# SPDX-License-Identifier: Apache-2.0
"""Faults of a file: unreadable, damaged or refused, in one message.

A parser does not know its file's name: it raises a ValueError for damage and a
RefusedError for what is never read, and `reported` names the file.
"""

import codecs
import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from resnet_jax.system import errors, files

# The first bytes of what Git has instead of a large file, also once.
_GIT_LFS = (
  b'version https://git-lfs',
  b'version https://hawser',
  b'version http://git-media',
)
_MOST_OF_A_POINTER = 1024
GIT_LFS_SAYS = 'a Git LFS pointer; `git lfs pull` gets the file'


def is_git_lfs(data: bytes | str) -> bool:
  """Whether a file's contents, or their beginning, are a Git LFS pointer."""
  head = data[:64]
  head = head.encode('utf-8', 'replace') if isinstance(head, str) else head
  return head.removeprefix(codecs.BOM_UTF8).startswith(_GIT_LFS)


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
    UserError: it cannot be opened, or is a Git LFS pointer.
  """
  with reported(path):
    file = files.opened(path)
  with file:
    if os.fstat(file.fileno()).st_size <= _MOST_OF_A_POINTER:
      if is_git_lfs(file.read(64)):
        raise errors.UserError(f'{path} is {GIT_LFS_SAYS}.')
      file.seek(0)
    yield file


def check_pointer(path: pathlib.Path) -> None:
  """Raises what `opened` does, of a file that something else opens."""
  with opened(path):
    pass
