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
import pathlib
from collections.abc import Sequence
from typing import BinaryIO

from resnet_jax.codecs import tar
from resnet_jax.data import decoding
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Item, Source
from resnet_jax.system import errors, files
from resnet_jax.system.text import counted, some

_MAX_LABEL_BYTES = 1 << 20
_LABEL_SUFFIXES = ('.cls', '.json', '.txt')
_JSON_KEYS = ('label', 'cls', 'wnid')


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
  """Reads a part of a file that has not changed since it was indexed.

  Each call opens the file, so that threads and processes share nothing and a
  thousand shards do not exhaust the open files; that takes microseconds.

  Attributes:
    path: the file.
    stamp: its size and modification time when it was indexed.
    offset: of the first byte.
    size: in bytes.
  """

  path: pathlib.Path
  stamp: tuple[int, int]
  offset: int
  size: int

  def __call__(self) -> bytes:
    """The bytes.

    Raises:
      ImageError: the file has changed, or the part is too large.
    """
    item_lib.check_size(self.size)
    with files.opened(self.path) as file:
      check_unchanged(file, self.stamp)
      file.seek(self.offset)
      return file.read(self.size)


def stamp_of(file: BinaryIO) -> tuple[int, int]:
  """Size and modification time, which tell a file from its replacement."""
  status = os.fstat(file.fileno())
  return status.st_size, status.st_mtime_ns


def check_unchanged(file: BinaryIO, stamp: tuple[int, int]) -> None:
  """Raises an ImageError unless a file is still the one that was indexed."""
  if stamp_of(file) != stamp:
    raise decoding.ImageError(
      'its archive was changed while the program was running'
    )


@dataclasses.dataclass
class _Archive:
  """The result of one pass over an archive's headers.

  `stated` has the labels that members state, by sample; `others` counts the
  members that are neither images nor labels.
  """

  path: pathlib.Path
  images: list[tar.Member]
  stated: dict[str, int]
  others: int
  stamp: tuple[int, int]


def open_archives(paths: Sequence[pathlib.Path], what: str) -> Source:
  """The images of tar archives, each archive's in the order of their paths.

  Keys are the paths inside the archives; if one occurs in two archives, all
  keys begin with the archive's name.

  Args:
    paths: the archives, in order.
    what: describes them.

  Raises:
    UserError: an archive is damaged or names an image twice, or a label cannot
      be read.
  """
  archives = [_scan(path) for path in paths]
  names = [m.name for one in archives for m in one.images]
  recur = len(set(names)) != len(names)
  items = [
    Item(
      f'{one.path.stem}/{member.name}' if recur else member.name,
      f'{one.path}:{member.name}',
      one.stated.get(_sample(member.name), NO_LABEL),
      Slice(one.path, one.stamp, member.offset, member.size),
      member.size,
    )
    for one in archives
    for member in one.images
  ]
  described = f'{counted(len(items), "image")} in {what}'
  if others := sum(one.others for one in archives):
    described += f'; {counted(others, "other member")} left out'
  if recur:
    described += '; keys begin with the names of the archives'
  if any(one.stated for one in archives):
    return Source(items, f'{described}; labels from the members beside them')
  folders = [f'{one.path.stem}/-' for one in archives for _ in one.images]
  items, labelled = item_lib.labelled(items, [i.key for i in items], folders)
  return Source(items, f'{described}{labelled}')


def _scan(path: pathlib.Path) -> _Archive:
  with files.opened(path) as file:
    result = _Archive(path, [], {}, 0, stamp_of(file))
    where: dict[str, str] = {}
    for member in tar.members(file, path):
      if member.kind == 'folder':
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
      label = _stated(file, member, path)
      if label is None:
        result.others += 1
        continue
      sample = _sample(member.name)
      if result.stated.setdefault(sample, label) != label:
        raise errors.UserError(
          f'{path}: {where[sample]} states the label {result.stated[sample]},'
          f' and {member.name} the label {label}, for the same image. Correct'
          ' the shard.'
        )
      where[sample] = member.name
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
      f' an image: {some(sorted(unused))}. Get or make the shard again.'
    )


def _sample(name: str) -> str:
  """A member's path up to the first dot of the file name."""
  folder, slash, file = name.rpartition('/')
  return f'{folder}{slash}{file.partition(".")[0]}'


def _stated(
  file: BinaryIO, member: tar.Member, path: pathlib.Path
) -> int | None:
  """The label that a member states, or None."""
  suffix = os.path.splitext(member.name)[1].lower()
  if suffix not in _LABEL_SUFFIXES or member.kind != 'file':
    return None
  try:
    if member.size > _MAX_LABEL_BYTES:
      raise ValueError(f'it has {member.size} bytes')
    file.seek(member.offset)
    return _parse(suffix, file.read(member.size).decode('utf-8'))
  except ValueError as error:
    raise errors.UserError(
      f'{path}: {member.name} does not state a valid label: {error}. A label'
      ' is a whole number from 0, or -1 for none, or a WordNet id of ILSVRC'
      ' 2012.'
    ) from error


def _parse(suffix: str, text: str) -> int | None:
  value: object = text
  if suffix == '.json':
    values = files.read_json(text)
    keys = [k for k in _JSON_KEYS if isinstance(values, dict) and k in values]
    if not keys:
      return None
    value = values[keys[0]]
  label = item_lib.label_of(value)
  # A text may be a caption.
  if label is None and suffix != '.txt':
    raise ValueError(f'{value!r:.20} is not a label')
  return label
