# SPDX-License-Identifier: Apache-2.0
"""The 1000 classes, and the best of them for an image."""

import collections
import itertools

import numpy as np
import pytest

from resnet_jax.data import labels
from resnet_jax.evaluation import prediction


@pytest.fixture
def probabilities():
  values = np.zeros(1000, np.float32)
  values[[7, 999, 0, 340]] = 0.125, 0.5, 0.25, 0.0625
  return values


def test_best_first_with_names_and_wnids_by_index(probabilities):
  best = prediction.from_probabilities(probabilities).best
  assert [guess.label for guess in best] == [999, 0, 7, 340, 1]
  assert [guess.probability for guess in best] == [0.5, 0.25, 0.125, 0.0625, 0]
  assert [guess.wnid for guess in best] == [
    'n15075141',
    'n01440764',
    'n01514668',
    'n02391049',
    'n01443537',
  ]
  firsts = [guess.name.split(',')[0] for guess in best]
  assert firsts == ['toilet tissue', 'tench', 'cock', 'zebra', 'goldfish']


def test_label_is_the_best_of_plain_numbers(probabilities):
  found = prediction.from_probabilities(probabilities)
  assert found.label == 999
  assert type(found.label) is int
  assert type(found.best[0].probability) is float


def test_equal_probabilities_come_in_class_order():
  values = np.full(1000, 0.001, np.float32)
  values[[613, 12, 500]] = 0.25
  best = prediction.from_probabilities(values, count=7).best
  assert [guess.label for guess in best] == [12, 500, 613, 0, 1, 2, 3]


@pytest.mark.parametrize('count', [1, 3, 1000])
def test_as_many_as_asked_for(count):
  values = np.random.default_rng(0).random(1000, np.float32)
  best = prediction.from_probabilities(values, count=count).best
  assert len(best) == count
  assert best[0].probability == values.max()
  assert all(
    a.probability >= b.probability for a, b in itertools.pairwise(best)
  )


def test_printed_a_line_a_class(probabilities):
  found = prediction.from_probabilities(probabilities, count=2)
  assert str(found).splitlines() == [
    '  0.5000   999  n15075141  toilet tissue, toilet paper, bathroom tissue',
    '  0.2500     0  n01440764  tench, Tinca tinca',
  ]
  assert repr(found) == str(found)


def test_a_thousand_classes_by_wnid():
  classes = labels.imagenet_classes()
  wnids = [c.wnid for c in classes]
  assert len(wnids) == len(set(wnids)) == 1000
  assert wnids == sorted(wnids)
  assert all(len(w) == 9 and w[0] == 'n' and w[1:].isdigit() for w in wnids)
  assert all(c.name == c.name.strip() != '' for c in classes)


def test_crane_and_maillot_are_two_classes_each():
  classes = labels.imagenet_classes()
  firsts = [c.name.split(',')[0] for c in classes]
  twice = {n: k for n, k in collections.Counter(firsts).items() if k > 1}
  assert twice == {'crane': 2, 'maillot': 2}
  cranes = [i for i, name in enumerate(firsts) if name == 'crane']
  # The bird, and the machine.
  assert cranes == [134, 517]
