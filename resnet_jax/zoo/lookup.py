# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints, found by name or by a file's hash, and as a table."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import known, structure, widths
from resnet_jax.models.variant import WIDTHS, Variant
from resnet_jax.system import errors
from resnet_jax.system.text import some
from resnet_jax.zoo import cache
from resnet_jax.zoo.checkpoints import FAMILIES, MEANS, RECORDS, USUAL
from resnet_jax.zoo.records import Accuracy, File, Record

__all__ = [
  'FAMILIES',
  'LISTED',
  'MEANS',
  'RECORDS',
  'USUAL',
  'Record',
  'families',
  'find',
  'identify',
  'select',
  'table',
  'usual',
  'with_settings',
]


# For messages.
LISTED = f'{some(FAMILIES, 6)} (--job=zoo lists all)'


def _check_family(family: str, others: tuple[str, ...] = ()) -> None:
  if family not in FAMILIES:
    described = ', '.join((*others, LISTED))
    raise errors.unknown('checkpoint', family, FAMILIES, described)


def find(family: str, depth: int = 0) -> Record:
  """The checkpoint of a family and depth.

  Args:
    family: its name.
    depth: of the network; 0: the only one of the family, else 50.

  Raises:
    UserError: there is none; lists those that there are.
  """
  _check_family(family)
  own = {record.depth: record for record in RECORDS if record.family == family}
  if not depth:
    depth = next(iter(own)) if len(own) == 1 else structure.DEFAULT_DEPTH
  structure.check_depth(depth)
  if depth in own:
    return own[depth]
  there = ', '.join(families(depth, Variant()))
  raise errors.UserError(
    f'{family} has no ResNet-{depth}, only {", ".join(map(str, own))}.'
    f' ResNet-{depth} is in {there or "none; give a file of weights"}.'
  )


def families(depth: int, variant: Variant) -> list[str]:
  """Those with a network of a depth and the widths of a variant."""
  return [
    record.family
    for record in RECORDS
    if record.depth == depth and known.same_widths(record.variant, variant)
  ]


def with_settings(depth: int, given: Mapping[str, Any]) -> list[Record]:
  """The checkpoints of a depth and of the widths that a user gave.

  Args:
    depth: of the network; 0: any.
    given: fields of the variant.

  Raises:
    UserError: there are none.
  """
  chosen = [
    record
    for record in RECORDS
    if depth in (0, record.depth)
    and not widths.contradicting(record.depth, record.variant, given)
  ]
  if not chosen:
    asked = {'layer_num': depth} | {name: given.get(name) for name in WIDTHS}
    stated = (f'{name}={value}' for name, value in asked.items() if value)
    raise errors.UserError(
      f'no published checkpoint has {", ".join(stated)}. Leave some out;'
      ' --job=zoo lists all.'
    )
  return chosen


def usual(depth: int, given: Mapping[str, Any]) -> list[Record]:
  """What `auto` means: one checkpoint, or those of all of the paper's depths.

  Args:
    depth: of the network; 0: all depths, or 50 of the widths that are given.
    given: fields of the variant.

  Raises:
    UserError: the zoo has none of the network.
  """
  has_widths = any(given.get(name) for name in WIDTHS)
  if not depth:
    depths = (structure.DEFAULT_DEPTH,) if has_widths else structure.IMAGENET
  else:
    depths = (depth,)
  chosen = []
  for one in depths:
    asked = known.usual(one, given)
    family = USUAL.get(known.name(one, asked))
    if not family:
      raise errors.UserError(
        f'the zoo has no checkpoint of {known.describe(one, asked)}.'
        ' --job=zoo lists those that there are.'
      )
    chosen.append(find(family, one))
  return chosen


def select(
  families: Iterable[str], depth: int = 0, others: tuple[str, ...] = ()
) -> list[Record]:
  """The checkpoints of some families, of one depth or, with 0, of all.

  Args:
    families: their names.
    depth: that each of them must have.
    others: words that the caller allows as well, for the message.

  Raises:
    UserError: a family is unknown, or has no network of this depth.
  """
  chosen = []
  for family in families:
    _check_family(family, others)
    if depth:
      chosen.append(find(family, depth))
    else:
      chosen += [record for record in RECORDS if record.family == family]
  return chosen


def identify(path: pathlib.Path, depth: int) -> Record | None:
  """The published checkpoint that a file is, by its hash; None: no record's.

  Args:
    path: a file; a directory is never one.
    depth: of the network in it.
  """
  if not path.is_file():
    return None
  digests: dict[str, str] = {}
  for record in RECORDS:
    file = record.file
    is_size = not file.exact or file.size in (None, path.stat().st_size)
    if record.depth != depth or file.hash is None or not is_size:
      continue
    algorithm = file.hash.algorithm
    if algorithm not in digests:
      digests[algorithm] = cache.digest(path, algorithm)
    if digests[algorithm].startswith(file.hash.digits):
      return record
  return None


def table(records: Sequence[Record] = RECORDS) -> list[Mapping[str, str]]:
  """The rows of the table of checkpoints, by column."""
  return [
    {
      'weights': record.family,
      'depth': str(record.depth),
      'top-1 / top-5': '; '.join(_percent(a) for a in record.accuracies),
      **_variant(record),
      'input': _input(record.preprocess),
      'size': _size(record.file),
      'verified by': _verified(record.file),
      'licence': record.licence,
    }
    for record in records
  ]


def _variant(record: Record) -> dict[str, str]:
  own = record.variant
  # The CIFAR networks have neither.
  known = record.depth in structure.IMAGENET
  return {
    'stride': own.stride_in if known else '-',
    'pool': own.stem_pool if known else '-',
  }


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
  if file.embedded:
    return 'in the package'
  if file.hash is None:
    return 'contents only (no hash published)'
  name = {'sha256': 'SHA-256', 'sha1': 'SHA-1', 'md5': 'MD5'}
  part = '' if file.hash.is_full else f', first {len(file.hash.digits)} digits'
  return f'{name[file.hash.algorithm]}{part}'
