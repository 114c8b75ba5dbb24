# SPDX-License-Identifier: Apache-2.0
"""Sources of images: lists, folders, archives, Parquet files and crops.

A source is a sequence of items, each with a key, a label and a `read`
function; nothing downstream knows the container.  Nothing is unpacked, and
items can be read in any order.
"""

import pathlib
import re
from collections.abc import Callable, Sequence

from resnet_jax.codecs import faults, tar
from resnet_jax.data import crop_store, decoding, places
from resnet_jax.data.places import Place
from resnet_jax.data.sources import (
  archives,
  crops,
  parquet,
  paths,
  patterns,
)
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import (
  NO_LABEL,
  Item,
  Source,
  check_stored,
  file_item,
)
from resnet_jax.system import errors, files, settings
from resnet_jax.system.text import counted

__all__ = [
  'NO_LABEL',
  'Item',
  'Source',
  'check_stored',
  'file_item',
  'open_source',
]

_HEAD_BYTES = 512

# Magic numbers of what must be unpacked first, its name and the command.
_PACKED = {
  rb'\x1f\x8b': ('gzip', 'gunzip --keep'),
  rb'BZh[1-9]1AY&SY': ('bzip2', 'bunzip2 --keep'),
  rb'\xfd7zXZ\x00': ('xz', 'unxz --keep'),
  rb'\x28\xb5\x2f\xfd': ('Zstandard', 'unzstd'),
  rb'PK\x03\x04': ('zip', 'unzip'),
}

# Containers that may come in several files.
_SUFFIXES = ('.tar', '.parquet')
_OPENERS: dict[str, Callable[[Sequence[Place], str], Source]] = {
  'tar archive': archives.open_archives,
  'Parquet file': parquet.open_files,
}


def open_source(data: str, *, must_exist: bool = True) -> Source:
  """The images of a list file, a folder, archives or a single image.

  A folder is searched recursively for files with an image's suffix, in the
  order of their relative paths; if it has none, for tar archives (shards) or
  Parquet files.  A list has one image per line: its path, relative to the
  list, and, if the last of several blank-separated fields is a whole number,
  its label.  A path may contain blanks; one that ends in a blank and a number
  needs double quotes.  A store of crops is a folder, too.  A file's type is
  recognised by its content.

  Args:
    data: the path of one of these, or a pattern of paths of archives or
      Parquet files with braces or wildcards.
    must_exist: whether a listed image that does not exist is an error.

  Raises:
    UserError: there is no such file, it has no images, a listed one is
      missing, or an archive cannot be used.
  """
  path = places.place(data)
  # Of an address, without what might be secret.
  shown = data if isinstance(path, pathlib.Path) else str(path)
  try:
    kind = places.kind(path) if data else ''
    if kind == 'folder':
      source = _store(path) or _folder(path)
    elif not kind and patterns.is_pattern(data):
      found = patterns.expand(path)
      source = _several(found, f'named {shown}')
    elif not kind:
      _check_unfinished(path)
      raise errors.UserError(
        f"data='{shown}': there is no such file or folder. Give a list file"
        ' (one image per line: path, label), a folder, an image, a tar archive,'
        ' shards (a folder of .tar files, or a pattern such as'
        " 'val-{000..049}.tar'), Parquet files or crops (--job=crop)."
      )
    elif kind == 'other':
      raise errors.UserError(
        f"data='{shown}' is a pipe or a device, not a file or a folder."
      )
    else:
      source = _file(path, must_exist)
  except OSError as error:
    raise errors.UserError(
      f"data='{shown}' cannot be read: {error.strerror or error}."
    ) from error
  except decoding.ImageError as error:
    # Of an address, between two looks at it.
    raise errors.UserError(
      f"data='{shown}' cannot be read: {error}."
    ) from error
  if not source.items:
    where = source.description.removeprefix('0 images ')
    suffixes = ', '.join(sorted(decoding.SUFFIXES))
    known = f' Their suffixes are {suffixes}.' if kind == 'folder' else ''
    raise errors.UserError(f'there are no images {where}.{known}')
  return source


def _store(path: Place) -> Source | None:
  """The crops of a store on the disk; None: the folder is none."""
  if isinstance(path, pathlib.Path) and crop_store.is_store(path):
    return crops.open_store(path)
  return None


def _file(path: Place, must_exist: bool) -> Source:
  form = _form(path)
  if form:
    return _OPENERS[form]([path], f'the {form} {path}')
  if paths.is_image(path):
    return paths.image(path)
  return paths.list_file(path, must_exist)


def _check_unfinished(path: Place) -> None:
  """Raises a UserError if there are crops that are not finished."""
  if not isinstance(path, pathlib.Path):
    return
  if path.name and crop_store.is_store(part := files.part(path)):
    raise errors.UserError(
      f'{path} is not finished: there is only {part}. Start the same crop job'
      ' again; it resumes.'
    )


def _folder(root: Place) -> Source:
  if (
    isinstance(root, pathlib.Path)
    and settings.read(root / 'zarr.json', 'attributes', 'settings') is not None
  ):
    raise errors.UserError(
      f'{root} is a store of features, not of crops or images. Give the images'
      ' that they are of.'
    )
  everything = list(paths.walk(root))
  _check_no_store(root, everything)
  hidden = [path.name for path in everything if item_lib.hidden(path.name)]
  files = [path for path in everything if not item_lib.hidden(path.name)]
  source = paths.folder(root, files, hidden)
  found = sorted(path for path in files if path.suffix.lower() in _SUFFIXES)
  if source.items or not found:
    return source
  others = [p.name for p in files if p.suffix.lower() not in _SUFFIXES]
  left_out = '; '.join(item_lib.left_out(others, hidden))
  left_out = f' ({left_out})' if left_out else ''
  return _several(found, f'in the folder {root}{left_out}')


def _check_no_store(root: Place, found: Sequence[Place]) -> None:
  """Raises a UserError for crops or features at an address."""
  if isinstance(root, pathlib.Path):
    return
  if any(places.relative(path, root) == 'zarr.json' for path in found):
    raise errors.UserError(
      f'{root} is a Zarr store. Stores of crops are read from the disk only:'
      ' copy it and give the path of the copy.'
    )


def _several(found: Sequence[Place], where: str) -> Source:
  """The images of files that must be of one kind."""
  forms = places.each(_form, found)
  first = forms[0]
  for path, form in zip(found, forms, strict=True):
    if not form or form != first:
      raise errors.UserError(
        f'{path} is {form or "neither a tar archive nor Parquet"}'
        f'{f", and {found[0]} a {first}" if first else ""}. Several files must'
        ' all be tar archives or all Parquet files, as in'
        f" data='{path.parent}/*.tar'; for images give a folder or a list."
      )
  return _OPENERS[first](found, f'{counted(len(found), first)} {where}')


def _form(path: Place) -> str:
  """A key of _OPENERS, or '' for images and lists.

  Raises:
    UserError: it is compressed, or a Git LFS pointer.
  """
  with places.opened(path) as file:
    head = file.read(_HEAD_BYTES)
  if faults.is_git_lfs(head):
    raise errors.UserError(f'{path} is {faults.GIT_LFS_SAYS}.')
  for magic, (name, command) in _PACKED.items():
    if re.match(magic, head):
      raise errors.UserError(
        f'{path} is compressed ({name}), so its images cannot be read in any'
        f' order. Unpack it once: {command} {path}. Uncompressed tar archives'
        ' are read in place.'
      )
  if tar.is_tar(head):
    return 'tar archive'
  return 'Parquet file' if head.startswith(parquet.MAGIC) else ''
