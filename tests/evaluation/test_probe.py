# SPDX-License-Identifier: Apache-2.0
"""The linear probe against least squares by NumPy."""

import feature_runs
import numpy as np
import pytest
from makers import user_error

from resnet_jax import load_features
from resnet_jax.evaluation import linear_probe, probe

REGULARISATIONS = (1e-3, 0.1, 10.0)


def samples(rows, width=6, classes=3, seed=0):
  """Classes that overlap, features of very different sizes and offsets."""
  random = np.random.default_rng(seed)
  labels = random.integers(0, classes, rows)
  centres = random.normal(size=(classes, width))
  x = centres[labels] + random.normal(size=(rows, width))
  return x * 10.0 ** np.arange(width) + 1000, labels


def least_squares(x, labels, regularisation, classes=3, scale=None):
  """Weights, bias, as the rows of one system of equations."""
  mean, scale = x.mean(0), x.std(0) if scale is None else scale
  y = np.eye(classes)[labels]
  extra = np.sqrt(regularisation * len(x)) * np.eye(x.shape[1])
  left = np.concatenate([(x - mean) / scale, extra])
  right = np.concatenate([y - y.mean(0), np.zeros((x.shape[1], classes))])
  weights = np.linalg.lstsq(left, right, rcond=None)[0] / scale[:, None]
  return weights, y.mean(0) - mean @ weights


def test_weights_and_held_out_errors_are_those_of_least_squares():
  x, labels = samples(203)
  found = linear_probe(x, labels, regularisations=REGULARISATIONS, folds=4)
  held_out = {}
  for each in REGULARISATIONS:
    squares = 0.0
    for fold in range(4):
      inside = np.arange(203) % 4 == fold
      weights, bias = least_squares(
        x[~inside], labels[~inside], each, scale=x.std(0)
      )
      error = x[inside] @ weights + bias - np.eye(3)[labels[inside]]
      squares += (error**2).sum()
    held_out[each] = squares / 203
  assert found.errors == pytest.approx(held_out, rel=1e-9)
  assert found.regularisation == min(held_out, key=held_out.get)
  weights, bias = least_squares(x, labels, found.regularisation)
  np.testing.assert_allclose(found.weights, weights, rtol=1e-7, atol=1e-12)
  np.testing.assert_allclose(found.bias, bias, rtol=1e-7)
  expected = (x @ weights + bias).argmax(1)
  np.testing.assert_array_equal(found.predict(x), expected)
  assert (expected == labels).mean() > 0.8
  assert (found.rows, found.left_out) == (203, 0)


def test_a_feature_store_is_a_table(tmp_path):
  plan = feature_runs.plan_of(rows=40)
  feature_runs.write('zarr', tmp_path / 'features', plan, failed=(5,))
  store = load_features(tmp_path / 'features')
  labels = np.arange(40) % 2
  for layer, width in (('wide', 12), ('flat', 5)):
    found = linear_probe(store[layer], labels)
    assert found.weights.shape == (width, 2)
    assert (found.rows, found.left_out) == (39, 1)
    predicted = found.predict(store[layer])
    scores = found.scores(np.delete(store[layer][:], 5, axis=0))
    np.testing.assert_array_equal(np.delete(predicted, 5), scores.argmax(1))
    assert predicted[5] == -1
  assert '1 of 40 rows have no label' in user_error(
    linear_probe, store['flat'], store.labels
  )


def test_features_are_read_once_and_in_pieces(monkeypatch):
  x, labels = samples(300, width=8)
  x = (x / np.abs(x).max(0)).astype(np.float32)
  read = []

  class Table:
    shape = (300, 8, 1, 1)

    def __getitem__(self, index):
      read.append(index)
      return x[index].reshape(-1, 8, 1, 1)

  whole = linear_probe(x, labels)
  monkeypatch.setattr(probe, '_PIECE_BYTES', 70 * 8 * 8)
  found = linear_probe(Table(), labels)
  assert [(r.start, r.stop) for r in read] == [
    (start, start + 70) for start in range(0, 300, 70)
  ]
  np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-6)
  np.testing.assert_array_equal(found.predict(Table()), whole.predict(x))


def test_rows_without_values_are_left_out_and_counted():
  x, labels = samples(100)
  with_gaps = np.insert(x, [0, 50], np.nan, axis=0)
  found = linear_probe(with_gaps, np.insert(labels, [0, 50], 0), folds=3)
  assert (found.rows, found.left_out) == (100, 2)
  predicted = found.predict(with_gaps)
  assert predicted[0] == predicted[51] == -1
  assert (np.delete(predicted, [0, 51]) >= 0).all()


def test_a_constant_feature_gets_no_weight():
  x, labels = samples(60)
  x[:, 2] = 7
  found = linear_probe(x, labels)
  assert (found.weights[2] == 0).all()
  assert np.isfinite(found.weights).all()
  assert np.isfinite(found.bias).all()


def test_more_features_than_rows():
  x, labels = samples(20, width=50)
  found = linear_probe(x / x.std(0), labels, folds=2)
  assert (found.predict(x / x.std(0)) == labels).all()


def test_classes_that_do_not_occur_are_never_the_best():
  x, labels = samples(50)
  found = linear_probe(x, labels, classes=5)
  assert found.weights.shape == (6, 5)
  assert set(found.predict(x)) <= {0, 1, 2}


def test_mistakes_are_named():
  x, labels = samples(20)
  assert '1 of 20 rows have no label' in user_error(
    linear_probe, x, np.where(np.arange(20) == 3, -1, labels)
  )
  assert 'one whole number a row' in user_error(linear_probe, x, labels[1:])
  assert 'one whole number' in user_error(linear_probe, x, labels / 2)
  assert 'classes=2' in user_error(linear_probe, x, labels, classes=2)
  assert 'too few for 5 folds' in user_error(linear_probe, x[:3], labels[:3])
  assert 'folds=1' in user_error(linear_probe, x, labels, folds=1)
  assert 'above 0' in user_error(linear_probe, x, labels, regularisations=(0,))
  wide = np.zeros((2, 9000))
  assert "pool='avg'" in user_error(linear_probe, wide, labels[:2])


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({'folds': 2.5}, 'folds=2.5: give a whole number'),
    ({'folds': None}, 'folds=None: give a whole number'),
    ({'folds': 10**9}, 'of memory, more than'),
    ({'classes': -1}, 'classes=-1: give a number from 1'),
    ({'classes': 2.5}, 'classes=2.5: give a number from 1'),
    ({'classes': 10**9}, 'classes=1000000000: give a number from 1'),
    ({'regularisations': [np.nan]}, 'regularisations=[nan]: give'),
    ({'regularisations': [0.1, np.inf]}, 'finite numbers above 0'),
    ({'regularisations': 3}, 'regularisations=3: give'),
    ({'regularisations': ['a']}, 'finite numbers above 0'),
  ],
)
def test_settings_are_checked(options, expected):
  assert expected in user_error(linear_probe, *samples(20), **options)


def test_tables_and_labels_are_checked():
  x, labels = samples(24)
  found = linear_probe(x, labels)
  assert '1000000001 classes, more than' in user_error(
    linear_probe, x, np.where(np.arange(24) == 3, 10**9, labels)
  )
  assert 'features of type list' in user_error(linear_probe, [[1.0]], [0])
  assert 'labels of type list' in user_error(linear_probe, x, [[1], [1, 2]])
  assert 'features of type list' in user_error(found.predict, [[1.0]])
  assert '5 values a row, and the probe was fitted to 6' in user_error(
    found.predict, x[:, :5]
  )
  assert 'is beyond 1e+60' in user_error(linear_probe, x * 1e200, labels)
  assert linear_probe(x * 1e50, labels).rows == 24
  x[np.arange(24) % 5 == 2] = np.nan
  message = user_error(linear_probe, x, labels)
  assert 'fold 2 of 5' in message
  assert '5 of 24 rows have values that are not finite' in message
  assert 'too few' not in message
