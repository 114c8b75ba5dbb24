# SPDX-License-Identifier: Apache-2.0
"""The best classes of an image, with their probabilities."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from resnet_jax.data import labels
from resnet_jax.system.text import plain


@dataclasses.dataclass(frozen=True, slots=True)
class ClassScore:
  """A class and its probability.

  Attributes:
    label: the index of the class, from 0.
    wnid: its WordNet id; '' for classes other than ImageNet's.
    name: its synonyms; two pairs of ImageNet's share the first one.
    probability: 0 to 1.
  """

  label: int
  wnid: str
  name: str
  probability: float

  def __str__(self) -> str:
    wnid = f'{self.wnid}  ' if self.wnid else ''
    name = plain(self.name)
    return f'{self.probability:8.4f}  {self.label:4d}  {wnid}{name}'


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The best classes of an image, the best first."""

  best: tuple[ClassScore, ...]

  @property
  def label(self) -> int:
    """The index of the best class."""
    return self.best[0].label

  def __str__(self) -> str:
    return '\n'.join(map(str, self.best))

  __repr__ = __str__


def from_probabilities(
  probabilities: np.ndarray,
  classes: Sequence[labels.ImageNetClass] | None = None,
  count: int = 5,
) -> Prediction:
  """Returns the `count` best of (classes,) probabilities; ties by index."""
  classes = labels.imagenet_classes() if classes is None else classes
  order = np.argsort(-probabilities, kind='stable')[:count]
  return Prediction(
    tuple(
      ClassScore(
        int(i), classes[i].wnid, classes[i].name, float(probabilities[i])
      )
      for i in order
    )
  )
