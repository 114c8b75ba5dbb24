# SPDX-License-Identifier: Apache-2.0
"""The files of the cache, and what each was verified against.

A file lies at `CACHE/msra-50/NAME`.  Beside it: `NAME.json`, its receipt;
`NAME.lock`, empty; until it is complete, `NAME.part` and `NAME.part.json`.  The
receipt is JSON: `address`, null where the user put the file there; `bytes`;
`sha256`; `date`, UTC; and `verified`, what the file was compared with.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from resnet_jax.system import errors, files, folders
from resnet_jax.zoo import records

_EMBEDDED = pathlib.Path(__file__).parent
_YES, _NO = ('1', 'true', 'yes'), ('', '0', 'false', 'no')


def is_offline() -> bool:
  """Whether the user forbids downloads.

  Raises:
    UserError: the variable is neither yes nor no.
  """
  given = os.environ.get('RESNET_JAX_OFFLINE', '').strip().lower()
  if given not in (*_YES, *_NO):
    raise errors.UserError(
      f"RESNET_JAX_OFFLINE='{given}': set it to 1, true or yes to forbid"
      ' downloads, to 0, false or no (or unset it) to allow them.'
    )
  return given in _YES


def place(file: records.File, name: str) -> pathlib.Path:
  """The path of a file of the checkpoint `name`, such as `msra-50`."""
  if file.embedded:
    return _EMBEDDED / file.embedded
  return folders.cache_directory() / name / file.name


def cached(file: records.File, name: str) -> pathlib.Path | None:
  """The file of the checkpoint `name`, verified again; None: not cached.

  Raises:
    UserError: it differs from its receipt or from what is published.
  """
  path = place(file, name)
  if not path.exists():
    return None
  receipt = read_json(path, 'sha256')
  known = file.hash
  if receipt and not known:
    known = records.Hash('sha256', receipt['sha256'])
  wrong: str | None = 'it has no receipt and no published hash'
  try:
    if known:
      wrong = fault(path, known)
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}. Remove it, make it'
      ' readable, or name another folder in RESNET_JAX_CACHE.'
    ) from error
  if wrong:
    raise errors.UserError(
      f'{path} is not the published file: {wrong}. Remove it to download it'
      f' again, or give weights={path} to use it as it is.'
    )
  if not receipt:
    # A shared cache may be read-only: then each use verifies without one.
    with contextlib.suppress(OSError):
      write_receipt(path, file)
  return path


def embedded(file: records.File, name: str) -> pathlib.Path:
  """The file of a checkpoint that is in the package, verified.

  Raises:
    UserError: it is missing, or another one.
  """
  path = place(file, name)
  assert file.hash
  try:
    wrong = fault(path, file.hash)
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path}, a file of this package, is missing. Install it again.'
    ) from error
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}, a file of this package: {error.strerror or error}.'
      ' Make it readable, or install it again.'
    ) from error
  if wrong:
    raise errors.UserError(
      f'{path} is not the file of this package: {wrong}. Install it again.'
    )
  return path


def digest(path: pathlib.Path, algorithm: str) -> str:
  """The hexadecimal hash of a file."""
  # MD5 finds damage; it is what some publishers give.
  new = functools.partial(hashlib.new, algorithm, usedforsecurity=False)
  with files.opened(path) as file:
    return hashlib.file_digest(file, new).hexdigest()


def fault(path: pathlib.Path, known: records.Hash) -> str | None:
  """How a file's hash differs from the known one; None: it does not."""
  found = digest(path, known.algorithm)
  if found.startswith(known.digits):
    return None
  return f'its {known.algorithm} is {found}, not {known.digits}'


def write_receipt(
  path: pathlib.Path, file: records.File, address: str | None = None
) -> None:
  """Writes the receipt of a verified file."""
  receipt = {
    'address': address,
    'bytes': path.stat().st_size,
    'sha256': digest(path, 'sha256'),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'verified': str(file.hash or 'nothing'),
  }
  write_json(path, receipt)


def write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
  """Writes `NAME.json`, beside a file."""
  text = json.dumps(data, indent=2) + '\n'
  files.write_atomically(path.with_name(f'{path.name}.json'), text.encode())


def read_json(path: pathlib.Path, key: str) -> dict[str, Any]:
  """The object in `NAME.json`; empty if it has no `key` or is missing."""
  try:
    data = files.read_json(path.with_name(f'{path.name}.json'))
  except (OSError, ValueError):
    return {}
  return data if isinstance(data, dict) and key in data else {}
