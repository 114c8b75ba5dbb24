# SPDX-License-Identifier: Apache-2.0
"""Settings that override those which come with the weights."""

from collections.abc import Mapping
from typing import Any

AUTO = 'auto'


def given(values: Mapping[str, Any]) -> dict[str, Any]:
  """The settings that a user gave: those other than 'auto', 0 and None."""
  return {
    name: value
    for name, value in values.items()
    if not (
      value is None
      or (isinstance(value, str | float | int) and value in (AUTO, 0))
    )
  }
