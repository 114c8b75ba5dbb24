# SPDX-License-Identifier: Apache-2.0
"""The job `predict`: the best labels of pictures, printed."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import errors, files, prediction, stages, terminal
from resnet_jax.data import labels, sources
from resnet_jax.jobs import common, console


def run(config: ConfigDict) -> int:
  """Predicts; prints a picture's label, and names with probabilities."""
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
  failed = 0
  clock = stages.Clock()
  with _line_writer(target) as write:
    for batch, values in common.computed(
      config, setup, network, rows=rows, clock=clock
    ):
      with clock.measure('write', len(batch.items)):
        for item, reason, row in zip(
          batch.items, batch.reasons, values['output'], strict=True
        ):
          failed += bool(reason)
          guesses = prediction.from_probabilities(row.ravel(), classes)
          if reason:
            console.say(f'FAILED: {item.name}: {reason}')
          else:
            text = f'Label of {item.name} is: {guesses.label}\n{guesses}'
            print(terminal.plain(text), flush=True)
          write(_record(item, reason, guesses, setup))
  common.say_stages(clock)
  for warning in setup.weights.warnings:
    console.say(f'WARNING: {warning}')
  if target:
    console.say(f'predictions are in {target}')
  if failed:
    console.say(f'{failed} pictures could not be read')
    return common.SOME_FAILED
  return 0


def _record(
  item: sources.Item,
  reason: str,
  guesses: prediction.Prediction,
  setup: common.Setup,
) -> dict[str, Any]:
  """The JSON object of a picture."""
  result: dict[str, Any] = {'key': item.key, 'path': item.name}
  if item.label != sources.NO_LABEL:
    result['label'] = item.label
  if reason:
    result['failed'] = reason
  else:
    result['predicted'] = guesses.label
    result['best'] = [dataclasses.asdict(guess) for guess in guesses.best]
  return result | {
    'model': f'ResNet-{setup.model.depth}',
    'trained': setup.weights.trained,
    'weights_sha256': setup.weights.digest,
    'preprocessing': setup.how.describe(),
  }


@contextlib.contextmanager
def _line_writer(
  target: pathlib.Path | None,
) -> Iterator[Callable[[dict[str, Any]], None]]:
  """Writes objects, a line each, to a file that gets its name at the end."""
  if target is None:
    yield lambda line: None
    return
  part = target.with_name(target.name + files.PART)
  with files.writing('predictions', target):
    target.parent.mkdir(parents=True, exist_ok=True)
    file = open(part, 'w', encoding='utf-8')  # noqa: SIM115

  def write(line: dict[str, Any]) -> None:
    with files.writing('predictions', target):
      file.write(json.dumps(line, ensure_ascii=False) + '\n')

  try:
    yield write
    with files.writing('predictions', target):
      file.close()
      os.replace(part, target)
  finally:
    with contextlib.suppress(OSError):
      file.close()
