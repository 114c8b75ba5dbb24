# SPDX-License-Identifier: Apache-2.0
"""The classes of known data sets, in the order of the labels.

The 1000 classes of ILSVRC 2012 are sorted by WordNet id (wnid), and have
WordNet's names.  Two names, crane and maillot, occur twice: an index or a wnid
identifies a class, a name does not.  CIFAR-10's classes are from Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import dataclasses
import functools
import importlib.resources
import pathlib
import re
from collections.abc import Sequence

from resnet_jax.codecs import faults
from resnet_jax.system import errors, files


@dataclasses.dataclass(frozen=True)
class ImageNetClass:
  """A class: its WordNet id, and its synonyms, separated by commas."""

  wnid: str
  name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
  """All 1000 classes; the position is the label."""
  file = importlib.resources.files('resnet_jax.data') / 'imagenet_classes.tsv'
  lines = file.read_text('utf-8').splitlines()
  return tuple(ImageNetClass(*line.split('\t')) for line in lines)


# Names that may be given instead of a file.
NAMED = {
  'cifar10': (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
  )
}

_MAX_NAMES_BYTES = 1 << 26
_UNNAMED = 'class {}'
# The second is Transformers' where a config has no names.
_PLACEHOLDERS = (_UNNAMED, 'LABEL_{}')
# As in Caffe's synset_words.txt.
_WNID_AND_NAME = re.compile(r'(n[0-9]{8})[\s,:;_-]+(.+)')


def classes(
  count: int, path: str = '', stored: Sequence[str] = ()
) -> tuple[ImageNetClass, ...]:
  """The classes of a classifier; the position is the label.

  Args:
    count: the number of classes.
    path: a text file with one name per line, or a key of NAMED; '': none.
    stored: the names that came with the weights.

  Returns:
    The file's classes, else the stored ones, else ImageNet's if there are
    1000, else 'class 0' and so on.  Only ImageNet's have a wnid, and those
    whose names begin with one (`n02123045 tabby`).

  Raises:
    UserError: the file cannot be read, or the number of names is wrong.
  """
  if path:
    stored = NAMED.get(path) or _read_names(pathlib.Path(path).expanduser())
  if (path or stored) and len(stored) != count:
    source = f'class_names={path}' if path else 'the list of class names'
    raise errors.UserError(
      f'{source} has {len(stored)} names, and the classifier {count} classes.'
      ' Give one name for each, in the order of the labels.'
    )
  if stored:
    return tuple(map(_class_of, stored))
  if count == len(imagenet_classes()):
    return imagenet_classes()
  return tuple(ImageNetClass('', _UNNAMED.format(n)) for n in range(count))


def _class_of(name: str) -> ImageNetClass:
  match = _WNID_AND_NAME.fullmatch(name)
  return ImageNetClass(*match.groups()) if match else ImageNetClass('', name)


def are_placeholders(names: Sequence[str]) -> bool:
  """Whether classes have no names, or numbered ones."""
  return any(
    all(name == form.format(index) for index, name in enumerate(names))
    for form in _PLACEHOLDERS
  )


def find(
  setting: str, text: str, classes: Sequence[ImageNetClass], also: str = ''
) -> int:
  """A class's label by its index or WordNet id.

  Args:
    setting: that has the text, for the message.
    text: the index or id.
    classes: of the classifier.
    also: what else the setting allows, for the message.

  Raises:
    UserError: there is no such class.
  """
  wnids = [known.wnid for known in classes]
  if text and text in wnids:
    return wnids.index(text)
  if text.isdecimal() and int(text) < len(classes):
    return int(text)
  raise errors.UserError(
    f"{setting}='{text}' is none of these weights' {len(classes)} classes. Give"
    f' an index (0 to {len(classes) - 1}), a WordNet id such as n02123045 where'
    f" the classes are ImageNet's{also}."
  )


def _read_names(path: pathlib.Path) -> list[str]:
  try:
    text = files.read_text(path, _MAX_NAMES_BYTES, 'utf-8-sig')
    if faults.is_git_lfs(text):
      raise errors.UserError(f'class_names={path} is {faults.GIT_LFS_SAYS}.')
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'class_names={path} cannot be read: {error}. Give a text file (UTF-8)'
      ' with one class name per line, in the order of the labels; or one of'
      f' {", ".join(NAMED)}.'
    ) from error
  return [line.strip() for line in text.split('\n') if line.strip()]
