# SPDX-License-Identifier: Apache-2.0
"""The job `compare`: files of predictions, and feature stores."""

import dataclasses
import json

import numpy as np
import pytest
from makers import config_of
from scipy import stats

from resnet_jax import features, jobs
from resnet_jax.evaluation import pairs, prediction_file, prediction_record
from resnet_jax.evaluation.prediction import ClassScore
from resnet_jax.features import table
from resnet_jax.system import errors

COUNT = 300


def _compare(first, second, **settings):
  config = config_of(first=str(first), second=str(second), **settings)
  return jobs.run('compare', config)


# ---------------------------------------------------------------- predictions


def _write(path, images, classes=6, **facts):
  header = prediction_record.Header({'classes': classes} | facts, {}, {})
  with prediction_file.PredictionWriter(path, header, 1) as writer:
    writer.write(images)
    writer.publish()
  return path


def _images(seed, count=COUNT, failed=(), right=0.6):
  """Labels are the same for all seeds, predictions are not."""
  labels = np.random.default_rng(0).integers(0, 6, count)
  random = np.random.default_rng(seed)
  found = []
  for row, label in enumerate(labels):
    order = [int(v) for v in random.permutation(6)[:5]]
    if random.random() < right:
      order = [int(label), *(v for v in order if v != label)][:5]
    best = tuple(
      ClassScore(v, '', f'name {v}', round(0.4 - 0.05 * k, 2))
      for k, v in enumerate(order)
    )
    bad = row in failed
    found.append(
      prediction_record.ImagePrediction(
        f'k{row}',
        f'photos/k{row}',
        {'val': (int(label),), 'real': (int(label), 5) if row % 3 else ()},
        () if bad else best,
        'broken' if bad else '',
      )
    )
  return found


@pytest.fixture
def files(tmp_path):
  a, b = _images(1), _images(2, failed=(7, 9), right=0.7)
  return (
    _write(tmp_path / 'a.jsonl', a, weights_sha256='aa', model='x'),
    _write(tmp_path / 'b.jsonl', b, weights_sha256='bb', model='x'),
    a,
    b,
  )


def test_two_files_are_counted_as_by_hand(files):
  first, second, a, b = files
  found = pairs.compare(first, second)
  predicted = [
    tuple(p.best[0].label if p.best else None for p in pair)
    for pair in zip(a, b, strict=True)
  ]
  assert found.images == COUNT
  assert found.failed == (0, 2)
  assert found.agreed == sum(x == y for x, y in predicted)
  assert [flip.key for flip in found.flips] == [
    f'k{row}' for row, (x, y) in enumerate(predicted) if x != y
  ]
  assert next(f for f in found.flips if f.key == 'k7').second is None
  for name in ('val', 'real'):
    table = np.zeros((2, 2), int)
    for row, (x, y) in enumerate(predicted):
      if answers := a[row].labels[name]:
        table[int(x in answers), int(y in answers)] += 1
    pair = found.paired[name]
    assert [
      [pair.neither, pair.test.only_second],
      [pair.test.only_first, pair.both],
    ] == table.tolist()
    assert pair.images == table.sum()
    one, other = pair.errors()
    assert one.percent == pytest.approx(100 * table[0].sum() / table.sum())
    assert other.percent == pytest.approx(100 * table[:, 0].sum() / table.sum())
    assert pair.test.exact_p == pytest.approx(
      stats.binomtest(int(table[1, 0]), int(table[0, 1] + table[1, 0])).pvalue
    )


def test_the_program_prints_both_answers(run_main, files):
  first, second, a, b = files
  done = run_main(
    *('--job=compare', f'--config.first={first}', f'--config.second={second}'),
    check=0,
  )
  assert "weights_sha256: 'aa' in the first, 'bb' in the second" in done.stderr
  assert 'model' not in done.stderr
  assert f'in {second} 2 images could not be read; counted as' in done.stderr
  assert f'{COUNT} images in both' in done.stdout
  assert 'McNemar exact p' in done.stdout
  found = pairs.compare(first, second)
  assert f'{len(found.flips)} images with another best label' in done.stdout
  for flip in found.flips:
    (line,) = [
      line
      for line in done.stdout.splitlines()
      if line.split()[:1] == [flip.key]
    ]
    row = int(flip.key[1:])
    assert (
      f'{a[row].best[0].label} name {a[row].best[0].label} (0.4000)' in line
    )
    best = b[row].best and b[row].best[0].label
    expected = f'{best} name {best} (0.4000)' if b[row].best else 'could not be'
    assert expected in line


def test_as_json_and_the_order_of_files_does_not_matter(files, capsys):
  first, second, a, _ = files
  assert _compare(first, second, as_json=True) == 0
  found = json.loads(capsys.readouterr().out)
  shuffled = _write(
    first.with_name('c.jsonl'),
    [a[row] for row in np.random.default_rng(5).permutation(COUNT)],
  )
  _compare(shuffled, second, as_json=True)
  again = json.loads(capsys.readouterr().out)
  assert again['tests'] == found['tests']
  assert again['same_best'] == found['same_best']
  by_key = sorted(found['rows'], key=lambda row: row['key'])
  assert sorted(again['rows'], key=lambda row: row['key']) == by_key


def test_what_is_in_one_file_only_is_said(tmp_path, files, capsys):
  first, _, a, _ = files
  few = _write(tmp_path / 'few.jsonl', a[10:40])
  assert _compare(first, few) == 0
  said = capsys.readouterr()
  assert f'only in {first}: 270 images, left out' in said.err
  assert '30 images in both' in said.out
  assert 'the same best label: 30 (100.000 %)' in said.out


def test_other_labels_are_not_tested(tmp_path, files, capsys):
  first, _, a, _ = files
  others = [
    dataclasses.replace(p, labels={'val': p.labels['val'], 'real': (1,)})
    for p in a
  ]
  assert _compare(first, _write(tmp_path / 'o.jsonl', others)) == 0
  said = capsys.readouterr()
  assert 'NOTE: label set real: different for ' in said.err
  assert 'label set val' not in said.err


def test_labels_of_one_file_count_for_both(tmp_path, files):
  first, second, a, b = files
  bare = [dataclasses.replace(p, labels={}) for p in b]
  expected = pairs.compare(first, second)
  for pair in (
    (first, _write(tmp_path / 'bare.jsonl', bare)),
    (
      _write(
        tmp_path / 'bare2.jsonl', [dataclasses.replace(p, labels={}) for p in a]
      ),
      second,
    ),
  ):
    assert pairs.compare(*pair) == expected


def test_keys_twice_are_told_apart_by_their_place_only(tmp_path, files):
  first, _, _, b = files
  twice = [*b[:5], *b[:5]]
  one = _write(tmp_path / 'one.jsonl', twice)
  same = _write(tmp_path / 'same.jsonl', twice)
  assert pairs.compare(one, same).agreed == 10
  with pytest.raises(errors.UserError, match='has 5 keys twice'):
    pairs.compare(first, one)


def test_no_image_in_common_is_an_error(tmp_path, files):
  other = prediction_record.ImagePrediction(
    'z', 'z', {}, (ClassScore(1, '', 'one', 0.5),)
  )
  path = _write(tmp_path / 'z.jsonl', [other])
  with pytest.raises(errors.UserError, match=r"no image in common.*'k0'.*'z'"):
    pairs.compare(files[0], path)
  empty = _write(tmp_path / 'empty.jsonl', [])
  with pytest.raises(errors.UserError, match='has no predictions'):
    pairs.compare(files[0], empty)


def test_folders_in_one_of_them_are_no_hindrance(tmp_path, files, capsys):
  first, second, _, b = files
  inside = [
    dataclasses.replace(p, key=f'n{row % 3}/{p.key}') for row, p in enumerate(b)
  ]
  (tmp_path / 'results').mkdir()
  _write(tmp_path / 'results' / 'predictions.jsonl', inside[::-1])
  found = pairs.compare(first, tmp_path / 'results' / 'predictions.jsonl')
  by_keys = pairs.compare(first, second)
  assert dataclasses.replace(found, notes=()) == by_keys
  # The folder of an evaluation stands for its predictions.
  _compare(first, tmp_path / 'results')
  said = capsys.readouterr()
  assert f'{COUNT} images in both' in said.out
  assert 'NOTE: images are matched by their file names' in said.err
  # A file name that is there twice tells nothing.
  inside[1] = dataclasses.replace(inside[1], key='n9/k0')
  path = _write(tmp_path / 'c.jsonl', inside)
  with pytest.raises(errors.UserError, match='no image in common'):
    pairs.compare(first, path)


# ------------------------------------------------------------------- features


def _store(path, values, keys=None, failed=()):
  count = len(next(iter(values.values())))
  plan = table.FeatureTable(
    keys or [f'k{row}' for row in range(count)],
    [-1] * count,
    {name: array.shape[1:] for name, array in values.items()},
    'float32',
    min(4, count),
  )
  path.mkdir()
  form = features.FORMATS['zarr']
  form.create(path, plan, table.Facts({}, {}))
  writer = form.writer(path, plan)
  for start in range(0, count, 4):
    stop = min(start + 4, count)
    part = {
      name: array[start:stop].astype(np.float32)
      for name, array in values.items()
    }
    for array in part.values():
      array[[row - start for row in failed if start <= row < stop]] = np.nan
    reasons = ['broken' if row in failed else '' for row in range(start, stop)]
    writer.write(start, part, reasons)
  writer.finish()
  return path


def test_two_stores_are_compared_layer_by_layer(tmp_path, capsys):
  random = np.random.default_rng(0)
  a = {
    'pool': random.normal(2, 1, (18, 5, 1, 1)),
    'map': random.normal(0, 1, (18, 3, 4, 4)),
    'old': random.normal(0, 1, (18, 2, 1, 1)),
  }
  b = {
    'pool': a['pool'] * 1.25,
    'map': a['map'] + random.normal(0, 0.1, a['map'].shape),
    'new': random.normal(0, 1, (18, 2, 1, 1)),
  }
  order = random.permutation(18)
  keys = [f'k{row}' for row in order]
  first = _store(tmp_path / 'a', a, failed=(3,))
  second = _store(
    tmp_path / 'b', {k: v[order] for k, v in b.items()}, keys, failed=(6,)
  )
  assert _compare(first, second, as_json=True) == 0
  said = capsys.readouterr()
  assert f'only in {first}: old, left out' in said.err
  assert f'only in {second}: new, left out' in said.err
  assert '2 images that could not be read' in said.err
  good = [row for row in range(18) if row not in (3, int(order[6]))]
  found = json.loads(said.out)
  assert found['images'] == 16
  rows = {row['layer']: row for row in found['rows']}
  assert set(rows) == {'pool', 'map'}
  for layer, row in rows.items():
    x, y = (
      v[layer][good].astype(np.float32).astype(float).reshape(16, -1)
      for v in (a, b)
    )
    assert row['rows'] == 16
    assert row['relative_error'] == pytest.approx(
      np.sqrt(((x - y) ** 2).mean() / (x**2).mean())
    )
    cosine = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    assert row['cosine'] == pytest.approx(cosine.mean())
    x, y = x - x.mean(0), y - y.mean(0)
    cka = (np.linalg.norm(x.T @ y) ** 2) / (
      np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    )
    assert row['cka'] == pytest.approx(cka)
  assert rows['pool']['relative_error'] == pytest.approx(0.25)
  assert rows['pool']['cka'] == pytest.approx(1)
  assert _compare(first, second) == 0
  table = capsys.readouterr().out.splitlines()
  assert table[0].split() == [
    *('layer', 'rows', 'left_out', 'relative_error', 'cosine', 'zero', 'cka'),
    'note',
  ]
  assert len(table) == 3


@pytest.mark.parametrize(
  ('layers', 'keys', 'expected'),
  [
    (('x',), None, 'have no layer in common: pool; and x'),
    (('pool',), ['z0', 'z1'], "no image in common.*'k0' and 'z0'"),
    (('pool',), ['z0', 'z0'], 'b has 1 keys twice'),
  ],
)
def test_stores_of_nothing_in_common(tmp_path, layers, keys, expected):
  values = np.ones((2, 3, 1, 1))
  first = _store(tmp_path / 'a', {'pool': values})
  second = _store(tmp_path / 'b', dict.fromkeys(layers, values), keys)
  with pytest.raises(errors.UserError, match=expected):
    _compare(first, second)


def test_stores_of_the_same_file_names_are_compared(tmp_path, capsys):
  values = np.random.default_rng(0).normal(0, 1, (3, 4, 1, 1))
  first = _store(tmp_path / 'a', {'pool': values})
  keys = ['n2/k2', 'n1/k0', 'n1/k1']
  second = _store(tmp_path / 'b', {'pool': values[[2, 0, 1]]}, keys)
  _compare(first, second, as_json=True)
  said = capsys.readouterr()
  (row,) = json.loads(said.out)['rows']
  assert row['rows'] == 3
  assert row['relative_error'] == 0
  assert 'NOTE: images are matched by their file names' in said.err


def test_what_is_there_decides_and_mistakes_say_so(tmp_path, files):
  with pytest.raises(errors.UserError, match='no first was given'):
    _compare('', files[0])
  with pytest.raises(errors.UserError, match="second='nowhere' does not exist"):
    _compare(files[0], 'nowhere')
  store = _store(tmp_path / 'a', {'pool': np.ones((2, 3, 1, 1))})
  with pytest.raises(
    errors.UserError, match=r'a is a folder, and .*a\.jsonl a'
  ):
    _compare(files[0], store)


def test_arguments_behind_the_flags_go_where_they_belong():
  config = config_of()
  jobs.take('compare', ['a', 'b'], config)
  assert (config.first, config.second) == ('a', 'b')
  jobs.take('extract', [], config)
  with pytest.raises(errors.UserError, match='--job=compare takes 2'):
    jobs.take('compare', ['a'], config)
  with pytest.raises(
    errors.UserError, match="unexpected arguments 'x': --job=extract"
  ):
    jobs.take('extract', ['x'], config)
