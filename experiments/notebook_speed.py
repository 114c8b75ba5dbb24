# SPDX-License-Identifier: Apache-2.0
"""Lists of any length in a notebook: compilations, and the time of a call.

  python experiments/notebook_speed.py --data=photos

Calls `Model.features` with lists of several lengths, of files and of crops that
are decoded already, and compares the latter with the network alone on the same
pieces.  Appends a JSON line to experiments/results/notebook.jsonl, from which
tables.py writes a table.
"""

import argparse
import functools
import json
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import pipeline_speed

import resnet_jax
from resnet_jax.data import sources
from resnet_jax.engine import sizing

RESULTS = pathlib.Path('experiments/results/notebook.jsonl')
LENGTHS = (1, 3, 8, 20, 33, 100)
LAYER = 'avgpool'


def seconds(work: Callable[[], Any]) -> float:
  """The time of a call."""
  begin = time.perf_counter()
  work()
  return time.perf_counter() - begin


def each(works: Sequence[Callable[[], Any]]) -> None:
  """Calls one after the other."""
  for work in works:
    work()


def main() -> None:
  """Measures, prints and keeps a line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', default='example')
  parser.add_argument('--depth', type=int, default=50)
  parser.add_argument('--repeats', type=int, default=5)
  given = parser.parse_args()
  compiled: list[str] = []

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs
    if event.endswith('backend_compile_duration'):
      compiled.append(str(kwargs.get('fun_name', '')))

  jax.monitoring.register_event_duration_secs_listener(listen)
  warnings.simplefilter('ignore')
  model = resnet_jax.load(given.depth, weights='random')
  items = sources.open_source(given.data).items
  paths = [item.name for item in items]
  while len(paths) < max(LENGTHS):
    paths += paths
  rows = []
  for length in LENGTHS:
    listed = paths[:length]
    crops = model.crops(listed)
    first = seconds(functools.partial(model.features, listed, LAYER))
    programs = sum('run' in name for name in compiled)
    [network] = model._networks._networks.values()
    most = sizing.first_rows(model.execution.devices, 1, crops.shape[1])
    pieces = network.dealt(length, (most, 1, *crops.shape[1:]))
    works = {
      piece.program: network._run.repeated(crops[: piece.program][:, None])
      for piece in pieces
    }
    alone = functools.partial(each, [works[p.program] for p in pieces])
    # In turns, so that disturbances hit all alike.
    turns = [
      (
        seconds(functools.partial(model.features, listed, LAYER)),
        seconds(functools.partial(model.features, crops, LAYER)),
        seconds(alone),
      )
      for _ in range(given.repeats)
    ]
    files, decoded, network_alone = map(
      statistics.median, zip(*turns, strict=True)
    )
    rows.append(
      {
        'length': length,
        'programs': programs,
        'first': first,
        'files': files,
        'crops': decoded,
        'network': network_alone,
        'ratio': statistics.median(d / n for _, d, n in turns),
      }
    )
  line = {'what': 'notebook', 'depth': given.depth, 'rows': rows}
  line |= pipeline_speed.machine()
  pipeline_speed.keep(RESULTS, line)
  print(json.dumps(line, indent=1))


if __name__ == '__main__':
  main()
