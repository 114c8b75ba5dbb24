# SPDX-License-Identifier: Apache-2.0
"""The job `predict`: prints the best labels of images."""

import contextlib
import pathlib
import sys
from collections.abc import Callable

from ml_collections import ConfigDict

from resnet_jax.data import sources
from resnet_jax.evaluation import prediction_file, prediction_record
from resnet_jax.jobs import classifier
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.system import console, text, timing

# As the label set of --job=evaluate with labels=''.
_LABEL_SET = 'labels'


def run(config: ConfigDict) -> int:
  """Predicts; prints an image's label, and names with probabilities."""
  path = classifier.predictions_path(config)
  job = classifier.prepare(classifier.load(config), path)
  setup = job.classifier.setup
  header = job.header({_LABEL_SET: 'stated by the data'})
  if path and prediction_file.is_finished(path, header):
    console.say(f'{path} is finished already; the network is not run')
    found = prediction_file.images(path, job.classifier.keys)
    failed = sum(map(_show, found))
  else:
    failed = _predict(job, header, path)
  for warning in setup.model.weights.warnings:
    console.say(f'WARNING: {warning}')
  if path:
    console.say(f'predictions are in {path}')
  if failed:
    console.say(f'{text.counted(failed, "image")} could not be read')
    return setup_lib.SOME_FAILED
  return 0


def _predict(
  job: classifier.Run,
  header: prediction_record.Header,
  path: pathlib.Path | None,
) -> int:
  """Prints all images and writes the missing ones; returns how many failed."""
  items = job.classifier.setup.source.items

  def labels_of(number: int) -> prediction_record.Labels:
    label = items[number].label
    return {} if label == sources.NO_LABEL else {_LABEL_SET: (label,)}

  clock = timing.Clock()
  failed, relabelled, writer = 0, False, None
  with contextlib.ExitStack() as stack:
    if path:
      writer = stack.enter_context(
        prediction_file.Writer(path, header, job.run.rows)
      )
      with prediction_file.Reader(prediction_file.part(path)) as kept:
        for number, image in enumerate(kept):
          failed += _show(image)
          relabelled |= image.labels != labels_of(number)
    start = writer.done if writer else 0
    computed = job.batches(clock, start)
    advance = _progress(stack, len(items), start)
    for batch in computed:
      with clock.measure('write', len(batch[0].items)):
        images = job.predictions(batch, labels_of)
        failed += sum(map(_show, images))
        if writer:
          writer.write(images)
      advance(len(images))
    if writer:
      writer.publish()
  if path and relabelled:
    # Begun by --job=evaluate with other labels.
    labels = map(labels_of, range(len(items)))
    prediction_file.relabel(path, job.classifier.keys, labels, header.record)
  setup_lib.report_stages(clock)
  return failed


def _progress(
  stack: contextlib.ExitStack, total: int, done: int
) -> Callable[[int], None]:
  """Counts images; on a terminal the results themselves show the progress."""
  if sys.stdout.isatty():
    return lambda count: None
  return stack.enter_context(console.Progress(total, done)).add


def _show(image: prediction_record.ImagePrediction) -> bool:
  """Prints an image's label and best classes; returns whether it failed."""
  if image.failed:
    console.say(f'FAILED: {image.path}: {image.failed}')
    return True
  best = '\n'.join(map(str, image.best))
  line = f'Label of {image.path} is: {image.predicted}\n{best}'
  print(text.plain(line), flush=True)
  return False
