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
  path = RESULTS / file
  if not path.exists():
    # Nobody has had the machine for it.
    return []
  text = path.read_text('utf-8')
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


def gpu() -> Table:
  """Images/s on a GPU, by batch size; rows that nobody has measured, too."""
  lines = {
    (x['depth'], x['arithmetic'], x['contender'], x['batch']): x
    for x in _lines('gpu.jsonl', 'gpu compute')
  }
  rows = []
  for depth in (50, 152):
    for arithmetic in ('float32', 'tf32', 'bfloat16'):
      for name in (OURS, 'torch.compile', 'ONNX Runtime'):
        found = [lines.get((depth, arithmetic, name, n)) for n in _GPU_BATCHES]
        there = next(filter(None, found), None)
        cells = [_gpu_cell(line) for line in found]
        device = there['device'] if there else ''
        rows.append([str(depth), arithmetic, name, *cells, device])
  return (
    *('depth', 'arithmetic', 'program'),
    *(f'images/s at batch {batch}' for batch in _GPU_BATCHES),
    'device',
  ), rows


_GPU_BATCHES = (1, 32, 256)


def _gpu_cell(line: Line | None) -> str:
  if line is None:
    return 'not measured'
  rate = line['images_per_second']
  return f'{rate:.0f}' if rate else f'not measured ({line["missing"]})'


def crops() -> Table:
  """Reading stored crops beside decoding images, on one core."""
  rows = [
    [
      line['processor'],
      str(line['images']),
      *(f'{line[what]:.0f}' for what in ('decode', 'crops', 'ratio')),
      *(f'{line[what]:.0f}' for what in ('cold', 'disk')),
    ]
    for line in _lines('crops.jsonl', 'crops')
  ]
  return (
    *('processor', 'images', 'decoding, images/s a core'),
    *('crops/s a core', 'ratio', 'crops/s not in memory', 'files read alone'),
  ), rows


def crops_end_to_end() -> Table:
  """A run over crops compared with the network alone."""
  rows = [
    [
      line['processor'],
      str(line['depth']),
      str(line['batch']),
      f'{line["compute_alone"]:.1f}',
      f'{line["images_per_second"]:.1f}',
      f'{line["share"]:.2f}',
      ', '.join(f'{share:.2f}' for share in line['all']['shares']),
      f'{line["cpu_share"]:.2f}',
    ]
    for line in _lines('crops.jsonl', 'crops end to end')
  ]
  return (
    *('processor', 'depth', 'batch size', 'computing alone, images/s'),
    *('whole run', 'share', 'each repeat', 'share by CPU time'),
  ), rows


def low_precision() -> Table:
  """Bfloat16 against float32 on processors."""
  rows = [
    [
      line['processor'],
      ', '.join(line['instructions']) or 'none',
      str(line['batch']),
      *(f'{line[name]:.1f}' for name in ('float32', 'direct', 'bfloat16')),
      *(f'{line["ratios"][name]:.2f}' for name in ('float32', 'direct')),
      *(
        f'{rates["bfloat16"] / rates["float32"]:.2f}'
        for rates in line['operations'].values()
      ),
    ]
    for line in _lines('low_precision.jsonl', 'low precision')
  ]
  return (
    *('processor', 'its instructions for bfloat16', 'batch size'),
    *('float32, images/s', 'direct', 'bfloat16', 'over float32'),
    *('over direct', '1x1 convolution', '3x3, over direct'),
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
  rows = [
    [
      line['settings'][0].partition('=')[2],
      *(f'{line[what]:.2f}' for what in ('help', 'cold', 'kept')),
    ]
    for line in _lines('pipeline.jsonl', 'start')
  ]
  columns = ('ResNet', '`--help`', 'one image, first run', 'later run')
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
