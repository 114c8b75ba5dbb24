# SPDX-License-Identifier: Apache-2.0
"""The job `predict`: the best labels of images, printed."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.data import labels, sources
from resnet_jax.evaluation import lines, prediction
from resnet_jax.jobs import common
from resnet_jax.system import console, errors, timing


def run(config: ConfigDict) -> int:
  """Predicts; prints an image's label, and names with probabilities."""
  target = None
  if config.predictions:
    target = pathlib.Path(config.predictions).expanduser()
  if target and target.is_dir():
    raise errors.UserError(f'predictions={target} is a folder; name a file.')
  setup = common.set_up(config)
  if not setup.model.classes:
    raise errors.UserError(
      'these weights have no head (no classifier), so there is nothing to'
      ' predict with. --job=extract gives their features; for labels give'
      ' weights with a classifier.'
    )
  if setup.model.classes == 1:
    raise errors.UserError(
      'the classifier of these weights has a single output, so there is no best'
      ' class. --job=extract with output_layer=logits gives its value, before'
      ' any sigmoid.'
    )
  classes = labels.classes(
    setup.model.classes,
    config.class_names,
    setup.weights.loaded.class_names,
  )
  network = common.make_network(setup, ('output',))
  rows = common.batch_rows(config, setup, network, 4 * len(classes))
  items = setup.source.items
  failed, start = 0, 0
  clock = timing.Clock()
  with contextlib.ExitStack() as stack:
    file = None
    if target:
      keys = [item.key for item in items]
      file = stack.enter_context(lines.Lines(target, keys, _facts(setup), rows))
      if start := len(file.kept):
        console.say(f'going on after {start} of {len(items)} images')
      failed = sum(map(_show, file.kept))
    computed = common.computed(
      config, setup, network, rows=rows, clock=clock, start=start
    )
    advance = _progress(stack, len(items), start)
    for batch, values in computed:
      with clock.measure('write', len(batch.items)):
        records = [
          _record(
            item,
            reason,
            prediction.from_probabilities(row.ravel(), classes),
          )
          for item, reason, row in zip(
            batch.items, batch.reasons, values['output'], strict=True
          )
        ]
        failed += sum(map(_show, records))
        if file:
          file.write(records)
      advance(len(records))
    if file:
      file.publish()
  common.say_stages(clock)
  for warning in setup.weights.warnings:
    console.say(f'WARNING: {warning}')
  if target:
    console.say(f'predictions are in {target}')
  if failed:
    console.say(f'{failed} images could not be read')
    return common.SOME_FAILED
  return 0


def _progress(
  stack: contextlib.ExitStack, total: int, done: int
) -> Callable[[int], None]:
  """Counts images; on a terminal the results show how far it is."""
  if sys.stdout.isatty():
    return lambda count: None
  return stack.enter_context(console.Progress(total, done)).add


def _facts(setup: common.Setup) -> dict[str, Any]:
  """What each JSON object says of how it was made."""
  return {
    'model': f'ResNet-{setup.model.depth}',
    'trained': setup.weights.trained,
    'weights_sha256': setup.weights.digest,
    'preprocessing': setup.how.describe(),
    'arithmetic': setup.execution.arithmetic,
  }


def _record(
  item: sources.Item, reason: str, guesses: prediction.Prediction
) -> dict[str, Any]:
  """The JSON object of an image, without what is the same for all."""
  result: dict[str, Any] = {'key': item.key, 'path': item.name}
  if item.label != sources.NO_LABEL:
    result['label'] = item.label
  if reason:
    return result | {'failed': reason}
  best = [dataclasses.asdict(guess) for guess in guesses.best]
  return result | {'predicted': guesses.label, 'best': best}


def _show(record: Mapping[str, Any]) -> bool:
  """Prints an image's label and guesses; returns whether it failed."""
  if 'failed' in record:
    console.say(f'FAILED: {record["path"]}: {record["failed"]}')
    return True
  guesses = '\n'.join(
    str(prediction.ClassScore(**one)) for one in record['best']
  )
  text = f'Label of {record["path"]} is: {record["predicted"]}\n{guesses}'
  print(console.plain(text), flush=True)
  return False
