# SPDX-License-Identifier: Apache-2.0
"""What `predict` and `evaluate` share: a classifier and its predictions."""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import pipeline
from resnet_jax.engine import loop
from resnet_jax.evaluation import prediction_file, prediction_record
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.system import console, errors, files


class Predictor:
  """A network with classes, its images, and the file of their predictions.

  Attributes:
    setup: the images and the network.
    path: the file; None: there is none.
    classes: the network's.
    names: the classes' WordNet ids, or their names.
    keys: the images', in order.
  """

  def __init__(self, config: ConfigDict, path: pathlib.Path | None) -> None:
    """Loads the weights.

    Raises:
      UserError: they have no head, or a head without classes to choose from.
    """
    self.setup = setup_lib.set_up(config)
    self.path = path
    count = self.setup.model.module.classes
    if count < 2:
      what = (
        'the classifier of these weights has a single output, so there is no'
        ' best class. --job=extract with output_layer=logits gives its value,'
        ' before any sigmoid'
        if count
        else 'these weights have no head (no classifier), so there is nothing'
        ' to predict. --job=extract gives their features'
      )
      raise errors.UserError(f'{what}; for labels give weights with classes.')
    self.classes = self.setup.model.classes
    self.names = [known.wnid or known.name for known in self.classes]
    self.keys = [item.key for item in self.setup.source.items]

  @functools.cached_property
  def run(self) -> loop.Run:
    """The images and the network, with the batch size of `path`'s file."""
    resumed = prediction_file.batch_rows(self.path) if self.path else 0
    return self.setup.prepared(('output',), resumed=resumed)

  def header(self, label_sets: Mapping[str, str]) -> prediction_record.Header:
    """The header of the file of predictions.

    Args:
      label_sets: name and description; not among the settings, because the
        labels of a finished file can be replaced.
    """
    return prediction_record.Header(
      self.setup.settings('key', 'size')
      | {
        'classes': len(self.classes),
        'class_names_sha256': _sha256([known.name for known in self.classes]),
      },
      # The data's own labels: a finished file can be given others.
      self.setup.environment(self.run)
      | {'labels_sha256': _sha256([i.label for i in self.setup.source.items])},
      self.setup.origin() | {'labels': dict(label_sets)},
    )

  def predict(
    self,
    header: prediction_record.Header,
    labels: Sequence[prediction_record.Labels],
    show: Callable[[prediction_record.ImagePrediction], None] | None = None,
    *,
    quiet: bool = False,
  ) -> dict[str, Any]:
    """Predicts the images that the file lacks, and finishes it.

    Args:
      header: of the file.
      labels: the images'.
      show: called for each image in order, also those already in the file.
      quiet: show no progress.

    Returns:
      The speed of the stages; {} if the file was finished before.
    """
    if self.path and prediction_file.is_finished(self.path, header):
      console.say(f'{self.path} is finished already; the network is not run')
      return {}
    show = show or (lambda image: None)
    start, writer = 0, None
    with contextlib.ExitStack() as stack:
      if self.path:
        writer = stack.enter_context(
          prediction_file.PredictionWriter(self.path, header, self.run.rows)
        )
        start = writer.done
        for image in prediction_file.PredictionReader(files.part(self.path)):
          show(image)
      if start:
        console.say(f'resuming after {start} of {len(self.keys)} images')

      def write(
        batch: pipeline.Batch, values: Mapping[str, np.ndarray]
      ) -> None:
        images = prediction_record.predictions(
          batch, values['output'], self.classes, labels
        )
        for image in images:
          show(image)
        if writer:
          writer.write(images)

      clock = self.setup.compute(self.run, write, start, quiet=quiet)
      if writer:
        writer.publish()
    return clock.figures()


def _sha256(values: Sequence[Any]) -> str:
  return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def file_setting(config: ConfigDict, key: str) -> pathlib.Path | None:
  """The file that a setting names; None if it names none.

  Raises:
    UserError: it is a folder.
  """
  if not config[key]:
    return None
  path = pathlib.Path(config[key]).expanduser()
  files.check_path(path, key)
  if path.is_dir():
    raise errors.UserError(f'{key}={path} is a folder; name a file.')
  return path
