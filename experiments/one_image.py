# SPDX-License-Identifier: Apache-2.0
"""Where the time goes when the cores of a CPU share one image.

  python experiments/one_image.py

Compares one image on all devices with one image on each, which needs no
exchange, by JAX's profiler: the time of a device for each kind of operation.
Appends a JSON line to experiments/results/one_image.jsonl, from which tables.py
writes a table.
"""

import argparse
import collections
import glob
import gzip
import json
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pipeline_speed

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import devices, runner
from resnet_jax.models import resnet
from resnet_jax.weights import random

RESULTS = pathlib.Path('experiments/results/one_image.jsonl')
SIZE = 224
_REPEATS = 30
# The first pattern that an operation's name in HLO matches.
KINDS = {
  'exchange': r'all_gather|psum|all_to_all',
  'products of 3x3': r'branch2b.*(dot_general|conv_general)',
  'other products': r'dot_general|conv_general|reduce_sum',
  'rest': r'',
}


def timed(work: Callable[[], object]) -> float:
  """The median of a call, in seconds."""
  taken = []
  for _ in range(_REPEATS):
    begin = time.perf_counter()
    work()
    taken.append(time.perf_counter() - begin)
  return statistics.median(taken)


def kinds(work: Callable[[], object], text: str, count: int) -> dict[str, Any]:
  """Milliseconds of a call and a device, by the kind of operation.

  Args:
    work: computes a batch.
    text: of its program.
    count: of devices.
  """
  names = dict(
    re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', text, re.M)
  )
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(_REPEATS):
        work()
    [path] = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
    with gzip.open(path) as file:
      events = json.load(file)['traceEvents']
  total: collections.Counter[str] = collections.Counter()
  for event in events:
    name = event.get('name', '')
    if event.get('ph') == 'X' and name in names:
      told = f'{name} {names[name]}'
      kind = next(k for k, pattern in KINDS.items() if re.search(pattern, told))
      total[kind] += event['dur']
  return {kind: total[kind] / 1000 / _REPEATS / count for kind in KINDS}


def main() -> None:
  """Measures, prints and keeps a line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--depth', type=int, default=50)
  given = parser.parse_args()
  devices.use_cores()
  every = devices.select(False)
  module = resnet.ResNet(given.depth)
  run = runner.Runner(
    module,
    random.initialise(module, 0),
    ['avgpool'],
    Preprocess((0.0, 0.0, 0.0)),
    execution=runner.Execution(every),
  )
  line = {'what': 'one image', 'depth': given.depth, 'devices': len(every)}
  for name, images in (('shared', 1), ('one_each', len(every))):
    shape = (images, 1, SIZE, SIZE, 3)
    work = run.repeated(np.zeros(shape, np.uint8))
    timed(work)
    line[name] = {
      'ms': 1000 * timed(work),
      **kinds(work, run.compile(shape).as_text() or '', len(every)),
    }
  line |= pipeline_speed.machine()
  pipeline_speed.keep(RESULTS, line)
  print(json.dumps(line, indent=2))


if __name__ == '__main__':
  main()
