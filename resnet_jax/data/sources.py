# SPDX-License-Identifier: Apache-2.0
"""Where pictures come from: a list file, a folder, or one picture.

A source is a sequence of items, each a key, a label and a way to read it;
nothing later knows which of the three it was.
"""

import dataclasses
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from resnet_jax import errors
from resnet_jax.data import preprocess

NO_LABEL = -1
_MAX_BYTES = 1 << 30

# A path in double quotes, or anything; then, perhaps, a label.
_LINE = re.compile(
  r'(?:"(?P<quoted>[^"]+)"|(?P<plain>\S.*?))(?:\s+(?P<label>\d{1,9}))?'
)


@dataclasses.dataclass(frozen=True)
class Item:
  """A picture that has not been read yet.

  Attributes:
    key: its path relative to the list file or the folder, with slashes.
    name: what a person calls it: its path from where the program runs.
    label: its class, or NO_LABEL.
    read: gives the file's bytes, or a Pillow image.
    size: of its file in bytes; -1 where there is none.
  """

  key: str
  name: str
  label: int
  read: Callable[[], bytes | Image.Image]
  size: int = -1


@dataclasses.dataclass(frozen=True)
class Source:
  """Pictures in order.

  Attributes:
    items: the pictures.
    description: for a person: what was read and what was left out.
  """

  items: Sequence[Item]
  description: str


def open_source(data: str, *, must_exist: bool = True) -> Source:
  """The pictures of a list file, a folder or a single picture.

  A folder is searched to the bottom for files with the suffix of a picture,
  in the order of their relative paths.  A list holds one picture a line: its
  path, relative to the list, and, if the last of several blank-separated
  fields is a whole number, its label.  A path may hold blanks; one that ends
  on a blank and a number goes in double quotes.

  Args:
    data: the path of one of the three.
    must_exist: whether a picture that is listed and not there is an error.

  Raises:
    UserError: nothing is there, no picture in it, or a listed one missing.
  """
  path = pathlib.Path(os.path.expanduser(data))
  try:
    if data and path.is_dir():
      source = _folder(path)
    elif not data or not path.exists():
      raise errors.UserError(
        f"data='{data}': there is no such file or folder. Give a list file"
        ' (a line a picture: path, label), a folder, or a picture.'
      )
    elif not path.is_file():
      raise errors.UserError(
        f"data='{data}' is neither a file nor a folder, but a pipe or a device."
      )
    elif _is_picture(path):
      item = file_item(path, path.name)
      source = Source([item], f'the picture {path}')
    else:
      source = _list_file(path)
      if must_exist:
        _check_present(source, path)
  except OSError as error:
    raise errors.UserError(
      f"data='{data}' cannot be read: {error.strerror or error}."
    ) from error
  if not source.items:
    raise errors.UserError(f'no picture to work on: {source.description}.')
  return source


def file_item(path: pathlib.Path, key: str, label: int = NO_LABEL) -> Item:
  """The picture in a file, which need not be there.

  Raises:
    UserError: the key is not UTF-8.
  """
  _check_text(key)
  try:
    size = path.stat().st_size
  except (OSError, ValueError):
    size = -1
  return Item(key, os.fspath(path), label, lambda: _read(path), size)


def _read(path: pathlib.Path) -> bytes:
  """The bytes of a file; not of a pipe or a device, which may never end."""
  status = path.stat()
  if not stat.S_ISREG(status.st_mode):
    raise preprocess.PictureError('it is not a regular file')
  if status.st_size > _MAX_BYTES:
    raise preprocess.PictureError(
      f'its {status.st_size} bytes are more than {_MAX_BYTES}'
    )
  return path.read_bytes()


def _check_present(source: Source, path: pathlib.Path) -> None:
  missing = [i.name for i in source.items if not os.path.isfile(i.name)]
  if missing:
    shown = ', '.join(missing[:5])
    more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
    raise errors.UserError(
      f'{len(missing)} of {len(source.items)} pictures listed in {path} are'
      f' not there: {shown}{more}. Paths are relative to the list. Mend it, or'
      ' set on_error=record to go on without them.'
    )


def _check_text(key: str) -> None:
  try:
    key.encode('utf-8')
  except UnicodeEncodeError as error:
    raise errors.UserError(
      f'the file name {key!r} is not UTF-8 and cannot be a key; rename it.'
    ) from error


def _is_picture(path: pathlib.Path) -> bool:
  if path.suffix.lower() in preprocess.SUFFIXES:
    return True
  try:
    with Image.open(path, formats=preprocess.FORMATS):
      return True
  except Exception:
    # Whatever a decoder says of it: it is read as a list, and judged there.
    return False


def _folder(root: pathlib.Path) -> Source:
  found, others = [], 0
  for path in _walk(root, frozenset()):
    if path.suffix.lower() in preprocess.SUFFIXES:
      found.append((path.relative_to(root).as_posix(), path))
    else:
      others += 1
  left_out = f'; {others} other files left out' if others else ''
  return Source(
    [file_item(path, key) for key, path in sorted(found)],
    f'{len(found)} pictures in the folder {root}{left_out}',
  )


def _walk(
  folder: pathlib.Path, above: frozenset[str]
) -> Iterator[pathlib.Path]:
  """The files below a folder; links are followed, but not round in circles."""
  real = os.path.realpath(folder)
  if real in above:
    return
  for path in folder.iterdir():
    if path.is_dir():
      yield from _walk(path, above | {real})
    else:
      yield path


def _list_file(path: pathlib.Path) -> Source:
  try:
    text = path.read_text('utf-8-sig')
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'{path} is neither a picture that can be read nor a list of pictures in'
      ' UTF-8.'
    ) from error
  if '\0' in text:
    raise errors.UserError(
      f'{path} is neither a picture that can be read nor a list of pictures.'
    )
  items = []
  for line in text.split('\n'):
    if not line.strip():
      continue
    match = _LINE.fullmatch(line.strip())
    # The pattern takes any line that is not blank.
    assert match is not None
    name = match['quoted'] or match['plain']
    label = int(match['label']) if match['label'] else NO_LABEL
    key = pathlib.PurePath(name).as_posix()
    items.append(file_item(path.parent / name, key, label))
  return Source(items, f'{len(items)} pictures listed in {path}')
