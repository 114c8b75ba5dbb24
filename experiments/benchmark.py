# SPDX-License-Identifier: Apache-2.0
"""Compares resnet_jax with the alternatives, on this machine, in one run.

  python experiments/benchmark.py compute --depths 50 101 152 --batches 1 8 32
  python experiments/benchmark.py compute --arithmetics bfloat16 --batches 256
  python experiments/benchmark.py files --data=photos
  python experiments/benchmark.py arithmetic --data=photos
  python experiments/benchmark.py decode --data=photos

The last command runs a measurement of pipeline_speed.py; the others there
(end_to_end, start, growth, plot, ...) work alike, as do those of crop_speed.py
(crops, crops_end_to_end).

`compute` starts with images on the device; `files` goes from JPEG files to
pooled features on disk.  Each contender is a process of its own (peers.py).
They take turns, a second each, so that disturbances hit all alike.  Contenders
that are not installed are reported and left out.  Each result is a JSON line in
experiments/results/benchmark.jsonl, from which tables.py writes the tables of
the documents.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import crop_speed
import numpy as np
import peers
import pipeline_speed

# Before JAX starts: several processes share a GPU's memory here.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

from resnet_jax.data import pipeline, sources
from resnet_jax.engine import devices, runner
from resnet_jax.models import convolution, costs, resnet
from resnet_jax.weights import random

RESULTS = pathlib.Path('experiments/results/benchmark.jsonl')
_HERE = pathlib.Path(__file__).parent

Line = dict[str, Any]


class Contender:
  """A process of peers.py that computes on request."""

  def __init__(self, name: str, depth: int, arithmetic: str) -> None:
    self.name = name
    self.rates: dict[int, list[float]] = {}
    self.cores: dict[int, list[float]] = {}
    self.settings: dict[int, str] = {}
    self._process = subprocess.Popen(
      [sys.executable, _HERE / 'peers.py', name, str(depth), arithmetic],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.about = self._answer()
    self.missing = self.about.get('missing', '')

  def _answer(self) -> Line:
    assert self._process.stdout
    for line in self._process.stdout:
      # Libraries print to stdout, too.
      if line.startswith('{'):
        return json.loads(line)
    return {'missing': f'ended with status {self._process.wait()}'}

  def measure(self, batch: int, seconds: float) -> float:
    """Images/s at a batch size; 0 if the process died."""
    assert self._process.stdin
    try:
      self._process.stdin.write(f'{batch} {seconds}\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      return 0.0
    answer = self._answer()
    rate = answer.get('rate', 0.0)
    self.rates.setdefault(batch, []).append(rate)
    self.cores.setdefault(batch, []).append(answer.get('cores', 0.0))
    self.settings[batch] = answer.get('settings', '')
    return rate

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.wait()


def compute(
  depth: int,
  arithmetic: str,
  batches: Sequence[int],
  *,
  names: Sequence[str],
  rounds: int,
  seconds: float,
) -> list[Line]:
  """Compute only; one line per contender."""
  contenders = [Contender(name, depth, arithmetic) for name in names]
  bounds = [Contender(name, depth, arithmetic) for name in peers.BOUNDS]
  there = [c for c in contenders if not c.missing]
  for contender in there:
    for batch in batches:
      contender.measure(batch, 0.0)
    contender.rates.clear()
    contender.cores.clear()
  for _ in range(rounds):
    for contender in (*there, *(b for b in bounds if not b.missing)):
      for batch in batches if contender in there else batches[:1]:
        contender.measure(batch, seconds)
  for contender in (*contenders, *bounds):
    contender.close()
  machine = pipeline_speed.machine()
  peak, bandwidth = (_best(bound)[1] for bound in bounds)
  work = costs.costs(resnet.ResNet(depth), 224, 224)
  amount = sum(cost.multiply_adds for cost in work)
  # Each layer's values are written once and read once, without a cache.
  moved = 2 * sum(cost.bytes for cost in work)
  return [
    {
      'what': 'compute',
      'contender': contender.name,
      'depth': depth,
      'arithmetic': arithmetic,
      **_figures(contender, rounds),
      'multiply_adds': amount,
      'peak_multiply_adds_per_second': peak,
      'bytes_per_second': bandwidth,
      'bytes_an_image': moved,
      'fraction_of_peak': _share(_best(contender)[1] * amount, peak),
      'fraction_of_memory': _share(_best(contender)[1] * moved, bandwidth),
      'peer': contender.about,
      # The same for all lines of a run.
      **machine,
    }
    for contender in contenders
  ]


def _share(rate: float, bound: float) -> float | None:
  return rate / bound if bound else None


def _best(contender: Contender) -> tuple[int, float]:
  """The batch size with the largest median rate, and that median."""
  medians = {
    batch: statistics.median(rates) for batch, rates in contender.rates.items()
  }
  if not medians:
    return 0, 0.0
  batch = max(medians, key=medians.__getitem__)
  return batch, medians[batch]


def _figures(contender: Contender, rounds: int) -> Line:
  batch, rate = _best(contender)
  if not batch:
    return {'images_per_second': None}
  found = contender.rates
  return {
    'batch': batch,
    'images_per_second': rate,
    'least': min(found[batch]),
    'most': max(found[batch]),
    'rounds': rounds,
    'all': {size: statistics.median(rates) for size, rates in found.items()},
    'cores_used': {
      size: statistics.median(used) for size, used in contender.cores.items()
    },
    'settings': contender.settings,
  }


# -------------------------------------------------------------- JPEG to store


def files(data: pathlib.Path, count: int, rounds: int) -> list[Line]:
  """Files to pooled features on disk: ours, and a PyTorch DataLoader.

  Rates are those of `pipeline_speed.added_rate`.
  """
  found: dict[str, list[float]] = {}
  notes: dict[str, str] = {}
  for _ in range(rounds):
    rate = pipeline_speed.program_rate(
      data, count, 'weights=random', 'layer_num=50'
    )
    found.setdefault('resnet_jax', []).append(rate)
    for name in ('PyTorch eager', 'ONNX Runtime'):
      try:
        rate = pipeline_speed.added_rate(
          functools.partial(_loader_seconds, name, data), count
        )
        found.setdefault(name, []).append(rate)
      except subprocess.CalledProcessError as error:
        notes[name] = error.stderr.strip().splitlines()[-1]
  names = (*found, *(name for name in notes if name not in found))
  return [
    {
      'what': 'files',
      'contender': name,
      'depth': 50,
      'images': count,
      'images_per_second': (
        statistics.median(found[name]) if name in found else None
      ),
      'all': found.get(name, []),
      'missing': notes.get(name, ''),
      **pipeline_speed.machine(),
    }
    for name in names
  ]


def _loader_seconds(name: str, data: pathlib.Path, count: int) -> float:
  with tempfile.TemporaryDirectory() as folder:
    listed = pipeline_speed.write_list(pathlib.Path(folder), data, count)
    done = subprocess.run(
      [sys.executable, _HERE / 'loader.py', name, listed, folder],
      capture_output=True,
      text=True,
      check=True,
    )
  return json.loads(done.stdout.splitlines()[-1])['seconds']


# ----------------------------------------------------------------- arithmetic


def arithmetics(data: pathlib.Path, depth: int, count: int) -> list[Line]:
  """The difference of each arithmetic's values from those of `direct`.

  Per layer: the root mean square of the difference, and the largest
  difference, both over the root mean square of the values.  Also the number of
  labels that differ.  The weights are untrained.
  """
  items = sources.open_source(str(data)).items[:count]
  [batch] = pipeline.batches(items, pipeline_speed.EXACT, rows=len(items))
  model = resnet.ResNet(depth)
  parameters = random.initialise(model, 0)
  layers = [
    name
    for name in resnet.layer_names(model)
    if name.endswith(('_addto', 'pool1', 'avgpool', 'logits', 'output'))
  ]

  def values(arithmetic: str) -> dict[str, np.ndarray]:
    run = runner.Runner(
      model,
      parameters,
      layers,
      pipeline_speed.EXACT,
      execution=runner.Execution(devices.select(False), arithmetic),
    )
    return run.fetch(run(batch.images))

  exact = values('direct')
  lines = []
  for arithmetic in convolution.ARITHMETICS:
    if arithmetic == 'direct':
      continue
    got = values(arithmetic)
    scale = {n: float(np.sqrt(np.mean(v**2))) for n, v in exact.items()}
    off = {n: got[n] - v for n, v in exact.items()}
    lines.append(
      {
        'what': 'arithmetic',
        'arithmetic': arithmetic,
        'depth': depth,
        'images': len(items),
        'weights': 'random, seed 0',
        'rms': {
          n: float(np.sqrt(np.mean(d**2))) / scale[n] for n, d in off.items()
        },
        'largest': {
          n: float(np.abs(d).max()) / scale[n] for n, d in off.items()
        },
        'labels_that_differ': int(
          (got['logits'].argmax(axis=1) != exact['logits'].argmax(axis=1)).sum()
        ),
        'device': devices.describe(devices.select(False)),
        **pipeline_speed.machine(),
      }
    )
  return lines


def say(lines: Sequence[Line]) -> None:
  """Prints results, and appends them to the file."""
  pipeline_speed.keep(RESULTS, *lines)
  for line in lines:
    what = line.get('contender') or line['arithmetic']
    if line['what'] == 'arithmetic':
      worst = max(line['largest'], key=line['largest'].__getitem__)
      print(
        f'{what}: worst {line["largest"][worst]:.1e} of the rms in {worst};'
        f' {line["labels_that_differ"]} of {line["images"]} labels differ'
      )
    elif line.get('images_per_second') is None:
      reason = line.get('missing') or line['peer'].get('missing') or 'failed'
      print(f'{what}: {reason}')
    else:
      batch = f', batch {line["batch"]}' if 'batch' in line else ''
      share, memory = (
        line.get(f'fraction_of_{bound}') for bound in ('peak', 'memory')
      )
      bound = ''
      if share and memory:
        bound = f', {share:.0%} of the matrix product, {memory:.0%} of memory'
      print(f'{what}: {line["images_per_second"]:.1f} images/s{batch}{bound}')


def main() -> None:
  """Runs the measurement that the command line names."""
  if len(sys.argv) > 1 and sys.argv[1] in pipeline_speed.MEASUREMENTS:
    pipeline_speed.main()
    return
  if len(sys.argv) > 1 and sys.argv[1] in crop_speed.MEASUREMENTS:
    crop_speed.main()
    return
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what', choices=['compute', 'files', 'arithmetic'])
  parser.add_argument('--depths', type=int, nargs='+', default=[50])
  parser.add_argument('--batches', type=int, nargs='+', default=[1, 8, 64])
  parser.add_argument(
    '--arithmetics',
    nargs='+',
    choices=convolution.ARITHMETICS,
    default=['float32'],
  )
  parser.add_argument(
    '--contenders',
    nargs='+',
    choices=peers.CONTENDERS,
    default=list(peers.CONTENDERS),
  )
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=1.0)
  parser.add_argument('--data', type=pathlib.Path, default='example')
  parser.add_argument(
    '--count', type=int, help='images; files 400, arithmetic 32'
  )
  given = parser.parse_args()
  begin = time.perf_counter()
  if given.what == 'compute':
    for depth in given.depths:
      for arithmetic in given.arithmetics:
        print(f'ResNet-{depth}, {arithmetic}')
        say(
          compute(
            depth,
            arithmetic,
            given.batches,
            names=given.contenders,
            rounds=given.rounds,
            seconds=given.seconds,
          )
        )
  elif given.what == 'files':
    say(files(given.data, given.count or 400, given.rounds))
  else:
    devices.use_cores()
    for depth in given.depths:
      say(arithmetics(given.data, depth, given.count or 32))
  print(f'measured in {time.perf_counter() - begin:.0f} s')


if __name__ == '__main__':
  main()
