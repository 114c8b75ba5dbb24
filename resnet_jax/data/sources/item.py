# SPDX-License-Identifier: Apache-2.0
"""An image that has not been read yet, and the class that its name states.

A key states a class in three ways: the folder is a WordNet id, as for
torchvision's ImageFolder; or the file is named NAME_WNID.JPEG, as in the
archives of Hugging Face's ILSVRC/imagenet-1k, or WNID_NAME.JPEG, as ILSVRC's
training images.  Source: that data set's card and its loading script.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from PIL import Image

from resnet_jax.data import crop_store, decoding, labels, places, preprocess
from resnet_jax.system import errors
from resnet_jax.system.text import counted, one_line, some

NO_LABEL = -1
MAX_LABEL = 10**9 - 1

# What systems put beside the files of a user, copies of images among it:
# besides names that begin with a dot.
_HIDDEN = ('__MACOSX', '@eaDir', '$RECYCLE.BIN', 'Thumbs.db', 'desktop.ini')
_MAX_NAME = 200

# Fields and columns with a class's name beside its number.
NAMES_OF_CLASSES = (
  *('wnid', 'synset', 'class_name', 'classname', 'className', 'label_name'),
  *('labelname', 'label_text', 'category_name', 'class', 'category'),
)

_WNID_OF_NAME = (
  re.compile(r'.*_(n[0-9]{8})\.[^.]*', re.DOTALL),
  re.compile(r'(n[0-9]{8})_.*', re.DOTALL),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """An image that has not been read yet.

  Attributes:
    key: its path relative to the list file, the folder or the archive, with
      slashes.
    name: its path from the working directory, on one line, for messages.
    label: its class by the numbers of the data, or NO_LABEL; ImageNet's number
      for a WordNet id.
    read: returns the file's bytes or a Pillow image; thread-safe.
    size: of its file in bytes; -1 if unknown.
    named: its class as the data names it, which comes before the number; ''
      where it has none.
    is_stray: whether its path has no WordNet id where others have one, so that
      none has a label.
    stored: where its crops are, if they were made before; `read` then gives
      one of them.
  """

  key: str
  name: str
  label: int
  read: Callable[[], bytes | Image.Image]
  size: int = -1
  named: str = ''
  is_stray: bool = False
  stored: crop_store.Place | None = None


@dataclasses.dataclass(frozen=True)
class Source:
  """Images in order.

  Attributes:
    items: the images.
    description: what is included and what is left out, for messages.
  """

  items: Sequence[Item]
  description: str


def file_item(path: pathlib.Path, key: str, label: int = NO_LABEL) -> Item:
  """The image in a file, which need not exist.

  Raises:
    UserError: the key is not UTF-8.
  """
  check_text(key)
  try:
    size = path.stat().st_size
  except (OSError, ValueError):
    size = -1
  name = one_line(os.fspath(path))
  return Item(key, name, label, functools.partial(places.whole, path), size)


def file_items(found: Sequence[tuple[places.Place, str, int]]) -> list[Item]:
  """The images in files that were looked up: places, keys and labels.

  Raises:
    UserError: a key is not UTF-8.
  """
  if not found or isinstance(found[0][0], pathlib.Path):
    return [
      file_item(cast(pathlib.Path, path), key, label)
      for path, key, label in found
    ]
  slices = []
  for path, key, _ in found:
    check_text(key)
    assert not isinstance(path, pathlib.Path)
    slices.append(places.Slice(path, None, 0, path.size))
  return [
    Item(key, one_line(str(path)), label, read, one.size)
    for (path, key, label), read, one in zip(
      found, places.readers(slices), slices, strict=True
    )
  ]


def check_stored(items: Iterable[Item], own: preprocess.Preprocess) -> None:
  """Raises a UserError if stored crops are of another preprocessing."""
  stores = {id(i.stored.store): i.stored.store for i in items if i.stored}
  for store in stores.values():
    store.check(own)


def check_text(key: str) -> None:
  """Raises a UserError if a key is not UTF-8, and thus cannot be written."""
  try:
    key.encode('utf-8')
  except UnicodeEncodeError as error:
    raise errors.UserError(
      f'the file name {key!r} is not UTF-8 and cannot be a key; rename it.'
    ) from error


def is_image_name(name: str) -> bool:
  """Whether the suffix is that of an image."""
  return os.path.splitext(name)[1].lower() in decoding.SUFFIXES


def hidden(path: str) -> str:
  """The first part of a path that hides what is there, or ''."""
  parts = path.split('/')
  return next((p for p in parts if p.startswith('.') or p in _HIDDEN), '')


def left_out(
  others: Iterable[str], out_of_sight: Iterable[str], noun: str = 'other file'
) -> list[str]:
  """Says what is left out: `3 other files left out: .csv, .txt`.

  Args:
    others: names of what is no image.
    out_of_sight: the hidden parts of paths, one for each that is left out.
    noun: for the others.
  """
  suffixes = [
    os.path.splitext(name)[1].lower() or 'no suffix' for name in others
  ]
  notes = {noun: suffixes, 'hidden item': list(out_of_sight)}
  return [
    f'{counted(len(names), what)} left out: {some(sorted(set(names)))}'
    for what, names in notes.items()
    if names
  ]


def number_of(value: object) -> int | None:
  """The label that a whole number states, also as text, or None."""
  if isinstance(value, str) and re.fullmatch(r'\s*-?[0-9]{1,9}\s*', value):
    value = int(value)
  if not isinstance(value, int) or isinstance(value, bool):
    return None
  return value if NO_LABEL <= value <= MAX_LABEL else None


def name_of(value: object) -> str:
  """A class's name as a text or another value states it; '' for none."""
  text = value.strip() if isinstance(value, str) else f'{value!r}'
  return '' if value is None else text[:_MAX_NAME]


def label_of_wnid(wnid: str) -> int:
  """ImageNet's label, or NO_LABEL."""
  return _index_of_wnid().get(wnid, NO_LABEL)


def labelled(
  items: list[Item], *stating: Sequence[str]
) -> tuple[list[Item], str]:
  """Labels items by WordNet ids in paths.

  Args:
    items: without labels.
    *stating: paths, one per item; the first of these lists in which every path
      has an id is used.

  Returns:
    The items, with labels if there is such a list; and a note of that, or of
    the paths that lack an id where others have one.
  """
  classes = labels.imagenet_classes()
  without, strays = '', items
  for paths in stating:
    found = list(map(_label_of_path, paths))
    if items and NO_LABEL not in found:
      items = [
        dataclasses.replace(item, label=label, named=classes[label].wnid)
        for item, label in zip(items, found, strict=True)
      ]
      return items, '; labels from the WordNet ids in their paths'
    lost = [number == NO_LABEL for number in found]
    if not all(lost) and not without:
      strays = [
        dataclasses.replace(item, is_stray=stray)
        for item, stray in zip(items, lost, strict=True)
      ]
      keys = [item.key for item in strays if item.is_stray]
      without = (
        f'; no labels, as {len(keys)} of {len(items)} paths have no WordNet id'
        f' of ILSVRC 2012: {some(keys)}'
      )
  return strays, without


def _label_of_path(path: str) -> int:
  above, _, name = path.rpartition('/')
  matches = [pattern.fullmatch(name) for pattern in _WNID_OF_NAME]
  wnids = [above.rpartition('/')[2], *(match[1] for match in matches if match)]
  index = _index_of_wnid()
  return next((index[wnid] for wnid in wnids if wnid in index), NO_LABEL)


@functools.cache
def _index_of_wnid() -> dict[str, int]:
  classes = labels.imagenet_classes()
  return {one.wnid: index for index, one in enumerate(classes)}
