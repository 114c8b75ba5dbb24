# SPDX-License-Identifier: Apache-2.0
"""Two files of predictions of the same pictures, side by side."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from resnet_jax import errors
from resnet_jax.evaluation import predictions, statistics


@dataclasses.dataclass(frozen=True)
class Flip:
  """A picture whose best guess is another one.

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
    both: pictures that both have right.
    test: those that one of them has right, and how likely that is by chance.
    neither: pictures that neither has right.
  """

  both: int
  test: statistics.McNemar
  neither: int

  @property
  def pictures(self) -> int:
    """All that have a label."""
    ones = self.test.only_first + self.test.only_second
    return self.both + ones + self.neither

  def errors(self) -> tuple[statistics.Rate, statistics.Rate]:
    """The top-1 errors of the first and the second file."""
    return tuple(  # type: ignore[return-value]
      statistics.Rate(self.neither + only, self.pictures)
      for only in (self.test.only_second, self.test.only_first)
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two files compared.

  Attributes:
    pictures: that are in both.
    only: pictures that are in the first, in the second file only.
    failed: of those in both, that could not be read in the first, the second.
    agreed: pictures with the same best guess.
    agreed_five: pictures with the same five best in the same order.
    flips: the others, in the first file's order.
    paired: by the name of the label set.
    notes: label sets that could not be compared, and why.
  """

  pictures: int
  only: tuple[int, int]
  failed: tuple[int, int]
  agreed: int
  agreed_five: int
  flips: tuple[Flip, ...]
  paired: dict[str, Paired]
  notes: tuple[str, ...]


def compare(first: pathlib.Path, second: pathlib.Path) -> Comparison:
  """Compares two files; a picture is known by its key.

  Raises:
    UserError: one is none or is damaged, or they have no picture in common.
  """
  a, b = _load(first), _load(second)
  matched = list(_matched(a, b, (first, second)))
  if not matched:
    raise errors.UserError(
      f'{first} and {second} have no picture in common: their keys are such as'
      f' {a[0].key!r} and {b[0].key!r}. Compare runs over the same data.'
    )
  failed = tuple(
    sum(bool(pair[side].failed) for pair in matched) for side in (0, 1)
  )
  same = [_guess(x) == _guess(y) for x, y in matched]
  paired, notes = {}, []
  for name in dict.fromkeys((*matched[0][0].labels, *matched[0][1].labels)):
    other = sum(x.labels.get(name) != y.labels.get(name) for x, y in matched)
    if other:
      notes.append(
        f'labels {name}: not the same for {other} pictures, so there is no test'
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


def _load(path: pathlib.Path) -> list[predictions.Picture]:
  with predictions.Reader(path) as reader:
    found = list(reader)
  if not found:
    raise errors.UserError(f'{path} has no predictions; evaluate again.')
  return found


def _matched(
  a: Sequence[predictions.Picture],
  b: Sequence[predictions.Picture],
  paths: Sequence[pathlib.Path],
) -> Iterator[tuple[predictions.Picture, predictions.Picture]]:
  # A list may name a picture twice; then its place tells which is which.
  if [x.key for x in a] == [y.key for y in b]:
    yield from zip(a, b, strict=True)
    return
  for path, side in zip(paths, (a, b), strict=True):
    keys = {picture.key for picture in side}
    if len(keys) < len(side):
      raise errors.UserError(
        f'{path} has {len(side) - len(keys)} keys twice, and the other file'
        ' other pictures, so they cannot be told apart. Compare runs over the'
        ' same list.'
      )
  of_b = {y.key: y for y in b}
  for x in a:
    if x.key in of_b:
      yield x, of_b[x.key]


def _first(picture: predictions.Picture) -> tuple[int, float] | None:
  return picture.best[0] if picture.best else None


def _guess(picture: predictions.Picture) -> int | None:
  return picture.best[0][0] if picture.best else None


def _pair(
  name: str,
  matched: Sequence[tuple[predictions.Picture, predictions.Picture]],
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
