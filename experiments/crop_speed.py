# SPDX-License-Identifier: Apache-2.0
"""Speed of stored crops: reading them, and the network over them.

  python experiments/benchmark.py crops --data=photos
  python experiments/benchmark.py crops_end_to_end --data=photos

Each appends a JSON line to experiments/results/crops.jsonl.  Images repeat if
--count exceeds those of the folder.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import pipeline_speed
from pipeline_speed import EXACT, Line

import resnet_jax
from resnet_jax.data import pipeline, sources
from resnet_jax.engine import loop, runner
from resnet_jax.features import store, table
from resnet_jax.models import resnet
from resnet_jax.system import cores

RESULTS = pathlib.Path('experiments/results/crops.jsonl')
MEASUREMENTS = ('crops', 'crops_end_to_end')
_ROWS = 96
# Batches that may wait when a turn begins.
_AHEAD = 3


def made(folder: pathlib.Path, data: pathlib.Path, count: int) -> pathlib.Path:
  """The crops of `count` images, which repeat those of a folder."""
  path = folder / f'{count}.zarr'
  listed = pipeline_speed.write_list(folder, data, count)
  pipeline_speed.run_job(
    'crop', f'data={listed}', f'crops={path}', 'weights=random'
  )
  return path


def reading(data: pathlib.Path, count: int, repeats: int = 9) -> Line:
  """Reading crops beside decoding images, by one thread's pipeline.

  Rates are per core: images by the process's CPU time, with the checksums.
  `ratios` are of adjacent measurements.  `cold` is by the clock, with a thread
  a core, after the system has dropped the files from memory; `disk` reads the
  same files one after the other.
  """
  with tempfile.TemporaryDirectory(dir=pathlib.Path.cwd()) as name:
    folder = pathlib.Path(name)
    path = made(folder, data, count)
    stored = sources.open_source(str(path)).items
    images = sources.open_source(str(data)).items
    files = sorted((path / 'crops' / 'c').rglob('*/0/0/0'))
    found: dict[str, list[float]] = {'decode': [], 'crops': []}
    _rate(stored, time.process_time)
    for _ in range(repeats):
      found['decode'].append(_rate(images, time.process_time))
      found['crops'].append(_rate(stored, time.process_time))
    cold: dict[str, list[float]] = {'cold': [], 'disk': []}
    for _ in range(repeats):
      _drop(files)
      rate = _rate(stored, time.perf_counter, cores.count())
      cold['cold'].append(rate)
      _drop(files)
      begin = time.perf_counter()
      for file in files:
        file.read_bytes()
      cold['disk'].append(count / (time.perf_counter() - begin))
  ratios = [
    ours / theirs
    for ours, theirs in zip(found['crops'], found['decode'], strict=True)
  ]
  every = found | cold
  return {
    'what': 'crops',
    'images': count,
    'rows': _ROWS,
    **{way: statistics.median(rates) for way, rates in every.items()},
    'ratio': statistics.median(ratios),
    'all': {**every, 'ratios': ratios},
  }


def _rate(
  items: Sequence[sources.Item], clock: Callable[[], float], threads: int = 1
) -> float:
  """Images/s of the pipeline without a consumer."""
  begin = clock()
  for _ in pipeline.batches(items, EXACT, rows=_ROWS, threads=threads):
    pass
  return len(items) / (clock() - begin)


def _drop(files: Sequence[pathlib.Path]) -> None:
  """Makes the system forget the contents of files, where it can."""
  for file in files:
    with open(file, 'rb') as opened:
      os.fsync(opened.fileno())
      if hasattr(os, 'posix_fadvise'):
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def turns(
  stored: Sequence[sources.Item],
  arithmetic: str,
  *,
  depth: int,
  batch_size: int,
  repeats: int,
  batches: int = 3,
) -> Line:
  """A run over images to pooled features on the disk, and the network alone.

  Both in this process, in alternating turns of some batches.  A rate is that of
  a turn's median batch, so that a disturbance in the middle of a turn does not
  count; the batches that wait when a turn of the run begins are left out.
  `cpu_share` compares the CPU time of both, in which no disturbance shows.
  """
  needed = repeats * (_AHEAD + batches) * batch_size
  items = list(itertools.islice(itertools.cycle(stored), needed))
  model = resnet_jax.load(
    depth, weights='random', arithmetic=arithmetic, batch_size=batch_size
  )
  run = model.prepared(items, ('avgpool',))
  alone = runner.Runner(
    model.module,
    model.weights.parameters,
    ['avgpool'],
    model.preprocess,
    execution=model.execution,
  ).repeated(np.zeros((run.rows, *EXACT.shape), np.uint8))
  channels = resnet.value_shapes(model.module, 224, 224)['avgpool'][0]
  plan = table.FeatureTable(
    [str(row) for row in range(len(items))],
    [-1] * len(items),
    {'avgpool': (channels, 1, 1)},
    'float32',
    run.rows,
  )
  found: dict[str, list[float]] = {
    **{'images_per_second': [], 'compute_alone': []},
    **{'cpu': [], 'cpu_alone': []},
  }
  with tempfile.TemporaryDirectory() as folder:
    store.create(pathlib.Path(folder), plan, table.Facts({}, {}))
    writer = store.StoreWriter(pathlib.Path(folder), plan)

    def write(done: loop.Computed) -> None:
      writer.write(done[0].start, done[1], done[0].reasons)

    computed = run.stream()
    with loop.writing_behind(write) as give:

      def whole() -> None:
        give(next(computed))

      for _ in range(repeats):
        _turn(whole, _AHEAD)
        seconds, cpu = _turn(whole, batches)
        found['images_per_second'].append(run.rows / seconds)
        found['cpu'].append(run.rows / cpu)
        alone()
        seconds, cpu = _turn(alone, batches)
        found['compute_alone'].append(run.rows / seconds)
        found['cpu_alone'].append(run.rows / cpu)

  def shares(ours: str, theirs: str) -> list[float]:
    return [x / y for x, y in zip(found[ours], found[theirs], strict=True)]

  every = found | {
    'shares': shares('images_per_second', 'compute_alone'),
    'cpu_shares': shares('cpu', 'cpu_alone'),
  }
  return {
    'depth': depth,
    'arithmetic': arithmetic,
    'batch': run.rows,
    'images_per_second': statistics.median(found['images_per_second']),
    'compute_alone': statistics.median(found['compute_alone']),
    'share': statistics.median(every['shares']),
    'cpu_share': statistics.median(every['cpu_shares']),
    'all': every,
  }


def _turn(work: Callable[[], None], count: int) -> tuple[float, float]:
  """The median seconds of a call, by the clock and of the CPU on average."""
  seconds = []
  cpu = time.process_time()
  for _ in range(count):
    begin = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - begin)
  return statistics.median(seconds), (time.process_time() - cpu) / count


def end_to_end(data: pathlib.Path, depth: int, repeats: int) -> Line:
  """See `turns`, for crops of some images, which repeat."""
  with tempfile.TemporaryDirectory() as folder:
    stored = sources.open_source(str(made(pathlib.Path(folder), data, 480)))
    return {
      'what': 'crops end to end',
      **turns(
        # More than all turns take.
        stored.items,
        'float32',
        depth=depth,
        # Short turns, so that little disturbs one.
        batch_size=24,
        repeats=repeats,
      ),
    }


def main() -> None:
  """Measures, and appends the line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('what', choices=MEASUREMENTS)
  parser.add_argument('--data', type=pathlib.Path, default='example')
  parser.add_argument('--count', type=int, default=1920, help='of crops')
  parser.add_argument('--repeats', type=int, default=8)
  parser.add_argument('--depth', type=int, default=50, help='of the network')
  given = parser.parse_args()
  facts = pipeline_speed.machine()
  if given.what == 'crops':
    line = reading(given.data, given.count, given.repeats)
  else:
    line = end_to_end(given.data, given.depth, given.repeats)
  print(json.dumps(line), file=sys.stderr)
  pipeline_speed.keep(RESULTS, line | facts)


if __name__ == '__main__':
  main()
