# SPDX-License-Identifier: Apache-2.0
"""The job `evaluate`: the error of labelled images, beside the published."""

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import labels, truth
from resnet_jax.engine import behind, devices, sizing
from resnet_jax.evaluation import (
  evidence,
  metrics,
  prediction,
  predictions,
  report,
)
from resnet_jax.jobs import common
from resnet_jax.system import console, errors, files, timing, version
from resnet_jax.zoo import lookup

# Percent right, below which the labels' order is doubted.
_DOUBTFUL = 1.0


@dataclasses.dataclass(frozen=True)
class _Places:
  """The files that the job writes; `record` is None where none is asked for."""

  predictions: pathlib.Path
  results: pathlib.Path
  record: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class _Run:
  """An evaluation: what of, by which labels, how many images at a time."""

  setup: common.Setup
  classes: Sequence[labels.ImageNetClass]
  sets: Sequence[truth.LabelSet]
  rows: int

  @property
  def keys(self) -> list[str]:
    """The images' keys, in order."""
    return [item.key for item in self.setup.source.items]

  def labels(self) -> Iterator[predictions.Labels]:
    """The labels of the images, in their order."""
    names = [found.name for found in self.sets]
    for row in zip(*(found.answers for found in self.sets), strict=True):
      yield {
        name: tuple(sorted(answers))
        for name, answers in zip(names, row, strict=True)
      }


def run(config: ConfigDict) -> int:
  """Evaluates; goes on with a run of the same settings that was stopped."""
  places = _places(config)
  texts = _label_texts(config.labels)
  record = _stated(config.checkpoint)
  setup = common.set_up(config)
  if not setup.model.classes:
    raise errors.UserError(
      'these weights have no head (no classifier), so there is nothing to'
      ' evaluate. Give weights with a classifier.'
    )
  classes = labels.classes(
    setup.model.classes,
    config.class_names,
    setup.weights.loaded.class_names,
  )
  sets = _label_sets(setup, texts, classes)
  network = common.make_network(setup, ('output',))
  rows = common.batch_rows(
    config,
    setup,
    network,
    4 * len(classes),
    _started_rows(places.predictions),
  )
  job = _Run(setup, classes, sets, rows)
  header = _header(job)
  if predictions.is_finished(places.predictions, header):
    console.say(
      f'{places.predictions} is finished already; the network is not run'
    )
    speed = {}
  else:
    speed = _predict(config, job, network, header, places.predictions)
  against = report.standard(
    record or _recognised(config, setup), setup.how, setup.model
  )
  results = {
    **_identity(config, job, header, against),
    'speed': speed,
    **_count(config, job, header, against, places.predictions),
  }
  _write_results(places, results)
  _show(config, results)
  for warning in setup.weights.warnings:
    console.say(f'WARNING: {warning}')
  console.say(f'predictions are in {places.predictions}')
  console.say(f'results are in {places.results}')
  if failed := results['failed']:
    console.say(f'{failed} images could not be read; they count as wrong')
    return common.SOME_FAILED
  return 0


# ----------------------------------------------------------- before it starts


def _places(config: ConfigDict) -> _Places:
  if not config.results:
    raise errors.UserError(
      "results='': name a folder for the predictions and results.json."
    )
  folder = pathlib.Path(config.results).expanduser()
  if folder.exists() and not folder.is_dir():
    raise errors.UserError(f'results={folder} is a file; name a folder.')
  file = folder / 'predictions.jsonl'
  if config.predictions:
    file = pathlib.Path(config.predictions).expanduser()
  record = pathlib.Path(config.record).expanduser() if config.record else None
  for key, path in (('predictions', file), ('record', record)):
    if path and path.is_dir():
      raise errors.UserError(f'{key}={path} is a folder; name a file.')
  if record:
    # What is wrong with it should not be found after hours.
    evidence.read(record)
  return _Places(file, folder / 'results.json', record)


def _started_rows(path: pathlib.Path) -> Any:
  """The batches of the predictions that are there; None: there are none."""
  for place in (path, predictions.part(path)):
    with contextlib.suppress(errors.UserError), predictions.Reader(place) as it:
      return it.header.run.get('batch_rows')
  return None


def _label_texts(text: str) -> list[str]:
  texts = [part.strip() for part in text.split(',')]
  if len(set(texts)) < len(texts):
    raise errors.UserError(f"labels='{text}' names a label set twice.")
  return texts


def _stated(name: str) -> lookup.Record | None:
  """The checkpoint that the user says it is."""
  if not name:
    return None
  known = {record.name: record for record in lookup.RECORDS}
  return known[errors.check_choice('checkpoint', name, known)]


def _recognised(
  config: ConfigDict, setup: common.Setup
) -> lookup.Record | None:
  """The checkpoint that the weights are."""
  if config.weights in lookup.FAMILIES:
    return lookup.find(config.weights, setup.model.depth)
  if setup.weights.path is None:
    return None
  return lookup.identify(setup.weights.path, setup.model.depth)


def _label_sets(
  setup: common.Setup,
  texts: Sequence[str],
  classes: Sequence[labels.ImageNetClass],
) -> list[truth.LabelSet]:
  items = setup.source.items
  sets = [truth.load(text, items, _class_names(classes)) for text in texts]
  for found in sets:
    console.say(f'{report.title(found.name)}: {found.description}')
  twice = collections.Counter(found.name for found in sets).most_common(1)[0]
  if twice[1] > 1:
    raise errors.UserError(
      f"labels='{','.join(texts)}': two of these are called '{twice[0]}'."
      ' Rename one of the files.'
    )
  return sets


def _class_names(classes: Sequence[labels.ImageNetClass]) -> list[str]:
  """The classes' WordNet ids or names, or stand-ins, to find labels by."""
  return [found.wnid or found.name for found in classes]


def _header(job: _Run) -> predictions.Header:
  setup, classes = job.setup, job.classes
  items = setup.source.items
  # The labels are no part of it: a finished file can be given others.
  data = json.dumps([[item.key, item.size] for item in items]).encode()
  model = setup.model
  names = [] if classes[0].wnid else [found.name for found in classes]
  return predictions.Header(
    {
      'model': f'ResNet-{model.depth}',
      'variant': dataclasses.asdict(model.variant),
      'weights_sha256': setup.weights.digest,
      'preprocessing': setup.how.describe(),
      'classes': len(classes),
      'images': len(items),
      'images_sha256': hashlib.sha256(data).hexdigest(),
    },
    {
      'batch_rows': job.rows,
      'device': devices.describe(setup.execution.devices),
      'arithmetic': setup.execution.arithmetic,
      'versions': version.versions(),
    },
    {
      'weights': setup.weights.source,
      'trained': setup.weights.trained,
      'labels': {found.name: found.description for found in job.sets},
      'class_names': names,
    },
  )


# --------------------------------------------------------------- the network


def _predict(
  config: ConfigDict,
  job: _Run,
  network: sizing.Network,
  header: predictions.Header,
  path: pathlib.Path,
) -> dict[str, Any]:
  """Writes the predictions that are not there yet; returns how fast."""
  items = job.setup.source.items
  clock = timing.Clock()
  with predictions.Writer(path, header, job.rows) as writer:
    if writer.done:
      console.say(f'going on after {writer.done} of {len(items)} images')
    known = itertools.islice(job.labels(), writer.done, None)
    computed = common.computed(
      config,
      job.setup,
      network,
      rows=job.rows,
      clock=clock,
      start=writer.done,
    )

    def write(done: common.Computed) -> None:
      batch, values = done
      with clock.measure('write', len(batch.items)):
        writer.write(
          [
            predictions.Predicted(
              item.key, next(known), _best(item.name, row, job, reason), reason
            )
            for item, reason, row in zip(
              batch.items, batch.reasons, values['output'], strict=True
            )
          ]
        )

    with (
      console.Progress(len(items), writer.done) as bar,
      behind.Behind(write) as later,
    ):
      for done in computed:
        later.give(done)
        bar.add(len(done[0].items))
    writer.publish()
  common.say_stages(clock)
  return clock.figures()


def _best(
  name: str, row: np.ndarray, job: _Run, reason: str
) -> tuple[tuple[int, float], ...]:
  if reason:
    return ()
  values = row.ravel()
  if not np.isfinite(values).all():
    raise errors.UserError(
      f'the network gives {name} probabilities that are not finite: these'
      ' weights do not fit this network or this preprocessing.'
    )
  guesses = prediction.from_probabilities(
    values, job.classes, metrics.BEST
  ).best
  # As few digits as make the same float32.
  return tuple(
    (guess.label, float(str(np.float32(guess.probability))))
    for guess in guesses
  )


# ------------------------------------------------------------- what was found


def _identity(
  config: ConfigDict,
  job: _Run,
  header: predictions.Header,
  against: report.Standard,
) -> dict[str, Any]:
  """What is needed to find the same again."""
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join(sys.orig_argv),
    'config': dict(config.items()),
    'checkpoint': against.checkpoint,
    'weights': job.setup.weights.source,
    'trained': job.setup.weights.trained,
    'data': job.setup.source.description,
    **header.settings,
  }


def _count(
  config: ConfigDict,
  job: _Run,
  header: predictions.Header,
  against: report.Standard,
  path: pathlib.Path,
) -> dict[str, Any]:
  """What is found; the file gets the labels of this run if it has others."""
  tallies = [metrics.Tally(len(job.classes)) for _ in job.sets]
  failed, relabelled, guessed = 0, False, []
  for image, wanted in zip(
    predictions.images(path, job.keys), job.labels(), strict=True
  ):
    best = [label for label, _ in image.best]
    guessed.append(best[0] if best else -1)
    failed += bool(image.failed)
    relabelled |= image.labels != wanted
    for tally, answers in zip(tallies, wanted.values(), strict=True):
      tally.add(answers, best)
  if relabelled:
    predictions.relabel(path, job.keys, job.labels(), header.record)
    console.say(f'{path} has the labels of this run now')
  with predictions.Reader(path) as reader:
    made_by = reader.header.run
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  names = [f'{c.wnid} {c.name}'.strip() for c in job.classes]
  found = {}
  for label_set, tally in zip(job.sets, tallies, strict=True):
    figures = report.figures(tally, against)
    figures['description'] = label_set.description
    figures['labels_sha256'] = label_set.digest
    if job.setup.weights.trained and tally.top1.percent > 100 - _DOUBTFUL:
      figures['diagnosis'] = truth.diagnose(
        np.array(guessed),
        job.keys,
        label_set,
        _class_names(job.classes),
        (*_label_texts(config.labels), config.data),
      )
    found[label_set.name] = figures | report.details(tally, names)
  return {
    **made_by,
    'failed': failed,
    'predictions_sha256': digest,
    'labels': found,
  }


def _write_results(places: _Places, results: Mapping[str, Any]) -> None:
  text = json.dumps(results, indent=1, ensure_ascii=False) + '\n'
  with files.writing('results', places.results):
    places.results.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(places.results, text.encode())
  if places.record:
    new = evidence.append(places.record, evidence.lines_of(results))
    console.say(f'{len(new)} new results are in {places.record}')


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
