# SPDX-License-Identifier: Apache-2.0
"""The job `predict`: prints the best labels of images."""

import sys

from ml_collections import ConfigDict

from resnet_jax.data import sources
from resnet_jax.evaluation import prediction_file, prediction_record
from resnet_jax.jobs import predictor
from resnet_jax.system import console

# As the label set of --job=evaluate with labels=''.
_LABEL_SET = 'labels'


def run(config: ConfigDict) -> int:
  """Predicts; prints an image's label, and names with probabilities."""
  path = predictor.file_setting(config, 'predictions')
  job = predictor.Predictor(config, path)
  header = job.header({_LABEL_SET: 'stated by the data'})
  labels: list[prediction_record.Labels] = [
    {} if item.label == sources.NO_LABEL else {_LABEL_SET: (item.label,)}
    for item in job.setup.source.items
  ]
  failed = 0

  def show(image: prediction_record.ImagePrediction) -> None:
    nonlocal failed
    failed += bool(image.failed)
    _show(image)

  # On a terminal, the results themselves show the progress.
  ran = job.predict(header, labels, show, quiet=sys.stdout.isatty())
  if path and ran:
    # It may have been begun by --job=evaluate with other labels.
    prediction_file.relabel(path, job.keys, labels, header.record)
  elif path:
    for image in prediction_file.images(path, job.keys):
      show(image)
  lines = [f'predictions are in {path}'] if path else []
  return job.setup.end(*lines, failed=failed)


def _show(image: prediction_record.ImagePrediction) -> None:
  """Prints an image's label and best classes."""
  if image.failed:
    console.say(f'FAILED: {image.path}: {image.failed}')
    return
  best = '\n'.join(map(str, image.best))
  line = f'Label of {image.path} is: {image.predicted}\n{best}'
  console.result(line)
