# SPDX-License-Identifier: Apache-2.0
"""The 1000 classes of ILSVRC 2012, in the order of their wnids.

Names are WordNet's.  Two of them, crane and maillot, occur twice: a class is
its index or its wnid, never its name.
"""

import dataclasses
import functools
import importlib.resources
import pathlib
from collections.abc import Sequence

from resnet_jax import errors


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


_MAX_NAMES_BYTES = 1 << 26


def classes(
  count: int, path: str = '', stored: Sequence[str] = ()
) -> tuple[ImageNetClass, ...]:
  """The classes of a classifier; the position is the label.

  Args:
    count: how many it has.
    path: a text file with a name a line; '': none.
    stored: the names that came with the weights.

  Returns:
    Those of the file, else the stored ones, else ImageNet's if there are 1000,
    else 'class 0' and so on; only ImageNet's have a wnid.

  Raises:
    UserError: the file cannot be read, or has another number of names.
  """
  if path:
    stored = _read_names(pathlib.Path(path).expanduser(), count)
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


def _read_names(path: pathlib.Path, count: int) -> list[str]:
  try:
    if path.stat().st_size > _MAX_NAMES_BYTES:
      raise errors.UserError(f'class_names={path} is too large for names.')
    lines = path.read_text('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f'class_names={path} cannot be read: {error}. Give a text file (UTF-8)'
      ' with the name of a class a line, in the order of the labels.'
    ) from error
  found = [line.strip() for line in lines if line.strip()]
  if len(found) != count:
    raise errors.UserError(
      f'class_names={path} has {len(found)} names, and the classifier {count}'
      ' classes. Give a name a line, in the order of the labels.'
    )
  return found
