# SPDX-License-Identifier: Apache-2.0
"""The 1000 classes of ILSVRC 2012, in the order of their wnids.

Names are WordNet's.  Two of them, crane and maillot, occur twice: a class is
its index or its wnid, never its name.
"""

import dataclasses
import functools
import importlib.resources


@dataclasses.dataclass(frozen=True)
class ImageNetClass:
  """A class: its WordNet id, and its synonyms with commas between them."""

  wnid: str
  name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
  """All classes; the position is the label."""
  file = importlib.resources.files('resnet_jax.data') / 'imagenet_classes.tsv'
  lines = file.read_text('utf-8').splitlines()
  return tuple(ImageNetClass(*line.split('\t')) for line in lines)
