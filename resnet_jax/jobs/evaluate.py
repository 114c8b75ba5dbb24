# SPDX-License-Identifier: Apache-2.0
"""The job `evaluate`: the error of labelled images, beside the published."""

import collections
import datetime
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.data import truth
from resnet_jax.evaluation import (
  evidence,
  prediction_file,
  prediction_record,
  published,
  report,
)
from resnet_jax.jobs import predictor
from resnet_jax.model import Model
from resnet_jax.system import console, errors, files
from resnet_jax.zoo import lookup

# Percent right, below which the labels' order is doubted.
_DOUBTFUL = 1.0

_CHECKPOINTS = {record.name: record for record in lookup.RECORDS}


def run(config: ConfigDict) -> int:
  """Evaluates, or resumes an interrupted run with the same settings."""
  folder = _folder(config)
  path = predictor.file_setting(config, 'predictions')
  path = path or folder / 'predictions.jsonl'
  if record := predictor.file_setting(config, 'record'):
    # A damaged record should not be found after hours.
    evidence.read(record)
  texts = _label_texts(config.labels)
  if config.checkpoint:
    errors.check_choice('checkpoint', config.checkpoint, _CHECKPOINTS)
  job = predictor.Predictor(config, path)
  sets = _label_sets(job, texts)
  model = job.setup.model
  against = published.standard(
    _checkpoint(config, model), model.preprocess, model.module
  )
  labels: list[prediction_record.Labels] = [
    {own.name: tuple(sorted(own.answers[number])) for own in sets}
    for number in range(len(job.keys))
  ]
  header = job.header({own.name: own.description for own in sets})
  speed = job.predict(header, labels)
  if prediction_file.relabel(path, job.keys, labels, header.record):
    console.say(f'{path} has the labels of this run now')
  results = {
    # Everything needed to repeat the run.
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join(sys.orig_argv),
    'config': dict(config.items()),
    'checkpoint': against.checkpoint,
    **job.setup.origin(),
    'data': job.setup.source.description,
    **header.settings,
    'speed': speed,
    **_results(config, job, sets, against),
  }
  target = folder / 'results.json'
  text = json.dumps(results, indent=1, ensure_ascii=False)
  with files.writing('results', target):
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(target, f'{text}\n'.encode())
  if record:
    new = evidence.append(record, evidence.lines_of(results))
    console.say(f'{len(new)} new results are in {record}')
  if config.as_json:
    # Escaped, as a terminal needs it.
    console.result(json.dumps(results, indent=1))
  else:
    _show(results['labels'])
  return job.setup.end(
    f'predictions are in {path}',
    f'results are in {target}',
    failed=results['failed'],
    meaning=', counted as wrong',
  )


def _folder(config: ConfigDict) -> pathlib.Path:
  if not config.results:
    raise errors.UserError(
      "results='': name a folder for the predictions and results.json."
    )
  folder = pathlib.Path(config.results).expanduser()
  files.check_path(folder, 'results')
  if folder.exists() and not folder.is_dir():
    raise errors.UserError(f'results={folder} is a file; name a folder.')
  return folder


def _label_texts(text: str) -> list[str]:
  texts = [part.strip() for part in text.split(',')]
  if len(set(texts)) < len(texts):
    raise errors.UserError(f"labels='{text}' names a label set twice.")
  return texts


def _checkpoint(config: ConfigDict, model: Model) -> lookup.Record | None:
  """The checkpoint that the setting names, or that the weights' file is."""
  if config.checkpoint:
    return _CHECKPOINTS[config.checkpoint]
  if config.weights in lookup.FAMILIES:
    return lookup.find(config.weights, model.module.depth)
  if model.weights.path is None:
    return None
  return lookup.identify(model.weights.path, model.module.depth)


def _label_sets(
  job: predictor.Predictor, texts: Sequence[str]
) -> list[truth.LabelSet]:
  items, classes = job.setup.source.items, truth.columns(job.classes)
  sets = [truth.load(text, items, *classes) for text in texts]
  for found in sets:
    console.say(f'{report.title(found.name)}: {found.description}')
  twice = collections.Counter(found.name for found in sets).most_common(1)[0]
  if twice[1] > 1:
    raise errors.UserError(
      f"labels='{','.join(texts)}': two of these are called '{twice[0]}'."
      ' Rename one of the files.'
    )
  return sets


def _results(
  config: ConfigDict,
  job: predictor.Predictor,
  sets: Sequence[truth.LabelSet],
  against: published.Standard,
) -> dict[str, Any]:
  """Counts the finished file of predictions."""
  assert job.path
  images = prediction_file.images(job.path, job.keys)
  found, predicted = report.measure(images, sets, job.classes, against)
  for own in sets:
    wrong = found[own.name]['top1_error']['percent']
    if job.setup.model.weights.trained and wrong > 100 - _DOUBTFUL:
      texts = (*_label_texts(config.labels), config.data)
      found[own.name]['diagnosis'] = truth.diagnose(
        predicted, job.keys, own, job.names, texts
      )
  return {
    **prediction_file.PredictionReader(job.path).header.run,
    'failed': int((predicted < 0).sum()),
    'predictions_sha256': files.sha256(job.path),
    'labels': found,
  }


def _show(found: Mapping[str, Any]) -> None:
  rows = [row for name, of in found.items() for row in report.rows(name, of)]
  console.show(rows, False)
  for name, of in found.items():
    for line in report.remarks(name, of):
      console.result(line)
    for table in report.tables(of):
      console.result()
      console.show(table, False)
