# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation, as JSON and as tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.data import labels as labels_lib
from resnet_jax.data import truth
from resnet_jax.evaluation import (
  metrics,
  prediction_record,
  published,
  statistics,
)
from resnet_jax.system.text import counted

# Rows of a table on the screen; the JSON has all classes.
_SHOWN = 10
_KEPT_CONFUSIONS = 100

NO_PROTOCOL = 'no published figure for this protocol'
NO_CHECKPOINT = (
  'no published figure: the weights are not a published checkpoint'
)
NOT_THESE = 'no published figure for images with several labels'


def measure(
  images: Iterable[prediction_record.ImagePrediction],
  sets: Sequence[truth.LabelSet],
  classes: Sequence[labels_lib.ImageNetClass],
  against: published.Standard,
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
  """Counts the predictions of images.

  Args:
    images: all of them, in the order of the labels.
    sets: of labels.
    classes: the network's.
    against: the published accuracy.

  Returns:
    By label set, the errors for JSON; and the predicted labels, -1 where an
    image failed.
  """
  tallies = [metrics.Tally(len(classes)) for _ in sets]
  predicted = []
  for number, image in enumerate(images):
    predicted.append(-1 if image.predicted is None else image.predicted)
    for tally, own in zip(tallies, sets, strict=True):
      tally.add(own.answers[number], image.ranking)
  names = [f'{known.wnid} {known.name}'.strip() for known in classes]
  found = {
    own.name: figures(tally, against)
    | {'description': own.description, 'labels_sha256': own.digest}
    | _details(tally, names)
    for tally, own in zip(tallies, sets, strict=True)
  }
  return found, np.array(predicted)


def figures(
  tally: metrics.Tally, against: published.Standard
) -> dict[str, Any]:
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
    result['published'] = None
    result['not_published'] = NOT_THESE if tally.several else reason
    return result
  notes = [f'run with {change}' for change in against.changes]
  if tally.images != accuracy.images:
    notes.append(f'of {accuracy.images} images; these are {tally.images}')
  result['published'] = {
    'checkpoint': against.checkpoint,
    'protocol': accuracy.protocol.describe(),
    'source': accuracy.source,
    'notes': notes,
  }
  return result


def _details(
  tally: metrics.Tally, names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
  """The errors by class, and the confusions."""
  return {
    'classes': [
      row._asdict() | {'name': names[row.label]} for row in tally.classes()
    ],
    'confusions': [
      row._asdict()
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
      **dict.fromkeys(('published', 'difference', 'published is'), '-'),
    }
    if 'published' in figure:
      place = 'inside' if figure['inside'] else 'outside'
      row['published'] = f'{figure["published"]:g}'
      row['difference'] = f'{figure["difference"]:+.3f}'
      row['published is'] = f'{place} the interval'
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
  if (source := found['published']) is None:
    lines.append(f'{of}{found["not_published"]}')
  else:
    lines.append(
      f'{of}published for {source["checkpoint"]}: {source["protocol"]}'
      f' ({source["source"]})'
    )
    lines += [f'{of}NOTE: {note}' for note in source['notes']]
  if diagnosis := found.get('diagnosis'):
    lines.append(f'{of}{diagnosis}')
  return lines


def tables(found: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
  """The classes with the most errors, and the most frequent confusions."""
  wrong = sorted(
    (row for row in found['classes'] if row['top1']),
    key=lambda r: (-r['top1'] / r['images'], -r['top1'], r['label']),
  )
  worst = [
    {
      'most errors': f'{row["label"]} {row["name"]}',
      'images': row['images'],
      'top-1 wrong': row['top1'],
      'top-5 wrong': row['top5'],
    }
    for row in wrong[:_SHOWN]
  ]
  confused = [
    {
      'images': row['images'],
      'of': f'{row["label"]} {row["name"]}',
      'taken for': f'{row["taken_for"]} {row["taken_for_name"]}',
    }
    for row in found['confusions'][:_SHOWN]
  ]
  return [rows for rows in (worst, confused) if rows]


def _figure(rate: statistics.Rate, accuracy: float | None) -> dict[str, Any]:
  low, high = rate.interval()
  return {
    'percent': round(rate.percent, 6),
    'low': round(low, 6),
    'high': round(high, 6),
    'wrong': rate.count,
  } | published.compare(rate, accuracy)
