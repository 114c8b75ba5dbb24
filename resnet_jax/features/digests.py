# SPDX-License-Identifier: Apache-2.0
"""The digest of a unit's rows, whatever chunks or batches they come in."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Digest:
  """Of rows that are added in order: SHA-256 of each array's, then of those."""

  def __init__(self) -> None:
    self._arrays: dict[str, Any] = {}

  def add(
    self, values: Mapping[str, np.ndarray], reasons: Sequence[str] = ()
  ) -> None:
    """Adds rows of some arrays, and the reasons of rows that failed."""
    for name, array in values.items():
      data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
      self._of(name).update(data)
    for reason in reasons:
      self._of('reason').update(f'{len(reason)} {reason}'.encode())

  def _of(self, name: str) -> Any:
    return self._arrays.setdefault(name, hashlib.sha256())

  def hex(self) -> str:
    """The digest in letters."""
    lines = [
      f'{name} {self._arrays[name].hexdigest()}\n'
      for name in sorted(self._arrays)
    ]
    return hashlib.sha256(''.join(lines).encode()).hexdigest()
