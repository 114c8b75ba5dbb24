# SPDX-License-Identifier: Apache-2.0
"""The job `compare`: two files of predictions, or two feature stores."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import features
from resnet_jax.evaluation import (
  pairs,
  prediction,
  prediction_file,
  report,
  similarity,
)
from resnet_jax.features import table
from resnet_jax.system import console, errors


def run(config: ConfigDict) -> int:
  """Compares what `first` and `second` name."""
  paths = []
  for key in ('first', 'second'):
    path = pathlib.Path(config[key]).expanduser()
    if not config[key] or not path.exists():
      raise errors.UserError(
        f"{key}='{config[key]}': there is nothing there. Name two files of"
        ' predictions (of --job=evaluate or predict), or two feature stores'
        ' (of --job=extract).'
      )
    # The folder of --job=evaluate stands for the predictions in it.
    inside = path / 'predictions.jsonl'
    paths.append(inside if inside.is_file() else path)
  kinds = [path.is_dir() for path in paths]
  if kinds[0] != kinds[1]:
    stores, others = paths if kinds[0] else paths[::-1]
    raise errors.UserError(
      f'{stores} is a folder, and {others} a file: name two files of'
      ' predictions, or two feature stores.'
    )
  if kinds[0]:
    _compare_features(config, *paths)
  else:
    _compare_predictions(config, *paths)
  return 0


# ---------------------------------------------------------------- predictions


def _compare_predictions(
  config: ConfigDict, first: pathlib.Path, second: pathlib.Path
) -> None:
  found = pairs.compare(first, second)
  for line in _differences(first, second):
    console.say(line)
  for side, path in enumerate((first, second)):
    if found.only[side]:
      console.say(f'only in {path}: {found.only[side]} images, left out')
    if found.failed[side]:
      console.say(
        f'in {path} {found.failed[side]} images could not be read; they count'
        ' as wrong'
      )
  for note in found.notes:
    console.say(f'NOTE: {note}')
  tests = [_test_row(name, pair) for name, pair in found.paired.items()]
  flips = [_flip_row(flip) for flip in found.flips]
  facts = {
    'images': found.images,
    'same_best': found.agreed,
    'same_five': found.agreed_five,
  }
  if config.as_json:
    console.show(flips, True, **facts, tests=tests)
    return
  print(f'{found.images} images in both')
  for what, count in (
    ('the same best label', found.agreed),
    ('the same five labels in the same order', found.agreed_five),
  ):
    print(f'{what}: {count} ({100 * count / found.images:.3f} %)')
  print()
  console.show(tests, False, heads=1)
  print()
  print(f'{len(flips)} images with another best label')
  console.show(flips, False, heads=1)


def _differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
  """The settings in which two files differ, a line each."""
  with (
    prediction_file.Reader(first) as a,
    prediction_file.Reader(second) as b,
  ):
    one = {**a.header.settings, **a.header.run}
    other = {**b.header.settings, **b.header.run}
  return [
    f'{key}: {one.get(key)!r} in the first, {other.get(key)!r} in the second'
    for key in dict.fromkeys((*one, *other))
    if one.get(key) != other.get(key)
  ]


def _test_row(name: str, pair: pairs.Paired) -> dict[str, Any]:
  first, second = pair.errors()
  return {
    'labels': name,
    'images': pair.images,
    'top-1 error, first': round(first.percent, 6),
    'second': round(second.percent, 6),
    'both right': pair.both,
    'only first': pair.test.only_first,
    'only second': pair.test.only_second,
    'both wrong': pair.neither,
    'McNemar exact p': pair.test.exact_p,
    'chi-square': pair.test.statistic,
    'its p': pair.test.corrected_p,
  }


def _flip_row(flip: pairs.Flip) -> dict[str, Any]:
  row: dict[str, Any] = {
    'key': flip.key,
    'first': _answer(flip.first),
    'second': _answer(flip.second),
  }
  for name, answers in flip.labels.items():
    row[report.title(name)] = ' or '.join(map(str, answers)) or '-'
  return row


def _answer(score: prediction.ClassScore | None) -> str:
  if score is None:
    return 'could not be read'
  name = f' {score.name}' if score.name else ''
  return f'{score.label}{name} ({score.probability:.4f})'


# ------------------------------------------------------------------- features


def _compare_features(
  config: ConfigDict, first: pathlib.Path, second: pathlib.Path
) -> None:
  a, b = features.load_features(first), features.load_features(second)
  layers = set(a) & set(b)
  common = [layer for layer in a if layer in layers]
  for path, own in ((first, a), (second, b)):
    if lacking := [layer for layer in own if layer not in layers]:
      console.say(f'only in {path}: {", ".join(lacking)}, left out')
  if not common:
    raise errors.UserError(
      f'{first} and {second} have no layer in common: {", ".join(a)}; and'
      f' {", ".join(b)}. Extract the same layers.'
    )
  rows = _same_images(a, b, first, second)
  good = (a.status[rows[0]] == table.DONE) & (b.status[rows[1]] == table.DONE)
  if not good.all():
    console.say(
      f'{int((~good).sum())} images that could not be read (rows of NaN) are'
      ' left out'
    )
  chosen = rows[0][good], rows[1][good]
  lines = []
  for layer in common:
    found = similarity.compare(a[layer], b[layer], chosen)
    lines.append({'layer': layer} | _similarity_row(found, config.as_json))
  console.show(lines, config.as_json, images=int(good.sum()))


def _same_images(
  a: features.Features,
  b: features.Features,
  first: pathlib.Path,
  second: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray]:
  """The rows of the same images, in both stores."""
  ours, theirs, note = pairs.names_to_match(a.rows, b.rows)
  if note:
    console.say(f'NOTE: {note}')
  if ours == theirs:
    return np.arange(len(ours)), np.arange(len(ours))
  for path, names in ((first, ours), (second, theirs)):
    if len(set(names)) < len(names):
      raise errors.UserError(
        f'{path} has the same key twice, and the other store other rows, so'
        ' they cannot be told apart. Extract from the same list.'
      )
  of_b = {name: row for row, name in enumerate(theirs)}
  rows = [(row, of_b[name]) for row, name in enumerate(ours) if name in of_b]
  if not rows:
    raise errors.UserError(
      f'{first} and {second} have no image in common: their keys are such as'
      f' {a.rows[0]!r} and {b.rows[0]!r}. Compare runs over the same data.'
    )
  for path, store in ((first, a), (second, b)):
    if len(store.rows) > len(rows):
      console.say(
        f'only in {path}: {len(store.rows) - len(rows)} images, left out'
      )
  places = np.array(rows)
  return places[:, 0], places[:, 1]


def _similarity_row(
  found: similarity.Similarity, as_json: bool
) -> dict[str, Any]:
  row = dataclasses.asdict(found)
  # JSON has no NaN.
  missing = None if as_json else '-'
  return {
    key: missing if isinstance(value, float) and math.isnan(value) else value
    for key, value in row.items()
  }
