# SPDX-License-Identifier: Apache-2.0
"""Stored crops: what `--job=crop` writes, so that images are decoded once.

A Zarr group with an array `crops`, (rows, H, W, 3) uint8, RGB, or (rows, 5, H,
W, 3) where a network averages over ten crops (the device mirrors them); and, a
row each, `keys`, `labels`, `status`, `reason`, and `sizes`, `named` and `stray`
of `sources.Item`.  The group's attribute `settings` states the preprocessing.
Mean, standard deviation and the order of the channels are not part of it: they
act on the device, so that several networks take the same crops.
"""

import pathlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.codecs.zarr import arrays, chunks, strings
from resnet_jax.data import decoding, preprocess
from resnet_jax.system import errors, files
from resnet_jax.system import settings as settings_lib
from resnet_jax.system.text import counted

# The settings of a store say that it holds these, and what made them.
CONTENTS, PREPROCESSING = 'contents', 'preprocessing'
CROPS = 'crops'
# A folder with these arrays is a store that lost what it states of itself.
_MARKS = (CROPS, 'keys', 'status')

# A chunk of a few crops stays in a core's cache between its reading, its
# checksum and the copy: with a fourth of this and with this, 20,000 crops/s a
# core were read; with four times this 15,000, with eight times 10,000.
CHUNK_BYTES = 4 << 20
# Rows written at a time, and their bytes.
_ROWS, _ROWS_BYTES = 128, 64 << 20

_AGAIN = 'Make the crops again (--job=crop), or copy the folder again.'
# As in a list of images; and more than any disk's bytes.
_MAX_LABEL, _MAX_SIZE = 10**9, 1 << 60


def batch_rows(own: preprocess.Preprocess, count: int) -> int:
  """Rows written at a time: a power of two, so that chunks divide them."""
  most = _ROWS_BYTES // int(np.prod(own.shape))
  return 1 << (max(1, min(_ROWS, most, count)).bit_length() - 1)


def shape(own: preprocess.Preprocess) -> tuple[int, ...]:
  """The shape of a row of `crops`."""
  return own.shape if own.multi_crop else own.shape[1:]


def dimensions(own: preprocess.Preprocess) -> tuple[str, ...]:
  """The names of a row's axes."""
  return (*(('cut',) if own.multi_crop else ()), 'y', 'x', 'rgb')


def add_columns(
  path: pathlib.Path,
  sizes: Sequence[int],
  named: Sequence[str],
  stray: Sequence[bool],
) -> None:
  """Adds to a new store what `sources.Item` has beside key and label."""
  arrays.create_column(path / 'sizes', np.array(sizes, np.int64))
  arrays.create_column(path / 'stray', np.array(stray, np.uint8))
  strings.create(path / 'named', len(named), len(named))
  strings.write_chunk(path / 'named', 0, named, len(named))


def is_store(path: pathlib.Path) -> bool:
  """Whether a folder is a store of crops, perhaps a damaged one."""
  group = path / 'zarr.json'
  stated = settings_lib.read(group, 'attributes', 'settings') or {}
  return (
    stated.get(CONTENTS) == CROPS
    or (group.exists() and (path / CROPS).is_dir())
    or all((path / name / 'zarr.json').exists() for name in _MARKS)
  )


class CropStore:
  """The crops of a finished store.

  Attributes:
    path: the folder.
    preprocessing: what made them; only its `crop_fields` are stated.
    shape: of `crops`.
    chunk_rows: rows in a chunk.
    keys, labels, sizes, named, stray: a row each; see `sources.Item`.
    reasons: why an image could not be read; '' for the others.
  """

  def __init__(self, path: pathlib.Path) -> None:
    """Opens a store; no crops are read yet.

    Raises:
      UserError: it is unfinished or damaged, or no such store.
    """
    self.path = path
    try:
      self._open()
    except (
      *(KeyError, ValueError, OSError, TypeError, AttributeError),
      struct.error,
    ) as error:
      raise self._damaged(error) from error

  def _open(self) -> None:
    path = self.path
    attributes = files.read_json(path / 'zarr.json')['attributes']
    settings = attributes['settings']
    if settings.get(CONTENTS) != CROPS:
      raise ValueError(f'its zarr.json does not state {CONTENTS}: {CROPS}')
    self.preprocessing = preprocess.of_crops(settings[PREPROCESSING])
    grid = _checked(path / CROPS)
    self.shape, self.chunk_rows = grid.shape, grid.chunk[0]
    if self.shape[1:] != shape(self.preprocessing):
      raise ValueError(
        f'its crops are {self.shape}, of images of'
        f' {self.preprocessing.crop_size} pixels'
      )
    rows = self.shape[0]
    self.keys = strings.read(path / 'keys')
    if len(self.keys) != rows or not rows:
      raise ValueError(f'it has {rows} rows and {len(self.keys)} keys')
    # What is not made yet has no files.
    status = arrays.read_column(path / 'status', rows, 'uint8', whole=False)
    if pending := int((status == 0).sum()):
      raise errors.UserError(
        f'{path} is not finished: {counted(pending, "row")} of {rows:,} are not'
        ' made yet. Start the same crop job again; it resumes.'
      )
    _check_files(path / CROPS, grid)
    self.reasons = strings.read(path / 'reason', rows, whole=False)
    self.named = strings.read(path / 'named', rows)
    self.labels = arrays.read_column(path / 'labels', rows, 'int32').tolist()
    self.sizes = arrays.read_column(path / 'sizes', rows, 'int64').tolist()
    self.stray = arrays.read_column(path / 'stray', rows, 'uint8').tolist()
    if [bool(reason) for reason in self.reasons] != (status == 2).tolist():
      raise ValueError('its status and reasons do not agree')
    for name, values, allowed in (
      ('status', status.tolist(), range(3)),
      ('labels', self.labels, range(-1, _MAX_LABEL)),
      ('sizes', self.sizes, range(-1, _MAX_SIZE)),
      ('stray', self.stray, range(2)),
    ):
      if wrong := [number for number in values if number not in allowed]:
        raise ValueError(
          f'{name} has {wrong[0]}, which is not between {allowed[0]} and'
          f' {allowed[-1]}'
        )
    self._crops = arrays.opened(path / CROPS)

  def __repr__(self) -> str:
    return f'CropStore({self.path}, shape={self.shape})'

  def read(self, start: int, out: np.ndarray) -> None:
    """Fills (N, cuts, H, W, 3) with the crops from row `start` on.

    Raises:
      UserError: a chunk is damaged.
    """
    try:
      arrays.read_into(
        self._crops, start, out.reshape(len(out), *self.shape[1:])
      )
    except ValueError as error:
      raise self._damaged(error) from error

  def check(self, own: preprocess.Preprocess) -> None:
    """Raises a UserError unless the crops are what a preprocessing makes."""
    wanted, stored = own.crop_fields, self.preprocessing.crop_fields
    if stored == wanted:
      return
    differing = {
      name: value
      for name, value in stored.items()
      if name in wanted and wanted[name] != value
    }
    stated = '; '.join(
      f'{name} is {settings_lib.shown(value)} there,'
      f' {settings_lib.shown(wanted[name])} here'
      for name, value in differing.items()
    )
    given = ', '.join(
      f'{name}={settings_lib.shown(value)}' for name, value in differing.items()
    )
    raise errors.UserError(
      f'{self.path} holds crops of another preprocessing: {stated}. To take'
      f' them as they are, set {given}; for this preprocessing make others from'
      ' the images, with --job=crop. mean, std and channels may be any.'
    )

  def _damaged(self, error: Exception) -> errors.UserError:
    return errors.UserError(f'{self.path} is damaged: {error}. {_AGAIN}')


class Place(NamedTuple):
  """A row of a store."""

  store: CropStore
  row: int

  def image(self) -> Image.Image:
    """The crop; of five the centre.

    Raises:
      ImageError: the image could not be read when the crops were made.
    """
    if reason := self.store.reasons[self.row]:
      raise decoding.ImageError(reason)
    out = np.empty((1, *self.store.shape[1:]), np.uint8)
    self.store.read(self.row, out)
    *_, last = out.reshape(-1, *out.shape[-3:])
    return Image.fromarray(last)


def _checked(path: pathlib.Path) -> chunks.Grid:
  """The grid of the crops, in chunks of whole rows and no larger than ours."""
  grid = chunks.read(path)
  side = grid.shape[-2] if len(grid.shape) in (4, 5) else 0
  one = (side, side, 3)
  fits = side in preprocess.SIDES and grid.shape[1:] in (one, (5, *one))
  row = grid.bytes_of(grid.shape[1:])
  if not fits or grid.chunk[1:] != grid.shape[1:] or grid.dtype != 'uint8':
    raise ValueError(
      f'its crops are {grid.dtype} {grid.shape} in chunks of {grid.chunk}'
    )
  if grid.chunk[0] > max(1, CHUNK_BYTES // row):
    raise ValueError(f'a chunk has {grid.chunk[0]} crops')
  return grid


def _check_files(path: pathlib.Path, grid: chunks.Grid) -> None:
  """Raises a ValueError unless each chunk has a file as large as it is.

  TensorStore takes black crops in place of a file that is missing.
  """
  size = grid.bytes_of(grid.chunk) + chunks.CHECKSUM_BYTES
  name = '/'.join('0' * (len(grid.shape) - 1))
  for number in range(-(-grid.shape[0] // grid.chunk[0])):
    file = path / 'c' / str(number) / name
    try:
      found = files.size(file)
    except OSError as error:
      where = file.relative_to(path.parent).as_posix()
      raise ValueError(f'{where}: {error.strerror or error}') from error
    if found != size:
      where = file.relative_to(path.parent).as_posix()
      raise ValueError(f'{where} has {found} bytes, not {size}')
