# SPDX-License-Identifier: Apache-2.0
"""The job `summary`: layers, their names and costs, without weights."""

import dataclasses
import math

from ml_collections import ConfigDict

from resnet_jax.jobs import setup
from resnet_jax.models import aliases, costs, resnet
from resnet_jax.system import console


def run(config: ConfigDict) -> int:
  """Prints a row for each layer, and the totals."""
  module, size, facts = setup.described_network(config)
  found = costs.costs(module, size, size)
  # A layer's first alias of a scheme is the usual one.
  named = reversed(aliases.aliases(module.depth, head=module.classes > 0))
  usual = {(alias.scheme, alias.layer): alias.name for alias in named}
  rows = [
    {
      'layer': cost.layer,
      **{s: usual.get((s, cost.layer), '-') for s in aliases.OTHERS},
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
  console.show(
    rows,
    config.as_json,
    heads=1,
    depth=module.depth,
    classes=module.classes,
    **dataclasses.asdict(module.variant),
    image=[3, size, size],
    totals=totals,
    **facts,
  )
  if not config.as_json:
    console.result(_total_line(module, size, totals))
  return 0


def _total_line(
  module: resnet.ResNet, size: int, totals: dict[str, int]
) -> str:
  line = (
    f'ResNet-{module.depth} at {size}x{size}: {totals["parameters"]:,} learned'
    f' parameters ({totals["with_statistics"]:,} with the statistics),'
    f' {totals["multiply_adds"] / 1e9:.2f} G multiply-adds,'
    f' {totals["bytes"] / 1e6:.1f} MB of float32 values'
  )
  published = module.variant.stride_in == '1x1' and module.classes == 1000
  if size == 224 and published and module.depth in costs.PAPER:
    paper = costs.PAPER[module.depth] / 1e9
    line += f"; the paper's table 1 prints {paper:g} G"
  return line
