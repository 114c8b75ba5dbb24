# SPDX-License-Identifier: Apache-2.0
"""Images in the rows of Parquet files, as Hugging Face's data sets have them.

A row is {image: {bytes, path}, label}, in columns of any names.  A row group is
read when one of its rows is, and the last few stay in memory, which thus
depends on their size and not on the file's.
Source: Hugging Face's documentation of `datasets.Image` and of the repository
structure; Apache Parquet's format (`RowGroup.total_byte_size`).
"""

import collections
import dataclasses
import functools
import pathlib
import re
import threading
from collections.abc import Sequence
from typing import Any

from resnet_jax.codecs import tar
from resnet_jax.data import decoding
from resnet_jax.data.sources import archives
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Item, Source
from resnet_jax.system import errors, files
from resnet_jax.system.text import counted

# The last byte begins a Thrift structure, unlike a list of images.
MAGIC = b'PAR1\x15'
_MAX_GROUP_BYTES = 1 << 30
_MAX_TEXT_BYTES = 1 << 28
# Of the images that stay in memory.
_KEEP_BYTES = 1 << 28
# Rows decoded at once, between checks of the sum of their bytes.
_ROWS = 16
_TEXT_ROWS = 1024
_SHARD = re.compile(r'(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\b.*')


def open_files(paths: Sequence[pathlib.Path], what: str) -> Source:
  """The images of Parquet files, file by file, in the order of the rows.

  A key is the row's path if all are relative and unique, else FILE/ROW.

  Args:
    paths: the files, in order.
    what: describes them.

  Raises:
    UserError: pyarrow is not installed, or a file is damaged, does not have
      exactly one column of images, or is part of an incomplete split.
  """
  _check_split(paths)
  rows = [row for path in paths for row in _rows(path)]
  paths_of_rows = {row.path for row in rows}
  by_path = len(paths_of_rows) == len(rows) and all(
    path and tar.is_relative(path) for path in paths_of_rows
  )
  items = []
  for row in rows:
    key = row.path if by_path and row.path else f'{row.file.stem}/{row.row:08d}'
    item_lib.check_text(key)
    items.append(Item(key, f'{row.file}:{key}', row.label, row.read))
  keyed = '' if by_path else '; keys are FILE/ROW, as paths are not unique'
  return Source(items, f'{counted(len(items), "image")} in {what}{keyed}')


@dataclasses.dataclass(frozen=True, slots=True)
class _ImageRow:
  file: pathlib.Path
  row: int
  path: str | None
  label: int
  read: functools.partial[bytes]


def _rows(path: pathlib.Path) -> list[_ImageRow]:
  """The rows of a file, without their images."""
  parquet = _pyarrow()
  try:
    with files.opened(path) as file:
      stamp = archives.stamp_of(file)
      opened = parquet.ParquetFile(file)
      # With run lengths a byte can stand for a thousand rows.
      if opened.metadata.num_rows > stamp[0]:
        raise ValueError(f'it claims {opened.metadata.num_rows} rows')
      image, label_column = _columns(opened.schema_arrow, path)
      texts = _texts(opened, image, label_column, path)
  except errors.UserError:
    raise
  except Exception as error:
    # pyarrow raises nearly any exception for damaged files.
    raise errors.UserError(
      f'{path} is a Parquet file that cannot be read: {_first_line(error)}. Get'
      ' it again.'
    ) from error
  groups = _Groups(path, stamp, image)
  result = []
  for row, (group, within, name, stated) in enumerate(texts):
    label = NO_LABEL if stated is None else stated
    if not NO_LABEL <= label <= item_lib.MAX_LABEL:
      raise errors.UserError(
        f'{path}: row {row} has the label {label}; a label is a whole number'
        ' from 0, or -1 for none.'
      )
    read = functools.partial(groups.read, group, within)
    result.append(_ImageRow(path, row, name, label, read))
  return result


class _Groups:
  """The row groups of a file, the last few of them in memory."""

  def __init__(
    self, path: pathlib.Path, stamp: tuple[int, int], image: str
  ) -> None:
    self._path, self._stamp, self._image = path, stamp, image
    self._lock = threading.Lock()
    # The images of a group, and the sum of their bytes.
    self._kept: collections.OrderedDict[int, tuple[list[bytes | None], int]]
    self._kept = collections.OrderedDict()

  def read(self, group: int, row: int) -> bytes:
    """The bytes of a row's image; an ImageError if it cannot be read."""
    with self._lock:
      images, size = self._kept.get(group) or self._load(group)
      self._kept[group] = images, size
      self._kept.move_to_end(group)
      # At the end of a group, decoding threads read two of them.
      while (
        len(self._kept) > 2
        and sum(kept for _, kept in self._kept.values()) > _KEEP_BYTES
      ):
        self._kept.popitem(last=False)
    image = images[row]
    if image is None:
      raise decoding.ImageError('its row has no bytes')
    item_lib.check_size(len(image))
    return image

  def _load(self, group: int) -> tuple[list[bytes | None], int]:
    images: list[bytes | None] = []
    total = 0
    try:
      with files.opened(self._path) as file:
        archives.check_unchanged(file, self._stamp)
        opened = _pyarrow().ParquetFile(file)
        names = [f'{self._image}.bytes']
        for batch in opened.iter_batches(_ROWS, [group], names, False):
          (column,) = batch.column(0).flatten()
          total += column.nbytes
          if total > _MAX_GROUP_BYTES:
            raise decoding.ImageError(
              f'its row group has more than {_MAX_GROUP_BYTES} bytes; write the'
              ' file with fewer rows a group'
            )
          images += column.to_pylist()
    except decoding.ImageError:
      raise
    except Exception as error:
      raise decoding.ImageError(
        f'its row group cannot be read: {_first_line(error)}'
      ) from error
    return images, total


def _pyarrow() -> Any:
  try:
    import pyarrow.parquet  # noqa: PLC0415
  except ImportError as error:
    raise errors.UserError(
      'Parquet files are read with pyarrow, which is not installed. Install it'
      " with: pip install 'resnet-jax-zoo[parquet]'"
    ) from error
  return pyarrow.parquet


def _columns(schema: Any, path: pathlib.Path) -> tuple[str, str]:
  """The names of the columns of images and of labels ('' if there is none)."""
  import pyarrow  # noqa: PLC0415

  images = [
    field.name
    for field in schema
    if pyarrow.types.is_struct(field.type)
    and {
      (part.name, str(part.type).removeprefix('large_')) for part in field.type
    }
    >= {('bytes', 'binary'), ('path', 'string')}
  ]
  labels = [
    field.name
    for field in schema
    if field.name == 'label' and pyarrow.types.is_integer(field.type)
  ]
  if len(images) != 1 or len(labels) > 1 or '.' in images[0]:
    raise errors.UserError(
      f'{path} has {len(images)} columns of images: its columns are'
      f' {", ".join(schema.names)}. It needs exactly one of {{bytes, path}},'
      " and may have one of whole numbers named 'label'."
    )
  return images[0], labels[0] if labels else ''


def _texts(
  opened: Any, image: str, label: str, path: pathlib.Path
) -> list[tuple[int, int, str | None, int | None]]:
  """Each row's group, place in it, path and label (None: there is none)."""
  columns = [f'{image}.path', *([label] if label else [])]
  found: list[tuple[int, int, str | None, int | None]] = []
  total = 0
  for group in range(opened.metadata.num_row_groups):
    start = len(found)
    for batch in opened.iter_batches(_TEXT_ROWS, [group], columns, False):
      total += batch.nbytes
      if total > _MAX_TEXT_BYTES:
        raise errors.UserError(
          f'{path}: its paths and labels have more than {_MAX_TEXT_BYTES}'
          ' bytes.'
        )
      (names,) = (part.to_pylist() for part in batch.column(image).flatten())
      labels = batch.column(label).to_pylist() if label else [None] * len(names)
      for name, stated in zip(names, labels, strict=True):
        found.append((group, len(found) - start, name, stated))
  return found


def _check_split(paths: Sequence[pathlib.Path]) -> None:
  """Checks that files named SPLIT-00000-of-00014 are one whole split."""
  matches = [_SHARD.fullmatch(path.name) for path in paths]
  found = collections.Counter(
    (match['split'], int(match['count'])) for match in matches if match
  )
  if len(found) > 1:
    splits = ', '.join(sorted({split for split, _ in found}))
    raise errors.UserError(
      f'the Parquet files belong to several splits: {splits}. Name one, as in'
      f" data='{paths[0].parent}/{sorted(found)[0][0]}-*.parquet'."
    )
  for (split, count), there in found.items():
    if len(paths) > 1 and there != count:
      raise errors.UserError(
        f'only {there} of the {count} Parquet files of the split {split} exist.'
        ' Get the others, or name a single file.'
      )


def _first_line(error: Exception) -> str:
  text = str(error) or type(error).__name__
  return text.partition('\n')[0].removesuffix('.')
