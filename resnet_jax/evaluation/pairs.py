# SPDX-License-Identifier: Apache-2.0
"""The comparison of two files of predictions of the same images."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

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
    return tuple(  # type: ignore[return-value]
      statistics.Rate(self.neither + only, self.images)
      for only in (self.test.only_second, self.test.only_first)
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
  """Compares two files; images are matched by key, else by file name.

  Raises:
    UserError: a file cannot be used, or they have no image in common.
  """
  a, b = _load(first), _load(second)
  matched, note = _matched(a, b, (first, second))
  if not matched:
    raise errors.UserError(
      f'{first} and {second} have no image in common: their keys are such as'
      f' {a[0].key!r} and {b[0].key!r}. Compare runs over the same data.'
    )
  failed = tuple(
    sum(bool(pair[side].failed) for pair in matched) for side in (0, 1)
  )
  same = [x.predicted == y.predicted for x, y in matched]
  paired = {}
  notes = [note] if note else []
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
  return Comparison(
    len(matched),
    (len(a) - len(matched), len(b) - len(matched)),
    (failed[0], failed[1]),
    sum(same),
    sum(x.ranking == y.ranking for x, y in matched),
    tuple(
      Flip(x.key, _first(x), _first(y), labels)
      for (x, y), labels, equal in zip(matched, sets, same, strict=True)
      if not equal
    ),
    paired,
    tuple(notes),
  )


def _load(path: pathlib.Path) -> list[ImagePrediction]:
  with prediction_file.Reader(path) as reader:
    found = list(reader)
  if not found:
    raise errors.UserError(f'{path} has no predictions; predict again.')
  return found


def names_to_match(
  first: Sequence[str], second: Sequence[str]
) -> tuple[Sequence[str], Sequence[str], str]:
  """Returns the names by which the images of two runs can be matched.

  Args:
    first: the keys of one run.
    second: the keys of the other.

  Returns:
    The keys; or, where none is in both (class folders in one, none in the
    other), the names of the files if they are unique; and a note about it.
  """
  if not set(first) & set(second):
    names = [
      [key.rpartition('/')[2] for key in keys] for keys in (first, second)
    ]
    once = all(len(set(side)) == len(side) for side in names)
    if once and set(names[0]) & set(names[1]):
      return names[0], names[1], 'images are matched by their file names'
  return first, second, ''


def _matched(
  a: Sequence[ImagePrediction],
  b: Sequence[ImagePrediction],
  paths: Sequence[pathlib.Path],
) -> tuple[list[tuple[ImagePrediction, ImagePrediction]], str]:
  """The images in both, and a note on how they were matched."""
  ours, theirs, note = names_to_match([x.key for x in a], [y.key for y in b])
  # A list may name an image twice; the position tells them apart.
  if ours == theirs:
    return list(zip(a, b, strict=True)), note
  for path, names in zip(paths, (ours, theirs), strict=True):
    if len(set(names)) < len(names):
      raise errors.UserError(
        f'{path} has {len(names) - len(set(names))} keys twice, and the other'
        ' file has other images, so they cannot be told apart. Compare runs'
        ' over the same list.'
      )
  of_b = dict(zip(theirs, b, strict=True))
  return [
    (x, of_b[name]) for name, x in zip(ours, a, strict=True) if name in of_b
  ], note


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
