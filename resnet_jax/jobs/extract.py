# SPDX-License-Identifier: Apache-2.0
"""The job `extract`: features of layers, from images to files."""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import features
from resnet_jax.data import pipeline
from resnet_jax.engine import devices, loop, reductions
from resnet_jax.features import output, table
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.models import aliases
from resnet_jax.system import console, errors, timing, version
from resnet_jax.system.text import counted


def run(config: ConfigDict) -> int:
  """Extracts; resumes a run of the same settings that was stopped."""
  errors.check_choice('feature_format', config.feature_format, features.FORMATS)
  reduction = reductions.Reduction(config.pool, config.dtype)
  if config.layer_num:
    # A mistyped name should not wait for the weights.
    aliases.select_layers(config.output_layer, config.layer_num)
  setup = setup_lib.set_up(config)
  layers = setup.model.select(
    config.output_layer, lambda note: console.say(f'NOTE: {note}')
  )
  form = features.FORMATS[config.feature_format]
  directory = output.checked(config.output_dir)
  before = output.found_settings(directory, features.read_settings)
  resumed = before.get('batch_rows')
  job = setup.prepared(
    layers, reduction, resumed=resumed if type(resumed) is int else 0
  )
  plan = _plan(setup, layers, reduction, job.rows)
  facts = _facts(config, setup, plan, reduction)
  notes = features.notes(config.feature_format, plan)

  if output.is_finished(directory, facts.settings, features.read_settings):
    console.say(f'{directory} is finished already; nothing to do')
    return _status(form.writer(directory, plan))
  started = output.is_started(directory)
  if not started:
    _say_plan(form, plan, directory, plan.rows, notes)
    output.make_part(directory, lambda new: form.create(new, plan, facts))
  with output.lock(directory):
    writer = form.writer(output.part(directory), plan)
    if started:
      _say_plan(form, plan, directory, plan.rows - writer.done, notes)
      console.say(f'resuming after {writer.done} of {plan.rows} images')
    _extract(setup, job, plan, writer)
    output.publish(directory)
  console.say(f'features of {plan.rows} images are in {directory}')
  return _status(writer)


def _status(writer: table.Writer) -> int:
  """The exit status of a finished run, its failed images reported."""
  if writer.failed:
    images = counted(writer.failed, 'image')
    console.say(
      f'{images} could not be read: the rows are NaN, the reasons beside them'
    )
    return setup_lib.SOME_FAILED
  return 0


def _extract(
  setup: setup_lib.Setup,
  job: loop.Run,
  plan: table.FeatureTable,
  writer: table.Writer,
) -> None:
  clock = timing.Clock()
  computed = setup.stream(job, clock, writer.done)

  def write(done: loop.Computed) -> None:
    batch, values = done
    with clock.measure('write', len(batch.items)):
      writer.write(batch.start, _without_failed(batch, values), batch.reasons)

  with console.Progress(plan.rows, writer.done) as bar:
    with loop.writing_behind(write) as give:
      for done in computed:
        give(done)
        bar.add(len(done[0].items))
    writer.finish()
  setup_lib.report_stages(clock)


def _without_failed(
  batch: pipeline.Batch, values: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The values, NaN where an image failed."""
  failed = np.flatnonzero(~batch.mask)
  if not len(failed):
    return values
  values = {k: np.array(v) for k, v in values.items()}
  for array in values.values():
    array[failed] = np.nan
  return values


def _plan(
  setup: setup_lib.Setup,
  layers: tuple[str, ...],
  reduction: reductions.Reduction,
  rows: int,
) -> table.FeatureTable:
  size = setup.model.preprocess.crop_size
  shapes = reductions.output_shapes(
    setup.model.module, layers, reduction, size, size
  )
  items = setup.source.items
  keys, labels = [i.key for i in items], [i.label for i in items]
  return table.FeatureTable(keys, labels, shapes, reduction.dtype, rows)


def _facts(
  config: ConfigDict,
  setup: setup_lib.Setup,
  plan: table.FeatureTable,
  reduction: reductions.Reduction,
) -> table.Facts:
  model, module = setup.model, setup.model.module
  data = json.dumps(
    [[item.key, item.label, item.size] for item in setup.source.items]
  ).encode()
  settings = {
    'model': f'ResNet-{module.depth}',
    'variant': dataclasses.asdict(module.variant),
    'weights_sha256': model.weights.digest,
    'preprocessing': model.preprocess.describe(),
    'layers': list(plan.layers),
    'pool': reduction.pool,
    'dtype': reduction.dtype,
    'feature_format': config.feature_format,
    'images': plan.rows,
    'images_sha256': hashlib.sha256(data).hexdigest(),
    'batch_rows': plan.batch_rows,
    'arithmetic': model.execution.arithmetic,
    'device': devices.describe(model.execution.devices),
    'versions': version.versions(),
  }
  record = {
    'weights': model.weights.source,
    'trained': model.weights.trained,
    'recipe': dataclasses.asdict(model.weights.preprocess),
    'warnings': list(model.weights.warnings),
    # Not on_error: a run may resume under another one.
    'config': {k: v for k, v in config.items() if k != 'on_error'},
  }
  return table.Facts(settings, record)


def _say_plan(
  form: features.FeatureFormat,
  plan: table.FeatureTable,
  directory: pathlib.Path,
  rows: int,
  notes: list[str],
) -> None:
  needed = form.planned_bytes(plan, rows)
  free = output.check_space(directory, needed)
  console.say(f'features: {plan.dtype}, {plan.batch_rows} images at a time')
  for name, shape in plan.layers.items():
    console.say(f'  {name} {"x".join(map(str, shape))}')
  console.say(
    f'to write: {rows} rows, at most {_size(needed)}, to {directory}'
    f' ({_size(free)} free)'
  )
  for note in notes:
    console.say(f'NOTE: {note}')


def _size(count: int) -> str:
  """Bytes for a person: 12.3 MB."""
  power = min((len(str(count)) - 1) // 3, 4)
  if not power:
    return f'{count} bytes'
  return f'{count / 1000**power:.1f} {("kB", "MB", "GB", "TB")[power - 1]}'
