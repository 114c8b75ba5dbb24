# SPDX-License-Identifier: Apache-2.0
"""Images in files of their own: a list, a folder, or a single one."""

import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

from PIL import Image

from resnet_jax.data import decoding, places
from resnet_jax.data.places import Place
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Source, file_items
from resnet_jax.system import errors
from resnet_jax.system.text import counted, some

# Of millions of images.
_MAX_LIST_BYTES = 1 << 32
# A path in double quotes, or anything; then, perhaps, a label.
_LINE = re.compile(
  r'(?:"(?P<quoted>[^"]+)"|(?P<plain>\S.*?))(?:\s+(?P<label>\d{1,9}))?'
)


def image(path: Place) -> Source:
  """A single image."""
  (found,) = places.looked_up([path])
  items = file_items([(found, path.name, NO_LABEL)])
  return Source(items, f'the image {path}')


def is_image(path: Place) -> bool:
  """Whether a file is an image, by its suffix or content."""
  if item_lib.is_image_name(path.name):
    return True
  try:
    with (
      places.opened(path) as file,
      Image.open(file, formats=decoding.FORMATS),
    ):
      return True
  except errors.UserError:
    raise
  except Exception:
    # A decoder may raise anything; the file is then read as a list.
    return False


def folder(root: Place, files: Sequence[Place], hidden: list[str]) -> Source:
  """The images among the files below a folder, in the order of their keys.

  If all paths have WordNet ids, these are the labels.

  Args:
    root: the folder.
    files: those below it.
    hidden: the names of what is left out.
  """
  found = sorted(
    (places.relative(path, root), path)
    for path in files
    if item_lib.is_image_name(path.name)
  )
  items = file_items([(path, key, NO_LABEL) for key, path in found])
  items, labelled = item_lib.labelled(items, [item.key for item in items])
  described = f'{counted(len(items), "image")} in the folder {root}'
  others = [p.name for p in files if not item_lib.is_image_name(p.name)]
  notes = [described, *item_lib.left_out(others, hidden)]
  return Source(items, '; '.join(notes) + labelled)


def walk(root: Place) -> Iterator[Place]:
  """Yields the files below a folder, and hidden folders as if they were files.

  It follows links, except in circles.
  """
  if isinstance(root, pathlib.Path):
    return _walk(root)
  return places.below(root, item_lib.hidden)


def _walk(
  root: pathlib.Path, above: frozenset[str] = frozenset()
) -> Iterator[pathlib.Path]:
  real = os.path.realpath(root)
  if real in above:
    return
  for path in root.iterdir():
    if path.is_dir() and not item_lib.hidden(path.name):
      yield from _walk(path, above | {real})
    else:
      yield path


def list_file(path: Place, must_exist: bool) -> Source:
  """The images of a list.

  Raises:
    UserError: it is not a list, or an image that must exist is missing.
  """
  try:
    text = places.read_text(path, _MAX_LIST_BYTES, 'utf-8-sig')
    if '\0' in text:
      raise ValueError('a binary file')
  except ValueError as error:
    raise errors.UserError(
      f'{path} is neither a readable image nor a list of images in UTF-8.'
    ) from error
  found: list[Place] = []
  stated = []
  for line in text.split('\n'):
    if not line.strip():
      continue
    match = _LINE.fullmatch(line.strip())
    # The pattern matches any line that is not blank.
    assert match is not None
    name = match['quoted'] or match['plain']
    label = int(match['label']) if match['label'] else NO_LABEL
    key = pathlib.PurePath(name).as_posix()
    found.append(_listed(path, name))
    stated.append((key, label))
  found = places.looked_up(found)
  if must_exist:
    _check_present(found, path)
  items = file_items(
    [(one, *of) for one, of in zip(found, stated, strict=True)]
  )
  return Source(items, f'{counted(len(items), "image")} listed in {path}')


def _listed(path: Place, name: str) -> Place:
  """The file that a list names."""
  if isinstance(path, pathlib.Path):
    return _on_disk(path.parent, name)
  return path.parent.listed(name)


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


def _check_present(found: Sequence[Place], path: Place) -> None:
  names = list(map(os.fspath, found))
  missing = [os.fspath(one) for one in found if not places.is_file(one)]
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
