# SPDX-License-Identifier: Apache-2.0
"""The job `compare`: two files of predictions, or two feature stores."""

import dataclasses
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import features
from resnet_jax.codecs import faults
from resnet_jax.evaluation import (
  pairs,
  prediction,
  prediction_file,
  report,
  similarity,
)
from resnet_jax.features import table
from resnet_jax.system import console, errors, settings
from resnet_jax.system.text import counted


def run(config: ConfigDict) -> int:
  """Compares what `first` and `second` name."""
  paths = [_existing(config, key) for key in ('first', 'second')]
  stores = [path for path in paths if path.is_dir()]
  if len(stores) == 1:
    (file,) = set(paths) - set(stores)
    raise errors.UserError(
      f'{stores[0]} is a folder, and {file} a file: name two files of'
      ' predictions, or two feature stores.'
    )
  if stores:
    _compare_features(config, *paths)
  else:
    _compare_predictions(config, *paths)
  return 0


def _existing(config: ConfigDict, key: str) -> pathlib.Path:
  path = pathlib.Path(config[key]).expanduser()
  if not config[key] or not path.exists():
    what = f"{key}='{config[key]}' does not exist"
    raise errors.UserError(
      f'{what if config[key] else f"no {key} was given"}. Name two files of'
      ' predictions (of --job=evaluate or predict), or two feature stores'
      ' (of --job=extract).'
    )
  # The folder of --job=evaluate stands for the predictions in it.
  inside = path / 'predictions.jsonl'
  found = inside if inside.is_file() else path
  if found.is_file():
    faults.check_pointer(found)
  return found


def _say_left_out(path: pathlib.Path, count: int) -> None:
  if count:
    console.say(f'only in {path}: {counted(count, "image")}, left out')


# ---------------------------------------------------------------- predictions


def _compare_predictions(
  config: ConfigDict, first: pathlib.Path, second: pathlib.Path
) -> None:
  found = pairs.compare(first, second)
  for line in _differences(first, second):
    console.say(line)
  for side, path in enumerate((first, second)):
    _say_left_out(path, found.only[side])
    if found.failed[side]:
      console.say(
        f'in {path} {counted(found.failed[side], "image")} could not be read;'
        ' counted as wrong'
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
  console.result(f'{counted(found.images, "image")} in both')
  for what, count in (
    ('the same best label', found.agreed),
    ('the same five labels in the same order', found.agreed_five),
  ):
    console.result(f'{what}: {count} ({100 * count / found.images:.3f} %)')
  console.result()
  console.show(tests, False, heads=1)
  console.result()
  console.result(f'{counted(len(flips), "image")} with another best label')
  console.show(flips, False, heads=1)


def _differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
  """The settings in which two files differ, a line each."""
  headers = [
    prediction_file.PredictionReader(path).header for path in (first, second)
  ]
  one, other = ({**header.settings, **header.run} for header in headers)
  return [
    f'{key}: {settings.shown(one.get(key))} in the first,'
    f' {settings.shown(other.get(key))} in the second'
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
  row = {
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
  return f'{score.label} {score.name}'.strip() + f' ({score.probability:.4f})'


# ------------------------------------------------------------------- features


def _compare_features(
  config: ConfigDict, first: pathlib.Path, second: pathlib.Path
) -> None:
  a, b = features.load_features(first), features.load_features(second)
  common = [layer for layer in a if layer in b]
  for path, own in ((first, a), (second, b)):
    if lacking := [layer for layer in own if layer not in common]:
      console.say(f'only in {path}: {", ".join(lacking)}, left out')
  if not common:
    raise errors.UserError(
      f'{first} and {second} have no layer in common: {", ".join(a)}; and'
      f' {", ".join(b)}. Extract the same layers.'
    )
  *rows, note = pairs.match(a.rows, b.rows, (first, second))
  if note:
    console.say(f'NOTE: {note}')
  for path, store in ((first, a), (second, b)):
    _say_left_out(path, len(store.rows) - len(rows[0]))
  good = (a.status[rows[0]] == table.DONE) & (b.status[rows[1]] == table.DONE)
  if not good.all():
    console.say(
      f'left out: {counted(int((~good).sum()), "image")} that could not be read'
      ' (rows of NaN)'
    )
  lines = []
  # JSON has no NaN.
  missing = None if config.as_json else '-'
  for layer in common:
    found = similarity.compare(
      a[layer], b[layer], (rows[0][good], rows[1][good])
    )
    row = dataclasses.asdict(found)
    lines.append(
      {'layer': layer}
      | {
        key: missing
        if isinstance(value, float) and math.isnan(value)
        else value
        for key, value in row.items()
      }
    )
  console.show(lines, config.as_json, images=int(good.sum()))
