# SPDX-License-Identifier: Apache-2.0
"""The file of JSON lines of `predict`: one that was stopped is gone on with."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.system import errors, files

_MAX_LINE = 1 << 24


class Lines(files.Appended):
  """Adds objects to `NAME.part`, a line an image; a context manager.

  Attributes:
    kept: the objects that a run which was stopped has left.
  """

  def __init__(
    self,
    path: pathlib.Path,
    keys: Sequence[str],
    facts: Mapping[str, Any],
    rows: int,
  ) -> None:
    """Opens `NAME.part`, made if it is not there.

    Args:
      path: of the finished file.
      keys: of the images, in order; what is there must be of the first ones.
      facts: what every line says of how it was made.
      rows: images a batch: so that the batches are those of a run that was
        not stopped, it is gone on with from a multiple.

    Raises:
      UserError: it holds something else, or predictions with other settings,
        or another process writes it.
    """
    self._facts = facts

    def whole(there: pathlib.Path) -> int:
      self.kept, end = self._whole(there, keys, rows)
      return end

    super().__init__('predictions', path, path, whole)

  def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds objects; when it returns they outlive a killed process."""
    text = ''.join(
      json.dumps({**line, **self._facts}, ensure_ascii=False) + '\n'
      for line in lines
    )
    self.add(text.encode())

  def _whole(
    self, there: pathlib.Path, keys: Sequence[str], rows: int
  ) -> tuple[list[dict[str, Any]], int]:
    """The objects that are kept, and where they end.

    A last line that breaks off is not; nor what is behind a multiple of `rows`.
    """
    found: list[dict[str, Any]] = []
    ends = [0]
    with open(there, 'rb') as file:
      while (line := file.readline(_MAX_LINE)).endswith(b'\n'):
        found.append(self._checked(line, keys, len(found)))
        ends.append(file.tell())
    if line and not found and not line.startswith(b'{"key": '[: len(line)]):
      raise self._other('it does not begin with a prediction')
    kept = len(found) if len(found) == len(keys) else len(found) // rows * rows
    return found[:kept], ends[kept]

  def _checked(
    self, line: bytes, keys: Sequence[str], row: int
  ) -> dict[str, Any]:
    try:
      facts = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise self._other(f'line {row + 1} is not JSON in UTF-8') from error
    if not isinstance(facts, dict) or 'key' not in facts:
      raise self._other(f'line {row + 1} is no prediction of an image')
    wanted = {'key': keys[row] if row < len(keys) else None, **self._facts}
    for key, value in wanted.items():
      if facts.get(key) != value:
        raise self._other(
          f'in line {row + 1} {key} is {facts.get(key)!r}, {value!r} now'
        )
    return facts

  def _other(self, what: str) -> errors.UserError:
    return errors.UserError(
      f'{self._part} holds something else than the first images of this run:'
      f' {what}. Remove it, or choose another file (predictions).'
    )
