# SPDX-License-Identifier: Apache-2.0
"""The settings of a run, stored beside its results for runs that resume it."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.system import files
from resnet_jax.system.text import plain, some

# What a user knows them by, in messages.
_SAID = {
  'batch_rows': 'batch_size',
  'images': 'the number of images',
  'images_sha256': 'the SHA-256 of the list of images',
  'weights_sha256': 'the SHA-256 of the weights',
}
_SHA256 = re.compile('[0-9a-f]{64}')
# Entries of a list that a message shows.
_MOST = 6
# Names, and words of descriptions, in stores and files of earlier versions.
_RENAMED = {'pictures': 'images', 'pictures_sha256': 'images_sha256'}
_REWORDED = {'pictures of ': 'images of ', 'whole picture ': 'whole image '}


def current(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Stored settings in their present names and words."""
  found = {_RENAMED.get(key, key): value for key, value in stored.items()}
  if isinstance(text := found.get('preprocessing'), str):
    for before, now in _REWORDED.items():
      text = text.replace(before, now, 1)
    found['preprocessing'] = text
  return found


def read(path: pathlib.Path, *keys: str) -> dict[str, Any] | None:
  """The settings under `keys` of a JSON file; None if there are none."""
  try:
    value = files.read_json(path)
    for key in keys:
      value = value[key]
  except (OSError, ValueError, LookupError, TypeError):
    return None
  return current(value) if isinstance(value, dict) else None


def batch_rows(stored: Mapping[str, Any]) -> int:
  """The batch size; 0: they do not say it."""
  rows = stored.get('batch_rows')
  return rows if type(rows) is int else 0


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  """Names the settings that differ, with both values; '' if none does."""
  return '; '.join(
    f'{_SAID.get(key, key)} is {_shown(stored.get(key))} there,'
    f' {_shown(wanted.get(key))} now'
    for key in sorted({*stored, *wanted})
    if stored.get(key) != wanted.get(key)
  )


def _shown(value: Any) -> str:
  if isinstance(value, list) and len(value) > _MOST:
    return f'[{some([repr(each) for each in value], _MOST)}]'
  if isinstance(value, str) and _SHA256.fullmatch(value):
    return f'{value[:12]}...'
  return plain(repr(value))
