# SPDX-License-Identifier: Apache-2.0
"""The widths of a network: stated, given by a user, and told by parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resnet_jax.models import names, structure
from resnet_jax.models.variant import Variant


def stated(depth: int, variant: Variant) -> dict[str, int]:
  """The fields of the widths as numbers, also where they are the usual."""
  own = structure.ARCHITECTURES[structure.check_depth(depth)].width
  width = variant.width or own
  return {
    'stem_width': variant.stem_width or own,
    'width': width,
    'inner_width': variant.inner_width or width,
    'groups': variant.groups,
  }


def contradicting(
  depth: int, variant: Variant, given: Mapping[str, Any]
) -> str:
  """The widths that a user gave and a network has not; '': none.

  Args:
    depth: of the network.
    variant: of the network.
    given: fields; see `overrides.given`.
  """
  return ', '.join(
    f'{name}={given[name]}'
    for name, value in stated(depth, variant).items()
    if given.get(name) not in (None, 0, value)
  )


def normal(depth: int, variant: Variant) -> Variant:
  """A variant with 0 for the widths that are usual: equal ones are one.

  Raises:
    UserError: no network of the depth has the variant's widths.
  """
  structure.widths(depth, variant)
  own = structure.ARCHITECTURES[depth].width
  width = variant.width or own
  return dataclasses.replace(
    variant,
    stem_width=0 if variant.stem_width == own else variant.stem_width,
    width=0 if width == own else width,
    inner_width=0 if variant.inner_width == width else variant.inner_width,
  )


def told(depth: int, sizes: Mapping[str, int]) -> dict[str, Any]:
  """The fields of a variant that the sizes of its parameters tell.

  Args:
    depth: of the network.
    sizes: numbers of values, by `layer/leaf`; those that are not there, or fit
      to no network, are taken as usual.
  """
  own = structure.ARCHITECTURES[structure.check_depth(depth)]
  last = 'c' if own.bottleneck else 'b'
  usual = structure.widths(depth, Variant())

  def channels(norm: str, otherwise: int) -> int:
    # Of a damaged file they differ.
    found = {sizes.get(f'{norm}/{leaf}', 0) for leaf in names.NORM_LEAVES}
    (count, *others) = found
    return otherwise if others or count < 1 else count

  stem = channels('conv1_bn', usual.stem)
  outputs = channels(f'res2_1_branch2{last}_bn', usual.outputs)
  width = outputs // (4 if own.bottleneck else 1)
  inner, groups = width, 1
  if own.bottleneck:
    inner = channels('res2_1_branch2b_bn', usual.inner)
    dense = 9 * inner**2
    kernel = sizes.get('res2_1_branch2b_conv/kernel', dense)
    groups = dense // kernel if 9 * inner <= kernel else 1
  return {
    'stem_width': 0 if stem == own.width else stem,
    'width': 0 if width == own.width else width,
    'inner_width': 0 if inner == width else inner,
    'groups': groups,
  }
