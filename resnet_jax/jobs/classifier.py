# SPDX-License-Identifier: Apache-2.0
"""What `predict` and `evaluate` share: a classifier and its predictions."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.labels import ImageNetClass
from resnet_jax.engine import devices, loop
from resnet_jax.evaluation import (
  metrics,
  prediction,
  prediction_file,
  prediction_record,
)
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.system import console, errors, timing, version

# An image's labels, by its number.
LabelsOf = Callable[[int], prediction_record.Labels]


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A network with classes, and the images that it is for."""

  setup: setup_lib.Setup
  classes: tuple[ImageNetClass, ...]

  @property
  def keys(self) -> list[str]:
    """The images' keys, in order."""
    return [item.key for item in self.setup.source.items]

  @property
  def names(self) -> list[str]:
    """The classes' WordNet ids, or their names."""
    return [known.wnid or known.name for known in self.classes]


@dataclasses.dataclass(frozen=True)
class Run:
  """A classifier, and its images on their way through the network."""

  classifier: Classifier
  run: loop.Run

  def header(self, label_sets: Mapping[str, str]) -> prediction_record.Header:
    """The header of the file of predictions.

    Args:
      label_sets: name and description.  They are no setting, as a finished
        file can be given others.
    """
    setup = self.classifier.setup
    model, items = setup.model, setup.source.items
    module = model.module
    data = json.dumps([[item.key, item.size] for item in items]).encode()
    return prediction_record.Header(
      {
        'model': f'ResNet-{module.depth}',
        'variant': dataclasses.asdict(module.variant),
        'weights_sha256': model.weights.digest,
        'preprocessing': model.preprocess.describe(),
        'classes': len(self.classifier.classes),
        'images': len(items),
        'images_sha256': hashlib.sha256(data).hexdigest(),
      },
      {
        'batch_rows': self.run.rows,
        'device': devices.describe(model.execution.devices),
        'arithmetic': model.execution.arithmetic,
        'versions': version.versions(),
      },
      {
        'weights': model.weights.source,
        'trained': model.weights.trained,
        'labels': dict(label_sets),
      },
    )

  def batches(self, clock: timing.Clock, start: int) -> Iterator[loop.Computed]:
    """The probabilities of the images from `start` on, a batch at a time."""
    if start:
      count = len(self.classifier.setup.source.items)
      console.say(f'resuming after {start} of {count} images')
    return self.classifier.setup.stream(self.run, clock, start)

  def predictions(
    self, computed: loop.Computed, labels_of: LabelsOf
  ) -> list[prediction_record.ImagePrediction]:
    """The predictions for the images of a batch.

    Raises:
      UserError: a probability is not finite.
    """
    batch, values = computed
    return [
      prediction_record.ImagePrediction(
        item.key,
        item.name,
        labels_of(number),
        () if reason else self._best(item.name, row.ravel()),
        reason,
      )
      for number, item, reason, row in zip(
        range(batch.start, batch.start + len(batch.items)),
        batch.items,
        batch.reasons,
        values['output'],
        strict=True,
      )
    ]

  def _best(
    self, name: str, row: np.ndarray
  ) -> tuple[prediction.ClassScore, ...]:
    if not np.isfinite(row).all():
      raise errors.UserError(
        f'the network gives {name} probabilities that are not finite: these'
        ' weights do not fit this network or this preprocessing.'
      )
    found = prediction.from_probabilities(
      row, self.classifier.classes, metrics.BEST
    )
    return tuple(map(prediction_record.shortened, found.best))


def load(config: ConfigDict) -> Classifier:
  """Loads the weights.

  Raises:
    UserError: they have no head, or a head without classes to choose from.
  """
  setup = setup_lib.set_up(config)
  count = setup.model.module.classes
  if count < 2:
    what = (
      'the classifier of these weights has a single output, so there is no best'
      ' class. --job=extract with output_layer=logits gives its value, before'
      ' any sigmoid'
      if count
      else 'these weights have no head (no classifier), so there is nothing to'
      ' predict. --job=extract gives their features'
    )
    raise errors.UserError(f'{what}; for labels give weights with classes.')
  return Classifier(setup, setup.model.classes)


def prepare(classifier: Classifier, path: pathlib.Path | None) -> Run:
  """Makes the network; the batch size is that of predictions at `path`."""
  resumed = _batch_rows_of(path) if path else 0
  run = classifier.setup.prepared(('output',), resumed=resumed)
  return Run(classifier, run)


def predictions_path(config: ConfigDict) -> pathlib.Path | None:
  """The file that `predictions` names; None if it names none.

  Raises:
    UserError: it is a folder.
  """
  if not config.predictions:
    return None
  path = pathlib.Path(config.predictions).expanduser()
  if path.is_dir():
    raise errors.UserError(f'predictions={path} is a folder; name a file.')
  return path


def _batch_rows_of(path: pathlib.Path) -> int:
  """The batch size of predictions that are there; 0: there are none."""
  for place in (path, prediction_file.part(path)):
    with (
      contextlib.suppress(errors.UserError),
      prediction_file.Reader(place) as reader,
    ):
      rows = reader.header.run.get('batch_rows')
      return rows if type(rows) is int else 0
  return 0
