# SPDX-License-Identifier: Apache-2.0
"""Images in files of their own: a list, a folder, or a single one."""

import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator

from PIL import Image

from resnet_jax.data import decoding
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Source, file_item
from resnet_jax.system import errors
from resnet_jax.system import files as files_lib
from resnet_jax.system.text import counted, some

# Of millions of images.
_MAX_LIST_BYTES = 1 << 32
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


def folder(
  root: pathlib.Path, files: list[pathlib.Path], hidden: list[str]
) -> Source:
  """The images among the files below a folder, in the order of their keys.

  If all paths have WordNet ids, these are the labels.

  Args:
    root: the folder.
    files: those below it.
    hidden: the names of what is left out.
  """
  found = sorted(
    (path.relative_to(root).as_posix(), path)
    for path in files
    if item_lib.is_image_name(path.name)
  )
  items = [file_item(path, key) for key, path in found]
  items, labelled = item_lib.labelled(items, [item.key for item in items])
  described = f'{counted(len(items), "image")} in the folder {root}'
  others = [p.name for p in files if not item_lib.is_image_name(p.name)]
  notes = [described, *item_lib.left_out(others, hidden)]
  return Source(items, '; '.join(notes) + labelled)


def walk(
  root: pathlib.Path, above: frozenset[str] = frozenset()
) -> Iterator[pathlib.Path]:
  """Yields the files below a folder, and hidden folders as if they were files.

  It follows links, except in circles.
  """
  real = os.path.realpath(root)
  if real in above:
    return
  for path in root.iterdir():
    if path.is_dir() and not item_lib.hidden(path.name):
      yield from walk(path, above | {real})
    else:
      yield path


def list_file(path: pathlib.Path, must_exist: bool) -> Source:
  """The images of a list.

  Raises:
    UserError: it is not a list, or an image that must exist is missing.
  """
  try:
    text = files_lib.read_text(path, _MAX_LIST_BYTES, 'utf-8-sig')
    if '\0' in text:
      raise ValueError('a binary file')
  except ValueError as error:
    raise errors.UserError(
      f'{path} is neither a readable image nor a list of images in UTF-8.'
    ) from error
  items, found = [], []
  for line in text.split('\n'):
    if not line.strip():
      continue
    match = _LINE.fullmatch(line.strip())
    # The pattern matches any line that is not blank.
    assert match is not None
    name = match['quoted'] or match['plain']
    label = int(match['label']) if match['label'] else NO_LABEL
    key = pathlib.PurePath(name).as_posix()
    found.append(_on_disk(path.parent, name))
    items.append(file_item(found[-1], key, label))
  if must_exist:
    _check_present(list(map(os.fspath, found)), path)
  return Source(items, f'{counted(len(items), "image")} listed in {path}')


def _on_disk(folder: pathlib.Path, name: str) -> pathlib.Path:
  """A listed file, also where its name is composed otherwise in Unicode.

  A list written on macOS may have an accent as a character of its own (NFD).
  """
  path = folder / name
  if name.isascii() or os.path.lexists(path):
    return path
  for part in pathlib.PurePath(name).parts:
    forms = (part, *(unicodedata.normalize(f, part) for f in ('NFC', 'NFD')))
    folder /= next((f for f in forms if os.path.lexists(folder / f)), part)
  return folder


def _check_present(names: list[str], path: pathlib.Path) -> None:
  missing = [name for name in names if not os.path.isfile(name)]
  if missing:
    notes = 'Paths are relative to the list.'
    if any(os.path.isfile(name.rpartition(' ')[0]) for name in missing):
      notes += ' Labels must be whole numbers.'
    if len(missing) == len(names):
      notes += f' ({path} is not an image, so it was read as a list of images.)'
    raise errors.UserError(
      f'{len(missing)} of {counted(len(names), "image")} listed in {path}'
      f' {"do" if len(missing) > 1 else "does"} not exist: {some(missing, 5)}.'
      f' {notes} Correct the list, or set on_error=record to continue without'
      ' them.'
    )
