# SPDX-License-Identifier: Apache-2.0
"""The table that a run fills, known before it starts, and its writer."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from resnet_jax.features import output
from resnet_jax.system import units

PENDING, DONE, FAILED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class FeatureTable:
  """A row per image, an array per layer, or one of crops.

  Attributes:
    keys: of the rows.
    labels: of the rows; -1 for no label.
    layers: the (C, H, W) of each layer, in the requested order; or the shape of
      crops.
    dtype: 'float32' or 'float16'; of crops 'uint8'.
    batch_rows: rows written at a time; a run resumes at a multiple of it.
    dimensions: the names of a row's axes, with the layer's in place of `{}`.
    chunk_bytes: the most that a chunk of several rows has.
    kind: what the rows are.
  """

  keys: Sequence[str]
  labels: Sequence[int]
  layers: Mapping[str, tuple[int, ...]]
  dtype: str
  batch_rows: int
  dimensions: Sequence[str] = ('{}_c', '{}_y', '{}_x')
  chunk_bytes: int = 32 << 20
  kind: output.Kind = output.FEATURES

  @property
  def rows(self) -> int:
    """The number of images."""
    return len(self.keys)

  def row_bytes(self, *layers: str) -> int:
    """Bytes of one row's values: of some layers, or of all."""
    size = np.dtype(self.dtype).itemsize
    return size * sum(math.prod(self.layers[n]) for n in layers or self.layers)


@dataclasses.dataclass(frozen=True)
class Facts:
  """The facts stored beside a run's values.

  Attributes:
    settings: what determines the values; a run is resumed only with the same.
    record: everything else worth knowing.
  """

  settings: Mapping[str, Any]
  record: Mapping[str, Any]


class Writer(Protocol):
  """Writes the rows of a run, in order, into its directory.

  Attributes:
    done: the rows from the first on that are there.
    failed: the failed rows among all that are there.
  """

  done: int
  failed: int

  def rows(self, part: units.Part) -> tuple[int, int]:
    """The rows of a part, and how many of them were there before."""

  def starts(self, part: units.Part) -> Iterator[int]:
    """The first rows of the part's batches that this process is to write."""

  def write(
    self, start: int, values: Mapping[str, np.ndarray], reasons: Sequence[str]
  ) -> None:
    """Adds rows; when it returns they outlive a killed process.

    Args:
      start: the first row; a multiple of the table's `batch_rows`.
      values: (rows, C, H, W) of each layer; NaN in rows that failed.
      reasons: why a row failed, '' for the others.
    """

  def close(self) -> None:
    """Lets other processes have what is not written."""

  def missing(self) -> Sequence[units.Unit]:
    """What other processes have yet to write."""

  def finish(self) -> None:
    """Completes the run after the last row."""
