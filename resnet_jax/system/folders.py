# SPDX-License-Identifier: Apache-2.0
"""Folders that the operating system and the user choose."""

import os
import pathlib
import sys

from resnet_jax.system import errors


def cache_directory() -> pathlib.Path:
  """Where downloads and compiled programs are kept; it may not exist yet.

  Raises:
    UserError: the user has no home directory.
  """
  if own := os.environ.get('RESNET_JAX_CACHE'):
    return pathlib.Path(os.path.expanduser(own)).absolute()
  variable, usual = {
    'darwin': ('', '~/Library/Caches'),
    'win32': ('LOCALAPPDATA', '~/AppData/Local'),
  }.get(sys.platform, ('XDG_CACHE_HOME', '~/.cache'))
  base = os.environ.get(variable, '')
  # The XDG specification: ignore relative paths.
  if not os.path.isabs(base):
    base = os.path.expanduser(usual)
  if not os.path.isabs(base):
    raise errors.UserError(
      'there is no home directory to keep downloads in. Name a folder in'
      ' RESNET_JAX_CACHE.'
    )
  return pathlib.Path(base) / 'resnet_jax'
