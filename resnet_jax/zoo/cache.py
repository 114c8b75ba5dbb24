# SPDX-License-Identifier: Apache-2.0
"""The files of the cache, and what each was verified against.

A file lies at `CACHE/msra-50/NAME`.  Beside it: `NAME.json`, its receipt;
`NAME.lock`, empty; until it is complete, `NAME.part` and `NAME.part.json`.  The
receipt is JSON: `address`, null where the user put the file there; `bytes`;
`sha256`; `date`, UTC; and `verified`, what the file was compared with.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
from typing import Any

from resnet_jax.system import errors, files, folders
from resnet_jax.zoo import records

_YES, _NO = ('1', 'true', 'yes'), ('', '0', 'false', 'no')
# The largest file that is accepted where the publisher states no size.
_MAX_BYTES = 2 << 30
_BLOCK_BYTES = 1 << 20
_RECEIPT = {'address', 'bytes', 'sha256', 'date', 'verified'}


@dataclasses.dataclass(frozen=True)
class Contents:
  """Size and hexadecimal digests (always 'sha256') of a file."""

  bytes: int
  digests: dict[str, str]


def is_offline() -> bool:
  """Whether the user forbids downloads.

  Raises:
    UserError: the variable is neither yes nor no.
  """
  given = os.environ.get('RESNET_JAX_OFFLINE', '')
  if given.strip().lower() in (*_YES, *_NO):
    return given.strip().lower() in _YES
  raise errors.UserError(
    f"RESNET_JAX_OFFLINE='{given}': set it to 1, true or yes to forbid"
    ' downloads, to 0, false or no (or unset it) to allow them.'
  )


def place(file: records.File, name: str) -> pathlib.Path:
  """The path of a file of the checkpoint `name`, such as `msra-50`."""
  return folders.cache_directory() / name / file.name


def cached(file: records.File, name: str) -> pathlib.Path | None:
  """The file of the checkpoint `name`, verified again; None: not cached.

  Raises:
    UserError: it differs from its receipt or from what is published.
  """
  path = place(file, name)
  if not os.path.exists(path):
    return None
  if not path.is_file():
    raise errors.UserError(f'{path} is not a file. Remove it.')
  again = f'Remove it to download it again, or give weights={path}'
  try:
    found = contents(path, file)
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror}. Make it readable, or name'
      ' another folder in RESNET_JAX_CACHE.'
    ) from error
  receipt = read_json(path, _RECEIPT)
  now = (found.bytes, found.digests['sha256'])
  if receipt and now != (receipt['bytes'], receipt['sha256']):
    raise errors.UserError(
      f'{path} has changed since its receipt was written ({receipt["date"]}):'
      f' it has {now[0]} bytes and SHA-256 {now[1]}, and had'
      f' {receipt["bytes"]} and {receipt["sha256"]}. {again} to use it as it'
      ' is.'
    )
  if wrong := fault(found, file):
    raise errors.UserError(
      f'{path} is not the published file: {wrong}. {again} to use it as it is.'
    )
  if receipt is None and file.hash is None:
    raise errors.UserError(
      f'{path} has no receipt of a download, and no hash is published to check'
      f' it against. {again} if it is yours.'
    )
  if receipt is None:
    # A shared cache may be read-only: then each use verifies without one.
    with contextlib.suppress(OSError):
      write_receipt(path, None, found, file)
  return path


def contents(path: pathlib.Path, file: records.File) -> Contents:
  """Reads a file once, for SHA-256 and for the hash that is published."""
  algorithms = {'sha256'} | ({file.hash.algorithm} if file.hash else set())
  # MD5 finds damage; it is what some publishers give.
  sums = {a: hashlib.new(a, usedforsecurity=False) for a in algorithms}
  size = 0
  with open(path, 'rb') as opened:
    while block := opened.read(_BLOCK_BYTES):
      size += len(block)
      for digest in sums.values():
        digest.update(block)
  return Contents(size, {a: digest.hexdigest() for a, digest in sums.items()})


def size_limits(file: records.File) -> tuple[int, int]:
  """The smallest and the largest size that a published file may have."""
  if file.size is None:
    return 1, _MAX_BYTES
  # 2 percent, where the publisher rounded it.
  slack = 0 if file.exact else file.size // 50
  return file.size - slack, file.size + slack


def size_fault(size: int, file: records.File) -> str | None:
  """How a file's size differs from the published one; None: it does not."""
  low, high = size_limits(file)
  if low <= size <= high:
    return None
  if file.size is None:
    return f'{size:,} bytes, where {low:,} to {high:,} are accepted'
  about = '' if file.exact else 'about '
  return f'{size:,} bytes, where {about}{file.size:,} are published'


def fault(found: Contents, file: records.File) -> str | None:
  """How a file differs from the published one; None: it does not."""
  wrong = size_fault(found.bytes, file)
  if wrong or file.hash is None:
    return wrong
  digits = found.digests[file.hash.algorithm]
  if digits.startswith(file.hash.digits):
    return None
  return f'its {file.hash.algorithm} is {digits}, published is {file.hash}'


def verdict(file: records.File, found: Contents) -> str:
  """What a file without a fault was verified against, and what not."""
  if file.hash is None:
    size = '' if file.size is None else ' (its size fits)'
    return (
      f'NOT verified: no hash of it is published{size}; its SHA-256 is'
      f' {found.digests["sha256"]}'
    )
  if file.hash.is_full:
    return f'verified: {file.hash}'
  return f'verified as far as is published, {file.hash}'


def write_receipt(
  path: pathlib.Path, address: str | None, found: Contents, file: records.File
) -> None:
  """Writes the receipt of a verified file; an OSError if that fails."""
  receipt = {
    'address': address,
    'bytes': found.bytes,
    'sha256': found.digests['sha256'],
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'verified': str(file.hash or ('its size' if file.size else 'nothing')),
  }
  write_json(path, receipt)


def write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
  """Writes `NAME.json`, beside a file."""
  text = json.dumps(data, indent=2) + '\n'
  files.write_atomically(path.with_name(f'{path.name}.json'), text.encode())


def read_json(path: pathlib.Path, keys: set[str]) -> dict[str, Any] | None:
  """The object of `keys` in `NAME.json`; None: it is missing or damaged."""
  try:
    data = json.loads(path.with_name(f'{path.name}.json').read_bytes())
  except (OSError, ValueError, RecursionError):
    return None
  return data if isinstance(data, dict) and set(data) == keys else None
