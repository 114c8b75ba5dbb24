# SPDX-License-Identifier: Apache-2.0
"""The job `summary`: layers, their names and costs, without weights."""

import collections
import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from resnet_jax.jobs import setup
from resnet_jax.models import (
  aliases,
  costs,
  known,
  names,
  programs,
  resnet,
  structure,
)
from resnet_jax.system import console


def run(config: ConfigDict) -> int:
  """Prints a row for each layer, and the totals."""
  module, size, facts = setup.described_network(config)
  found = costs.costs(module, size, size)
  shapes = resnet.value_shapes(module, size, size)
  named = _names(module)
  groups = {
    layer.name: {'groups': layer.groups}
    for layer in structure.layers(module.depth, module.variant)
    # A column only where a network has them.
    if module.variant.groups > 1
  }
  rows = [
    {
      'layer': cost.layer,
      **named[cost.layer],
      **groups.get(cost.layer, {}),
      'C x H x W': 'x'.join(map(str, cost.shape)),
      'parameters': cost.parameters,
      'multiply-adds': cost.multiply_adds,
      'bytes': cost.bytes,
      'receptive field': cost.receptive_field,
      'stride': cost.stride,
    }
    for cost in found
  ]
  totals = {
    'parameters': sum(cost.parameters for cost in found),
    'with_statistics': sum(
      math.prod(shape) for shape in resnet.parameter_shapes(module).values()
    ),
    'multiply_adds': sum(cost.multiply_adds for cost in found),
    'bytes': sum(cost.bytes for cost in found),
  }
  between = [
    {'value': name, **several, 'C x H x W': 'x'.join(map(str, shapes[name]))}
    for name, several in named.items()
    if names.is_between(name)
  ]
  others = [
    {'program': scheme, 'value': value, 'other names': ' '.join(several)}
    for (scheme, value), several in _other_names(module, named).items()
  ]
  console.show(
    rows,
    config.as_json,
    heads=1,
    depth=module.depth,
    classes=module.classes,
    **module.variant.stated(),
    image=[3, size, size],
    totals=totals,
    between=between,
    other_names=others,
    **facts,
  )
  if not config.as_json:
    console.result()
    console.show(between, config.as_json, heads=1)
    console.result()
    console.show(others, config.as_json, heads=2)
    console.result()
    console.result(_total_line(module, size, totals))
  return 0


def _names(module: resnet.ResNet) -> dict[str, dict[str, str]]:
  """For each value, a name in each other program; '-': it has none.

  Not one that stands for several values there, as Caffe's do in place.
  """
  found = aliases.aliases(module.depth, head=module.classes > 0)
  uses = collections.Counter((alias.scheme, alias.name) for alias in found)
  # A value's first alias of a scheme is the usual one.
  usual = {
    (alias.scheme, alias.value): alias.name
    for alias in reversed(found)
    if uses[alias.scheme, alias.name] == 1
  }
  return {
    value: {s: usual.get((s, value), '-') for s in programs.SCHEMES}
    for value in resnet.value_names(module)
  }


def _other_names(
  module: resnet.ResNet, usual: Mapping[str, Mapping[str, str]]
) -> dict[tuple[str, str], list[str]]:
  """The further names of values, such as timm's, by program and value."""
  found: dict[tuple[str, str], list[str]] = {}
  for alias in aliases.aliases(module.depth, head=module.classes > 0):
    if alias.scheme == aliases.CANONICAL:
      continue
    several = found.setdefault((alias.scheme, alias.value), [])
    shown = usual[alias.value][alias.scheme]
    # Of Transformers' backbone alone, the names are those without the prefix.
    if not {alias.name, f'resnet.{alias.name}'} & {shown, *several}:
      several.append(alias.name)
  return {place: several for place, several in found.items() if several}


def _is_the_papers(module: resnet.ResNet) -> bool:
  own = module.variant
  named = known.name(module.depth, own) == f'resnet{module.depth}'
  return named and own.stride_in == '1x1' and module.classes == 1000


def _total_line(
  module: resnet.ResNet, size: int, totals: dict[str, int]
) -> str:
  name = known.describe(module.depth, module.variant)
  line = (
    f'{name} at {size}x{size}: {totals["parameters"]:,} learned parameters'
    f' ({totals["with_statistics"]:,} with the statistics),'
    f' {totals["multiply_adds"] / 1e9:.2f} G multiply-adds,'
    f' {totals["bytes"] / 1e6:.1f} MB of float32 values'
  )
  if size == 224 and _is_the_papers(module) and module.depth in costs.PAPER:
    paper = costs.PAPER[module.depth] / 1e9
    line += f"; the paper's table 1 prints {paper:g} G"
  return line
