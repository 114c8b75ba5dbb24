# SPDX-License-Identifier: Apache-2.0
"""The comparison of two files of predictions of the same images."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from resnet_jax.evaluation import prediction, prediction_file, statistics
from resnet_jax.evaluation.prediction_record import ImagePrediction, Labels
from resnet_jax.system import errors


@dataclasses.dataclass(frozen=True)
class Flip:
  """An image that the two files predict differently.

  Attributes:
    first: the best class by the first file; None: the image failed.
    second: the best class by the second file.
    labels: by label set.
  """

  key: str
  first: prediction.ClassScore | None
  second: prediction.ClassScore | None
  labels: Labels


@dataclasses.dataclass(frozen=True)
class Paired:
  """How two files agree with one label set.

  Attributes:
    both: images that both have right.
    test: images that only one has right, and how likely that is by chance.
    neither: images that neither has right.
  """

  both: int
  test: statistics.McNemar
  neither: int

  @property
  def images(self) -> int:
    """Images with a label."""
    ones = self.test.only_first + self.test.only_second
    return self.both + ones + self.neither

  def errors(self) -> tuple[statistics.Rate, statistics.Rate]:
    """The top-1 errors of the first and the second file."""
    return (
      statistics.Rate(self.neither + self.test.only_second, self.images),
      statistics.Rate(self.neither + self.test.only_first, self.images),
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The comparison of two files.

  Attributes:
    images: in both files.
    only: images in the first file only, and in the second only.
    failed: images in both that failed in the first, and in the second.
    agreed: images with the same best label.
    agreed_five: images with the same five labels in the same order.
    flips: images with another best label, in the first file's order.
    paired: by label set.
    notes: how images were matched, and label sets that could not be compared.
  """

  images: int
  only: tuple[int, int]
  failed: tuple[int, int]
  agreed: int
  agreed_five: int
  flips: tuple[Flip, ...]
  paired: dict[str, Paired]
  notes: tuple[str, ...]


def compare(first: pathlib.Path, second: pathlib.Path) -> Comparison:
  """Compares two files; see `match` for which images are the same.

  Raises:
    UserError: a file cannot be used, or they have no image in common.
  """
  a, b = _load(first), _load(second)
  keys, others = ([image.key for image in side] for side in (a, b))
  ours, theirs, note = match(keys, others, (first, second))
  matched = [(a[x], b[y]) for x, y in zip(ours, theirs, strict=True)]
  paired, notes = {}, [note] if note else []
  # A file of --job=predict may have no labels: then the other's count.
  sets = [{**y.labels, **x.labels} for x, y in matched]
  for name in dict.fromkeys(itertools.chain.from_iterable(sets)):
    other = sum(
      y.labels.get(name, labels.get(name)) != labels.get(name)
      for (_, y), labels in zip(matched, sets, strict=True)
    )
    if other:
      notes.append(
        f'label set {name}: different for {other} images, so there is no test'
      )
    else:
      answers = [labels.get(name, ()) for labels in sets]
      paired[name] = _pair(answers, matched)
  flips = tuple(
    Flip(x.key, _first(x), _first(y), labels)
    for (x, y), labels in zip(matched, sets, strict=True)
    if x.predicted != y.predicted
  )
  return Comparison(
    len(matched),
    (len(a) - len(matched), len(b) - len(matched)),
    (
      sum(bool(x.failed) for x, _ in matched),
      sum(bool(y.failed) for _, y in matched),
    ),
    len(matched) - len(flips),
    sum(x.ranking == y.ranking for x, y in matched),
    flips,
    paired,
    tuple(notes),
  )


def _load(path: pathlib.Path) -> list[ImagePrediction]:
  found = list(prediction_file.PredictionReader(path))
  if not found:
    raise errors.UserError(f'{path} has no predictions; predict again.')
  return found


def match(
  first: list[str], second: list[str], paths: Sequence[pathlib.Path]
) -> tuple[np.ndarray, np.ndarray, str]:
  """Finds the images that two runs have in common.

  Images are matched by key; where no key is in both (class folders in one,
  none in the other), by file name, if these are unique.

  Args:
    first: the keys of one run.
    second: the keys of the other.
    paths: of both runs, for messages.

  Returns:
    Rows of the first, the same images' rows of the second, and a note or ''.

  Raises:
    UserError: they have no image in common, or a key twice in other places.
  """
  names, note = [first, second], ''
  if set(first).isdisjoint(second):
    bare = [[key.rpartition('/')[2] for key in keys] for keys in names]
    unique = all(len(set(side)) == len(side) for side in bare)
    if unique and not set(bare[0]).isdisjoint(bare[1]):
      names, note = bare, 'images are matched by their file names'
  # A list may name an image twice; the position tells them apart.
  if names[0] == names[1]:
    return np.arange(len(first)), np.arange(len(first)), note
  for path, side in zip(paths, names, strict=True):
    if twice := len(side) - len(set(side)):
      raise errors.UserError(
        f'{path} has {twice} keys twice, and the other run has other images,'
        ' so they cannot be told apart. Compare runs over the same list.'
      )
  row_of = {name: row for row, name in enumerate(names[1])}
  rows = [
    (row, row_of[name]) for row, name in enumerate(names[0]) if name in row_of
  ]
  if not rows:
    raise errors.UserError(
      f'{paths[0]} and {paths[1]} have no image in common: their keys are such'
      f' as {first[0]!r} and {second[0]!r}. Compare runs over the same data.'
    )
  return *np.array(rows).T, note


def _first(image: ImagePrediction) -> prediction.ClassScore | None:
  return image.best[0] if image.best else None


def _pair(
  labels: Sequence[Sequence[int]],
  matched: Sequence[tuple[ImagePrediction, ImagePrediction]],
) -> Paired:
  counts = collections.Counter(
    (a.predicted in answers, b.predicted in answers)
    for answers, (a, b) in zip(labels, matched, strict=True)
    if answers
  )
  return Paired(
    counts[True, True],
    statistics.McNemar(counts[True, False], counts[False, True]),
    counts[False, False],
  )
