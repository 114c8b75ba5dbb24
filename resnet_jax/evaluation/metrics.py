# SPDX-License-Identifier: Apache-2.0
"""Top-1 and top-5 errors, errors by class, and confusions.

An image with several labels is right with any of them, as in ReaL: L. Beyer et
al., "Are we done with ImageNet?", arXiv:2006.07159.
"""

import collections
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.evaluation import statistics

BEST = 5


class ClassRow(NamedTuple):
  """Images of a class, and how many of them the best one and five miss."""

  label: int
  images: int
  top1: int
  top5: int


class Confusion(NamedTuple):
  """How many images of a class were taken for another."""

  label: int
  taken_for: int
  images: int


class Tally:
  """Counts images one by one, in memory that depends on the classes only.

  The tables by class count an image with each of its labels.

  Attributes:
    images: with a label.
    unlabelled: without one; they are not counted.
    failed: could not be read; with a label they count as wrong.
    several: with more than one label.
  """

  def __init__(self, classes: int) -> None:
    self.images = self.unlabelled = self.failed = self.several = 0
    self._wrong = np.zeros(2, np.int64)
    # Rows: images, top-1 errors, top-5 errors.
    self._by_class = np.zeros((3, classes), np.int64)
    self._confusions = collections.Counter[tuple[int, int]]()

  def add(self, answers: Collection[int], best: Sequence[int]) -> None:
    """Counts an image.

    Args:
      answers: its labels; empty if it has none.
      best: the predicted labels, the best first; empty if it failed.
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
    """The top-1 error."""
    return statistics.Rate(int(self._wrong[0]), self.images)

  @property
  def top5(self) -> statistics.Rate:
    """The top-5 error."""
    return statistics.Rate(int(self._wrong[1]), self.images)

  def classes(self) -> list[ClassRow]:
    """The classes with images, in the order of the labels."""
    return [
      ClassRow(int(label), *map(int, self._by_class[:, label]))
      for label in np.flatnonzero(self._by_class[0])
    ]

  def confusions(self, count: int) -> list[Confusion]:
    """The most frequent confusions; ties in the order of the labels."""
    order = sorted(self._confusions.items(), key=lambda item: (-item[1], item))
    return [Confusion(*pair, times) for pair, times in order[:count]]
