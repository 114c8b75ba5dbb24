# SPDX-License-Identifier: Apache-2.0
"""The job `evaluate`: the error of labelled images, beside the published."""

import collections
import dataclasses
import datetime
import hashlib
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import truth
from resnet_jax.engine import loop
from resnet_jax.evaluation import (
  evidence,
  metrics,
  prediction_file,
  prediction_record,
  report,
)
from resnet_jax.jobs import classifier
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.model import Model
from resnet_jax.system import console, errors, files, timing
from resnet_jax.system.text import counted
from resnet_jax.zoo import lookup

# Percent right, below which the labels' order is doubted.
_DOUBTFUL = 1.0


@dataclasses.dataclass(frozen=True)
class _Paths:
  """The files that the job writes; `record` is None unless it is given."""

  predictions: pathlib.Path
  results: pathlib.Path
  record: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """A classifier, the labels it is evaluated with, and the figure to reach."""

  run: classifier.Run
  sets: Sequence[truth.LabelSet]
  header: prediction_record.Header
  against: report.Standard

  @property
  def classifier(self) -> classifier.Classifier:
    """The network and its images."""
    return self.run.classifier

  def labels_of(self, number: int) -> prediction_record.Labels:
    """An image's labels."""
    return {
      found.name: tuple(sorted(found.answers[number])) for found in self.sets
    }


def run(config: ConfigDict) -> int:
  """Evaluates, or resumes an interrupted run with the same settings."""
  paths = _paths(config)
  texts = _label_texts(config.labels)
  record = _stated(config.checkpoint)
  classified = classifier.load(config)
  sets = _label_sets(classified, texts)
  ready = classifier.prepare(classified, paths.predictions)
  model = classified.setup.model
  evaluation = _Evaluation(
    ready,
    sets,
    ready.header({found.name: found.description for found in sets}),
    report.standard(
      record or _recognised(config, model), model.preprocess, model.module
    ),
  )
  if prediction_file.is_finished(paths.predictions, evaluation.header):
    console.say(
      f'{paths.predictions} is finished already; the network is not run'
    )
    speed = {}
  else:
    speed = _predict(evaluation, paths.predictions)
  results = {
    **_identity(config, evaluation),
    'speed': speed,
    **_count(config, evaluation, paths.predictions),
  }
  _write_results(paths, results)
  _show(config, results)
  for warning in model.weights.warnings:
    console.say(f'WARNING: {warning}')
  console.say(f'predictions are in {paths.predictions}')
  console.say(f'results are in {paths.results}')
  if failed := results['failed']:
    images = counted(failed, 'image')
    console.say(f'{images} could not be read, counted as wrong')
    return setup_lib.SOME_FAILED
  return 0


# --------------------------------------------------------------------- set-up


def _paths(config: ConfigDict) -> _Paths:
  if not config.results:
    raise errors.UserError(
      "results='': name a folder for the predictions and results.json."
    )
  folder = pathlib.Path(config.results).expanduser()
  if folder.exists() and not folder.is_dir():
    raise errors.UserError(f'results={folder} is a file; name a folder.')
  predictions = classifier.predictions_path(config)
  record = pathlib.Path(config.record).expanduser() if config.record else None
  if record and record.is_dir():
    raise errors.UserError(f'record={record} is a folder; name a file.')
  if record:
    # A damaged record should not be found after hours.
    evidence.read(record)
  return _Paths(
    predictions or folder / 'predictions.jsonl', folder / 'results.json', record
  )


def _label_texts(text: str) -> list[str]:
  texts = [part.strip() for part in text.split(',')]
  if len(set(texts)) < len(texts):
    raise errors.UserError(f"labels='{text}' names a label set twice.")
  return texts


def _stated(name: str) -> lookup.Record | None:
  """The checkpoint that the user says the weights are."""
  if not name:
    return None
  known = {record.name: record for record in lookup.RECORDS}
  return known[errors.check_choice('checkpoint', name, known)]


def _recognised(config: ConfigDict, model: Model) -> lookup.Record | None:
  """The checkpoint that the weights are found to be."""
  if config.weights in lookup.FAMILIES:
    return lookup.find(config.weights, model.module.depth)
  if model.weights.path is None:
    return None
  return lookup.identify(model.weights.path, model.module.depth)


def _label_sets(
  classified: classifier.Classifier, texts: Sequence[str]
) -> list[truth.LabelSet]:
  items = classified.setup.source.items
  sets = [truth.load(text, items, classified.names) for text in texts]
  for found in sets:
    console.say(f'{report.title(found.name)}: {found.description}')
  twice = collections.Counter(found.name for found in sets).most_common(1)[0]
  if twice[1] > 1:
    raise errors.UserError(
      f"labels='{','.join(texts)}': two of these are called '{twice[0]}'."
      ' Rename one of the files.'
    )
  return sets


# -------------------------------------------------------------------- predict


def _predict(evaluation: _Evaluation, path: pathlib.Path) -> dict[str, Any]:
  """Writes the predictions that are missing; returns the speed."""
  ready = evaluation.run
  clock = timing.Clock()
  with prediction_file.Writer(
    path, evaluation.header, ready.run.rows
  ) as writer:

    def write(done: loop.Computed) -> None:
      with clock.measure('write', len(done[0].items)):
        writer.write(ready.predictions(done, evaluation.labels_of))

    computed = ready.batches(clock, writer.done)
    with (
      console.Progress(len(evaluation.classifier.keys), writer.done) as bar,
      loop.writing_behind(write) as give,
    ):
      for done in computed:
        give(done)
        bar.add(len(done[0].items))
    writer.publish()
  setup_lib.report_stages(clock)
  return clock.figures()


# ---------------------------------------------------------------------- count


def _identity(config: ConfigDict, evaluation: _Evaluation) -> dict[str, Any]:
  """Everything needed to repeat the run."""
  setup = evaluation.classifier.setup
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join(sys.orig_argv),
    'config': dict(config.items()),
    'checkpoint': evaluation.against.checkpoint,
    'weights': setup.model.weights.source,
    'trained': setup.model.weights.trained,
    'data': setup.source.description,
    **evaluation.header.settings,
  }


def _count(
  config: ConfigDict, evaluation: _Evaluation, path: pathlib.Path
) -> dict[str, Any]:
  """Counts a finished file; it gets this run's labels if it has others."""
  keys, classes = evaluation.classifier.keys, evaluation.classifier.classes
  tallies = [metrics.Tally(len(classes)) for _ in evaluation.sets]
  failed, relabelled, predicted = 0, False, []
  for number, image in enumerate(prediction_file.images(path, keys)):
    wanted = evaluation.labels_of(number)
    predicted.append(-1 if image.predicted is None else image.predicted)
    failed += bool(image.failed)
    relabelled |= image.labels != wanted
    for tally, answers in zip(tallies, wanted.values(), strict=True):
      tally.add(answers, image.ranking)
  if relabelled:
    labels = map(evaluation.labels_of, range(len(keys)))
    prediction_file.relabel(path, keys, labels, evaluation.header.record)
    console.say(f'{path} has the labels of this run now')
  with prediction_file.Reader(path) as reader:
    made_by = reader.header.run
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  names = [f'{c.wnid} {c.name}'.strip() for c in classes]
  trained = evaluation.classifier.setup.model.weights.trained
  found = {}
  for label_set, tally in zip(evaluation.sets, tallies, strict=True):
    figures = report.figures(tally, evaluation.against)
    figures['description'] = label_set.description
    figures['labels_sha256'] = label_set.digest
    if trained and tally.top1.percent > 100 - _DOUBTFUL:
      figures['diagnosis'] = truth.diagnose(
        np.array(predicted),
        keys,
        label_set,
        evaluation.classifier.names,
        (*_label_texts(config.labels), config.data),
      )
    found[label_set.name] = figures | report.details(tally, names)
  return {
    **made_by,
    'failed': failed,
    'predictions_sha256': digest,
    'labels': found,
  }


def _write_results(paths: _Paths, results: Mapping[str, Any]) -> None:
  text = json.dumps(results, indent=1, ensure_ascii=False) + '\n'
  with files.writing('results', paths.results):
    paths.results.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(paths.results, text.encode())
  if paths.record:
    new = evidence.append(paths.record, evidence.lines_of(results))
    console.say(f'{len(new)} new results are in {paths.record}')


def _show(config: ConfigDict, results: Mapping[str, Any]) -> None:
  if config.as_json:
    print(json.dumps(results, indent=1, ensure_ascii=False))
    return
  found = results['labels']
  console.show(
    [row for name, of in found.items() for row in report.rows(name, of)], False
  )
  for name, of in found.items():
    for line in report.remarks(name, of):
      print(line)
    for table in (report.worst_classes(of), report.most_confused(of)):
      if table:
        print()
        console.show(table, False)
