# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU: one run of under nine minutes, by `gpu.sh`.

Each step is a process of its own with a time limit, the most important first;
each appends JSON lines to experiments/results/gpu.jsonl as soon as it has them,
and says what it leaves out and why:

* compute: images/s of ours, of torch.compile (max-autotune, channels last) and
  of ONNX Runtime (CUDA), in alternating turns;
* emitted: what XLA made of the network (fusions, layouts, transposes, copies),
  and its share of the matrix product's bound;
* drift: each layer against float32 on the CPU;
* transfers: bytes/s to the device in one stream and in several;
* crops: a run over stored crops as a share of the network alone.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import benchmark
import crop_speed
import jax
import numpy as np
import peers
import pipeline_speed

from resnet_jax import weights
from resnet_jax.data import pipeline, sources
from resnet_jax.engine import devices, runner
from resnet_jax.models import costs, resnet

RESULTS = pathlib.Path('experiments/results/gpu.jsonl')
CONTENDERS = ('resnet_jax', 'torch.compile', 'ONNX Runtime')

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Size:
  """How much is measured.

  Attributes:
    depths: of the networks.
    arithmetics: the most important first.
    batches: the most important first.
    crops: stored; they repeat.
    seconds: of a turn.
    rounds: turns.
    budget: seconds of the whole run.
  """

  depths: tuple[int, ...] = (50, 152)
  arithmetics: tuple[str, ...] = ('bfloat16', 'tf32', 'float32')
  batches: tuple[int, ...] = (256, 32, 1)
  crops: int = 2048
  seconds: float = 0.5
  rounds: int = 5
  budget: int = 510


FULL = Size()
DRY = Size((18,), ('bfloat16', 'float32'), (2, 1), 8, seconds=0.1, rounds=2)


# ---------------------------------------------------------------- the steps


def compute(given: argparse.Namespace, size: Size) -> Iterator[Line]:
  """Images/s of a depth and an arithmetic, at each batch size."""
  begun = time.monotonic()
  found = [
    benchmark.Contender(name, given.depth, given.arithmetic)
    for name in CONTENDERS
  ]
  timers = [
    threading.Timer(given.limit, contender.close) for contender in found
  ]
  for timer in timers:
    timer.daemon = True
    timer.start()
  for batch in size.batches:
    there = []
    for contender in found:
      # The first use compiles; a moment of work, as no work is no rate.
      if not contender.missing and contender.measure(batch, 0.01):
        there.append(contender)
      contender.rates.clear()
    for _ in range(size.rounds):
      for contender in there:
        contender.measure(batch, size.seconds)
    late = time.monotonic() - begun >= given.limit
    for contender in found:
      rates = contender.rates.get(batch, [])
      if not all(rates):
        rates = []
      why = contender.missing or ('out of time' if late else 'failed')
      if not rates:
        print(f'SKIPPED: {contender.name} at batch {batch}: {why}', flush=True)
      yield {
        'what': 'gpu compute',
        'contender': contender.name,
        'depth': given.depth,
        'arithmetic': given.arithmetic,
        'batch': batch,
        'images_per_second': statistics.median(rates) if rates else None,
        'all': rates,
        'missing': '' if rates else why,
        'peer': contender.about,
      }
  for contender in found:
    contender.close()


def _network(
  given: argparse.Namespace, arithmetic: str, layers: Sequence[str]
) -> runner.Runner:
  loaded = weights.load(given.weights, weights.Options(given.depth))
  return runner.Runner(
    loaded.module,
    loaded.parameters,
    layers,
    loaded.preprocess,
    execution=runner.Execution(devices.select(False)[:1], arithmetic),
  )


def _rate(work: Callable[[], object], amount: float, seconds: float) -> float:
  """The amount a second of repeated work."""
  work()
  count, begin = 0, time.perf_counter()
  while not count or time.perf_counter() - begin < seconds:
    work()
    count += 1
  return amount * count / (time.perf_counter() - begin)


def emitted(given: argparse.Namespace, size: Size) -> Iterator[Line]:
  """The compiled network, and its share of the matrix product's bound."""
  module = resnet.ResNet(given.depth)
  amount = sum(cost.multiply_adds for cost in costs.costs(module, 224, 224))
  for arithmetic in size.arithmetics:
    product = peers.BOUNDS['matrix product'](given.depth, arithmetic)(0)
    bound = _rate(product.run, product.amount, size.seconds)
    run = _network(given, arithmetic, ['avgpool'])
    batch = size.batches[0]
    images = np.zeros((batch, 1, 224, 224, 3), np.uint8)
    text = run.compile(images.shape).as_text() or ''
    rate = _rate(run.repeated(images), batch, size.rounds * size.seconds)
    yield {
      'what': 'emitted',
      'depth': given.depth,
      'arithmetic': arithmetic,
      'batch': batch,
      **_emitted(text),
      'images_per_second': rate,
      'bound_multiply_adds_per_second': bound,
      'share_of_bound': rate * amount / bound,
    }


def _emitted(text: str) -> Line:
  """Operations, targets of calls, and layouts of convolutions in HLO text."""
  operations = collections.Counter(
    re.findall(r'^\s*(?:ROOT )?%?\S+ = \S+ ([a-z][\w-]*)\(', text, re.M)
  )
  convolutions = [
    line
    for line in text.splitlines()
    if re.search(r'dim_labels=|convolution\(|__cudnn\$conv', line)
  ]
  layouts = collections.Counter(
    match[1]
    for line in convolutions
    if (match := re.search(r'\[[\d,]+\]\{([\d,]+)', line))
  )
  return {
    'operations': dict(operations.most_common()),
    'calls': dict(
      collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    ),
    'layouts_of_convolutions': dict(layouts),
    'labels_of_convolutions': dict(
      collections.Counter(re.findall(r'dim_labels=(\S+?),?\s', text))
    ),
  }


def drift(given: argparse.Namespace, size: Size) -> Iterator[Line]:
  """Each layer against float32 on the CPU: rms of the difference over rms."""
  loaded = weights.load(given.weights, weights.Options(given.depth))
  items = sources.open_source(str(given.data)).items[:8]
  [batch] = pipeline.batches(items, loaded.preprocess, rows=len(items))
  layers = resnet.layer_names(loaded.module)

  def values(
    where: Sequence[jax.Device], arithmetic: str
  ) -> dict[str, np.ndarray]:
    run = runner.Runner(
      loaded.module,
      loaded.parameters,
      layers,
      loaded.preprocess,
      execution=runner.Execution(tuple(where), arithmetic),
    )
    return run.fetch(run(batch.images))

  exact = values(jax.local_devices(backend='cpu')[:1], 'direct')
  for arithmetic in size.arithmetics:
    got = values(devices.select(False)[:1], arithmetic)
    yield {
      'what': 'drift',
      'depth': given.depth,
      'arithmetic': arithmetic,
      'weights': loaded.source,
      'trained': loaded.trained,
      'images': len(items),
      'rms': {
        name: float(
          np.sqrt(np.mean((got[name] - value) ** 2) / np.mean(value**2))
        )
        for name, value in exact.items()
      },
    }


def transfers(given: argparse.Namespace, size: Size) -> Iterator[Line]:
  """Bytes/s of a batch to the device, in parts that threads send at once."""
  del given
  batch = np.zeros((size.batches[0], 1, 224, 224, 3), np.uint8)
  device = devices.select(False)[0]

  def send(part: np.ndarray) -> None:
    jax.device_put(part, device).block_until_ready()

  for streams in (1, 2, 4):
    parts = np.array_split(batch, streams)
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
      rate = _rate(
        lambda pool=pool, parts=parts: list(pool.map(send, parts)),  # type: ignore[misc]
        batch.nbytes,
        size.rounds * size.seconds,
      )
    yield {
      'what': 'transfers',
      'streams': streams,
      'batch': len(batch),
      'bytes_per_second': rate,
    }


def crops(given: argparse.Namespace, size: Size) -> Iterator[Line]:
  """A run over stored crops, as a share of the network alone."""
  with tempfile.TemporaryDirectory() as folder:
    path = crop_speed.made(pathlib.Path(folder), given.data, size.crops)
    stored = sources.open_source(str(path)).items
    for arithmetic in size.arithmetics[:2]:
      yield {
        'what': 'gpu crops',
        **crop_speed.turns(
          stored,
          arithmetic,
          depth=given.depth,
          batch_size=size.batches[0],
          repeats=size.rounds,
        ),
      }


STEPS: dict[str, Callable[[argparse.Namespace, Size], Iterator[Line]]] = {
  'compute': compute,
  'emitted': emitted,
  'drift': drift,
  'transfers': transfers,
  'crops': crops,
}


# ------------------------------------------------------------------ the run


def plan(size: Size) -> Iterator[tuple[str, int, str, int]]:
  """The steps: name, depth, arithmetic, and the most seconds of each."""
  depth, arithmetic = size.depths[0], size.arithmetics[0]
  yield 'compute', depth, arithmetic, 140
  yield 'emitted', depth, arithmetic, 80
  yield 'crops', depth, arithmetic, 80
  yield 'drift', depth, arithmetic, 60
  yield 'transfers', depth, arithmetic, 30
  for other in size.depths:
    for way in size.arithmetics:
      if (other, way) != (depth, arithmetic):
        yield 'compute', other, way, 90


def run_all(given: argparse.Namespace, size: Size) -> None:
  """Runs the steps one after the other, as long as there is time."""
  begin = time.monotonic()
  for name, depth, arithmetic, most in plan(size):
    left = size.budget - (time.monotonic() - begin)
    title = f'{name}, ResNet-{depth}, {arithmetic}'
    if left < min(most, 45):
      print(f'SKIPPED: {title}: {left:.0f} s are left', flush=True)
      continue
    limit = min(left, most)
    print(f'{title}: at most {limit:.0f} s', flush=True)
    command = [sys.executable, __file__, '--step', name, *sys.argv[1:]]
    command += ['--depth', str(depth), '--arithmetic', arithmetic]
    # A step ends by itself; what does not is stopped, with all it started.
    command += ['--limit', str(limit - 10)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
      status = process.wait(limit)
      if status:
        print(f'SKIPPED: {title}: ended with status {status}', flush=True)
    except subprocess.TimeoutExpired:
      print(f'SKIPPED: the rest of {title}: out of time', flush=True)
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
  print(f'measured in {time.monotonic() - begin:.0f} s', flush=True)


def run_step(given: argparse.Namespace, size: Size) -> None:
  """Runs a step, and writes its lines as they come."""
  facts = {'device': devices.describe(devices.select(False))}
  facts |= pipeline_speed.machine()
  for line in STEPS[given.step](given, size):
    shown = {k: v for k, v in line.items() if isinstance(v, int | float | str)}
    print(json.dumps(shown), flush=True)
    if not given.dry:
      pipeline_speed.keep(RESULTS, line | facts)


def main() -> None:
  """Runs all steps, or one."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--dry', action='store_true', help='small, not kept')
  parser.add_argument('--data', type=pathlib.Path, default='example')
  parser.add_argument('--weights', default='random', help='of drift')
  parser.add_argument('--step', choices=STEPS, help='only this one')
  parser.add_argument('--depth', type=int, default=0)
  parser.add_argument('--arithmetic', default='bfloat16')
  parser.add_argument('--limit', type=float, default=120, help='seconds')
  given = parser.parse_args()
  size = DRY if given.dry else FULL
  given.depth = given.depth or size.depths[0]
  if given.step:
    run_step(given, size)
    return
  platform = jax.default_backend()
  if platform == 'cpu' and not given.dry:
    raise SystemExit(
      'JAX finds no GPU here. Install the extra for its CUDA (pip install'
      " '.[cuda12]'), or give --dry to see that the steps run."
    )
  print(f'device: {devices.describe(devices.select(False))}', flush=True)
  run_all(given, size)


if __name__ == '__main__':
  main()
