# SPDX-License-Identifier: Apache-2.0
"""The classes of known data sets, in the order of the labels.

The 1000 of ILSVRC 2012 are in the order of their wnids, and their names are
WordNet's.  Two of them, crane and maillot, occur twice: a class is its index or
its wnid, never its name.  Those of CIFAR-10 are Krizhevsky's, "Learning
Multiple Layers of Features from Tiny Images", 2009, without spaces.
"""

import dataclasses
import functools
import importlib.resources
import pathlib
from collections.abc import Sequence

from resnet_jax.system import errors


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


# What may be named instead of a file.
NAMED = {
  'cifar10': (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
  )
}

_MAX_NAMES_BYTES = 1 << 26


def classes(
  count: int, path: str = '', stored: Sequence[str] = ()
) -> tuple[ImageNetClass, ...]:
  """The classes of a classifier; the position is the label.

  Args:
    count: how many it has.
    path: a text file with a name a line, or a key of NAMED; '': none.
    stored: the names that came with the weights.

  Returns:
    Those of the file, else the stored ones, else ImageNet's if there are 1000,
    else 'class 0' and so on; only ImageNet's have a wnid.

  Raises:
    UserError: the file cannot be read, or has another number of names.
  """
  if path:
    stored = NAMED.get(path) or _read_names(pathlib.Path(path).expanduser())
    if len(stored) != count:
      raise errors.UserError(
        f'class_names={path} has {len(stored)} names, and the classifier'
        f' {count} classes. Give a name a line, in the order of the labels.'
      )
  if stored and len(stored) != count:
    raise errors.UserError(
      f'{len(stored)} class names were given, and the classifier has {count}'
      ' classes. Give one for each, in the order of the labels.'
    )
  if stored:
    return tuple(ImageNetClass('', name) for name in stored)
  if count == len(imagenet_classes()):
    return imagenet_classes()
  return tuple(ImageNetClass('', f'class {index}') for index in range(count))


def _read_names(path: pathlib.Path) -> list[str]:
  try:
    if path.stat().st_size > _MAX_NAMES_BYTES:
      raise errors.UserError(f'class_names={path} is too large for names.')
    lines = path.read_text('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f'class_names={path} cannot be read: {error}. Give a text file (UTF-8)'
      ' with the name of a class a line, in the order of the labels; or one of'
      f' {", ".join(NAMED)}.'
    ) from error
  return [line.strip() for line in lines if line.strip()]
