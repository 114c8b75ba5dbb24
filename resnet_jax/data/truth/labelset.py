# SPDX-License-Identifier: Apache-2.0
"""The labels of a source's images, checked before the first is decoded."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence

from resnet_jax.data.sources import NO_LABEL, Item
from resnet_jax.data.truth import formats
from resnet_jax.system import errors

FOLDERS = 'folders'
_EXAMPLES = 3

# The number in a name of ILSVRC's validation images, whatever is behind it.
_VAL_NUMBER = re.compile(r'ILSVRC2012_val_([0-9]{8})(?![0-9])')


@dataclasses.dataclass(frozen=True)
class LabelSet:
  """The labels that predictions are compared with.

  Attributes:
    name: for tables: 'labels', 'folders' or the label file's name without
      its suffix.
    answers: the accepted labels of each item, in the source's order; empty:
      the item has no label and is not counted.
    description: for a person: the number of labels and their source.
  """

  name: str
  answers: tuple[frozenset[int], ...]
  description: str

  @property
  def digest(self) -> str:
    """SHA-256 of the answers as JSON: a sorted list an item, in order."""
    text = json.dumps([sorted(answer) for answer in self.answers])
    return hashlib.sha256(text.encode()).hexdigest()


def load(text: str, items: Sequence[Item], wnids: Sequence[str]) -> LabelSet:
  """Loads the labels of images.

  A label file's names are matched with the keys by the whole path, else the
  file name, else the name without its suffix, else the number of an ILSVRC
  validation image, which the file may also give bare (`1 65`).  A file without
  names has a line for each image: by these numbers where the images have them,
  else in the source's order.

  Args:
    text: '' for the source's own labels, 'folders' for the images' folders
      (WordNet ids or names of classes, else class numbers as in ImageNet-V2,
      else in alphabetical order), or the path of a label file.
    items: the images.
    wnids: the WordNet ids of the classes in the order of the labels; for other
      networks the names of the classes, or nothing.

  Raises:
    UserError: a label is missing, has no image or is out of range, a name
      occurs twice, or the label file is in no known form.
  """
  if not text:
    result = _own(items)
  elif text == FOLDERS:
    result = _by_folders(items, wnids)
  else:
    path = pathlib.Path(os.path.expanduser(text))
    entries = formats.read(path, wnids)
    answers = _matched(entries, items, path)
    result = LabelSet(path.stem, answers, f'{path}: {entries.form}')
  _check_range(result, items, len(wnids))
  without = sum(not answer for answer in result.answers)
  left_out = f'; {without} images without a label left out' if without else ''
  count = len(items) - without
  if not count:
    raise errors.UserError(f'no image has a label: {result.description}.')
  return dataclasses.replace(
    result,
    description=f'{count} images labelled by {result.description}{left_out}',
  )


def _own(items: Sequence[Item]) -> LabelSet:
  missing = [item.name for item in items if item.label == NO_LABEL]
  if missing:
    raise errors.UserError(
      f'{len(missing)} of {len(items)} images have no label of their own:'
      f' {_some(missing)}. Labels come from a list (PATH LABEL), from folders'
      ' named by WordNet ids, from shards or from Parquet files; name a label'
      f" file, or '{FOLDERS}' for other folders."
    )
  return LabelSet(
    'labels', tuple(frozenset([i.label]) for i in items), 'their source'
  )


# ----------------------------------------------------------------- folders


def _by_folders(items: Sequence[Item], wnids: Sequence[str]) -> LabelSet:
  names = [item.key.rpartition('/')[0].rpartition('/')[2] for item in items]
  bare = [item.key for item, name in zip(items, names, strict=True) if not name]
  if bare:
    raise errors.UserError(
      f'{len(bare)} of {len(items)} images lie in no folder that could name'
      f' their class: {_some(bare)}. Name a label file.'
    )
  index, naming = _folder_labels(sorted(set(names)), wnids)
  return LabelSet(
    FOLDERS,
    tuple(frozenset([index[name]]) for name in names),
    f'their {len(index)} folders, {naming}',
  )


def _folder_labels(
  folders: list[str], wnids: Sequence[str]
) -> tuple[dict[str, int], str]:
  """The labels of folders, and what the folders are named by."""
  known = {wnid: label for label, wnid in enumerate(wnids)}
  if all(name in known for name in folders):
    return {name: known[name] for name in folders}, 'named as the classes'
  if all(re.fullmatch(r'[0-9]{1,9}', name) for name in folders):
    numbers = {name: int(name) for name in folders}
    if len(set(numbers.values())) != len(folders):
      raise errors.UserError(
        f'of the folders {_some(folders)} two are the same number.'
      )
    return numbers, 'named by the numbers of the classes'
  if formats.are_wnids(wnids):
    strange = [name for name in folders if name not in known]
    raise errors.UserError(
      f'{len(strange)} of {len(folders)} folders are not named by a WordNet id'
      f' of the {len(wnids)} classes: {_some(strange)}. Rename them, or name a'
      ' label file.'
    )
  if wnids and len(folders) != len(wnids):
    raise errors.UserError(
      f'there are {len(folders)} folders and {len(wnids)} classes, so their'
      ' alphabetical order does not say which is which. Name the folders by'
      ' the numbers of the classes, or name a label file.'
    )
  return {name: i for i, name in enumerate(folders)}, 'in alphabetical order'


# ---------------------------------------------------------------- matching


def _matched(
  entries: formats.Entries, items: Sequence[Item], path: pathlib.Path
) -> tuple[frozenset[int], ...]:
  keys = [item.key for item in items]
  _check_distinct(keys, 'the source has the image')
  if entries.names is not None:
    _check_distinct(entries.names, f'the label file {path} has')
  if len(entries.answers) != len(items):
    raise errors.UserError(
      f'the label file {path} has labels for {len(entries.answers)} images,'
      f' and the source has {len(items)}.{_difference(entries, keys)} Give the'
      ' images that belong to it, or for a part of them a list with their'
      ' labels (PATH LABEL).'
    )
  if entries.names is None:
    return _by_number(entries.answers, keys, path)
  return _by_name(entries.names, entries.answers, keys, path)


def _check_distinct(names: Sequence[str], what: str) -> None:
  counts = collections.Counter(names)
  twice = [name for name, count in counts.items() if count > 1]
  if twice:
    raise errors.UserError(
      f'{what} {_some(twice)} more than once. Leave the others out.'
    )


def _difference(entries: formats.Entries, keys: Sequence[str]) -> str:
  """The names without a counterpart, for the message."""
  if entries.names is None:
    return ''
  ours, theirs = map(
    set, (map(_file_name, keys), map(_file_name, entries.names))
  )
  sides = (
    ('Without a label', sorted(ours - theirs)),
    ('Without an image', sorted(theirs - ours)),
  )
  return ''.join(f' {what}: {_some(names)}.' for what, names in sides if names)


def _by_number(
  answers: Sequence[frozenset[int]], keys: Sequence[str], path: pathlib.Path
) -> tuple[frozenset[int], ...]:
  numbers = [_val_number(key) for key in keys]
  if not any(numbers):
    return tuple(answers)
  strange = [
    key
    for key, number in zip(keys, numbers, strict=True)
    if not number or not 1 <= int(number) <= len(keys)
  ]
  if strange or len(set(numbers)) != len(keys):
    raise errors.UserError(
      f'the label file {path} goes by the numbers of the images, 1 to'
      f' {len(keys)} as in ILSVRC2012_val_00000001.JPEG, which'
      f' {_some(strange or keys)} do not have, or not each its own. Give the'
      ' images that belong to it, or a file with lines of NAME LABEL.'
    )
  return tuple(answers[int(number) - 1] for number in numbers)


def _by_name(
  names: Sequence[str],
  answers: Sequence[frozenset[int]],
  keys: Sequence[str],
  path: pathlib.Path,
) -> tuple[frozenset[int], ...]:
  fewest: list[str] = list(keys)
  for view in _VIEWS:
    index = dict(zip(map(view, names), answers, strict=True))
    seen = [view(key) for key in keys]
    alike = len(index) != len(names) or len(set(seen)) != len(keys)
    if alike or '' in index or '' in seen:
      continue
    unknown = [key for key, s in zip(keys, seen, strict=True) if s not in index]
    if not unknown:
      return tuple(index[s] for s in seen)
    fewest = min(fewest, unknown, key=len)
  raise errors.UserError(
    f'the label file {path} has no label for {len(fewest)} of {len(keys)}'
    f' images: {_some(fewest)}. It has labels for {_some(names)}. Give the'
    ' images that belong to it.'
  )


def _file_name(path: str) -> str:
  return path.rpartition('/')[2]


def _val_number(path: str) -> str:
  match = _VAL_NUMBER.match(_file_name(path))
  return match[1] if match else ''


def _number(path: str) -> str:
  """The number of a validation image, or a file name that is a number."""
  digits = _val_number(path) or _stem(path)
  return str(int(digits)) if re.fullmatch(r'[0-9]{1,9}', digits) else ''


def _stem(path: str) -> str:
  return os.path.splitext(_file_name(path))[0]


def _path(path: str) -> str:
  return path.removeprefix('./')


# What is compared of a label file's name and a key; the first that matches all
# images is used.
_VIEWS: tuple[Callable[[str], str], ...] = (
  _path,
  _file_name,
  _stem,
  _number,
)


# ------------------------------------------------------------------ checks


def _check_range(labels: LabelSet, items: Sequence[Item], classes: int) -> None:
  for item, answer in zip(items, labels.answers, strict=True):
    wrong = [n for n in answer if n < 0 or (classes and n >= classes)]
    if wrong:
      last = f' to {classes - 1}' if classes else ''
      raise errors.UserError(
        f'the label {wrong[0]} of {item.name} is out of range (0{last}), by'
        f' {labels.description}. Give labels of the classes of this network.'
      )


def _some(names: Sequence[str]) -> str:
  more = len(names) - _EXAMPLES
  behind = f' and {more} more' if more > 0 else ''
  return ', '.join(names[:_EXAMPLES]) + behind
