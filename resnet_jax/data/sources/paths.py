# SPDX-License-Identifier: Apache-2.0
"""Images in files of their own: a list, a folder, or a single one."""

import os
import pathlib
import re
from collections.abc import Iterator

from PIL import Image

from resnet_jax.data import decoding
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Source, file_item
from resnet_jax.system import errors

# A path in double quotes, or anything; then, perhaps, a label.
_LINE = re.compile(
  r'(?:"(?P<quoted>[^"]+)"|(?P<plain>\S.*?))(?:\s+(?P<label>\d{1,9}))?'
)


def image(path: pathlib.Path) -> Source:
  """A single image."""
  return Source([file_item(path, path.name)], f'the image {path}')


def is_image(path: pathlib.Path) -> bool:
  """Whether a file is an image, by its suffix or content."""
  if item_lib.is_image_name(path.name):
    return True
  try:
    with Image.open(path, formats=decoding.FORMATS):
      return True
  except Exception:
    # A decoder may raise anything; the file is then read as a list.
    return False


def folder(root: pathlib.Path, files: list[pathlib.Path]) -> Source:
  """The images among the files below a folder, in the order of their keys.

  If all paths have WordNet ids, these are the labels.
  """
  found = sorted(
    (path.relative_to(root).as_posix(), path)
    for path in files
    if item_lib.is_image_name(path.name)
  )
  others = len(files) - len(found)
  left_out = f'; {others} other files left out' if others else ''
  items = [file_item(path, key) for key, path in found]
  stated = item_lib.labels_of_keys(key for key, _ in found)
  if items and stated:
    items = item_lib.labelled(items, stated)
    left_out += '; labels by the WordNet ids in their paths'
  return Source(items, f'{len(found)} images in the folder {root}{left_out}')


def walk(
  root: pathlib.Path, above: frozenset[str] = frozenset()
) -> Iterator[pathlib.Path]:
  """Yields the files below a folder; follows links, except in circles."""
  real = os.path.realpath(root)
  if real in above:
    return
  for path in root.iterdir():
    if path.is_dir():
      yield from walk(path, above | {real})
    else:
      yield path


def list_file(path: pathlib.Path, must_exist: bool) -> Source:
  """The images of a list.

  Raises:
    UserError: it is not a list, or an image that must exist is missing.
  """
  try:
    text = path.read_text('utf-8-sig')
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'{path} is neither a readable image nor a list of images in UTF-8.'
    ) from error
  if '\0' in text:
    raise errors.UserError(
      f'{path} is neither a readable image nor a list of images.'
    )
  items = []
  for line in text.split('\n'):
    if not line.strip():
      continue
    match = _LINE.fullmatch(line.strip())
    # The pattern matches any line that is not blank.
    assert match is not None
    name = match['quoted'] or match['plain']
    label = int(match['label']) if match['label'] else NO_LABEL
    key = pathlib.PurePath(name).as_posix()
    items.append(file_item(path.parent / name, key, label))
  source = Source(items, f'{len(items)} images listed in {path}')
  if must_exist:
    _check_present(source, path)
  return source


def _check_present(source: Source, path: pathlib.Path) -> None:
  missing = [i.name for i in source.items if not os.path.isfile(i.name)]
  if missing:
    shown = ', '.join(missing[:5])
    more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
    raise errors.UserError(
      f'{len(missing)} of {len(source.items)} images listed in {path} do not'
      f' exist: {shown}{more}. Paths are relative to the list. Correct it, or'
      ' set on_error=record to continue without them.'
    )
