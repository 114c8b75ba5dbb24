# SPDX-License-Identifier: Apache-2.0
"""Speed of stored crops: reading them, and the network over them.

  python experiments/benchmark.py crops --data=photos
  python experiments/benchmark.py crops_end_to_end --data=photos

Each appends a JSON line to experiments/results/crops.jsonl.  Images repeat if
--count exceeds those of the folder.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import pipeline_speed
from pipeline_speed import EXACT, Line

from resnet_jax.data import pipeline, sources
from resnet_jax.system import cores

RESULTS = pathlib.Path('experiments/results/crops.jsonl')
MEASUREMENTS = ('crops', 'crops_end_to_end')
_ROWS = 96


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


def end_to_end(
  data: pathlib.Path, count: int, *settings: str, repeats: int = 8
) -> Line:
  """A run over crops, as a share of the network alone.

  As `pipeline_speed.end_to_end`: each share is of adjacent measurements, in
  alternating order.
  """
  with tempfile.TemporaryDirectory(dir=pathlib.Path.cwd()) as name:
    folder = pathlib.Path(name)
    paths = {n: made(folder, data, n) for n in (count, count // 4)}

    def over_crops() -> float:
      return pipeline_speed.added_rate(
        lambda n: (
          pipeline_speed.run_program(f'data={paths[n]}', *settings).seconds
        ),
        count,
      )

    measurements = {
      'images_per_second': over_crops,
      'compute_alone': lambda: pipeline_speed.compute_alone(settings, count),
    }
    rounds = []
    for number in range(repeats):
      order = list(measurements)[:: -1 if number % 2 else 1]
      rounds.append({what: measurements[what]() for what in order})
  shares = [r['images_per_second'] / r['compute_alone'] for r in rounds]
  every = {what: [r[what] for r in rounds] for what in measurements}
  return {
    'what': 'crops end to end',
    'settings': list(settings),
    'images': count,
    **{what: statistics.median(values) for what, values in every.items()},
    'share': statistics.median(shares),
    'all': {**every, 'shares': shares},
  }


def main() -> None:
  """Measures, and appends the line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('what', choices=MEASUREMENTS)
  parser.add_argument('--data', type=pathlib.Path, default='example')
  parser.add_argument('--count', type=int, help='images; 1920 and 800')
  parser.add_argument('--repeats', type=int, default=8)
  parser.add_argument(
    '--settings', nargs='*', default=['layer_num=50', 'weights=random']
  )
  given = parser.parse_args()
  facts = pipeline_speed.machine()
  if given.what == 'crops':
    line = reading(given.data, given.count or 1920, given.repeats)
  else:
    line = end_to_end(
      given.data, given.count or 800, *given.settings, repeats=given.repeats
    )
  print(json.dumps(line), file=sys.stderr)
  with open(RESULTS, 'a', encoding='utf-8') as file:
    file.write(json.dumps(line | facts) + '\n')


if __name__ == '__main__':
  main()
