# SPDX-License-Identifier: Apache-2.0
"""The order of ILSVRC ids, from the `meta.mat` of ImageNet's development kit.

The kit does not number the classes by sorted WordNet id, so its ground truth,
mistaken for labels, gives almost no hits.  Sources: the kit's readme.txt
(`ILSVRC2012_ID`, `WNID`, `num_children`); MAT-File Format, Level 5, for the
elements that are checked before SciPy reads them.

The file beside this module holds the published kit's order, one WordNet id per
line.  It only serves to diagnose ids that were mistaken for labels: a ground
truth is mapped by its own meta.mat.
"""

import functools
import importlib.resources
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import io

from resnet_jax.codecs import faults
from resnet_jax.system import errors

NAME = 'meta.mat'
_MAX_BYTES = 1 << 24
_MAX_UNPACKED = 1 << 27
_HEADER_BYTES = 128
_COMPRESSED = 15
_WORDS = {b'IM': '<u4', b'MI': '>u4'}
_FIELDS = ('ILSVRC2012_ID', 'WNID', 'num_children')


def published_label_of_id(wnids: Sequence[str]) -> np.ndarray | None:
  """The labels of the published kit's ids.

  Args:
    wnids: the WordNet ids in the order of the labels.

  Returns:
    As `label_of_id`; None where the classes are not those of ILSVRC 2012.
  """
  index = {wnid: label for label, wnid in enumerate(wnids)}
  order = _published_order()
  if index.keys() != set(order):
    return None
  return np.array([index[wnid] for wnid in order], np.int64)


@functools.cache
def _published_order() -> tuple[str, ...]:
  folder = importlib.resources.files('resnet_jax.data.truth')
  return tuple((folder / 'ilsvrc2012_ids.txt').read_text('utf-8').split())


def label_of_id(path: pathlib.Path, wnids: Sequence[str]) -> np.ndarray:
  """The labels of the ILSVRC ids, from a meta.mat.

  Args:
    path: a meta.mat.
    wnids: the WordNet ids in the order of the labels.

  Returns:
    (len(wnids),) int64; the label of the id i + 1 is at i.

  Raises:
    UserError: the file is missing, not a meta.mat, or has other classes.
  """
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f'it has more than {_MAX_BYTES} bytes')
    _check_unpacked(path.read_bytes())
    rows = _rows(path)
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path} does not exist. The ground truth of the development kit is'
      f' ILSVRC ids, and only the {NAME} of the kit says which classes they'
      ' are: put it beside the ground truth (both are in the folder data of'
      ' ILSVRC2012_devkit_t12.tar.gz).'
    ) from error
  except Exception as error:
    # SciPy raises almost any exception on damaged files.
    raise errors.UserError(
      f'{path} cannot be read as the {NAME} of the development kit:'
      f' {str(error) or type(error).__name__}. Unpack it again from'
      ' ILSVRC2012_devkit_t12.tar.gz.'
    ) from error
  wnid_of = dict(rows)
  index = {wnid: label for label, wnid in enumerate(wnids)}
  labels = [index.get(wnid_of.get(n + 1, '')) for n in range(len(wnids))]
  if set(labels) != set(range(len(wnids))):
    raise errors.UserError(
      f'{path} has {len(rows)} classes without children, whose ids and WordNet'
      f' ids are not those of the {len(wnids)} classes of ILSVRC 2012. Take the'
      f' {NAME} of ILSVRC2012_devkit_t12.tar.gz.'
    )
  return np.array(labels, np.int64)


def _check_unpacked(data: bytes) -> None:
  """Raises a ValueError if a file would unpack to too much memory."""
  if data.startswith(faults.GIT_LFS):
    raise ValueError(f'it is {faults.GIT_LFS_SAYS}')
  words = _WORDS.get(data[126:_HEADER_BYTES])
  if words is None:
    raise ValueError('it is not a Level 5 MAT-file')
  start, total = _HEADER_BYTES, 0
  while start + 8 <= len(data) and total < _MAX_UNPACKED:
    kind, size = map(int, np.frombuffer(data, words, 2, start))
    start += 8
    if kind == _COMPRESSED:
      part = data[start : start + size]
      total += len(zlib.decompressobj().decompress(part, _MAX_UNPACKED))
    start += size
  if total >= _MAX_UNPACKED:
    raise ValueError(f'unpacked it has {_MAX_UNPACKED} bytes or more')


def _rows(path: pathlib.Path) -> list[tuple[int, str]]:
  """The ids and the WordNet ids of the classes without children."""
  content = io.loadmat(path, variable_names=['synsets'], squeeze_me=True)
  synsets: Any = content.get('synsets')
  names = getattr(getattr(synsets, 'dtype', None), 'names', None) or ()
  if not set(_FIELDS) <= set(names):
    raise ValueError(f'it has no synsets with {", ".join(_FIELDS)}')
  return [
    (int(number), str(wnid))
    for number, wnid, children in zip(
      *(np.atleast_1d(synsets[field]) for field in _FIELDS), strict=True
    )
    if int(children) == 0
  ]
