# SPDX-License-Identifier: Apache-2.0
"""The networks that have a name: the paper's, and wider ones of their depths.

Sources of the wider ones: torchvision's and timm's `models/resnet.py`;
Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv:1605.07146); Xie et
al., "Aggregated Residual Transformations" (arXiv:1611.05431).  Plain Python, so
that a command line can be checked without importing JAX.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.models import structure, widths
from resnet_jax.models.variant import WIDTHS, Variant
from resnet_jax.system import errors, overrides


@dataclasses.dataclass(frozen=True)
class Network:
  """A network of the paper's depths with widths of its own.

  Attributes:
    name: torchvision's and timm's.
    title: human-readable.
    depth: one of `structure.IMAGENET`.
    variant: all publishers'.
  """

  name: str
  title: str
  depth: int
  variant: Variant

  @property
  def settings(self) -> dict[str, int]:
    """The settings that the name stands for: depth and widths."""
    return {'layer_num': self.depth, **widths.stated(self.depth, self.variant)}


def _network(
  name: str, title: str, depth: int, inner_width: int, groups: int = 1
) -> Network:
  variant = Variant('3x3', 'pad1', inner_width=inner_width, groups=groups)
  return Network(name, title, depth, variant)


NETWORKS = (
  _network('wide_resnet50_2', 'Wide ResNet-50-2', 50, 128),
  _network('wide_resnet101_2', 'Wide ResNet-101-2', 101, 128),
  _network('resnext50_32x4d', 'ResNeXt-50 32x4d', 50, 128, 32),
  _network('resnext101_32x8d', 'ResNeXt-101 32x8d', 101, 256, 32),
  _network('resnext101_64x4d', 'ResNeXt-101 64x4d', 101, 256, 64),
)


def settings(name: str | int) -> dict[str, int] | None:
  """The settings that a network's name stands for; None: there is none.

  Args:
    name: 'resnet50', 'ResNet-50' or 50, which leave the widths open;
      'resnext50_32x4d' or 'ResNeXt-50 32x4d'.
  """
  match = re.fullmatch(r'(?:resnet[-_]?)?(\d+)', str(name).lower())
  if match and int(match[1]) in structure.ARCHITECTURES:
    return {'layer_num': int(match[1])}
  for network in NETWORKS:
    if _plain(str(name)) in (_plain(network.name), _plain(network.title)):
      return network.settings
  return None


def asked(
  name: str | int, given: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
  """The depth, and the fields of the variant, that a user asks for.

  Args:
    name: as `settings` takes it.
    given: the fields; see `overrides.given`.

  Raises:
    UserError: there is no such network, or a field contradicts the name.
  """
  stated = settings(name)
  if stated is None:
    allowed = [f'resnet{depth}' for depth in structure.ARCHITECTURES]
    allowed += [network.name for network in NETWORKS]
    raise errors.unknown(
      'network',
      str(name),
      (),
      described=f'{", ".join(allowed)}; give a file of weights as'
      " weights='PATH'",
    )
  depth = stated.pop('layer_num')
  fields = overrides.given(given)
  for field in stated.keys() & fields.keys():
    if fields[field] != stated[field]:
      raise errors.UserError(
        f'{name} has {field}={stated[field]}, which {field}={fields[field]}'
        f' contradicts. Leave {field} out, or name resnet{depth} and the'
        ' widths.'
      )
  return depth, fields | stated


def usual(depth: int, given: Mapping[str, Any]) -> Variant:
  """The variant of an untrained network.

  Args:
    depth: of the network.
    given: a user's fields; see `overrides.given`.

  Raises:
    UserError: no network of the depth has these widths.
  """
  alone = widths.normal(depth, Variant().overridden(**given))
  network = find(depth, alone)
  own = network.variant if network else Variant()
  return widths.normal(depth, own.overridden(**given))


def find(depth: int, variant: Variant) -> Network | None:
  """The network of these widths; None: it has no name of its own."""
  for network in NETWORKS:
    if network.depth == depth and same_widths(network.variant, variant):
      return network
  return None


def same_widths(first: Variant, second: Variant) -> bool:
  """Whether two variants, as `widths.normal` gives them, have one width."""
  return all(getattr(first, n) == getattr(second, n) for n in WIDTHS)


def name(depth: int, variant: Variant) -> str:
  """`resnet50`, `resnext50_32x4d`; '' for widths that have no name."""
  if same_widths(variant, Variant()):
    return f'resnet{depth}'
  network = find(depth, variant)
  return network.name if network else ''


def title(depth: int, variant: Variant) -> str:
  """`ResNet-50`, also of widths without a name; `ResNeXt-50 32x4d`."""
  network = find(depth, variant)
  return network.title if network else f'ResNet-{depth}'


def describe(depth: int, variant: Variant) -> str:
  """The title, and the widths that it does not tell."""
  unusual = [] if find(depth, variant) else unusual_widths(variant)
  return ', '.join((title(depth, variant), *unusual))


def unusual_widths(variant: Variant) -> list[str]:
  """`width 32`, of the widths that are not the usual ones."""
  return [
    f'{name} {value}'
    for name, value in variant.stated().items()
    if name in WIDTHS
  ]


def _plain(name: str) -> str:
  """A name in lower case, without the signs between its words."""
  return re.sub(r'[-_ ]', '', name.lower())
