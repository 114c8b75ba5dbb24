# SPDX-License-Identifier: Apache-2.0
"""The settings of a run, stored beside its results for runs that resume it."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.system import files
from resnet_jax.system.text import some

# What a user knows them by, in messages.
_SAID = {
  'batch_rows': 'batch_size',
  'class_names_sha256': 'the SHA-256 of class_names',
  'images': 'the number of images',
  'images_sha256': 'the SHA-256 of the list of images',
  'labels_sha256': "the SHA-256 of the images' labels",
  'weights_sha256': 'the SHA-256 of the weights',
}
_SHA256 = re.compile('[0-9a-f]{64}')
# Entries of a list that a message shows.
_MOST = 6
_MOST_LETTERS, _MOST_OF_EACH = 300, 100
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
  found = []
  for key in sorted({*stored, *wanted}):
    before, now = stored.get(key), wanted.get(key)
    if isinstance(before, dict) and isinstance(now, dict):
      found.append(differences(before, now))
    elif before != now:
      found.append(
        f'{_SAID.get(key, key)} is {shown(before)} there, {shown(now)} now'
      )
  return '; '.join(filter(None, found))


def shown(value: Any) -> str:
  """A value of a setting, for a message: a long one is shortened."""
  if isinstance(value, list) and len(value) > _MOST:
    return f'[{some([_cut(repr(v), _MOST_OF_EACH) for v in value], _MOST)}]'
  if isinstance(value, str) and _SHA256.fullmatch(value):
    return f'{value[:12]}...'
  return _cut(repr(value), _MOST_LETTERS)


def _cut(text: str, most: int) -> str:
  return text if len(text) <= most else f'{text[:most]}...'
