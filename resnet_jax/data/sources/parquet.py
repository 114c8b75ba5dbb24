# SPDX-License-Identifier: Apache-2.0
"""Images in the rows of Parquet files, as Hugging Face's data sets have them.

A row has an image, {bytes, path} or bytes alone, in a column of any name, and
perhaps a label: a number, whose name the file's metadata may have, or a name.
A row group is read when one of its rows is, and the last few stay in memory,
which thus depends on their size and not on the file's.
Source: Hugging Face's documentation of the repository structure; Apache
Parquet's format (`RowGroup.total_byte_size`).
"""

import collections
import dataclasses
import functools
import re
import threading
from collections.abc import Sequence
from typing import Any

from resnet_jax.codecs import tar
from resnet_jax.data import decoding, places
from resnet_jax.data.places import Place, Stamp
from resnet_jax.data.sources import item as item_lib
from resnet_jax.data.sources.item import NO_LABEL, Item, Source
from resnet_jax.data.sources.parquet_columns import Columns, choose
from resnet_jax.system import errors
from resnet_jax.system.text import counted, one_line

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


def open_files(paths: Sequence[Place], what: str) -> Source:
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
  rows: list[_ImageRow] = []
  notes: dict[str, None] = {}
  for found, note in places.each(_rows, paths):
    rows += found
    notes |= {note: None} if note else {}
  paths_of_rows = {row.path for row in rows}
  by_path = len(paths_of_rows) == len(rows) and all(
    path and tar.is_relative(path) for path in paths_of_rows
  )
  items = []
  for row in rows:
    key = row.path if by_path and row.path else f'{row.file.stem}/{row.row:08d}'
    item_lib.check_text(key)
    name = one_line(f'{row.file}:{key}')
    items.append(Item(key, name, row.label, row.read, named=row.named))
  described = [f'{counted(len(items), "image")} in {what}', *notes]
  if not by_path:
    described.append('keys are FILE/ROW, as paths are not unique')
  return Source(items, '; '.join(described))


@dataclasses.dataclass(frozen=True, slots=True)
class _ImageRow:
  file: Place
  row: int
  path: str | None
  label: int
  named: str
  read: functools.partial[bytes]


def _rows(path: Place) -> tuple[list[_ImageRow], str]:
  """The rows of a file, without their images; and a note on its labels."""
  parquet = _pyarrow()
  try:
    with places.opened(path) as file:
      stamp = places.stamp_of(file)
      opened = parquet.ParquetFile(file)
      # With run lengths a byte can stand for a thousand rows.
      if opened.metadata.num_rows > stamp[0]:
        raise ValueError(f'it claims {opened.metadata.num_rows} rows')
      columns = choose(opened.schema_arrow, path)
      texts = _texts(opened, columns, path)
  except errors.UserError:
    raise
  except Exception as error:
    # pyarrow raises nearly any exception for damaged files.
    raise errors.UserError(
      f'{path} is a Parquet file that cannot be read: {_first_line(error)}. Get'
      ' it again.'
    ) from error
  groups = _Groups(path, stamp, columns)
  result = []
  for row, (group, within, name, stated) in enumerate(texts):
    label, named = _label(stated, columns, path, row)
    read = functools.partial(groups.read, group, within)
    result.append(_ImageRow(path, row, name, label, named, read))
  return result, columns.note


def _label(
  stated: int | str | None, columns: Columns, path: Place, row: int
) -> tuple[int, str]:
  """A row's label and the name of its class, where they are stated."""
  if isinstance(stated, str):
    number = item_lib.number_of(stated)
    if number is not None:
      return number, ''
    named = item_lib.name_of(stated)
    return item_lib.label_of_wnid(named), named
  label = NO_LABEL if stated is None else stated
  last = len(columns.classes) - 1 if columns.classes else item_lib.MAX_LABEL
  if not NO_LABEL <= label <= last:
    raise errors.UserError(
      f'{path}: row {row} has the label {label}; a label is a whole number'
      f' from 0{f" to {last}" if columns.classes else ""}, or -1 for none.'
    )
  named = columns.classes[label] if columns.classes and label >= 0 else ''
  return label, named


class _Groups:
  """The row groups of a file, the last few of them in memory."""

  def __init__(self, path: Place, stamp: Stamp, columns: Columns) -> None:
    self._path, self._stamp, self._columns = path, stamp, columns
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
    places.check_size(len(image))
    return image

  def _load(self, group: int) -> tuple[list[bytes | None], int]:
    images: list[bytes | None] = []
    total = 0
    try:
      with places.opened(self._path) as file:
        places.check_unchanged(file, self._stamp)
        opened = _pyarrow().ParquetFile(file)
        name = self._columns.image
        chosen = [f'{name}.bytes' if self._columns.parts else name]
        for batch in opened.iter_batches(_ROWS, [group], chosen, False):
          column = batch.column(name)
          if self._columns.parts:
            (column,) = column.flatten()
          total += column.nbytes
          if total > _MAX_GROUP_BYTES:
            raise decoding.ImageError(
              f'its row group has more than {_MAX_GROUP_BYTES} bytes; write the'
              ' file with fewer rows a group'
            )
          images += column.to_pylist()
    except (decoding.ImageError, errors.UserError):
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


def _texts(
  opened: Any, columns: Columns, path: Place
) -> list[tuple[int, int, str | None, int | str | None]]:
  """Each row's group, place in it, path and label (None: there is none)."""
  has_path = 'path' in columns.parts
  chosen = [f'{columns.image}.path'] if has_path else []
  chosen += [columns.label] if columns.label else []
  found: list[tuple[int, int, str | None, int | str | None]] = []
  total = 0
  for group in range(opened.metadata.num_row_groups):
    start = len(found)
    if not chosen:
      count = opened.metadata.row_group(group).num_rows
      if not 0 <= count <= opened.metadata.num_rows - start:
        raise ValueError(f'its row group {group} claims {count} rows')
      found += [(group, row, None, None) for row in range(count)]
      continue
    for batch in opened.iter_batches(_TEXT_ROWS, [group], chosen, False):
      total += batch.nbytes
      if total > _MAX_TEXT_BYTES:
        raise errors.UserError(
          f'{path}: its paths and labels have more than {_MAX_TEXT_BYTES}'
          ' bytes.'
        )
      names = labels = [None] * len(batch)
      if has_path:
        (part,) = batch.column(columns.image).flatten()
        names = part.to_pylist()
      if columns.label:
        labels = batch.column(columns.label).to_pylist()
      for name, stated in zip(names, labels, strict=True):
        found.append((group, len(found) - start, name, stated))
  return found


def _check_split(paths: Sequence[Place]) -> None:
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
