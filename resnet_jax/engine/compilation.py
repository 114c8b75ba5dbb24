# SPDX-License-Identifier: Apache-2.0
"""Compiled programs, kept for the next run by JAX's persistent cache.

JAX identifies a program by its operations, its own version and the processor's
features, so no machine runs a program that it cannot.  The settings hold for
the whole process, and are made once: `keep_programs`.  A cache that the user
has given to JAX is left as it is, and used.

The bound is not JAX's own (`jax_compilation_cache_max_size`): that needs
another package, waits for a lock, and stops writing for good when a process
is killed between two files.
"""

import contextlib
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from resnet_jax.system import errors, folders

VARIABLE = 'RESNET_JAX_COMPILATION_CACHE'
MAX_BYTES = 256 << 20

_NO = ('0', 'false', 'no')
_YES = ('', '1', 'true', 'yes')
# An application's: by default JAX keeps only what took a second to compile,
# and warns of a damaged file each time instead of removing it.
_APPLICATION = {
  'jax_persistent_cache_min_compile_time_secs': 0.0,
  'jax_persistent_cache_min_entry_size_bytes': -1,
  'jax_raise_persistent_cache_errors': True,
}

Say = Callable[[str], None]


def folder(wanted: bool, say: Say) -> pathlib.Path | None:
  """Makes and trims the folder for compiled programs.

  Args:
    wanted: the user's setting; the environment may forbid it, or name another
      folder.
    say: reports why a wanted folder is not used.

  Returns:
    The folder; None: programs are not kept.
  """
  given = os.environ.get(VARIABLE, '').strip()
  forbidden = given.lower() in _NO or not _jax('jax_enable_compilation_cache')
  if forbidden or not wanted:
    return None
  try:
    if given.lower() in _YES:
      path = folders.cache_directory() / 'compiled'
    else:
      path = pathlib.Path(given).expanduser().absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_ours(path)
    _trim(path, MAX_BYTES)
  except (OSError, errors.UserError) as error:
    reason = getattr(error, 'strerror', None) or error
    say(
      f'NOTE: compiled programs are not kept: {reason}'
      f' ({getattr(error, "filename", None) or VARIABLE})'
    )
    return None
  return path


def keep_programs(wanted: bool, say: Say, *, application: bool) -> None:
  """Has JAX keep compiled programs in our folder, for the whole process.

  Args:
    wanted: as for `folder`.
    say: as for `folder`.
    application: whether this process is the command line: then every program is
      kept, and a damaged file is an error, which `compiled` repairs.  JAX's
      thresholds stay in a notebook.
  """
  if _jax('jax_compilation_cache_dir') or (path := folder(wanted, say)) is None:
    return
  settings = {'jax_compilation_cache_dir': str(path)}
  for name, value in (settings | (_APPLICATION if application else {})).items():
    jax.config.update(name, value)
  # JAX reads them once.
  compilation_cache.reset_cache()


def compiled(
  lowered: jax.stages.Lowered, say: Say, options: Mapping[str, Any]
) -> jax.stages.Compiled:
  """Compiles a program, or takes it from the cache.

  A damaged cache does not end a run: its files are removed.

  Args:
    lowered: the program.
    say: reports a damaged cache.
    options: XLA's, of this program only.
  """
  path = _jax('jax_compilation_cache_dir')
  try:
    return lowered.compile(dict(options))
  except Exception as error:
    if not path or not _jax('jax_raise_persistent_cache_errors'):
      raise
    # If the program itself is at fault, this raises again.
    with _without_cache():
      program = lowered.compile(dict(options))
    _trim(pathlib.Path(path), 0)
    say(
      f'NOTE: the compiled programs in {path} could not be used, and were'
      f' removed: {error}'
    )
    return program


def _jax(setting: str) -> Any:
  return getattr(jax.config, setting)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()


def _check_ours(path: pathlib.Path) -> None:
  """Raises if others can write there: its files are executed."""
  if sys.platform == 'win32':
    return
  status = path.stat()
  if status.st_uid != os.getuid() or status.st_mode & (
    stat.S_IWGRP | stat.S_IWOTH
  ):
    raise PermissionError(0, 'others can write there', str(path))
  if not os.access(path, os.W_OK):
    raise PermissionError(0, 'it cannot be written', str(path))


def _trim(path: pathlib.Path, limit: int) -> None:
  """Removes the least recently used files, down to `limit` bytes."""
  files = []
  for file in path.rglob('*'):
    # Another process may trim, too.
    with contextlib.suppress(OSError):
      status = file.lstat()
      if stat.S_ISREG(status.st_mode):
        last = max(status.st_atime, status.st_mtime)
        files.append((last, status.st_size, file))
  total = sum(size for _, size, _ in files)
  for _, size, file in sorted(files):
    if total <= limit:
      break
    with contextlib.suppress(OSError):
      file.unlink()
    total -= size
