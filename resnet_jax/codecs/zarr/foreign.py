# SPDX-License-Identifier: Apache-2.0
"""Arrays that another program stored, checked before TensorStore opens them.

What TensorStore must not be given is in `chunks`; arrays of other programs have
more data types and codecs.
"""

import itertools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from resnet_jax.codecs.zarr import chunks
from resnet_jax.system import files

# The file that describes an array, by Zarr's version.
METADATA = {2: '.zarray', 3: 'zarr.json'}
_MAX_BYTES = 1 << 20
_MAX_RANK = 8
# Beyond that no network's array is stored in one piece, or has as many.
_MAX_CHUNK = 1 << 28  # values
_MAX_VALUES = 1 << 32
# Of a chunk that is stored in pieces, all of which its index lists.
_MAX_PIECES = 1 << 20

_WIDTHS = (
  *itertools.product(('i', 'u'), (1, 2, 4, 8)),
  *itertools.product(('f',), (2, 4, 8)),
)
_KINDS = {'i': 'int', 'u': 'uint', 'f': 'float'}
_DTYPES = {
  2: {
    'bfloat16',
    *(f'{order}{kind}{size}' for order in '<>|' for kind, size in _WIDTHS),
  },
  3: {'bfloat16', *(f'{_KINDS[kind]}{8 * size}' for kind, size in _WIDTHS)},
}


def check_files(folder: pathlib.Path) -> None:
  """Checks that each file in a folder and below is a regular one.

  Raises:
    ValueError: one is a pipe, a device or a link to a folder, or cannot be
      read; the message names it.
  """

  def unreadable(error: OSError) -> None:
    raise ValueError(f'{error.filename}: {error.strerror}') from error

  for parent, folders, names in os.walk(folder, onerror=unreadable):
    for name in folders:
      if (place := pathlib.Path(parent, name)).is_symlink():
        raise ValueError(f'{place}: it is a link to a folder')
    for name in names:
      place = pathlib.Path(parent, name)
      try:
        files.size(place)
      except OSError as error:
        raise ValueError(f'{place}: {error.strerror or error}') from error


def check_metadata(text: bytes, version: int) -> None:
  """Checks what the metadata of an array state.

  Args:
    text: of `.zarray` or `zarr.json`.
    version: Zarr's, 2 or 3.

  Raises:
    ValueError: it is damaged, or of no array that a network may have.
  """
  if len(text) > _MAX_BYTES:
    raise ValueError(f'it has {len(text)} bytes, more than {_MAX_BYTES}')
  stated = files.read_json(text)
  try:
    shape = chunks.sizes(stated['shape'])
    if version == 2:
      dtype, chunk = stated['dtype'], chunks.sizes(stated['chunks'])
    else:
      dtype = stated['data_type']
      chunk = chunks.sizes(stated['chunk_grid']['configuration']['chunk_shape'])
    _check_sizes(shape, chunk)
    if version == 3:
      _check_codecs(stated['codecs'], chunk)
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError(f'it does not state {error}') from error
  if not isinstance(dtype, str) or dtype not in _DTYPES[version]:
    raise ValueError(f'it has the data type {str(dtype)[:99]}')


def _check_sizes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
  rank = len(shape)
  if len(chunk) != rank or rank > _MAX_RANK or 0 in chunk:
    raise ValueError(
      f'it has the shape {str(shape)[:99]} in pieces of {str(chunk)[:99]}'
    )
  if math.prod(chunk) > _MAX_CHUNK:
    raise ValueError(f'it is stored in pieces of {math.prod(chunk)} values')
  if math.prod(shape) > _MAX_VALUES:
    raise ValueError(f'it has {math.prod(shape)} values')


def _check_codecs(codecs: Sequence[Any], chunk: tuple[int, ...]) -> None:
  """Checks the pieces of chunks, which may be in pieces, too."""
  for codec in codecs:
    if codec['name'] != 'sharding_indexed':
      continue
    inner = codec['configuration']
    piece = chunks.sizes(inner['chunk_shape'])
    _check_sizes(chunk, piece)
    if math.prod(chunk) > math.prod(piece) * _MAX_PIECES:
      raise ValueError(f'a chunk has more than {_MAX_PIECES} pieces')
    _check_codecs(inner['codecs'], piece)
