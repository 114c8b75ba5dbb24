# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation, as JSON and as tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.data import preprocess as preprocess_lib
from resnet_jax.evaluation import metrics, published, statistics
from resnet_jax.models import resnet
from resnet_jax.system.text import counted
from resnet_jax.zoo import records

# Rows of a table on the screen; the JSON has all classes.
_SHOWN = 10
_KEPT_CONFUSIONS = 100

NO_PROTOCOL = 'no published figure for this protocol'
NO_CHECKPOINT = 'no published figure: the weights are no checkpoint of the zoo'
NOT_THESE = 'no published figure for images with several labels'


@dataclasses.dataclass(frozen=True)
class Standard:
  """What a run is compared with.

  Attributes:
    checkpoint: the zoo's name, such as msra-50; '': it is not in the zoo.
    accuracy: published for the run's protocol; None: there is none.
    differences: how the run departs from the nearest published protocol.
    changes: how it departs from the checkpoint's settings otherwise.
  """

  checkpoint: str = ''
  accuracy: records.Accuracy | None = None
  differences: tuple[str, ...] = ()
  changes: tuple[str, ...] = ()


def standard(
  record: records.Record | None,
  preprocess: preprocess_lib.Preprocess,
  model: resnet.ResNet,
) -> Standard:
  """What a run of a checkpoint can be compared with."""
  if record is None:
    return Standard()
  accuracy, differences = published.nearest(record, preprocess)
  return Standard(
    record.name,
    None if differences else accuracy,
    tuple(differences),
    tuple(published.changes(record, preprocess, model)),
  )


def figures(tally: metrics.Tally, against: Standard) -> dict[str, Any]:
  """The errors with one label set, for JSON."""
  accuracy = None if tally.several else against.accuracy
  result: dict[str, Any] = {
    'images': tally.images,
    'unlabelled': tally.unlabelled,
    'failed': tally.failed,
    'top1_error': _figure(tally.top1, accuracy.top1 if accuracy else None),
    'top5_error': _figure(tally.top5, accuracy.top5 if accuracy else None),
  }
  if accuracy is None:
    reason = NO_PROTOCOL if against.checkpoint else NO_CHECKPOINT
    if against.differences:
      reason += f' (run with {", ".join(against.differences)})'
    result['published'] = NOT_THESE if tally.several else reason
    return result
  notes = [f'run with {change}' for change in against.changes]
  if tally.images != published.IMAGES:
    notes.append(
      f'of {published.IMAGES} validation images; these are {tally.images}'
    )
  result['published'] = {
    'checkpoint': against.checkpoint,
    'protocol': accuracy.protocol.describe(),
    'source': accuracy.source,
    'notes': notes,
  }
  return result


def details(
  tally: metrics.Tally, names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
  """The errors by class, and the confusions, for JSON."""
  return {
    'classes': [
      dataclasses.asdict(row) | {'name': names[row.label]}
      for row in tally.classes()
    ],
    'confusions': [
      dataclasses.asdict(row)
      | {'name': names[row.label], 'taken_for_name': names[row.taken_for]}
      for row in tally.confusions(_KEPT_CONFUSIONS)
    ],
  }


def rows(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A label set's errors as rows of a table."""
  result = []
  for what, title in (('top1_error', 'top-1'), ('top5_error', 'top-5')):
    figure = found[what]
    row = {
      'labels': name,
      'error': title,
      'percent': f'{figure["percent"]:.3f}',
      '95% interval': f'{figure["low"]:.3f} to {figure["high"]:.3f}',
      'published': '-',
      'difference': '-',
      'published is': '-',
    }
    if 'published' in figure:
      row['published'] = f'{figure["published"]:g}'
      row['difference'] = f'{figure["difference"]:+.3f}'
      row['published is'] = (
        'inside the interval' if figure['inside'] else 'outside the interval'
      )
    result.append(row)
  return result


def title(name: str) -> str:
  """The name of a label set in messages."""
  return name if name == 'labels' else f'labels {name}'


def remarks(name: str, found: Mapping[str, Any]) -> list[str]:
  """The remarks on a label set's errors, a line each."""
  of = f'{title(name)}: '
  images, unlabelled, failed = (
    counted(found[key], 'image') for key in ('images', 'unlabelled', 'failed')
  )
  lines = [f'{of}{images}']
  if found['unlabelled']:
    lines.append(f'{of}{unlabelled} without a label left out')
  if found['failed']:
    lines.append(f'{of}{failed} could not be read, counted as wrong')
  source = found['published']
  if isinstance(source, str):
    lines.append(f'{of}{source}')
  else:
    lines.append(
      f'{of}published for {source["checkpoint"]}: {source["protocol"]}'
      f' ({source["source"]})'
    )
    lines += [f'{of}NOTE: {note}' for note in source['notes']]
  if diagnosis := found.get('diagnosis'):
    lines.append(f'{of}{diagnosis}')
  return lines


def worst_classes(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The classes with the most errors, as rows of a table."""
  wrong = sorted(
    (row for row in found['classes'] if row['top1']),
    key=lambda row: (
      -row['top1'] / row['images'],
      -row['top1'],
      row['label'],
    ),
  )
  return [
    {
      'most errors': f'{row["label"]} {row["name"]}',
      'images': row['images'],
      'top-1 wrong': row['top1'],
      'top-5 wrong': row['top5'],
    }
    for row in wrong[:_SHOWN]
  ]


def most_confused(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The most frequent confusions, as rows of a table."""
  return [
    {
      'images': row['images'],
      'of': f'{row["label"]} {row["name"]}',
      'taken for': f'{row["taken_for"]} {row["taken_for_name"]}',
    }
    for row in found['confusions'][:_SHOWN]
  ]


def _figure(rate: statistics.Rate, accuracy: float | None) -> dict[str, Any]:
  low, high = rate.interval()
  figure = {
    'percent': round(rate.percent, 6),
    'low': round(low, 6),
    'high': round(high, 6),
    'wrong': rate.count,
  }
  comparison = published.compare(rate, accuracy)
  return figure | (dataclasses.asdict(comparison) if comparison else {})
