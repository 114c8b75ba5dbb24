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
import dataclasses
import pathlib
import signal
import subprocess
import sys
from typing import Any

from resnet_jax.evaluation import evidence as lines
from resnet_jax.evaluation import published
from resnet_jax.system import folders
from resnet_jax.zoo import lookup

ROOT = pathlib.Path(__file__).parent.parent
EVIDENCE = ROOT / 'experiments' / 'results' / 'accuracy.jsonl'
FAMILIES = ('paddle', 'msra')


@dataclasses.dataclass(frozen=True)
class Target:
  """A published figure.

  Attributes:
    record: the checkpoint.
    accuracy: the figure and its protocol.
  """

  record: lookup.Record
  accuracy: lookup.Accuracy

  @property
  def published(self) -> float:
    """The top-1 error, percent."""
    assert self.accuracy.top1 is not None
    return round(100 - self.accuracy.top1, 3)

  @property
  def multi_crop(self) -> bool:
    """Whether it is of ten crops."""
    return self.accuracy.protocol.crops == 10

  @property
  def name(self) -> str:
    """`msra-50-ten`."""
    return f'{self.record.name}-{"ten" if self.multi_crop else "one"}'


TARGETS = tuple(
  Target(record, accuracy)
  for family in FAMILIES
  for place in (0, 1)
  for record in lookup.RECORDS
  if record.family == family
  for accuracy in record.accuracies[place : place + 1]
)


def evidence(path: pathlib.Path = EVIDENCE) -> dict[Target, dict[str, Any]]:
  """The latest measurement of each figure on all validation images.

  Skips measurements whose notes list settings other than the checkpoint's.

  Raises:
    UserError: the file is damaged.
  """
  found = {}
  for line in lines.read(path):
    of = line['published']
    for target in TARGETS:
      if (
        isinstance(of, dict)
        and of['checkpoint'] == target.record.name
        and of['protocol'] == target.accuracy.protocol.describe()
        and line['trained']
        and line['images'] == published.IMAGES
        and not of['notes']
      ):
        found[target] = line
  return found


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
  target: Target, weights: pathlib.Path, given: argparse.Namespace
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
  parser.add_argument('--record', default=str(EVIDENCE))
  parser.add_argument('--use_gpu', action='store_true')
  parser.add_argument('--batch_size', type=int, default=100)
  given = parser.parse_args(arguments)
  directory = folders.cache_directory()
  if given.weights:
    directory = pathlib.Path(given.weights).expanduser()
  failed = 0
  for target in TARGETS:
    weights = find(directory, target.record)
    if weights is None:
      print(f'{target.name}: its weights are not in {directory}')
      continue
    print(f'{target.name}:', flush=True)
    done = subprocess.run(command(target, weights, given), check=False)
    failed += done.returncode != 0
  # tables.py imports this module.
  import tables  # noqa: PLC0415

  tables.main()
  return failed


if __name__ == '__main__':
  # Ctrl-C also ends the running evaluation, which resumes next time.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  sys.exit(main())
