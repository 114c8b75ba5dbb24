# SPDX-License-Identifier: Apache-2.0
"""What jobs say: results to standard output, all else beside it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax import terminal
from resnet_jax.terminal import say

__all__ = ['say', 'show']


def show(
  rows: Sequence[Mapping[str, Any]], as_json: bool, **facts: Any
) -> None:
  """Prints rows of the same keys: a table, or JSON with `facts` beside them.

  Numbers stand to the right in the table, floats with six digits.
  """
  if as_json:
    print(json.dumps(facts | {'rows': list(rows)}, indent=2))
    return
  if not rows:
    return
  columns = list(rows[0])
  cells = [columns, *([_cell(row[c]) for c in columns] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  right = [isinstance(rows[0][c], int | float) for c in columns]
  for row in cells:
    line = '  '.join(
      cell.rjust(width) if to_right else cell.ljust(width)
      for cell, width, to_right in zip(row, widths, right, strict=True)
    )
    print(terminal.plain(line.rstrip()))


def _cell(value: Any) -> str:
  return f'{value:.6g}' if isinstance(value, float) else str(value)
