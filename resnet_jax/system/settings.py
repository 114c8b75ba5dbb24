# SPDX-License-Identifier: Apache-2.0
"""The settings of a run, stored beside its results for runs that resume it."""

from collections.abc import Mapping
from typing import Any

# Names in stores and files of earlier versions.
_RENAMED = {'pictures': 'images', 'pictures_sha256': 'images_sha256'}


def current(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Stored settings by their present names."""
  return {_RENAMED.get(key, key): value for key, value in stored.items()}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  """Names the settings that differ, with both values; '' if none does."""
  return '; '.join(
    f'{key} is {stored.get(key)!r} there, {wanted.get(key)!r} now'
    for key in sorted({*stored, *wanted})
    if stored.get(key) != wanted.get(key)
  )
