# SPDX-License-Identifier: Apache-2.0
"""The job `crop`: images to stored crops, which are data of all jobs."""

import contextlib
import importlib.metadata
import pathlib

from ml_collections import ConfigDict

from resnet_jax.data import crop_store, pipeline, preprocess, sources
from resnet_jax.engine import loop
from resnet_jax.features import output, store, table
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.jobs import shared
from resnet_jax.system import console, cores, files, timing, units, version
from resnet_jax.system.text import counted, size

_KIND = output.Kind('crops', 'crops', 'or fewer images')


def run(config: ConfigDict) -> int:
  """Crops; resumes a run of the same settings, or takes part in it."""
  shared.check_part(config.part)
  source = setup_lib.open_images(config)
  directory = files.own_folder(config.crops, 'crops')
  preprocessing = setup_lib.own_preprocess(config)
  console.say(f'images: {source.description}')
  stated = ', '.join(f'{k}={v}' for k, v in preprocessing.crop_fields.items())
  console.say(f'crops: {stated}')
  # Crops may be copied, not made into others.
  sources.check_stored(source.items, preprocessing)
  plan = _plan(source, preprocessing, directory)
  settings = {
    crop_store.CONTENTS: crop_store.CROPS,
    crop_store.PREPROCESSING: preprocessing.crop_fields,
    **setup_lib.image_settings(source, 'key', 'label', 'size', 'named'),
    'batch_rows': plan.batch_rows,
    'pillow': importlib.metadata.version('pillow'),
  }
  read = store.read_settings
  if output.is_finished(directory, settings, read, _KIND):
    console.say(f'{directory} is finished already; nothing to do')
    return _end(store.StoreWriter(directory, plan))
  part = shared.part_of(config.part)
  unfinished = files.part(directory)
  started = output.is_started(directory)
  if not started:
    _say_plan(plan, directory, plan.rows)
    record = {
      'versions': version.versions(),
      'config': shared.recorded(config),
    }
    facts = table.Facts(settings, record)
    output.make_part(
      directory, lambda new: _create(new, plan, facts, source), _KIND
    )
    if read(unfinished) != settings:
      # Another process began the run meanwhile.
      return run(config)
  with (
    shared.published_by_others(directory, settings, read, _KIND),
    contextlib.closing(store.StoreWriter(unfinished, plan)) as writer,
  ):
    own, done = writer.rows(part)
    if started:
      _say_plan(plan, directory, own - done)
      shared.say_resumed(part, own, done)
    _fill(writer, source, preprocessing, part, config)
    if not shared.finish(directory, writer, part, _KIND):
      return _end(writer)
  console.say(
    f'crops of {counted(plan.rows, "image")} are in {directory}; data='
    f'{directory} takes them'
  )
  return _end(store.StoreWriter(directory, plan))


def _plan(
  source: sources.Source, own: preprocess.Preprocess, directory: pathlib.Path
) -> table.FeatureTable:
  count = len(source.items)
  rows = output.batch_rows(directory, store.read_settings)
  if not 0 < rows <= count:
    rows = crop_store.batch_rows(own, count)
  return table.FeatureTable(
    [item.key for item in source.items],
    [item.label for item in source.items],
    {crop_store.CROPS: crop_store.shape(own)},
    'uint8',
    rows,
    crop_store.dimensions(own),
    crop_store.CHUNK_BYTES,
    _KIND,
  )


def _create(
  new: pathlib.Path,
  plan: table.FeatureTable,
  facts: table.Facts,
  source: sources.Source,
) -> None:
  store.create(new, plan, facts)
  crop_store.add_columns(
    new,
    [item.size for item in source.items],
    [item.named for item in source.items],
    [item.is_stray for item in source.items],
  )


def _fill(
  writer: store.StoreWriter,
  source: sources.Source,
  own: preprocess.Preprocess,
  part: units.Part,
  config: ConfigDict,
) -> None:
  """Crops the images of a part that are missing."""
  clock, (total, done) = timing.Clock(), writer.rows(part)
  batches = pipeline.batches(
    source.items,
    own,
    rows=writer.batch_rows,
    starts=writer.starts(part),
    threads=config.threads or cores.count(),
    on_error=config.on_error,
    clock=clock,
  )

  def write(batch: pipeline.Batch) -> None:
    images = batch.images.reshape(len(batch.items), *crop_store.shape(own))
    with clock.measure('write', len(images)):
      writer.write(batch.start, {crop_store.CROPS: images}, batch.reasons)

  with (
    console.Progress(total, done) as bar,
    loop.writing_behind(write) as give,
  ):
    while True:
      with clock.waiting('images'):
        batch = next(batches, None)
      if batch is None:
        break
      with clock.waiting('writer'):
        give(batch)
      bar.add(len(batch.items))
  setup_lib.report_stages(clock)


def _say_plan(
  plan: table.FeatureTable, directory: pathlib.Path, rows: int
) -> None:
  needed = store.planned_bytes(plan, rows)
  free = output.check_space(directory, needed, _KIND)
  console.say(
    f'to write: {counted(rows, "row")}, about {size(needed)}, to {directory}'
    f' ({size(free)} free)'
  )


def _end(writer: table.Writer) -> int:
  if not writer.failed:
    return 0
  console.say(
    f'{counted(writer.failed, "image")} could not be read: jobs on these crops'
    ' need on_error=record, too'
  )
  return 3
