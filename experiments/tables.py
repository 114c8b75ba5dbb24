# SPDX-License-Identifier: Apache-2.0
"""Writes the tables in README.md and docs/ from the zoo and the results.

  python experiments/tables.py

Replaces the text between `<!-- NAME -->` and `<!-- end -->`; a test fails if a
table is stale.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import speed
import targets

from resnet_jax.evaluation import evidence
from resnet_jax.zoo import lookup

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'experiments' / 'results'


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [columns, ['---'] * len(columns), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def zoo_table() -> str:
  """The published checkpoints."""
  rows = lookup.table()
  return markdown(list(rows[0]), [list(row.values()) for row in rows])


def variants_table() -> str:
  """The effect of running weights in a neighbouring variant."""
  lines = (RESULTS / 'variants.jsonl').read_text('utf-8').splitlines()
  found = [json.loads(line) for line in lines]
  return markdown(
    [
      'changed',
      *('pool1', 'res2_3_addto', 'res5_3_addto', 'avgpool'),
      'cosine of avgpool',
    ],
    [
      [
        line['neighbour'],
        *(
          f'{line[layer]:.2g}'
          for layer in ('pool1', 'res2_3_addto', 'res5_3_addto', 'avgpool')
        ),
        f'{line["avgpool_cosine"]:.4f}',
      ]
      for line in found
    ],
  )


def results_table() -> str:
  """The published and the measured errors."""
  found = targets.measured(RESULTS / 'accuracy.jsonl')
  return markdown(
    [
      *('weights', 'depth', 'protocol', 'top-1 error, published'),
      *('measured', '95% interval', 'images', 'device', 'date'),
    ],
    [
      [
        target.record.family,
        str(target.record.depth),
        target.accuracy.protocol.describe(),
        f'{target.published:g}',
        *_measured(found.get(target)),
      ]
      for target in targets.TARGETS
    ],
  )


def cifar_table() -> str:
  """The measured errors of the paper's CIFAR networks."""
  found = sorted(
    evidence.read(RESULTS / 'cifar.jsonl'),
    key=lambda line: int(line['config']['layer_num']),
  )

  def weights(line: dict[str, Any]) -> str:
    of = line['published']
    ours = isinstance(of, dict) and of['checkpoint'] == 'cifar10-20'
    return 'cifar10, in the package' if ours else line['config']['weights']

  return markdown(
    [
      'network',
      'weights',
      'top-1 error',
      '95% interval',
      'images',
      'device',
      'date',
    ],
    [
      [
        line['model'],
        weights(line),
        f'{line["top1_error"]["percent"]:.2f}%',
        *_measured(line)[1:],
      ]
      for line in found
    ],
  )


def _measured(line: dict[str, Any] | None) -> list[str]:
  if line is None:
    return ['not measured', '', '', '', '']
  error = line['top1_error']
  return [
    f'{error["percent"]:.2f}',
    f'{error["low"]:.2f} to {error["high"]:.2f}',
    str(line['images']),
    line['device'],
    line['date'][:10],
  ]


def _speed_table(make: Callable[[], speed.Table]) -> str:
  return markdown(*make())


# Each table, and the files that hold it.
TABLES: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
  'zoo': (zoo_table, ('docs/checkpoints.md',)),
  'results': (results_table, ('docs/accuracy.md',)),
  'cifar': (cifar_table, ('README.md', 'docs/accuracy.md')),
  'variants': (variants_table, ('docs/which_resnet.md',)),
  'speed brief': (
    functools.partial(_speed_table, speed.brief),
    ('README.md',),
  ),
  **{
    f'speed {make.__name__}': (
      functools.partial(_speed_table, make),
      ('docs/performance.md',),
    )
    for make in (
      *(
        speed.compute,
        speed.bounds,
        speed.one_image,
        speed.notebook,
        speed.files,
        speed.end_to_end,
        speed.gpu,
        speed.crops,
        speed.crops_end_to_end,
        speed.decode,
        speed.workers,
        speed.arithmetic,
        speed.low_precision,
        speed.grouped,
        speed.start,
        speed.growth,
        speed.layers,
      ),
    )
  },
}
PLACES = [(name, file) for name in TABLES for file in TABLES[name][1]]


def updated(name: str, file: str) -> tuple[pathlib.Path, str]:
  """The path of a file, and its text with an up-to-date table."""
  make, _ = TABLES[name]
  path = ROOT / file
  text = path.read_text('utf-8')
  pattern = rf'(<!-- {name} -->\n).*?(<!-- end -->)'
  new, count = re.subn(
    pattern, lambda m: f'{m[1]}{make()}\n{m[2]}', text, flags=re.S
  )
  if count != 1:
    raise ValueError(
      f'{file} has {count} places for the table {name}; it needs one.'
    )
  return path, new


def main() -> None:
  """Writes every table."""
  for name, file in PLACES:
    path, text = updated(name, file)
    path.write_text(text, 'utf-8')


if __name__ == '__main__':
  main()
