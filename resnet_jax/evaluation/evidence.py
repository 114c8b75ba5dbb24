# SPDX-License-Identifier: Apache-2.0
"""Results as lines of a file that grows: the evidence of the tables."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.system import errors, files

# What differs when the same result is found again.
_OF_THE_DAY = ('date', 'command', 'config', 'speed')
# Of a label set; they are in results.json.
_LONG = ('classes', 'confusions')


def lines_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A line a label set: the run's facts and this set's figures."""
  facts = {key: value for key, value in results.items() if key != 'labels'}
  return [
    facts
    | {'labels': name}
    | {key: value for key, value in found.items() if key not in _LONG}
    for name, found in results['labels'].items()
  ]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a file; none if it is not there.

  Raises:
    UserError: it holds something else.
  """
  try:
    text = path.read_text('utf-8') if path.exists() else ''
    if text and not text.endswith('\n'):
      raise ValueError('its last line breaks off')
    lines = [json.loads(line) for line in text.splitlines()]
    if not all(isinstance(line, dict) for line in lines):
      raise ValueError('a line is no JSON object')
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(
      f'record={path} is not a file of JSON objects, a line each, that one'
      f' could be added to: {error}. Name another file.'
    ) from error
  return lines


def append(
  path: pathlib.Path, lines: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """Adds the lines whose result is not there yet; returns them."""
  known = [_result(line) for line in read(path)]
  new = [line for line in lines if _result(line) not in known]
  with files.writing('the record', path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab') as file:
      for line in new:
        file.write((json.dumps(line, ensure_ascii=False) + '\n').encode())
      file.flush()
      os.fsync(file.fileno())
  return new


def _result(line: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in line.items() if key not in _OF_THE_DAY}
