# SPDX-License-Identifier: Apache-2.0
"""The order of ILSVRC ids, from the `meta.mat` of ImageNet's development kit.

The kit does not number the classes by sorted WordNet id, so its ground truth,
mistaken for labels, gives almost no hits.  Sources: the kit's readme.txt
(`ILSVRC2012_ID`, `WNID`, `num_children`).

The file beside this module holds the published kit's order, one WordNet id per
line.  It only serves to diagnose ids that were mistaken for labels: a ground
truth is mapped by its own meta.mat.
"""

import functools
import importlib.resources
import pathlib
from collections.abc import Sequence

import numpy as np

from resnet_jax.codecs import faults, matlab
from resnet_jax.system import errors, files

NAME = 'meta.mat'
# The published file unpacks to less than 3 MiB.
_MAX_BYTES = _MAX_UNPACKED = 1 << 24
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
    rows = _rows(files.read(path, _MAX_BYTES))
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path} does not exist. The ground truth of the development kit is'
      f' ILSVRC ids, and only the {NAME} of the kit says which classes they'
      ' are: put it beside the ground truth (both are in the folder data of'
      ' ILSVRC2012_devkit_t12.tar.gz).'
    ) from error
  except (OSError, ValueError, OverflowError) as error:
    raise errors.UserError(
      f'{path} cannot be read as the {NAME} of the development kit:'
      f' {error}. Unpack it again from ILSVRC2012_devkit_t12.tar.gz.'
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


def _rows(data: bytes) -> list[tuple[int, str]]:
  """The ids and the WordNet ids of the classes without children."""
  if faults.is_git_lfs(data):
    raise ValueError(f'it is {faults.GIT_LFS_SAYS}')
  rows = matlab.structures(data, 'synsets', _FIELDS, _MAX_UNPACKED)
  return [
    (int(number), str(wnid)) for number, wnid, children in rows if not children
  ]
