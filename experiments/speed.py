# SPDX-License-Identifier: Apache-2.0
"""Tables of the measurements of benchmark, grouped and pipeline_speed.py."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / 'results'
OURS = 'resnet_jax'

Line = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def _lines(file: str, what: str) -> list[Line]:
  text = (RESULTS / file).read_text('utf-8')
  lines = [json.loads(line) for line in text.splitlines()]
  return [line for line in lines if line['what'] == what]


def _range(line: Line) -> str:
  return f'{line["least"]:.1f} to {line["most"]:.1f}'


def compute() -> Table:
  """Compute only, each contender at its best batch size."""
  lines = _lines('benchmark.jsonl', 'compute')
  # Each contender is compared with our result of the same run.
  ours = {line['date']: line for line in lines if line['contender'] == OURS}
  rows = []
  for line in lines:
    rate, beside = line['images_per_second'], ours.get(line['date'])
    if rate is None:
      missing = line['peer'].get('missing') or 'failed'
      measured = [f'not measured ({missing})', '', '', '', '', '']
    else:
      ratio = (
        f'{beside["images_per_second"] / rate:.2f}'
        if beside and line is not beside
        else ''
      )
      measured = [
        f'{rate:.1f}',
        _range(line),
        str(line['batch']),
        ratio,
        f'{line["fraction_of_peak"]:.2f}',
        f'{line["fraction_of_memory"]:.2f}',
      ]
    versions = line['peer'].get('versions', {})
    version = ', '.join(f'{k} {v}' for k, v in versions.items())
    rows.append(
      [
        str(line['depth']),
        line['arithmetic'],
        line['contender'],
        *measured,
        line['peer'].get('device', ''),
        version,
      ]
    )
  rows += [
    ['50', 'bfloat16', name, 'not measured', '', '256', '', '', '', 'a GPU', '']
    for name in (OURS, 'torch.compile')
    if not any(line['arithmetic'] == 'bfloat16' for line in lines)
  ]
  return (
    *('depth', 'arithmetic', 'program', 'images/s', 'range'),
    *('batch size', 'speedup of resnet_jax', 'of the matrix product'),
    'of memory',
    *('device', 'versions'),
  ), rows


def grouped() -> Table:
  """3x3 convolutions in groups, and their networks, against XLA's own."""
  rows = []
  for line in _lines('grouped.jsonl', 'grouped'):
    whole = line['layer'] == 'all'
    side = '' if whole else f'{line["channels"]}x{line["side"]}x{line["side"]}'
    ours, theirs = (
      1000 * line[way] / line['images'] for way in ('ours', 'xla')
    )
    rows.append(
      [
        line['network'],
        'whole network' if whole else line['layer'],
        side,
        '' if whole else str(line['groups']),
        f'{ours:.2f}',
        f'{theirs:.2f}',
        f'{theirs / ours:.1f}',
      ]
    )
  return (
    *('network', 'layer', 'C x H x W', 'groups'),
    *('ms an image', "with XLA's own", 'ratio'),
  ), rows


def brief() -> Table:
  """ResNet-50 in full float32, for the README."""
  columns, rows = compute()
  kept = (
    *('program', 'images/s', 'batch size', 'speedup of resnet_jax', 'device'),
  )
  places = [columns.index(column) for column in kept]
  return kept, [
    [row[place] for place in places]
    for row in rows
    if row[:2] == ['50', 'float32']
  ]


def files() -> Table:
  """From JPEG files to pooled features on the disk."""
  lines = _lines('benchmark.jsonl', 'files')
  rows = [
    [
      line['contender'],
      f'{line["images_per_second"]:.1f}'
      if line['images_per_second']
      else f'not measured ({line["missing"]})',
      ', '.join(f'{rate:.1f}' for rate in line['all']),
      str(line['images']),
    ]
    for line in lines
  ]
  return ('program', 'images/s, median', 'each run', 'images'), rows


def end_to_end() -> Table:
  """A whole run compared with each of its stages alone."""
  rows = [
    [
      str(line['images']),
      *(
        f'{line[what]:.1f}'
        for what in ('decode_alone', 'compute_alone', 'images_per_second')
      ),
      f'{line["share_of_slower"]:.2f}',
      ', '.join(f'{share:.2f}' for share in line['all']['share_of_slower']),
      f'{line["share_of_cores"]:.2f}',
    ]
    for line in _lines('pipeline.jsonl', 'end to end')
  ]
  return (
    *('images', 'decoding alone, images/s', 'computing alone', 'whole run'),
    *('of the slower', 'each repeat', 'of the cores'),
  ), rows


def decode() -> Table:
  """Ways to decode, and how their pixels differ."""
  changes = {
    line['way']: line for line in _lines('pipeline.jsonl', 'decode differences')
  }
  rows = []
  for line in _lines('pipeline.jsonl', 'decode'):
    cells = [line['way'], f'{line["images_per_second"]:.0f}', _range(line)]
    change = changes.get(line['way'])
    cells += (
      [
        f'{change["images_that_differ"]} of {change["images"]}',
        f'{change["mean"]:.3f}',
        str(change['most']),
      ]
      if change
      else ['', '', '']
    )
    rows.append(cells)
  return (
    *('way', 'images/s per core', 'range', 'images that differ'),
    *('mean difference, of 255', 'largest'),
  ), rows


def workers() -> Table:
  """Threads compared with processes."""
  lines = _lines('pipeline.jsonl', 'workers')
  counts = sorted({line['workers'] for line in lines})
  rates = {
    (line['way'], line['workers']): line['images_per_second'] for line in lines
  }
  rows = [
    [way, *(f'{rates[way, count]:.0f}' for count in counts)]
    for way in dict.fromkeys(line['way'] for line in lines)
  ]
  return ('workers', *map(str, counts)), rows


def arithmetic() -> Table:
  """The difference of each arithmetic from `direct`."""
  shown = [
    *('pool1', 'res2_3_addto', 'res3_4_addto', 'res4_6_addto', 'res5_3_addto'),
    *('avgpool', 'logits', 'output'),
  ]
  lines = _lines('benchmark.jsonl', 'arithmetic')
  rows = [
    [
      line['arithmetic'],
      *(f'{line["rms"][name]:.1e}' for name in shown),
      f'{line["labels_that_differ"]} of {line["images"]}',
      line['device'],
    ]
    for line in lines
  ]
  return ('arithmetic', *shown, 'labels that differ', 'device'), rows


def start() -> Table:
  """Seconds from the start of the process to its end."""
  rows = []
  for line in _lines('pipeline.jsonl', 'start'):
    # The first rows hold less.
    cpu, parts = line.get('cpu', {}), line.get('parts', {})
    seconds = [
      *(line[what] for what in ('help', 'cold', 'kept')),
      cpu.get('kept'),
      *(parts.get(name) for name in ('imports', 'weights')),
      parts and parts['tracing'] + parts['lowering'],
      parts.get('cache'),
    ]
    rows.append(
      [
        ', '.join(line['settings']),
        *(f'{value:.2f}' if value else '' for value in seconds),
        line['processor'],
      ]
    )
  columns = (
    *('settings', '`--help`', 'one image, first run', 'later run'),
    *("all cores' seconds of it", 'imports', 'weights'),
    *('tracing and lowering', 'cache', 'processor'),
  )
  return columns, rows


def growth() -> Table:
  """Speed and memory against the number of images."""
  rows = [
    [
      ', '.join(line['settings']),
      str(line['images']),
      f'{line["seconds"]:.1f}',
      f'{line["added_per_second"]:.1f}' if line['added_per_second'] else '',
      f'{line["peak_bytes"] / 1e6:.0f}',
    ]
    for line in _lines('pipeline.jsonl', 'growth')
  ]
  return (
    *('settings', 'images', 'whole run, s', 'further images/s'),
    'peak memory, MB',
  ), rows


def layers() -> Table:
  """All layers compared with one."""
  rows = [
    [
      'all' if line['layers'] == '*' else line['layers'],
      str(line['images']),
      f'{line["bytes"] / 1e6:.1f}',
      f'{line["seconds"]:.1f}',
      ', '.join(f'{seconds:.1f}' for seconds in line['all']),
      f'{line["cpu_seconds"]:.1f}',
      *(
        f'{line[f"{part}_cpu_seconds"]:.1f}'
        for part in ('network', 'fetch', 'store')
      ),
    ]
    for line in _lines('pipeline.jsonl', 'layers')
  ]
  return (
    *('layers', 'images', 'MB', 'whole run, s', 'each run'),
    *("the cores' seconds", 'network', 'to (C, H, W)', 'storing'),
  ), rows
