# SPDX-License-Identifier: Apache-2.0
"""The labels of a source's images, checked before the first is decoded."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Sequence

from resnet_jax.data.sources import NO_LABEL, Item
from resnet_jax.data.truth import formats, naming
from resnet_jax.system import errors
from resnet_jax.system.text import counted, some

FOLDERS = 'folders'
_SOURCE = 'their source'
_NAMES_FILE = (
  "class_names=FILE, with the folders' names in the order of the network's"
  ' classes, or '
)

# The number in a name of ILSVRC's validation images, whatever follows it.
_VAL_NUMBER = re.compile(r'ILSVRC2012_val_([0-9]{8})(?![0-9])')


@dataclasses.dataclass(frozen=True)
class LabelSet:
  """The labels that predictions are compared with.

  Attributes:
    name: for tables: 'labels', 'folders' or the label file's name without
      its suffix.
    answers: the accepted labels of each item, in the source's order; an item
      without any is not counted.
    description: the number of labels and their source, for messages.
  """

  name: str
  answers: tuple[frozenset[int], ...]
  description: str

  @property
  def digest(self) -> str:
    """SHA-256 of the answers as JSON: a sorted list an item, in order."""
    text = json.dumps([sorted(answer) for answer in self.answers])
    return hashlib.sha256(text.encode()).hexdigest()


def load(
  text: str,
  items: Sequence[Item],
  wnids: Sequence[str],
  words: Sequence[str] = (),
) -> LabelSet:
  """Loads the labels of images.

  A label file's names are matched with the keys by the whole path, else the
  file name, else the name without its suffix, else the number of an ILSVRC
  validation image, which the file may also give bare (`1 65`).  A file without
  names has a line for each image: by these numbers where the images have them,
  else in the source's order.

  Args:
    text: '' for the source's own labels, 'folders' for the images' folders
      (WordNet ids or names of classes, else class numbers as in ImageNet-V2,
      else, where the network's classes have no names, in alphabetical order),
      or the path of a label file.
    items: the images.
    wnids: the WordNet ids of the classes in the order of the labels; for other
      networks the names of the classes, or nothing.
    words: the names of the classes beside WordNet ids.

  Raises:
    UserError: a label is missing, has no image or is out of range, a name
      occurs twice, or the label file is in no known form.
  """
  if not text:
    result = _own(items, wnids, words)
  elif text == FOLDERS:
    result = _by_folders(items, wnids, words)
  else:
    path = pathlib.Path(os.path.expanduser(text))
    entries = formats.read(path, wnids)
    answers = _matched(entries, items, path)
    result = LabelSet(path.stem, answers, f'{path}: {entries.form}')
  _check_range(result, items, len(wnids))
  without = sum(not answer for answer in result.answers)
  if without == len(items):
    raise errors.UserError(f'no image has a label: {result.description}.')
  images = counted(len(items) - without, 'image')
  description = f'{images} labelled by {result.description}'
  if without:
    description += f'; {counted(without, "image")} without a label left out'
  return dataclasses.replace(result, description=description)


def _own(
  items: Sequence[Item], wnids: Sequence[str], words: Sequence[str]
) -> LabelSet:
  missing = [
    item.name for item in items if item.label == NO_LABEL and not item.named
  ]
  strays = [item.name for item in items if item.is_stray]
  if strays:
    raise errors.UserError(
      f'{len(strays)} of {counted(len(items), "image")}'
      f' {"have" if len(strays) > 1 else "has"} no WordNet id of ILSVRC 2012 in'
      f' the path, so the ids of the others are no labels: {some(strays)}.'
      ' Remove or rename what has none. Or set labels=FILE, or'
      f' labels={FOLDERS} if the folders are the classes.'
    )
  if missing:
    raise errors.UserError(
      f'{len(missing)} of {counted(len(items), "image")}'
      f' {"have" if len(missing) > 1 else "has"} no label in the data:'
      f' {some(missing)}. Lists (PATH LABEL), folders named by WordNet ids,'
      f' shards and Parquet files can have labels. Set labels=FILE, or'
      f' labels={FOLDERS} if the folders are the classes.'
    )
  stated = dict.fromkeys((i.named, i.label) for i in items if i.named)
  found = naming.match(stated, wnids, words)
  if why := naming.fault(found):
    raise errors.UserError(
      f'the data names its classes, and {why}. Classes are compared by WordNet'
      ' id, then by exact name. Set class_names=FILE, with the names that the'
      " data has in the order of the network's classes; or labels=FILE."
    )
  numbers = [found.labels.get((i.named, i.label), i.label) for i in items]
  return LabelSet('labels', tuple(frozenset([n]) for n in numbers), _SOURCE)


# ----------------------------------------------------------------- folders


def _by_folders(
  items: Sequence[Item], wnids: Sequence[str], words: Sequence[str]
) -> LabelSet:
  names = [item.key.rpartition('/')[0].rpartition('/')[2] for item in items]
  bare = [item.key for item, name in zip(items, names, strict=True) if not name]
  if bare:
    raise errors.UserError(
      f'{len(bare)} of {counted(len(items), "image")} in no folder that could'
      f' name the class: {some(bare)}. Set labels=FILE.'
    )
  index, how = _folder_labels(sorted(set(names)), wnids, words)
  return LabelSet(
    FOLDERS,
    tuple(frozenset([index[name]]) for name in names),
    f'their {len(index)} folders, {how}',
  )


def _folder_labels(
  folders: list[str], wnids: Sequence[str], words: Sequence[str]
) -> tuple[dict[str, int], str]:
  """The labels of folders, and what the folders are named by."""
  found = naming.match([(name, NO_LABEL) for name in folders], wnids, words)
  index = {name: label for (name, _), label in found.labels.items()}
  if len(index) == len(folders):
    if len({*index.values()}) != len(folders) and all(map(str.isdigit, index)):
      raise errors.UserError(
        f'of the folders {some(folders)} two are the same number.'
      )
    return index, found.how
  by_wnid = formats.are_wnids(wnids)
  near = [name for name in found.strange if naming.nearest(name, wnids)]
  if index or near or found.several or naming.are_names(wnids):
    kind = 'WordNet ids (such as n02123045)' if by_wnid else 'names'
    free = () if by_wnid else set(wnids).difference(folders)
    odd = near or [*found.strange, *found.several]
    raise errors.UserError(
      f'{len(index)} of {counted(len(folders), "folder")}'
      f' {"is" if len(index) == 1 else "are"} named by the {kind} of the'
      f' {len(wnids)} classes; {naming.fault(found, ("is not", "are not"))}.'
      f'{errors.hint(odd[0], sorted(free))} Rename or remove what is not, or'
      f' set {"" if by_wnid else _NAMES_FILE}labels=FILE.'
    )
  if wnids and len(folders) != len(wnids):
    raise errors.UserError(
      f'there are {counted(len(folders), "folder")} and {len(wnids)} classes,'
      ' so their alphabetical order does not say which is which. Name the'
      ' folders by the names or numbers of the classes, or set labels=FILE.'
    )
  order = "in alphabetical order, as the network's classes have no names"
  return {name: i for i, name in enumerate(folders)}, order


# ---------------------------------------------------------------- matching


def _matched(
  entries: formats.Entries, items: Sequence[Item], path: pathlib.Path
) -> tuple[frozenset[int], ...]:
  keys = [item.key for item in items]
  _check_distinct(keys, 'the source has the image')
  if entries.names is not None:
    _check_distinct(entries.names, f'the label file {path} has')
  if len(entries.answers) != len(items):
    raise formats.error(
      path,
      f'has labels for {counted(len(entries.answers), "image")}, and there'
      f' {"is" if len(items) == 1 else "are"} {len(items)}'
      f'{_difference(entries.names or (), keys)}',
      'Give the images that belong to it, or for a part of them a list with'
      ' their labels (PATH LABEL)',
    )
  if entries.names is None:
    return _by_number(entries.answers, keys, path)
  return _by_name(entries.names, entries.answers, keys, path)


def _check_distinct(names: Sequence[str], what: str) -> None:
  counts = collections.Counter(names)
  twice = [name for name, count in counts.items() if count > 1]
  if twice:
    raise errors.UserError(
      f'{what} {some(twice)} more than once. Leave the others out.'
    )


def _difference(names: Sequence[str], keys: Sequence[str]) -> str:
  """The names without a counterpart, if there are names, for the message."""
  ours, theirs = (set(map(_composed_name, side)) for side in (keys, names))
  sides = (
    ('Without a label', sorted(ours - theirs)),
    ('Without an image', sorted(theirs - ours)),
  )
  return ''.join(
    f'. {what}: {some(odd)}' for what, odd in sides if odd and names
  )


def _by_number(
  answers: Sequence[frozenset[int]], keys: Sequence[str], path: pathlib.Path
) -> tuple[frozenset[int], ...]:
  numbers = [_val_number(key) for key in keys]
  if not any(numbers):
    return tuple(answers)
  index = {f'{number:08d}': answer for number, answer in enumerate(answers, 1)}
  strange = [
    key for key, n in zip(keys, numbers, strict=True) if n not in index
  ]
  if strange or len(set(numbers)) != len(keys):
    raise formats.error(
      path,
      f'lists labels by image number, 1 to {len(keys)} as in'
      f' ILSVRC2012_val_00000001.JPEG; {some(strange or keys)} have no such'
      ' number, or share one',
      'Give the images that belong to it, or a file with lines of NAME LABEL',
    )
  return tuple(index[number] for number in numbers)


def _by_name(
  names: Sequence[str],
  answers: Sequence[frozenset[int]],
  keys: Sequence[str],
  path: pathlib.Path,
) -> tuple[frozenset[int], ...]:
  fewest = keys
  for view in _VIEWS:
    index = dict(zip(map(view, names), answers, strict=True))
    seen = [view(key) for key in keys]
    distinct = len(index) == len(names) and len(set(seen)) == len(keys)
    if not distinct or '' in index or '' in seen:
      continue
    unknown = [key for key, s in zip(keys, seen, strict=True) if s not in index]
    if not unknown:
      return tuple(index[s] for s in seen)
    fewest = min(fewest, unknown, key=len)
  raise formats.error(
    path,
    f'has no label for {len(fewest)} of {counted(len(keys), "image")}:'
    f' {some(fewest)}. It'
    f' has labels for {some(names)}',
    'Give the images that belong to it',
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


def _composed(path: str) -> str:
  """A path whose accents are part of their letters, as macOS has them not."""
  return unicodedata.normalize('NFC', _path(path))


def _composed_name(path: str) -> str:
  return _file_name(_composed(path))


def _composed_stem(path: str) -> str:
  return _stem(_composed(path))


# What is compared of a label file's name and a key; the first that matches all
# images is used.
_VIEWS: tuple[Callable[[str], str], ...] = (
  *(_path, _composed, _composed_name, _composed_stem, _number),
)


def _check_range(labels: LabelSet, items: Sequence[Item], classes: int) -> None:
  for item, answer in zip(items, labels.answers, strict=True):
    for label in answer:
      if label < 0 or (classes and label >= classes):
        last = f' to {classes - 1}' if classes else ''
        raise errors.UserError(
          f'the label {label} of {item.name} is out of range (0{last}), by'
          f' {labels.description}. Give labels of the classes of this network.'
        )
