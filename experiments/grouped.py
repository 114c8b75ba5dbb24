# SPDX-License-Identifier: Apache-2.0
"""Measures convolutions in groups against XLA's own, on this CPU, in one run.

  python experiments/grouped.py

Both take turns, and the best turn of each counts, so that what else the machine
does hits both alike.  Writes a JSON line for each 3x3 convolution of stride 1,
and one for each whole network, where XLA's are those of arithmetic=direct.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pipeline_speed

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import runner
from resnet_jax.models import convolution, known, resnet, structure
from resnet_jax.models.convolution import ARITHMETICS
from resnet_jax.weights import random

RESULTS = pathlib.Path('experiments/results/grouped.jsonl')
NETWORKS = ('resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d')
WAYS = {'ours': 'float32', 'xla': 'direct'}


def best(ways: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
  """The least seconds of each way, which take turns after a warm-up."""
  found: dict[str, list[float]] = {name: [] for name in ways}
  for turn in range(turns + 1):
    for name, compute in ways.items():
      start = time.perf_counter()
      jax.block_until_ready(compute())
      if turn:
        found[name].append(time.perf_counter() - start)
  return {name: min(seconds) for name, seconds in found.items()}


def convolutions(network: known.Network) -> dict[structure.Unit, int]:
  """Its 3x3 convolutions of stride 1, and the side of their input at 224."""
  module = resnet.ResNet(network.depth, variant=network.variant)
  shapes = resnet.value_shapes(module, 224, 224)
  # The last block of a stage has them all alike.
  return {
    block.branch[1]: shapes[f'{block.name}_branch2b_conv'][1]
    for block in structure.blocks(network.depth, network.variant)
    if block.number == structure.ARCHITECTURES[network.depth].blocks[0]
  }


def measured(
  unit: structure.Unit, side: int, images: int, turns: int
) -> dict[str, float]:
  """Seconds for some images, each way."""
  draw = np.random.default_rng(0)
  x = jax.device_put(
    draw.normal(0, 1, (images, side, side, unit.inputs)).astype(np.float32)
  )
  kernel = draw.normal(
    0, 0.1, (3, 3, unit.inputs // unit.groups, unit.outputs)
  ).astype(np.float32)
  ways = {}
  for name, arithmetic in WAYS.items():
    rules = ARITHMETICS[arithmetic]
    algorithm = convolution.algorithm(unit, rules, 'cpu')
    shape = convolution.kernel_shape(unit, algorithm)
    given = jax.device_put(convolution.prepared(kernel, shape))
    convolve = jax.jit(
      lambda x, k, precision=rules.precision, algorithm=algorithm: (
        convolution.convolve(x, k, unit, precision, algorithm)
      )
    )
    ways[name] = functools.partial(convolve, x, given)
  return best(ways, turns)


def whole(
  network: known.Network,
  execution: runner.Execution,
  images: int,
  turns: int,
) -> dict[str, float]:
  """Seconds of the network for some images, each way."""
  module = resnet.ResNet(network.depth, variant=network.variant)
  parameters = random.initialise(module, 0)
  crops = np.random.default_rng(0).integers(
    0, 256, (images, 1, 224, 224, 3), np.uint8
  )
  ways = {}
  for name, arithmetic in WAYS.items():
    run = runner.Runner(
      module,
      parameters,
      ['output'],
      Preprocess(),
      execution=dataclasses.replace(execution, arithmetic=arithmetic),
    )
    ways[name] = functools.partial(_values, run, crops)
  return best(ways, turns)


def _values(run: runner.Runner, crops: np.ndarray) -> Any:
  return run(crops).values


def main() -> None:
  """Measures, and writes the lines."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--networks', nargs='+', default=NETWORKS)
  parser.add_argument('--images', type=int, default=8)
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--out', type=pathlib.Path, default=RESULTS)
  given = parser.parse_args()
  # As the program has it: one device per core.
  execution = runner.start(False, 'float32', False, print, application=False)
  facts = {
    'images': given.images,
    'turns': given.turns,
    **pipeline_speed.machine(),
  }
  named = {network.name: network for network in known.NETWORKS}
  lines = []
  for name in given.networks:
    network = named[name]
    for unit, side in convolutions(network).items():
      seconds = measured(unit, side, given.images, given.turns)
      of = {'layer': unit.name, 'channels': unit.inputs, 'side': side}
      lines.append({'network': name, **of, 'groups': unit.groups, **seconds})
      print(lines[-1])
    seconds = whole(network, execution, given.images, given.turns)
    lines.append({'network': name, 'layer': 'all', **seconds})
    print(lines[-1])
  given.out.parent.mkdir(parents=True, exist_ok=True)
  text = [json.dumps({'what': 'grouped', **line, **facts}) for line in lines]
  given.out.write_text('\n'.join(text) + '\n', 'utf-8')


if __name__ == '__main__':
  main()
