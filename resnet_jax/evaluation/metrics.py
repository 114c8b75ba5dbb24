# SPDX-License-Identifier: Apache-2.0
"""What is counted: errors in all, by class, and what was taken for what.

The rule for images of several labels, of which any counts, is that of ReaL:
L. Beyer et al., "Are we done with ImageNet?", arXiv:2006.07159.
"""

import collections
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from resnet_jax.evaluation import statistics

BEST = 5


@dataclasses.dataclass(frozen=True)
class ClassRow:
  """A class's images and errors.

  Attributes:
    label: the class.
    images: with this label.
    top1: of these, those whose best guess is wrong.
    top5: those none of whose five best guesses is right.
  """

  label: int
  images: int
  top1: int
  top5: int


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A class that was taken for another one, and how often."""

  label: int
  taken_for: int
  images: int


class Tally:
  """Counts images one after another; its size depends on the classes only.

  An image of several labels is right if the guess is any of them; in the
  tables by class it is counted with each of its labels.

  Attributes:
    images: that have a label.
    unlabelled: that have none, and are not counted.
    failed: that could not be read; with a label they count as wrong.
    several: that have more than one label.
  """

  def __init__(self, classes: int) -> None:
    self.images = self.unlabelled = self.failed = self.several = 0
    self._wrong = np.zeros(2, np.int64)
    # Rows: images, wrong at the first guess, wrong at all five.
    self._by_class = np.zeros((3, classes), np.int64)
    self._confusions: collections.Counter[tuple[int, int]] = (
      collections.Counter()
    )

  def add(self, answers: Collection[int], best: Sequence[int]) -> None:
    """Counts an image.

    Args:
      answers: its labels; none: it is not counted.
      best: the guesses, the best first; none: it could not be read.
    """
    if not answers:
      self.unlabelled += 1
      return
    self.images += 1
    self.failed += not best
    self.several += len(answers) > 1
    wrong = np.array([set(answers).isdisjoint(best[:k]) for k in (1, BEST)])
    self._wrong += wrong
    for label in answers:
      self._by_class[:, label] += (1, *wrong)
      if wrong[0] and best:
        self._confusions[label, best[0]] += 1

  @property
  def top1(self) -> statistics.Rate:
    """The error of the best guess."""
    return statistics.Rate(int(self._wrong[0]), self.images)

  @property
  def top5(self) -> statistics.Rate:
    """The error of the five best guesses."""
    return statistics.Rate(int(self._wrong[1]), self.images)

  def classes(self) -> list[ClassRow]:
    """The classes that images have as labels, in the labels' order."""
    return [
      ClassRow(int(label), *map(int, self._by_class[:, label]))
      for label in np.flatnonzero(self._by_class[0])
    ]

  def confusions(self, count: int) -> list[Confusion]:
    """The pairs that were confused most; equals in the labels' order."""
    order = sorted(self._confusions.items(), key=lambda item: (-item[1], item))
    return [Confusion(*pair, times) for pair, times in order[:count]]
