# SPDX-License-Identifier: Apache-2.0
"""Compiled programs, kept for the next run by JAX's persistent cache.

JAX tells programs apart by their operations, its own version and the
processor's features, so that none is run on a machine that lacks them.  Its
settings hold for the whole process, so they are ours only while one of our
programs is compiled; a cache that the user has given JAX is left alone, and
used.

The bound is not JAX's own (`jax_compilation_cache_max_size`): that needs
another package, waits for a lock, and stops writing for good when a process
was killed between two files.
"""

import contextlib
import os
import pathlib
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from resnet_jax.system import errors, folders

VARIABLE = 'RESNET_JAX_COMPILATION_CACHE'
MAX_BYTES = 256 << 20

_NO = ('0', 'false', 'no')
_YES = ('', '1', 'true', 'yes')
_LOCK = threading.Lock()
_SETTINGS = {
  # By default JAX keeps only what took a second.
  'jax_persistent_cache_min_compile_time_secs': 0.0,
  'jax_persistent_cache_min_entry_size_bytes': -1,
  'jax_raise_persistent_cache_errors': True,
}

Say = Callable[[str], None]


def folder(wanted: bool, say: Say) -> pathlib.Path | None:
  """The folder for compiled programs, made and trimmed; None: none are kept.

  Args:
    wanted: whether the user wants it; the environment may forbid it, or name
      another folder.
    say: hears why there is none although it was wanted.
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


def compiled(
  lowered: jax.stages.Lowered, path: pathlib.Path | None, say: Say
) -> jax.stages.Compiled:
  """The program, from the folder if it is there, else put into it.

  What is wrong with the folder does not end a run: it is emptied, and the
  program compiled.
  """
  if path is None or _jax('jax_compilation_cache_dir'):
    return lowered.compile()
  try:
    with _ours(path):
      return lowered.compile()
  except Exception as error:
    # The cache's, or the compiler's: then it comes again.
    program = lowered.compile()
    _trim(path, 0)
    say(
      f'NOTE: the compiled programs in {path} could not be used, and were'
      f' removed: {error}'
    )
    return program


@contextlib.contextmanager
def _ours(path: pathlib.Path) -> Iterator[None]:
  """Has JAX use the folder."""
  settings = _SETTINGS | {'jax_compilation_cache_dir': str(path)}
  with _LOCK:
    before = {name: _jax(name) for name in settings}
    try:
      _set(settings)
      yield
    finally:
      _set(before)


def _jax(setting: str) -> Any:
  return getattr(jax.config, setting)


def _set(settings: Mapping[str, Any]) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  # JAX looks at them once.
  compilation_cache.reset_cache()


def _check_ours(path: pathlib.Path) -> None:
  """Raises if others can write there: what lies there is executed."""
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
  """Removes the files that were used longest ago, down to `limit` bytes."""
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
