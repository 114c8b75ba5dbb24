# SPDX-License-Identifier: Apache-2.0
"""The similarity of two tables of features, read in pieces.

Linear CKA (centred kernel alignment): S. Kornblith et al., "Similarity of
neural network representations revisited", arXiv:1905.00414, section 3.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

# One piece of one table, in float64.
_PIECE_BYTES = 64 << 20
# Relative to the sum of squares; less variance is rounding.
_LEAST_VARIANCE = 1e-12
# The largest side of CKA's square matrix, of values or of images.
_MAX_SIDE = 4096


class Table(Protocol):
  """A NumPy array, or a layer of a feature store: a row per image."""

  shape: tuple[int, ...]

  def __getitem__(self, index: Any) -> np.ndarray:
    """The rows at `index`."""


@dataclasses.dataclass(frozen=True)
class Similarity:
  """The similarity of two tables of the same images.

  Attributes:
    rows: images compared.
    left_out: images with a value that is not finite in either table.
    relative_error: rms of the difference over the rms of the first; NaN if
      the shapes differ or the first is zero.
    cosine: mean over the images; NaN if the shapes differ.
    zero: images left out of `cosine`, all zero in either table.
    cka: linear CKA, 0 to 1; NaN if undefined or not computed.
    note: why a value is NaN; '' if none is.
  """

  rows: int
  left_out: int
  relative_error: float
  cosine: float
  zero: int
  cka: float
  note: str


def compare(
  first: Table,
  second: Table,
  rows: tuple[np.ndarray, np.ndarray],
  *,
  piece_bytes: int = _PIECE_BYTES,
  max_side: int = _MAX_SIDE,
) -> Similarity:
  """Compares two tables.

  Args:
    first: (rows, ...), the reference of the relative error.
    second: (rows, ...), possibly of another shape.
    rows: the rows of the same images, in the first and in the second table.
    piece_bytes: about as much of each table is in memory at once, as float64.
    max_side: CKA is computed for at most this many images or values per image.
  """
  sizes = [math.prod(table.shape[1:]) for table in (first, second)]
  same = first.shape[1:] == second.shape[1:]
  step = max(1, piece_bytes // (8 * max(sizes)))
  squares, difference = np.zeros(2), 0.0
  cosines, finite, zero = 0.0, [], 0
  for x, y in _pieces(first, second, rows, step):
    good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    finite.append(good)
    a, b = x[good], y[good]
    squares += (a**2).sum(), (b**2).sum()
    if not same:
      continue
    difference += float(((a - b) ** 2).sum())
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    there = lengths > 0
    zero += int((~there).sum())
    cosines += float(((a * b).sum(axis=1)[there] / lengths[there]).sum())
  kept = np.concatenate(finite) if finite else np.zeros(0, bool)
  count = int(kept.sum())
  chosen = rows[0][kept], rows[1][kept]
  cka, why = math.nan, ''
  if count and max(sizes) <= max_side:
    cka = _ratio(*_of_values(first, second, chosen, step), squares)
  elif count and count <= max_side:
    cka = _ratio(*_of_images(first, second, chosen, step), squares)
  elif count:
    why = (
      f'no CKA: more than {max_side} images and values per image (extract'
      ' with pool=avg, or fewer images)'
    )
  if not why and math.isnan(cka):
    why = 'no CKA: a table does not vary'
  if not same:
    shapes = ['x'.join(map(str, table.shape[1:])) for table in (first, second)]
    why = '; '.join(filter(None, [f'shapes {" and ".join(shapes)}', why]))
  compared = count - zero
  return Similarity(
    count,
    len(kept) - count,
    math.sqrt(difference / squares[0]) if same and squares[0] else math.nan,
    cosines / compared if same and compared else math.nan,
    zero,
    cka,
    why,
  )


def _pieces(
  first: Table, second: Table, rows: tuple[np.ndarray, np.ndarray], step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (step, values) float64 arrays of both tables."""
  for start in range(0, len(rows[0]), step):
    chosen = slice(start, start + step)
    yield _read(first, rows[0][chosen]), _read(second, rows[1][chosen])


def _read(table: Table, rows: np.ndarray) -> np.ndarray:
  values = np.asarray(table[rows], np.float64)
  return values.reshape(len(rows), -1)


def _of_values(
  first: Table, second: Table, rows: tuple[np.ndarray, np.ndarray], step: int
) -> tuple[float, float, float]:
  """CKA's three sums from (values, values) products, in one pass."""
  shift: tuple[np.ndarray, ...] = ()
  for a, b in _pieces(first, second, rows, step):
    if not shift:
      # CKA is shift-invariant, and sums near the mean lose no digits.
      shift = a.mean(axis=0), b.mean(axis=0)
      totals = [np.zeros_like(part) for part in shift]
      products = [np.zeros((len(x), len(y))) for x, y in _pairs(*shift)]
    near = a - shift[0], b - shift[1]
    for total, part in zip(totals, near, strict=True):
      np.add(total, part.sum(axis=0), out=total)
    for product, (x, y) in zip(products, _pairs(*near), strict=True):
      np.add(product, x.T @ y, out=product)
  across, one, other = (
    float(((product - np.outer(x, y) / len(rows[0])) ** 2).sum())
    for product, (x, y) in zip(products, _pairs(*totals), strict=True)
  )
  return across, one, other


def _of_images(
  first: Table, second: Table, rows: tuple[np.ndarray, np.ndarray], step: int
) -> tuple[float, float, float]:
  """CKA's three sums from (images, images) products, block by block."""
  a, b = (
    _gram(table, chosen, step)
    for table, chosen in zip((first, second), rows, strict=True)
  )
  across, one, other = (float((x * y).sum()) for x, y in _pairs(a, b))
  return across, one, other


def _gram(table: Table, rows: np.ndarray, step: int) -> np.ndarray:
  """Returns (images, images), the centred Gram matrix."""
  gram = np.empty((len(rows), len(rows)))
  for start in range(0, len(rows), step):
    x = _read(table, rows[start : start + step])
    for other in range(0, start + step, step):
      y = x if other == start else _read(table, rows[other : other + step])
      block = x @ y.T
      gram[start : start + step, other : other + step] = block
      gram[other : other + step, start : start + step] = block.T
  gram -= gram.mean(axis=0, keepdims=True)
  gram -= gram.mean(axis=1, keepdims=True)
  return gram


def _pairs(a: Any, b: Any) -> tuple[tuple[Any, Any], ...]:
  return (a, b), (a, a), (b, b)


def _ratio(
  across: float, one: float, other: float, squares: np.ndarray
) -> float:
  for own, square in zip((one, other), squares, strict=True):
    if math.sqrt(max(own, 0)) <= _LEAST_VARIANCE * square:
      return math.nan
  return min(1.0, across / math.sqrt(one * other))
