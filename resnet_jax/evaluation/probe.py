# SPDX-License-Identifier: Apache-2.0
"""A linear classifier on features, fitted in one pass over them.

Ridge regression of one-hot labels, in closed form: the sums of products that it
needs are added up while the features are read, once for each fold of a
cross-validation, which chooses the regularisation.  A. E. Hoerl and R. W.
Kennard, "Ridge regression", Technometrics 12 (1970), pages 55 to 67.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resnet_jax.evaluation.similarity import Table
from resnet_jax.system import errors
from resnet_jax.system.text import size

# A piece of the features, in float64.
_PIECE_BYTES = 32 << 20
# The square matrix of a fold: as wide as any layer after its pool.
_MAX_FEATURES = 8192
# The matrices of the labels, features x classes, of all folds.
_MAX_SUMS_BYTES = 4 << 30
_MAX_CLASSES = 1 << 20
# The fourth power of a value beyond is no float64.
_LARGEST = 1e60
REGULARISATIONS = tuple(10.0**exponent for exponent in range(-6, 3))


@dataclasses.dataclass(frozen=True)
class Probe:
  """A linear classifier.

  Attributes:
    weights: (D, classes) float64, for features as they are.
    bias: (classes,) float64.
    regularisation: the one with the least error.
    errors: the mean squared error of one-hot labels in the folds that were
      held out, by regularisation.
    rows: rows fitted.
    left_out: rows with a value that is not finite.
  """

  weights: np.ndarray = dataclasses.field(repr=False)
  bias: np.ndarray = dataclasses.field(repr=False)
  regularisation: float
  errors: dict[float, float]
  rows: int
  left_out: int

  def scores(self, features: Any) -> np.ndarray:
    """(N, classes) of features (N, ...), which fit in memory."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    return flat @ self.weights + self.bias

  def predict(self, features: Table) -> np.ndarray:
    """The best class (N,) of each row of a table, read in pieces.

    A row with a value that is not finite gets -1.

    Raises:
      UserError: the table is none, or its rows have another number of features.
    """
    width = _width(features)
    if width != len(self.weights):
      raise errors.UserError(
        f'features of shape {tuple(features.shape)} have {width} values a row,'
        f' and the probe was fitted to {len(self.weights)}. Give the same layer'
        ' of the same network, extracted with the same pool.'
      )
    best = [
      np.where(np.isfinite(piece).all(1), self.scores(piece).argmax(1), -1)
      for _, piece in _pieces(features, len(self.bias))
    ]
    return np.concatenate([np.zeros(0, np.int64), *best])


@dataclasses.dataclass
class _Sums:
  """Of one fold, of rows less an origin: what ridge regression needs.

  Attributes:
    count: rows.
    x: (D,) their sum.
    y: (classes,) how often each label occurs.
    xx: (D, D) the sum of their products.
    xy: (D, classes) the sum for each label.
  """

  count: float
  x: np.ndarray
  y: np.ndarray
  xx: np.ndarray
  xy: np.ndarray

  @classmethod
  def none(cls, features: int, classes: int) -> '_Sums':
    """Of no rows."""
    return cls(
      0.0,
      np.zeros(features),
      np.zeros(classes),
      np.zeros((features, features)),
      np.zeros((features, classes)),
    )

  def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
    """Adds rows (N, D) and their labels."""
    one_hot = np.zeros((len(labels), len(self.y)))
    one_hot[np.arange(len(labels)), labels] = 1
    self.count += len(rows)
    self.x += rows.sum(0)
    self.y += one_hot.sum(0)
    self.xx += rows.T @ rows
    self.xy += rows.T @ one_hot

  def plus(self, other: '_Sums', sign: float = 1.0) -> '_Sums':
    """The sums of both, or of those of this one that the other lacks."""
    return _Sums(
      *(
        getattr(self, field.name) + sign * getattr(other, field.name)
        for field in dataclasses.fields(self)
      )
    )

  def about(
    self, x: np.ndarray, y: np.ndarray, scale: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums of products of (rows less x) over scale and one-hot labels less y.

    Returns:
      xx (D, D), xy (D, classes), and the sum of the labels' squares.
    """
    xx = self.xx - np.outer(x, self.x) - np.outer(self.x, x)
    xx += self.count * np.outer(x, x)
    xy = self.xy - np.outer(x, self.y) - np.outer(self.x, y)
    xy += self.count * np.outer(x, y)
    # A one-hot label's square sums to 1.
    yy = self.count - 2 * self.y @ y + self.count * y @ y
    return xx / np.outer(scale, scale), xy / scale[:, None], float(yy)


def linear_probe(
  features: Table,
  labels: np.ndarray,
  *,
  classes: int = 0,
  regularisations: Sequence[float] = REGULARISATIONS,
  folds: int = 5,
) -> Probe:
  """Fits a linear classifier to features.

    store = load_features('features')
    probe = linear_probe(store['avgpool'], store.labels)
    probe.predict(others['avgpool'])

  The memory needed does not depend on the number of rows.

  Args:
    features: (N, ...), a row per image: an array, or a layer of a store.
    labels: (N,) 0 or more.
    classes: how many there are; 0: as many as the labels say.
    regularisations: those to choose from: how much a weight's square costs
      beside the mean squared error, features scaled to variance 1.
    folds: row n is held out in fold n modulo `folds`, when a regularisation is
      chosen; the result is of all rows.

  Raises:
    UserError: labels are missing, or features are too many or too large, or too
      few rows.
  """
  width = _width(features)
  labels = _checked_labels(labels, tuple(features.shape))
  classes = _checked_classes(labels, classes)
  candidates = _checked_regularisations(regularisations)
  _check_folds(folds, width, classes)
  sums = [_Sums.none(width, classes) for _ in range(folds)]
  # Sums of squares of values far from 0 would lose digits.
  origin, left_out = np.zeros(width), 0
  for start, piece in _pieces(features, classes):
    _check_size(piece, start)
    finite = np.isfinite(piece).all(1)
    left_out += int((~finite).sum())
    if not any(fold.count for fold in sums) and finite.any():
      origin = piece[finite].mean(0)
    fold_of = np.arange(start, start + len(piece)) % folds
    for fold, each in enumerate(sums):
      chosen = finite & (fold_of == fold)
      each.add(
        piece[chosen] - origin, labels[start : start + len(piece)][chosen]
      )
  if empty := [n for n, fold in enumerate(sums) if fold.count == 0]:
    count = features.shape[0]
    if count < folds:
      raise errors.UserError(
        f'{count} rows are too few for {folds} folds. Give more rows, or fewer'
        ' folds.'
      )
    raise errors.UserError(
      f'fold {empty[0]} of {folds} (row {empty[0]} and each {folds}th after it)'
      f' has no row of finite values: {left_out} of {count} rows have values'
      ' that are not finite. Give rows without them, or another number of'
      ' folds.'
    )
  return _fitted(sums, origin, candidates, left_out)


def _width(features: Table) -> int:
  """The number of features a row; raises a UserError if it is no table."""
  shape = getattr(features, 'shape', None)
  if not isinstance(shape, tuple) or not shape:
    raise errors.UserError(
      f'features of type {type(features).__name__} are no table of rows. Give'
      ' an array (N, ...), or a layer of load_features(...).'
    )
  width = math.prod(shape[1:])
  if not 0 < width <= _MAX_FEATURES:
    raise errors.UserError(
      f'{width} features a row are not 1 to {_MAX_FEATURES}. Extract the layer'
      " with pool='avg'."
    )
  return width


def _checked_labels(labels: Any, shape: tuple[int, ...]) -> np.ndarray:
  try:
    labels = np.asarray(labels)
  except ValueError as error:
    raise errors.UserError(
      f'labels of type {type(labels).__name__} are no array: {error}. Give one'
      ' whole number a row.'
    ) from error
  if labels.shape != shape[:1] or labels.dtype.kind not in 'iu':
    raise errors.UserError(
      f'labels of shape {labels.shape} and type {labels.dtype} for features of'
      f' shape {shape}: give one whole number a row.'
    )
  if missing := int((labels < 0).sum()):
    raise errors.UserError(
      f'{missing} of {len(labels)} rows have no label (-1). Give data with'
      ' labels, or the rows that have one.'
    )
  return labels


def _is_whole(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _checked_classes(labels: np.ndarray, classes: Any) -> int:
  """The number of classes."""
  if not _is_whole(classes) or not 0 <= classes <= _MAX_CLASSES:
    raise errors.UserError(
      f'classes={classes!r}: give a number from 1 to {_MAX_CLASSES}, or 0 for'
      ' as many as the labels say.'
    )
  found = int(labels.max(initial=-1)) + 1
  if classes and found > classes:
    raise errors.UserError(
      f'a label is {found - 1}, and there are classes={classes}: labels are 0'
      f' to {classes - 1}. Give more classes, or other labels.'
    )
  if found > _MAX_CLASSES:
    raise errors.UserError(
      f'a label is {found - 1}, which makes {found} classes, more than'
      f' {_MAX_CLASSES}. Number the classes 0, 1, 2 and so on.'
    )
  return max(int(classes), found)


def _checked_regularisations(given: Any) -> tuple[float, ...]:
  try:
    found = tuple(float(each) for each in given)
  except (TypeError, ValueError):
    found = ()
  if not found or not all(0 < each < math.inf for each in found):
    raise errors.UserError(
      f'regularisations={str(given)[:200]}: give a list of finite numbers above'
      ' 0.'
    )
  return found


def _check_folds(folds: Any, width: int, classes: int) -> None:
  if not _is_whole(folds) or folds < 2:
    raise errors.UserError(f'folds={folds!r}: give a whole number, 2 or more.')
  needed = 8 * folds * width * (width + classes)
  if needed > _MAX_SUMS_BYTES:
    raise errors.UserError(
      f'{folds} folds of {width} features and {classes} classes need'
      f' {size(needed)} of memory, more than {size(_MAX_SUMS_BYTES)}. Give'
      ' fewer folds, features or classes.'
    )


def _check_size(rows: np.ndarray, start: int) -> None:
  if (np.isfinite(rows) & (np.abs(rows) > _LARGEST)).any():
    raise errors.UserError(
      f'a value in rows {start} to {start + len(rows) - 1} is beyond'
      f' {_LARGEST:g}, too large for sums of squares. Scale the features.'
    )


def _pieces(features: Table, classes: int) -> Iterator[tuple[int, np.ndarray]]:
  """The rows in pieces, (rows, D) float64, and the first row's number.

  A piece's scores, (rows, classes), are as small.
  """
  width = math.prod(features.shape[1:])
  rows = max(1, _PIECE_BYTES // (8 * max(1, width, classes)))
  for start in range(0, features.shape[0], rows):
    piece = np.asarray(features[start : start + rows], np.float64)
    yield start, piece.reshape(len(piece), -1)


def _fitted(
  sums: Sequence[_Sums],
  origin: np.ndarray,
  regularisations: tuple[float, ...],
  left_out: int,
) -> Probe:
  total = sums[0]
  for fold in sums[1:]:
    total = total.plus(fold)
  mean = total.x / total.count
  variance = np.diag(total.xx) / total.count - mean**2
  # A feature without variance gets no weight.
  scale = np.sqrt(np.where(variance > 0, variance, np.inf))
  squares = dict.fromkeys(regularisations, 0.0)
  for fold in sums:
    rest = total.plus(fold, -1.0)
    x, y = rest.x / rest.count, rest.y / rest.count
    turn, values, turned = _decomposed(rest, x, y, scale)
    xx, xy, yy = fold.about(x, y, scale)
    xx, xy = turn.T @ xx @ turn, turn.T @ xy
    for each in regularisations:
      weights = turned / (values + each * rest.count)[:, None]
      squares[each] += yy - 2 * (weights * xy).sum()
      squares[each] += (weights * (xx @ weights)).sum()
  best = min(squares, key=squares.__getitem__)
  y = total.y / total.count
  turn, values, turned = _decomposed(total, mean, y, scale)
  weights = turn @ (turned / (values + best * total.count)[:, None])
  weights /= scale[:, None]
  return Probe(
    weights,
    y - (mean + origin) @ weights,
    best,
    {each: float(square) / total.count for each, square in squares.items()},
    int(total.count),
    left_out,
  )


def _decomposed(
  sums: _Sums, x: np.ndarray, y: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Eigenvectors and eigenvalues of xx, and xy turned by them."""
  xx, xy, _ = sums.about(x, y, scale)
  values, turn = np.linalg.eigh(xx)
  # Rounding makes zeros negative.
  return turn, np.maximum(values, 0), turn.T @ xy
