# SPDX-License-Identifier: Apache-2.0
"""What jobs say: results to standard output, all else beside it."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax import terminal
from resnet_jax.terminal import say

__all__ = ['say', 'show']


_GAP = '  '


def show(
  rows: Sequence[Mapping[str, Any]],
  as_json: bool,
  heads: int = 0,
  **facts: Any,
) -> None:
  """Prints rows of the same keys: a table, or JSON with `facts` beside them.

  Numbers stand to the right in the table, floats with six digits.

  Args:
    rows: of the table.
    as_json: whether it is printed as JSON.
    heads: columns that say which row it is.  A table with some that is wider
      than the terminal comes in pieces, each of which begins with them;
      elsewhere a row is a line.
    **facts: beside the rows, in JSON.
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
  most = terminal.width(sys.stdout) if heads else None
  for number, piece in enumerate(_pieces(widths, heads, most)):
    if number:
      print()
    for row in cells:
      line = _GAP.join(
        row[c].rjust(widths[c]) if right[c] else row[c].ljust(widths[c])
        for c in piece
      )
      print(terminal.plain(line.rstrip()))


def _pieces(
  widths: Sequence[int], heads: int, most: int | None
) -> list[list[int]]:
  """The columns of each piece of a table that may be `most` wide."""
  pieces = [list(range(heads))]
  for column in range(heads, len(widths)):
    piece = [*pieces[-1], column]
    total = sum(widths[c] for c in piece) + len(_GAP) * (len(piece) - 1)
    # A column that is too wide by itself stands alone.
    if most is not None and total > most and len(pieces[-1]) > heads:
      piece = [*range(heads), column]
      pieces.append(piece)
    pieces[-1] = piece
  return pieces


def _cell(value: Any) -> str:
  return f'{value:.6g}' if isinstance(value, float) else str(value)
