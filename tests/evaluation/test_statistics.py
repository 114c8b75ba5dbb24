# SPDX-License-Identifier: Apache-2.0
"""Intervals, tests, counts and similarities, against independent ones."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from resnet_jax.evaluation import (
  metrics,
  published,
  report,
  similarity,
  statistics,
)
from resnet_jax.models import resnet
from resnet_jax.models.variant import Variant
from resnet_jax.zoo import lookup, records

# ------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
  ('count', 'total', 'low', 'high'),
  [
    # R. G. Newcombe, Stat. Med. 17 (1998), table I, method 3: four decimals.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilsons_interval_is_the_published_one(count, total, low, high):
  found = statistics.Rate(count, total).interval()
  assert found == pytest.approx((100 * low, 100 * high), abs=5e-3)


def test_the_bounds_solve_wilsons_equation_in_fractions():
  """(p - k/n)^2 = z^2 p (1 - p) / n, at both ends and nowhere between."""
  z2 = Fraction(float(stats.norm.ppf(0.975))) ** 2
  for count, total in ((7, 50), (12350, 50000), (1, 3)):
    rate = Fraction(count, total)

    def distance(p, rate=rate, total=total):
      return (p - rate) ** 2 - z2 * p * (1 - p) / total

    interval = statistics.Rate(count, total).interval()
    low, high = (Fraction(end) / 100 for end in interval)
    tiny = Fraction(1, 10**12)
    assert distance(low - tiny) > 0 > distance(low + tiny)
    assert distance(high - tiny) < 0 < distance(high + tiny)


def test_a_rate_is_percent_and_nothing_is_not_a_number():
  rate = statistics.Rate(12350, 50000)
  assert rate.percent == pytest.approx(24.7)
  low, high = rate.interval()
  # field.md: the half-width at 75 percent of 50,000 is 0.37 to 0.38.
  assert (high - low) / 2 == pytest.approx(0.378, abs=5e-4)
  assert math.isnan(statistics.Rate(0, 0).percent)
  assert statistics.Rate(0, 0).interval() == (0, 100)


@pytest.mark.parametrize('total', [0, 1, 2, 9, 25, 300])
def test_mcnemars_exact_p_is_the_sum_of_binomials(total):
  for less in range(total // 2 + 1):
    tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(less + 1))
    expected = float(min(Fraction(1), 2 * tail))
    for pair in ((less, total - less), (total - less, less)):
      p = statistics.McNemar(*pair).exact_p
      assert p == pytest.approx(expected, rel=1e-9)


def test_mcnemars_test_on_a_table_of_a_textbook():
  """A. Agresti, Categorical Data Analysis, table 10.1: 150 and 86."""
  test = statistics.McNemar(150, 86)
  # Without the correction it is the book's 17.36.
  assert test.statistic == pytest.approx(17.356 * (63 / 64) ** 2, rel=1e-4)
  assert test.corrected_p == pytest.approx(stats.chi2.sf(test.statistic, 1))
  assert test.exact_p == pytest.approx(3.716e-5, rel=1e-3)
  assert statistics.McNemar(0, 0) == statistics.McNemar(0, 0)
  assert statistics.McNemar(0, 0).exact_p == 1
  assert statistics.McNemar(0, 0).corrected_p == 1
  assert statistics.McNemar(4, 4).corrected_p == 1


# --------------------------------------------------------------------- counts


def _random_images(classes=12, count=600):
  random = np.random.default_rng(3)
  for _ in range(count):
    answers = frozenset(
      map(int, random.integers(0, classes, random.integers(0, 4)))
    )
    best = [int(v) for v in random.permutation(classes)[:5]]
    yield answers, [] if random.random() < 0.05 else best


def test_the_counts_are_those_of_loops():
  images = list(_random_images())
  tally = metrics.Tally(12)
  for answers, best in images:
    tally.add(answers, best)
  counted = [(a, b) for a, b in images if a]
  assert tally.images == len(counted)
  assert tally.unlabelled == len(images) - len(counted) > 50
  assert tally.failed == sum(not b for _, b in counted) > 5
  assert tally.several == sum(len(a) > 1 for a, _ in counted)
  for rate, k in ((tally.top1, 1), (tally.top5, 5)):
    wrong = 0
    for answers, best in counted:
      right = False
      for guess in best[:k]:
        if guess in answers:
          right = True
      wrong += not right
    assert rate == statistics.Rate(wrong, len(counted))
  assert [row.label for row in tally.classes()] == list(range(12))
  for row in tally.classes():
    of = [(a, b) for a, b in counted if row.label in a]
    assert row.images == len(of)
    assert row.top1 == sum(not (set(b[:1]) & a) for a, b in of)
    assert row.top5 == sum(not (set(b) & a) for a, b in of)
  pairs = []
  for label, other in itertools.product(range(12), repeat=2):
    times = sum(
      label in a and b[0] == other for a, b in counted if b and b[0] not in a
    )
    pairs.append((-times, label, other))
  expected = [
    metrics.Confusion(label, other, -times)
    for times, label, other in sorted(pairs)
    if times
  ]
  assert tally.confusions(10**6) == expected
  assert tally.confusions(3) == expected[:3]


def test_a_class_without_images_is_not_in_the_table():
  tally = metrics.Tally(1000)
  tally.add({7}, [7, 1, 2, 3, 4])
  tally.add({7, 9}, [3, 9, 1, 2, 4])
  assert tally.classes() == [
    metrics.ClassRow(7, 2, 1, 0),
    metrics.ClassRow(9, 1, 1, 0),
  ]
  assert tally.confusions(5) == [
    metrics.Confusion(7, 3, 1),
    metrics.Confusion(9, 3, 1),
  ]


# ------------------------------------------------------------------ published


def _how(record, **changes):
  return record.preprocess.overridden(**changes)


def test_every_published_protocol_can_be_run():
  """For each figure of the zoo there are settings that it is found for."""
  for record in lookup.RECORDS:
    for accuracy in record.accuracies:
      protocol = accuracy.protocol
      settings = {'multi_crop': protocol.crops == 10}
      if protocol.crop != 224:
        settings |= {
          'crop_size': protocol.crop,
          'resize_size': protocol.resize,
        }
      how = _how(record, **settings)
      assert published.nearest(record, how) == (accuracy, [])
      assert not published.changes(
        record,
        how,
        resnet.ResNet(
          record.depth,
          variant=record.variant,
        ),
      )


@pytest.mark.parametrize(
  ('name', 'settings', 'differences'),
  [
    ('msra', {'crop_size': 192}, ['crop 192 for 224']),
    ('msra', {'resize_size': 240}, ['resize 240 for 256']),
    ('msra', {'resize': 'squash'}, ['resize squash for short_side']),
    (
      'msra',
      {'multi_crop': True, 'resize_size': 300},
      ['resize 300 for 256'],
    ),
    (
      'timm.a1_in1k',
      {'interpolation': 'bilinear', 'multi_crop': True},
      ['crops 10 for 1', 'interpolation bilinear for bicubic'],
    ),
    ('keras', {'crop_size': 192, 'resize_size': 300}, ['crop 192 for 224']),
  ],
)
def test_another_protocol_differs_in(name, settings, differences):
  record = lookup.find(name, 50)
  how = _how(record, **settings)
  assert published.nearest(record, how)[1] == differences
  against = published.standard(record, how, resnet.ResNet(50))
  assert against.accuracy is None
  tally = metrics.Tally(10)
  tally.add({1}, [1, 3, 4, 5, 6])
  assert report.figures(tally, against)['not_published'] == (
    f'{report.NO_PROTOCOL} (run with {", ".join(differences)})'
  )


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ((), 'shorter side 256, one centre crop of 224'),
    ((256, 224, 10), 'shorter side 256, ten crops of 224, mean of softmax'),
    ((None,), 'one centre crop of 224; the resize is not stated'),
    (
      (288, 288, 1, 'bicubic'),
      'shorter side 288 (bicubic), one centre crop of 288',
    ),
  ],
)
def test_a_protocol_describes_itself(fields, expected):
  assert records.Protocol(*fields).describe() == expected


def test_what_departs_from_the_checkpoint_is_named():
  record = lookup.find('msra', 50)
  how = _how(record, interpolation='bilinear', mean='1,2,3')
  model = resnet.ResNet(
    50, variant=Variant(stride_in='3x3', epsilon=record.variant.epsilon)
  )
  assert published.changes(record, how, model) == [
    'interpolation bilinear for lanczos',
    'stride_in 3x3 for 1x1',
    'mean (1, 2, 3) for (103.939, 116.779, 123.68)',
  ]


def test_the_published_error_lies_inside_or_outside():
  inside = published.compare(statistics.Rate(12350, 50000), 75.1)
  assert inside == {'published': 24.9, 'difference': -0.2, 'inside': True}
  outside = published.compare(statistics.Rate(12000, 50000), 75.1)
  assert outside == {'published': 24.9, 'difference': -0.9, 'inside': False}
  assert published.compare(statistics.Rate(1, 2), None) == {}
  assert published.compare(statistics.Rate(0, 0), 75.1) == {}


# ----------------------------------------------------------------- similarity


def _cka(a, b):
  """Kornblith's definition, written out: HSIC of centred kernels."""
  count = len(a)
  centre = np.eye(count) - np.ones((count, count)) / count
  k, m = (centre @ x @ x.T @ centre for x in (a, b))
  return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize('max_side', [8, 100])
@pytest.mark.parametrize('piece', [1, 900, 1 << 20])
def test_similarities_are_those_of_whole_arrays(max_side, piece):
  random = np.random.default_rng(0)
  # 8: by the squares of images, since an image has 12 values; 100: by those
  # of values.
  rows = 8 if max_side == 8 else 30
  a = random.normal(5, 1, (rows, 3, 2, 2)).astype(np.float32)
  b = (a + random.normal(0, 0.3, a.shape)).astype(np.float32)
  order = random.permutation(rows)
  found = similarity.compare(
    a,
    b[order],
    (np.arange(rows), np.argsort(order)),
    piece_bytes=piece,
    max_side=max_side,
  )
  x, y = (v.reshape(rows, -1).astype(np.float64) for v in (a, b))
  cosine = [
    u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in zip(x, y, strict=True)
  ]
  assert found.rows == rows
  assert found.note == ''
  assert found.relative_error == pytest.approx(
    np.linalg.norm(x - y) / np.linalg.norm(x)
  )
  assert found.cosine == pytest.approx(np.mean(cosine))
  assert found.cka == pytest.approx(_cka(x, y))


def test_rows_that_are_not_numbers_are_left_out_and_counted():
  random = np.random.default_rng(1)
  a, b = random.normal(size=(2, 9, 4, 1, 1))
  a[2, 1] = np.nan
  b[4, 0] = np.inf
  a[6] = 0
  good = [0, 1, 3, 5, 6, 7, 8]
  found = similarity.compare(a, b, (np.arange(9),) * 2, piece_bytes=64)
  assert (found.rows, found.left_out, found.zero) == (7, 2, 1)
  x, y = a[good, :, 0, 0], b[good, :, 0, 0]
  assert found.relative_error == pytest.approx(
    np.linalg.norm(x - y) / np.linalg.norm(x)
  )
  assert found.cka == pytest.approx(_cka(x, y))
  dot = [u @ v for u, v in zip(x, y, strict=True)]
  lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
  kept = lengths > 0
  assert found.cosine == pytest.approx(
    np.mean(np.array(dot)[kept] / lengths[kept])
  )


def test_other_shapes_have_a_cka_and_no_error():
  random = np.random.default_rng(2)
  a, b = random.normal(size=(20, 3, 1, 1)), random.normal(size=(20, 2, 2, 1))
  found = similarity.compare(a, b, (np.arange(20),) * 2)
  assert math.isnan(found.relative_error)
  assert math.isnan(found.cosine)
  assert found.cka == pytest.approx(_cka(a.reshape(20, -1), b.reshape(20, -1)))
  assert found.note == 'shapes 3x1x1 and 2x2x1'


@pytest.mark.parametrize(
  ('rows', 'note'),
  [
    (4, 'no CKA: a table does not vary'),
    (0, 'no CKA: a table does not vary'),
    (9, 'no CKA: more than 5 images and values per image'),
  ],
)
def test_what_has_no_cka_says_why(rows, note):
  a = np.full((9, 6, 1, 1), 0.1)
  found = similarity.compare(a, a, (np.arange(rows),) * 2, max_side=5)
  assert math.isnan(found.cka)
  assert note in found.note
