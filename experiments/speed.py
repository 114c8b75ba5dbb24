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
  """Compute only: each contender at each batch size, a run after the other."""
  lines = _lines('benchmark.jsonl', 'compute')
  runs: dict[tuple[Any, ...], list[Line]] = {}
  for line in lines:
    key = line['processor'], line['depth'], line['arithmetic'], line['date']
    runs.setdefault(key, []).append(line)
  sizes = sorted({int(n) for x in lines for n in x.get('all', {})})
  rows = []
  newest = sorted(runs.items(), key=lambda run: run[0][-1][:10], reverse=True)
  for (processor, depth, arithmetic, date), run in newest:
    first = [processor, str(depth), arithmetic]
    for line in run:
      rows.append([*first, line['contender'], *_by_size(line, sizes)])
      rows[-1] += [_cores_used(line), _settings(line), date[:10]]
    if ratios := _over_the_fastest_other(run, sizes):
      rows.append([*first, f'{OURS} / fastest other', *ratios, '', '', ''])
  return (
    *('processor', 'depth', 'arithmetic', 'program'),
    *(f'images/s at batch {size}' for size in sizes),
    *('cores used', 'settings', 'date'),
  ), rows


def _by_size(line: Line, sizes: Sequence[int]) -> list[str]:
  if line['images_per_second'] is None:
    missing = line['peer'].get('missing') or 'failed'
    return [f'not measured ({missing})', *[''] * (len(sizes) - 1)]
  rates = {int(size): rate for size, rate in line['all'].items()}
  return [f'{rates[n]:.1f}' if n in rates else '' for n in sizes]


def _cores_used(line: Line) -> str:
  used = line.get('cores_used', {}).values()
  return f'{min(used):.1f} to {max(used):.1f}' if used else ''


def _settings(line: Line) -> str:
  """The contender's, and its version."""
  own = dict.fromkeys(line.get('settings', {}).values())
  package, *_ = line['peer'].get('versions', {}).items() or [('', '')]
  return '; '.join(filter(None, [' '.join(package).strip(), *own]))


def _over_the_fastest_other(
  run: Sequence[Line], sizes: Sequence[int]
) -> list[str]:
  """Our rate over that of the fastest other, by batch size."""
  ours = next((line for line in run if line['contender'] == OURS), None)
  others = [line for line in run if line is not ours and line.get('all')]
  if not ours or not others:
    return []
  cells = []
  for size in map(str, sizes):
    fastest = max(line['all'].get(size, 0.0) for line in others)
    own = ours['all'].get(size)
    cells.append(f'{own / fastest:.2f}' if own and fastest else '')
  return cells


def one_image() -> Table:
  """Where the time of an image that devices share goes."""
  rows = []
  for line in _lines('one_image.jsonl', 'one image'):
    kinds = [kind for kind in line['shared'] if kind != 'ms']
    # Of the images that each device has for itself, the same part.
    half = {k: v / line['devices'] for k, v in line['one_each'].items()}
    for kind in (*kinds, 'ms'):
      shared = line['shared'][kind]
      rows.append(
        [
          line['processor'],
          str(line['depth']),
          'the whole call' if kind == 'ms' else kind,
          f'{shared:.1f}',
          f'{half[kind]:.1f}',
          f'{shared - half[kind]:.1f}',
        ]
      )
  return (
    *('processor', 'depth', 'operations', 'one image shared, ms'),
    *('part of an image a device, ms', 'lost'),
  ), rows


def notebook() -> Table:
  """Calls of `Model.features` with lists of several lengths."""
  rows = [
    [
      line['processor'],
      str(line['depth']),
      str(row['length']),
      str(row['programs']),
      f'{row["first"]:.2f}',
      f'{row["files"]:.3f}',
      f'{row["crops"]:.3f}',
      f'{row["network"]:.3f}',
      f'{row["ratio"]:.2f}',
    ]
    for line in _lines('notebook.jsonl', 'notebook')
    for row in line['rows']
  ]
  return (
    *('processor', 'depth', 'images', 'programs compiled so far'),
    *('first call, s', 'later call, files', 'crops', 'the network alone'),
    'crops / network',
  ), rows


def bounds() -> Table:
  """How near our networks are to what bounds them."""
  rows = [
    [
      line['processor'],
      str(line['depth']),
      line['arithmetic'],
      str(line['batch']),
      f'{line["fraction_of_peak"]:.2f}',
      f'{line["fraction_of_memory"]:.2f}',
      line['date'][:10],
    ]
    for line in _lines('benchmark.jsonl', 'compute')
    # Before it told the cores, the memory's bound was measured in new memory.
    if line['contender'] == OURS and line.get('cores_used')
  ]
  return (
    *('processor', 'depth', 'arithmetic', 'batch size'),
    *('of the matrix product', 'of memory', 'date'),
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
  """ResNet-50 in full float32 of the newest run, for the README."""
  columns, rows = compute()
  rows = [row for row in rows if row[1:3] == ['50', 'float32']]
  newest = rows[0][0]
  kept = [
    place
    for place, column in enumerate(columns)
    if column == 'program' or column.startswith('images/s')
  ]
  return [columns[place].replace('images/s at ', '') for place in kept], [
    [row[place] for place in kept] for row in rows if row[0] == newest
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
