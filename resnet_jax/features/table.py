# SPDX-License-Identifier: Apache-2.0
"""What a run writes, known before it starts, and the interface of a writer."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

PENDING, DONE, FAILED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class FeatureTable:
  """The table that a run fills: a row an image, an array a layer.

  Attributes:
    keys: a key a row.
    labels: a label a row, -1 where there is none.
    layers: the (C, H, W) of each layer, in the order asked for.
    dtype: 'float32' or 'float16'.
    batch_rows: rows that are written at a time; a run goes on from a multiple
      of it.
  """

  keys: Sequence[str]
  labels: Sequence[int]
  layers: Mapping[str, tuple[int, int, int]]
  dtype: str
  batch_rows: int

  @property
  def rows(self) -> int:
    """How many images there are."""
    return len(self.keys)

  def row_bytes(self) -> int:
    """Bytes of the values of one row."""
    size = np.dtype(self.dtype).itemsize
    return sum(math.prod(shape) for shape in self.layers.values()) * size


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is recorded of a run.

  Attributes:
    settings: what determines the values; a run goes on only with the same.
    record: what else somebody may want to know of it.
  """

  settings: Mapping[str, Any]
  record: Mapping[str, Any]


class Writer(Protocol):
  """Writes the rows of a run, in order, into a directory of its own.

  Attributes:
    done: rows that are there already; the next to be written.
    failed: those of them that could not be computed.
  """

  done: int
  failed: int

  def write(
    self, start: int, values: Mapping[str, np.ndarray], reasons: Sequence[str]
  ) -> None:
    """Adds rows; when it returns they outlive a killed process.

    Args:
      start: the first row; a multiple of the layout's `batch_rows`.
      values: (rows, C, H, W) of each layer; NaN in rows that failed.
      reasons: why a row failed, '' for the others.
    """

  def finish(self) -> None:
    """Called after the last row."""
