# SPDX-License-Identifier: Apache-2.0
"""Reproduces the published errors, given the data and the weights.

  python experiments/reproduce.py --data=ILSVRC2012_img_val.tar \
      --labels=val.txt --weights=DIR

Runs `--job=evaluate` for each figure of the founding document (PaddlePaddle's
page: ResNet-50, 101, 152, one crop) and of the authors' page (one crop, and ten
crops), if its weights are in DIR.  DIR has the layout of the cache, or holds
the files or Paddle's unpacked directories.  Appends results to
experiments/results/accuracy.jsonl and writes the table of docs/accuracy.md.
An interrupted run resumes.
"""

import argparse
import pathlib
import signal
import subprocess
import sys

import tables
import targets

from resnet_jax.system import folders
from resnet_jax.zoo import lookup


def find(directory: pathlib.Path, record: lookup.Record) -> pathlib.Path | None:
  """The weights of a checkpoint in a folder; None if it lacks them."""
  unpacked = directory / f'resnet_{record.depth}'
  for path in (
    directory / record.name / record.file.name,
    directory / record.file.name,
  ):
    if path.is_file():
      return path
  return unpacked if record.family == 'paddle' and unpacked.is_dir() else None


def command(
  target: targets.Target, weights: pathlib.Path, given: argparse.Namespace
) -> list[str]:
  """The command that measures a figure."""
  settings = {
    'weights': weights,
    'data': given.data,
    'labels': given.labels,
    'multi_crop': str(target.multi_crop).lower(),
    'checkpoint': target.record.name,
    'results': pathlib.Path(given.results) / target.name,
    'record': given.record,
    'use_gpu': str(given.use_gpu).lower(),
    'batch_size': given.batch_size,
  }
  return [
    *(sys.executable, '-m', 'resnet_jax.main', '--job=evaluate'),
    f'--config=configs/resnet.py:{target.record.depth}',
    *(f'--config.{key}={value}' for key, value in settings.items()),
  ]


def main(arguments: list[str] | None = None) -> int:
  """Measures every figure it can; returns the number of failed runs."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', required=True, help='the validation images')
  parser.add_argument(
    '--labels', default='', help='as the setting of that name'
  )
  parser.add_argument(
    '--weights', default='', help='a folder; without it, the cache'
  )
  parser.add_argument('--results', default='results', help='a folder')
  parser.add_argument('--record', default=str(targets.EVIDENCE))
  parser.add_argument('--use_gpu', action='store_true')
  parser.add_argument('--batch_size', type=int, default=100)
  given = parser.parse_args(arguments)
  directory = folders.cache_directory()
  if given.weights:
    directory = pathlib.Path(given.weights).expanduser()
  failed = 0
  for target in targets.TARGETS:
    weights = find(directory, target.record)
    if weights is None:
      print(f'{target.name}: its weights are not in {directory}')
      continue
    print(f'{target.name}:', flush=True)
    done = subprocess.run(command(target, weights, given), check=False)
    failed += done.returncode != 0
  tables.main()
  return failed


if __name__ == '__main__':
  # Ctrl-C also ends the running evaluation, which resumes next time.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  sys.exit(main())
