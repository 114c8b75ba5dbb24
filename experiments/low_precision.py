# SPDX-License-Identifier: Apache-2.0
"""Speed of `arithmetic=bfloat16` against float32 on this machine's processor.

  python experiments/low_precision.py --batch 24

ResNet-50 in float32, in float32 without Winograd's algorithm, and in bfloat16
take turns, each in a process of its own; so do, in this one, a 1x1 and a 3x3
convolution, the latter without Winograd's algorithm.  Appends a JSON line to
 experiments/results/low_precision.jsonl.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import benchmark
import jax
import jax.numpy as jnp
import pipeline_speed

from resnet_jax.engine import devices
from resnet_jax.models import convolution, structure

RESULTS = pathlib.Path('experiments/results/low_precision.jsonl')
ARITHMETICS = ('float32', 'direct', 'bfloat16')
# Instructions that multiply bfloat16, as Linux calls them.
_INSTRUCTIONS = ('avx512_bf16', 'amx_bf16', 'avx_ne_convert', 'bf16', 'sve')


def instructions() -> list[str]:
  """Those that the processor has."""
  with open('/proc/cpuinfo', encoding='utf-8') as lines:
    for line in lines:
      if line.startswith(('flags', 'Features')):
        there = set(line.split())
        return [name for name in _INSTRUCTIONS if name in there]
  return []


def operations(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
  """Multiply-adds/s of a 1x1 and a 3x3 convolution of three images."""
  works: dict[str, dict[str, tuple[Callable[[], Any], float]]] = {}
  for name in ('direct', 'bfloat16'):
    rules = convolution.ARITHMETICS[name]
    for unit in (
      structure.Unit(1, 1, 512, 128),
      structure.Unit(3, 1, 128, 128),
    ):
      images = jnp.ones((3, 28, 28, unit.inputs), rules.dtype)
      kernel = jnp.ones((unit.kernel,) * 2 + (unit.inputs, 128), rules.dtype)
      way = convolution.algorithm(unit, rules, 'cpu')
      once = functools.partial(
        jax.jit(
          functools.partial(
            convolution.convolve, unit=unit, precision=rules.precision, name=way
          )
        ),
        images,
        kernel,
      )
      jax.block_until_ready(once())
      amount = 3.0 * 28 * 28 * kernel.size
      kind = f'{unit.kernel}x{unit.kernel}'
      works.setdefault(kind, {})[rules.dtype] = once, amount
  found: dict[str, dict[str, list[float]]] = {}
  for _ in range(rounds):
    for name, ways in works.items():
      for dtype, (call, work) in ways.items():
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
          jax.block_until_ready(call())
          count += 1
        rate = work * count / (time.perf_counter() - begin)
        found.setdefault(name, {}).setdefault(dtype, []).append(rate)
  return {
    name: {dtype: statistics.median(rates) for dtype, rates in ways.items()}
    for name, ways in found.items()
  }


def networks(batch: int, rounds: int, seconds: float) -> dict[str, list[float]]:
  """Images/s of ResNet-50, by arithmetic, in alternating turns."""
  contenders = {
    name: benchmark.Contender('resnet_jax', 50, name) for name in ARITHMETICS
  }
  for contender in contenders.values():
    contender.measure(batch, 0.0)
    contender.rates.clear()
  for _ in range(rounds):
    for contender in contenders.values():
      contender.measure(batch, seconds)
  for contender in contenders.values():
    contender.close()
  return {name: c.rates[batch] for name, c in contenders.items()}


def main() -> None:
  """Measures, and appends the line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=24)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=1.0)
  given = parser.parse_args()
  devices.use_cores()
  rates = networks(given.batch, given.rounds, given.seconds)
  line = {
    'what': 'low precision',
    'batch': given.batch,
    **{name: statistics.median(found) for name, found in rates.items()},
    'ratios': {
      name: statistics.median(
        ours / theirs
        for ours, theirs in zip(rates['bfloat16'], rates[name], strict=True)
      )
      for name in ('float32', 'direct')
    },
    'all': rates,
    'operations': operations(given.rounds, given.seconds / 4),
    'instructions': instructions(),
    **pipeline_speed.machine(),
  }
  print(json.dumps(line))
  pipeline_speed.keep(RESULTS, line)


if __name__ == '__main__':
  main()
