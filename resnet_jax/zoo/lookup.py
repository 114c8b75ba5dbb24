# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints, found by name or by a file's hash, and as a table."""

import hashlib
import pathlib
import re
from collections.abc import Mapping

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import structure
from resnet_jax.system import errors
from resnet_jax.zoo.checkpoints import FAMILIES, MEANS, RECORDS, USUAL
from resnet_jax.zoo.records import Accuracy, File, Hash, Record

__all__ = [
  'FAMILIES',
  'MEANS',
  'RECORDS',
  'USUAL',
  'Accuracy',
  'File',
  'Hash',
  'Record',
  'find',
  'identify',
  'table',
]


def find(family: str, depth: int) -> Record:
  """The checkpoint of a family and depth.

  Raises:
    UserError: there is none; lists those that there are.
  """
  errors.check_choice('checkpoint', family, FAMILIES)
  structure.check_depth(depth)
  for record in RECORDS:
    if (record.family, record.depth) == (family, depth):
      return record
  depths = [str(r.depth) for r in RECORDS if r.family == family]
  others = [r.family for r in RECORDS if r.depth == depth]
  raise errors.UserError(
    f'{family} has no ResNet-{depth}, only {", ".join(depths)}. ResNet-{depth}'
    f' is in {", ".join(others)}.'
  )


def identify(path: pathlib.Path, depth: int) -> Record | None:
  """The published checkpoint that a file is, by its hash; None: no record's.

  Args:
    path: a file; a directory is never one.
    depth: of the network in it.
  """
  if not path.is_file():
    return None
  size = path.stat().st_size
  known: dict[str, str] = {}
  for record in RECORDS:
    file = record.file
    fits = not file.exact or file.size in (None, size)
    if record.depth != depth or file.hash is None or not fits:
      continue
    algorithm = file.hash.algorithm
    if algorithm not in known:
      with open(path, 'rb') as opened:
        known[algorithm] = hashlib.file_digest(opened, algorithm).hexdigest()
    if known[algorithm].startswith(file.hash.digits):
      return record
  return None


def table(records: tuple[Record, ...] = RECORDS) -> list[Mapping[str, str]]:
  """The rows of the table of checkpoints, by column."""
  return [
    {
      'weights': record.family,
      'depth': str(record.depth),
      'top-1 / top-5': '; '.join(_percent(a) for a in record.accuracies),
      'stride': record.variant.stride_in,
      'pool': record.variant.stem_pool,
      'input': _input(record.preprocess),
      'size': _size(record.file),
      'verified by': _verified(record.file),
      # The record has all of it.
      'licence': re.split(r'[,;(]', record.licence)[0].strip(),
    }
    for record in records
  ]


def _percent(accuracy: Accuracy) -> str:
  both = (accuracy.top1, accuracy.top5)
  return ' / '.join('-' if part is None else f'{part:g}' for part in both)


def _input(own: Preprocess) -> str:
  size = f'{own.resize_size} to {own.crop_size}'
  return f'{own.channels}, {size}, {own.interpolation}'


def _size(file: File) -> str:
  if file.size is None:
    return 'not published'
  return f'{"" if file.exact else "about "}{file.size / 1e6:.1f} MB'


def _verified(file: File) -> str:
  if file.hash is None:
    return 'contents only (no hash published)'
  name = {'sha256': 'SHA-256', 'sha1': 'SHA-1', 'md5': 'MD5'}
  part = '' if file.hash.is_full else f', first {len(file.hash.digits)} digits'
  return f'{name[file.hash.algorithm]}{part}'
