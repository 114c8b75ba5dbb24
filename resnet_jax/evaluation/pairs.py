# SPDX-License-Identifier: Apache-2.0
"""Two files of predictions of the same images, side by side."""

import dataclasses
import pathlib
from collections.abc import Sequence

from resnet_jax.evaluation import predictions, statistics
from resnet_jax.system import errors


@dataclasses.dataclass(frozen=True)
class Flip:
  """An image whose best guess is another one.

  Attributes:
    first: the guess of the first file and its probability; None: it failed.
    second: of the second.
    labels: by the name of the label set, of the first file.
  """

  key: str
  first: tuple[int, float] | None
  second: tuple[int, float] | None
  labels: predictions.Labels


@dataclasses.dataclass(frozen=True)
class Paired:
  """What both files have right by one label set.

  Attributes:
    both: images that both have right.
    test: those that one of them has right, and how likely that is by chance.
    neither: images that neither has right.
  """

  both: int
  test: statistics.McNemar
  neither: int

  @property
  def images(self) -> int:
    """All that have a label."""
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
  """Two files compared.

  Attributes:
    images: that are in both.
    only: images that are in the first, in the second file only.
    failed: of those in both, that could not be read in the first, the second.
    agreed: images with the same best guess.
    agreed_five: images with the same five best in the same order.
    flips: the others, in the first file's order.
    paired: by the name of the label set.
    notes: what else is to be known: how images were matched, label sets that
      could not be compared, and why.
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
  """Compares two files; an image is known by its key, or its file name.

  Raises:
    UserError: one is none or is damaged, or they have no image in common.
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
  same = [_guess(x) == _guess(y) for x, y in matched]
  paired = {}
  notes = [note] if note else []
  for name in dict.fromkeys((*matched[0][0].labels, *matched[0][1].labels)):
    other = sum(x.labels.get(name) != y.labels.get(name) for x, y in matched)
    if other:
      notes.append(
        f'labels {name}: not the same for {other} images, so there is no test'
      )
    else:
      paired[name] = _pair(name, matched)
  return Comparison(
    len(matched),
    (len(a) - len(matched), len(b) - len(matched)),
    (failed[0], failed[1]),
    sum(same),
    sum(
      [label for label, _ in x.best] == [label for label, _ in y.best]
      for x, y in matched
    ),
    tuple(
      Flip(x.key, _first(x), _first(y), x.labels)
      for (x, y), equal in zip(matched, same, strict=True)
      if not equal
    ),
    paired,
    tuple(notes),
  )


def _load(path: pathlib.Path) -> list[predictions.Predicted]:
  with predictions.Reader(path) as reader:
    found = list(reader)
  if not found:
    raise errors.UserError(f'{path} has no predictions; evaluate again.')
  return found


def names_to_match(
  first: Sequence[str], second: Sequence[str]
) -> tuple[Sequence[str], Sequence[str], str]:
  """What tells which images of two runs are the same.

  Args:
    first: the keys of one run.
    second: of the other.

  Returns:
    The keys; or, where none is in both (class folders in one, none in the
    other), the names of the files, if each occurs once; and a note about it.
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
  a: Sequence[predictions.Predicted],
  b: Sequence[predictions.Predicted],
  paths: Sequence[pathlib.Path],
) -> tuple[list[tuple[predictions.Predicted, predictions.Predicted]], str]:
  """The images that are in both, and a note of how they were found."""
  ours, theirs, note = names_to_match([x.key for x in a], [y.key for y in b])
  # A list may name an image twice; then its place tells which is which.
  if ours == theirs:
    return list(zip(a, b, strict=True)), note
  for path, names in zip(paths, (ours, theirs), strict=True):
    if len(set(names)) < len(names):
      raise errors.UserError(
        f'{path} has {len(names) - len(set(names))} keys twice, and the other'
        ' file other images, so they cannot be told apart. Compare runs over'
        ' the same list.'
      )
  of_b = dict(zip(theirs, b, strict=True))
  return [
    (x, of_b[name]) for name, x in zip(ours, a, strict=True) if name in of_b
  ], note


def _first(image: predictions.Predicted) -> tuple[int, float] | None:
  return image.best[0] if image.best else None


def _guess(image: predictions.Predicted) -> int | None:
  return image.best[0][0] if image.best else None


def _pair(
  name: str,
  matched: Sequence[tuple[predictions.Predicted, predictions.Predicted]],
) -> Paired:
  counts = {(x, y): 0 for x in (True, False) for y in (True, False)}
  for a, b in matched:
    if answers := a.labels.get(name, ()):
      counts[_guess(a) in answers, _guess(b) in answers] += 1
  return Paired(
    counts[True, True],
    statistics.McNemar(counts[True, False], counts[False, True]),
    counts[False, False],
  )
