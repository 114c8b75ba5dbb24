# SPDX-License-Identifier: Apache-2.0
"""The lines of a file of predictions: its header, and an image's prediction.

docs/labels.md lists the fields.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.data import labels as labels_lib
from resnet_jax.data import pipeline
from resnet_jax.evaluation import prediction
from resnet_jax.system import errors, files
from resnet_jax.system import settings as settings_lib

_FORMAT = 'resnet_jax predictions 2'
# Pairs of label and probability in `best`; class names in the header.
_FORMAT_1 = 'resnet_jax predictions 1'

# An image's labels by the name of the label set.
Labels = Mapping[str, tuple[int, ...]]


class DamageError(Exception):
  """A line is damaged; the message says how."""


@dataclasses.dataclass(frozen=True)
class Header:
  """How the predictions of a file were made.

  Attributes:
    settings: what determines them; a file is used only with the same.
    run: batch size, device and versions, on which the last digits may depend;
      an unfinished file is resumed only with the same.
    record: everything else worth knowing.
  """

  settings: Mapping[str, Any]
  run: Mapping[str, Any]
  record: Mapping[str, Any]

  def line(self) -> bytes:
    """The first line of a file."""
    return _encode({'format': _FORMAT} | dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, slots=True)
class ImagePrediction:
  """The prediction for one image.

  Attributes:
    key: the image's path relative to the list, folder or archive.
    path: the image's name in messages.
    labels: by label set; any of several counts as right, and an image without
      labels is not counted.
    best: the best classes, the best first; empty if the image failed.
    failed: why the image could not be read; '' if it could.
  """

  key: str
  path: str
  labels: Labels
  best: tuple[prediction.ClassScore, ...]
  failed: str = ''

  @property
  def ranking(self) -> list[int]:
    """The labels of `best`."""
    return [score.label for score in self.best]

  @property
  def predicted(self) -> int | None:
    """The best label; None if the image failed."""
    return self.best[0].label if self.best else None

  def line(self) -> bytes:
    """The image's line of a file."""
    facts = {'key': self.key, 'path': self.path, 'labels': self.labels}
    if self.failed:
      return _encode(facts | {'failed': self.failed})
    best = [dataclasses.asdict(score) for score in self.best]
    return _encode(facts | {'predicted': self.predicted, 'best': best})


def predictions(
  batch: pipeline.Batch,
  probabilities: np.ndarray,
  classes: Sequence[labels_lib.ImageNetClass],
  labels: Sequence[Labels],
) -> list[ImagePrediction]:
  """The predictions for the images of a batch.

  Args:
    batch: the images.
    probabilities: (images, classes, 1, 1).
    classes: the network's.
    labels: of all images, not only the batch's.

  Raises:
    UserError: a probability is not finite.
  """
  found = []
  rows = zip(batch.items, batch.reasons, probabilities, strict=True)
  for number, (item, reason, values) in enumerate(rows, batch.start):
    if not reason and not np.isfinite(values).all():
      raise errors.UserError(
        f'the network gives {item.name} probabilities that are not finite:'
        ' these weights do not fit this network or this preprocessing.'
      )
    best = prediction.from_probabilities(values.ravel(), classes).best
    scores = () if reason else tuple(map(shortened, best))
    found.append(
      ImagePrediction(item.key, item.name, labels[number], scores, reason)
    )
  return found


def shortened(score: prediction.ClassScore) -> prediction.ClassScore:
  """Returns the score with as few digits as make the same float32."""
  probability = float(str(np.float32(score.probability)))
  return dataclasses.replace(score, probability=probability)


def begins_header(line: bytes) -> bool:
  """Whether a torn line is the start of a header, of a run killed there."""
  start = _encode({'format': _FORMAT}).removesuffix(b'}\n')
  return start.startswith(line[: len(start)])


def parse_header(line: bytes) -> tuple[int, Header]:
  """Returns the number of the format, 1 or 2, and the header.

  Raises:
    DamageError: the line is not a header.
  """
  facts = _decode(line)
  written = facts.pop('format', None)
  if written not in (_FORMAT, _FORMAT_1):
    if {'key', 'weights_sha256'} <= facts.keys():
      raise DamageError(
        'it has no header; --job=predict of an earlier version wrote it'
      )
    raise DamageError(f"its first line does not say '{_FORMAT}'")
  names = [field.name for field in dataclasses.fields(Header)]
  if not all(type(facts.get(name)) is dict for name in names):
    raise DamageError(f'its first line does not have {", ".join(names)}')
  classes = facts['settings'].get('classes')
  if type(classes) is not int or classes < 1:
    raise DamageError('its first line does not say how many classes there are')
  settings = settings_lib.current(facts['settings'])
  header = Header(settings, facts['run'], facts['record'])
  return 2 if written == _FORMAT else 1, header


def parse_image(
  line: bytes,
  count: int,
  names: Sequence[labels_lib.ImageNetClass] | None = None,
) -> ImagePrediction:
  """Reads an image's line.

  Args:
    line: as `ImagePrediction.line` gives it.
    count: how many classes there are.
    names: the classes, for format 1, which does not name them.

  Raises:
    DamageError: the line is something else.
  """
  facts = _decode(line)
  key: Any = facts.get('key')
  path, failed = facts.get('path', key), facts.get('failed', '')
  labels = facts.get('labels')
  if not all(isinstance(text, str) for text in (key, path, failed)):
    raise DamageError('key is missing, or path or reason is not a string')
  if not isinstance(labels, dict) or not all(
    isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
    for value in labels.values()
  ):
    raise DamageError('its labels are not lists of whole numbers from 0')
  try:
    best = facts.get('best', [])
    if names:
      best = [
        {'label': label, 'probability': p, **dataclasses.asdict(names[label])}
        for label, p in best
      ]
    scores = tuple(_score(entry, count) for entry in best)
  except (TypeError, ValueError, LookupError) as error:
    raise DamageError(
      f'its best are not labels of 0 to {count - 1} with probabilities'
    ) from error
  if bool(scores) == bool(failed):
    raise DamageError('it has neither predictions nor a reason, or both')
  return ImagePrediction(
    key,
    path,
    {name: tuple(value) for name, value in labels.items()},
    scores,
    failed,
  )


def _score(entry: Any, count: int) -> prediction.ClassScore:
  """Reads an entry of `best`; raises TypeError, ValueError or KeyError."""
  label, probability = entry['label'], entry['probability']
  if type(label) is not int or not 0 <= label < count:
    raise ValueError('not a label')
  if type(probability) not in (float, int) or not math.isfinite(probability):
    raise ValueError('not a probability')
  # The same few names in all lines are held once.
  wnid, name = sys.intern(entry['wnid']), sys.intern(entry['name'])
  return prediction.ClassScore(label, wnid, name, float(probability))


def _encode(facts: Mapping[str, Any]) -> bytes:
  return (json.dumps(facts, ensure_ascii=False) + '\n').encode()


def _decode(line: bytes) -> dict[str, Any]:
  try:
    facts = files.read_json(line)
  except ValueError as error:
    raise DamageError('it is not JSON in UTF-8') from error
  if not isinstance(facts, dict):
    raise DamageError('it is not a JSON object')
  return facts
