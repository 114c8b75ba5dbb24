# SPDX-License-Identifier: Apache-2.0
"""The job `extract`: features of layers, from images to files."""

import contextlib
import dataclasses
import pathlib

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import features
from resnet_jax.data import pipeline
from resnet_jax.engine import reductions
from resnet_jax.features import output, table
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.jobs import shared
from resnet_jax.models import aliases
from resnet_jax.system import console, errors, files
from resnet_jax.system.text import counted, size


def run(config: ConfigDict) -> int:
  """Extracts; resumes a run of the same settings, or takes part in it."""
  errors.check_choice('feature_format', config.feature_format, features.FORMATS)
  form = features.FORMATS[config.feature_format]
  shared.check_part(config.part)
  if config.part and not form.shared:
    raise errors.UserError(
      f"part='{config.part}': one process writes feature_format="
      f'{config.feature_format}. Use feature_format=zarr, or leave part out.'
    )
  reduction = reductions.Reduction(config.pool, config.dtype)
  if config.layer_num:
    # A mistyped name should not wait for the weights.
    aliases.select(config.output_layer, config.layer_num)
  setup = setup_lib.set_up(config, own_numbers=True)
  model, items = setup.model, setup.source.items
  layers = model.resolve(config.output_layer)
  directory = files.own_folder(config.output_dir, 'output_dir')
  resumed = output.batch_rows(directory, features.read_settings)
  job = setup.prepared(layers, reduction, resumed=resumed)
  side = model.preprocess.crop_size
  plan = table.FeatureTable(
    [item.key for item in items],
    [item.label for item in items],
    reductions.output_shapes(model.module, layers, reduction, side, side),
    reduction.dtype,
    job.rows,
  )
  settings = {
    **setup.settings('key', 'label', 'size'),
    'layers': list(layers),
    **dataclasses.asdict(reduction),
    'feature_format': config.feature_format,
    **setup.environment(job),
  }
  record = {
    **setup.origin(),
    'preprocess': dataclasses.asdict(model.weights.preprocess),
    'warnings': list(model.weights.warnings),
    'config': shared.recorded(config),
  }

  read = features.read_settings
  if output.is_finished(directory, settings, read):
    console.say(f'{directory} is finished already; nothing to do')
    return _end(setup, form.writer(directory, plan))
  part = shared.part_of(config.part)
  unfinished = files.part(directory)
  started = output.is_started(directory)
  if not started:
    _say_plan(config, plan, directory, plan.rows)
    facts = table.Facts(settings, record)
    output.make_part(directory, lambda new: form.create(new, plan, facts))
    if read(unfinished) != settings:
      # Another process began the run meanwhile, maybe with another batch size.
      return run(config)
  with (
    shared.published_by_others(directory, settings, read),
    contextlib.nullcontext() if form.shared else output.lock(directory),
    contextlib.closing(form.writer(unfinished, plan)) as writer,
  ):
    own, done = writer.rows(part)
    if started:
      _say_plan(config, plan, directory, own - done)
      shared.say_resumed(part, own, done)

    def write(batch: pipeline.Batch, values: dict[str, np.ndarray]) -> None:
      writer.write(batch.start, values, batch.reasons)

    setup.compute(job, write, done, starts=writer.starts(part), total=own)
    if not shared.finish(directory, writer, part):
      return _end(setup, writer)
  console.say(f'features of {counted(plan.rows, "image")} are in {directory}')
  return _end(setup, form.writer(directory, plan))


def _end(setup: setup_lib.Setup, writer: table.Writer) -> int:
  return setup.end(
    failed=writer.failed,
    meaning=': NaN in the features, with the reason beside',
  )


def _say_plan(
  config: ConfigDict,
  plan: table.FeatureTable,
  directory: pathlib.Path,
  rows: int,
) -> None:
  form = features.FORMATS[config.feature_format]
  notes = form.notes(plan)
  needed = form.planned_bytes(plan, rows)
  free = output.check_space(directory, needed)
  console.say(
    f'features: {plan.dtype}, {counted(plan.batch_rows, "image")} at a time'
  )
  for name, shape in plan.layers.items():
    console.say(f'  {name} {"x".join(map(str, shape))}')
  console.say(
    f'to write: {counted(rows, "row")}, at most {size(needed)}, to {directory}'
    f' ({size(free)} free)'
  )
  for note in notes:
    console.say(f'NOTE: {note}')
