# SPDX-License-Identifier: Apache-2.0
"""Images inside tar archives, read where they lie.

One archive, such as ILSVRC2012_img_val.tar, or shards in WebDataset's form: in
a shard the members whose paths agree up to the first dot of the file name make
a sample, and NAME.cls, NAME.json or NAME.txt beside NAME.jpg states its label.
Source: WebDataset's documentation, "The WebDataset Format".
"""

import collections
import dataclasses
import os
from collections.abc import Sequence
from typing import BinaryIO

from resnet_jax.codecs import tar
from resnet_jax.data import places
from resnet_jax.data.places import Place, Stamp
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Item, Source
from resnet_jax.system import errors, files
from resnet_jax.system.text import counted, one_line, some

_MAX_LABEL_BYTES = 1 << 20
_LABEL_SUFFIXES = ('.cls', '.json', '.txt')
_OTHER = 'other member'
_JSON_KEYS = ('wnid', 'label', 'cls')
# Of an image or of its class.
_JSON_NAME = 'name'


@dataclasses.dataclass
class _Archive:
  """The result of one pass over an archive's headers.

  Attributes:
    path: the archive.
    images: its members with an image's suffix.
    stated: what members state of their class, by sample.
    others: the names of members that are neither images nor labels.
    hidden: of members that are left out, the part of the path that hides them.
    stamp: of the file.
  """

  path: Place
  images: list[tar.Member]
  stated: dict[str, '_Stated']
  others: list[str]
  hidden: list[str]
  stamp: Stamp


@dataclasses.dataclass
class _Stated:
  """What the members of a sample state of its class.

  Attributes:
    numbers: labels, by the members that state them.
    names: texts, the names of classes or WordNet ids.
    others: what is neither, such as a list.
  """

  numbers: dict[str, int] = dataclasses.field(default_factory=dict)
  names: list[str] = dataclasses.field(default_factory=list)
  others: list[str] = dataclasses.field(default_factory=list)

  def add(self, member: str, value: object) -> None:
    """Notes a member's value, of any type."""
    number = item_lib.number_of(value)
    if number is not None:
      self.numbers.setdefault(member, number)
    elif isinstance(value, str):
      self.names.append(item_lib.name_of(value))
    else:
      self.others.append(item_lib.name_of(value))

  @property
  def named(self) -> str:
    """The class's name; what is no label only where nothing else is stated."""
    names = self.names or ([] if self.numbers else self.others)
    return names[0] if names else ''

  @property
  def label(self) -> int:
    """The class's number, by ImageNet's order for a WordNet id."""
    numbers = list(self.numbers.values())
    return numbers[0] if numbers else item_lib.label_of_wnid(self.named)


_NOTHING = _Stated()


def open_archives(paths: Sequence[Place], what: str) -> Source:
  """The images of tar archives, each archive's in the order of their paths.

  Keys are the paths inside the archives; if one occurs in two archives, all
  keys begin with the archive's name.

  Args:
    paths: the archives, in order.
    what: describes them.

  Raises:
    UserError: an archive is damaged or names an image twice, or two labels of
      an image contradict each other.
  """
  archives = places.each(_scan, paths)
  names = [m.name for one in archives for m in one.images]
  recur = len(set(names)) != len(names)
  readers = places.readers(
    [
      places.Slice(one.path, one.stamp, member.offset, member.size)
      for one in archives
      for member in one.images
    ]
  )
  items = [
    Item(
      f'{one.path.stem}/{member.name}' if recur else member.name,
      one_line(f'{one.path}:{member.name}'),
      stated.label,
      read,
      member.size,
      stated.named,
    )
    for (one, member), read in zip(
      ((one, member) for one in archives for member in one.images),
      readers,
      strict=True,
    )
    for stated in [one.stated.get(_sample(member.name), _NOTHING)]
  ]
  others = [name for one in archives for name in one.others]
  hidden = [part for one in archives for part in one.hidden]
  described = '; '.join(
    [
      f'{counted(len(items), "image")} in {what}',
      *item_lib.left_out(others, hidden, _OTHER),
    ]
  )
  if recur:
    described += '; keys begin with the names of the archives'
  if any(one.stated for one in archives):
    return Source(items, f'{described}; labels from the members beside them')
  folders = [f'{one.path.stem}/-' for one in archives for _ in one.images]
  items, labelled = item_lib.labelled(items, [i.key for i in items], folders)
  return Source(items, f'{described}{labelled}')


def _scan(path: Place) -> _Archive:
  with places.opened(path) as file:
    result = _Archive(path, [], {}, [], [], places.stamp_of(file))
    for member in tar.members(file, path):
      if member.kind == 'folder':
        continue
      if hides := item_lib.hidden(member.name):
        result.hidden.append(hides)
        continue
      if item_lib.is_image_name(member.name):
        if member.kind != 'file':
          raise errors.UserError(
            f'{path}: {member.name} is a link, a device or a sparse file, and'
            ' only regular files are read. Make the archive again with the'
            ' files themselves (GNU tar: --dereference --hard-dereference, not'
            ' --sparse).'
          )
        result.images.append(member)
        continue
      values = _values(file, member)
      if not values:
        result.others.append(member.name)
        continue
      stated = result.stated.setdefault(_sample(member.name), _Stated())
      for value in values:
        stated.add(member.name, value)
      _check_agree(stated, path)
  result.images.sort(key=lambda member: member.name)
  _check_names(result)
  return result


def _check_names(archive: _Archive) -> None:
  """Checks that there is one image per name and, with labels, per sample."""
  used = collections.Counter(member.name for member in archive.images)
  twice = [name for name, count in used.items() if count > 1]
  if twice:
    raise errors.UserError(
      f'{archive.path} holds {some(twice)} more than once, so'
      ' names do not identify images. Make the archive again.'
    )
  if not archive.stated:
    return
  samples = collections.Counter(_sample(m.name) for m in archive.images)
  twice = [name for name, count in samples.items() if count > 1]
  if twice:
    raise errors.UserError(
      f'{archive.path}: the sample {twice[0]} has {samples[twice[0]]} images'
      ' for one label. A shard must have one image per NAME, up to the first'
      ' dot.'
    )
  unused = archive.stated.keys() - samples.keys()
  if unused:
    raise errors.UserError(
      f'{archive.path} has labels for {counted(len(unused), "sample")} without'
      f' an image: {some(sorted(unused))}{_left_out(archive)}. Get or make the'
      ' shard again.'
    )


def _left_out(archive: _Archive) -> str:
  notes = item_lib.left_out(archive.others, archive.hidden, _OTHER)
  return f' ({"; ".join(notes)})' if notes else ''


def _check_agree(stated: _Stated, path: Place) -> None:
  """Checks that the members of a sample state one label."""
  (first, label), *others = stated.numbers.items() or [('', NO_LABEL)]
  for member, other in others:
    if other != label:
      raise errors.UserError(
        f'{path}: {first} states the label {label}, and {member} the label'
        f' {other}, for the same image. Correct the shard.'
      )


def _sample(name: str) -> str:
  """A member's path up to the first dot of the file name."""
  folder, slash, file = name.rpartition('/')
  return f'{folder}{slash}{file.partition(".")[0]}'


def _values(file: BinaryIO, member: tar.Member) -> list[object]:
  """What a member states of its sample's class, as it states it.

  Only a label that is used has to be one: whatever a member holds, its image
  can be read.
  """
  suffix = os.path.splitext(member.name)[1].lower()
  if suffix not in _LABEL_SUFFIXES or member.kind != 'file':
    return []
  if member.size > _MAX_LABEL_BYTES:
    return [] if suffix == '.txt' else [f'{member.size} bytes of {suffix}']
  file.seek(member.offset)
  text = file.read(member.size).decode('utf-8-sig', 'replace')
  if suffix == '.json':
    return _values_of_json(text, member.name)
  # A text may be a caption.
  is_label = suffix == '.cls' or item_lib.number_of(text) is not None
  known = item_lib.label_of_wnid(item_lib.name_of(text)) != NO_LABEL
  return [text] if is_label or known else []


def _values_of_json(text: str, member: str) -> list[object]:
  try:
    values = files.read_json(text)
  except ValueError:
    return [text]
  if not isinstance(values, dict):
    return []
  stated = [values[key] for key in _JSON_KEYS if key in values]
  keys = (*item_lib.NAMES_OF_CLASSES, _JSON_NAME)
  sample = _sample(member).rpartition('/')[2]
  return stated + [
    name
    for key, name in ((key, values.get(key)) for key in keys)
    if isinstance(name, str)
    and name.strip()
    and not (key == _JSON_NAME and _sample(name).rpartition('/')[2] == sample)
    and not item_lib.is_image_name(name)
  ]
