# SPDX-License-Identifier: Apache-2.0
"""Results as JSON lines, appended to a file: the evidence of the tables."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.system import errors, files

# Facts that differ when the same result is found again.
_OF_THE_DAY = ('date', 'command', 'config', 'speed')
# A line has some kilobytes.
_MAX_BYTES = 1 << 28
# Tables of a label set that are in results.json only.
_LONG = ('classes', 'confusions')


def lines_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns a line per label set: the run's facts and the set's figures."""
  facts = {key: value for key, value in results.items() if key != 'labels'}
  return [
    facts
    | {'labels': name}
    | {key: value for key, value in found.items() if key not in _LONG}
    for name, found in results['labels'].items()
  ]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the lines of a file; none if it does not exist.

  Raises:
    UserError: the file holds something else.
  """
  try:
    text = ''
    if path.exists():
      text = files.read_text(path, _MAX_BYTES)
    if text and not text.endswith('\n'):
      raise ValueError('its last line breaks off')
    lines = [files.read_json(line) for line in text.splitlines()]
    if not all(isinstance(line, dict) for line in lines):
      raise ValueError('a line is not a JSON object')
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'record={path} is not a file of JSON lines: {error}. Name another file.'
    ) from error
  return lines


def append(
  path: pathlib.Path, lines: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """Appends the lines with new results, and returns them."""
  known = [_result(line) for line in read(path)]
  new = [line for line in lines if _result(line) not in known]
  with files.writing('the record', path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writable(path, 'ab') as file:
      for line in new:
        file.write((json.dumps(line, ensure_ascii=False) + '\n').encode())
      file.flush()
      os.fsync(file.fileno())
  return new


def _result(line: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in line.items() if key not in _OF_THE_DAY}
