# SPDX-License-Identifier: Apache-2.0
"""From a config to typed objects: images, weights, a model."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.data import pipeline, preprocess, presets, sources, truth
from resnet_jax.engine import devices, gradcam, loop, reductions, runner
from resnet_jax.model import Model
from resnet_jax.models import resnet, structure, variant
from resnet_jax.system import console, errors, timing, version
from resnet_jax.system.text import counted
from resnet_jax.zoo import lookup

# As in configs/resnet.py and configs/cifar.py.
_DEFAULT_DATA = ('example/test.list', 'example/cifar10.list')


@dataclasses.dataclass(frozen=True)
class Setup:
  """The images and the model of a job.

  Attributes:
    source: the images.
    model: the network.
    threads: that decode; 0: one a core.
    on_error: 'fail' or 'record'.
  """

  source: sources.Source
  model: Model
  threads: int
  on_error: str

  def prepared(
    self,
    layers: Sequence[str],
    reduction: reductions.Reduction | None = None,
    *,
    grad_cam: gradcam.GradCam | None = None,
    resumed: int = 0,
  ) -> loop.Run:
    """All images and the network; see `Model.prepared`.

    Its batch size is what a record of the run holds.
    """
    return self.model.prepared(
      self.source.items,
      layers,
      reduction,
      grad_cam=grad_cam,
      resumed=resumed,
      check_decoding=True,
    ).fitted()

  def stream(
    self,
    run: loop.Run,
    clock: timing.Clock,
    start: int = 0,
    starts: Iterator[int] | None = None,
  ) -> Iterator[loop.Computed]:
    """The run's batches and values; see `loop.Run.stream`."""
    return run.stream(
      start,
      starts=starts,
      threads=self.threads,
      on_error=self.on_error,
      clock=clock,
    )

  def compute(
    self,
    run: loop.Run,
    write: Callable[[pipeline.Batch, dict[str, np.ndarray]], None],
    start: int = 0,
    *,
    starts: Iterator[int] | None = None,
    total: int | None = None,
    quiet: bool = False,
  ) -> timing.Clock:
    """Computes the images from `start` on, and says the speed of the stages.

    Args:
      run: from `prepared`.
      write: is given batches and values, in order, in a thread.
      start: images that are done, the first ones unless `starts` is given.
      starts: the first images of the batches; None: all from `start` on.
      total: images, with those that are done; None: all.
      quiet: show no progress.
    """
    clock = timing.Clock()
    total = len(self.source.items) if total is None else total
    computed = self.stream(run, clock, start, starts)

    def timed(done: loop.Computed) -> None:
      with clock.measure('write', len(done[0].items)):
        write(*done)

    progress = None if quiet else console.Progress(total, start)
    with (
      progress or contextlib.nullcontext(),
      loop.writing_behind(timed) as give,
    ):
      for done in computed:
        give(done)
        if progress:
          progress.add(len(done[0].items))
    report_stages(clock)
    return clock

  def settings(self, *fields: str) -> dict[str, Any]:
    """The model and the images, which determine a run's values.

    Args:
      fields: those of `sources.Item` that tell the images apart.
    """
    model = self.model
    return {
      'model': resnet.title(model.module),
      'variant': model.module.variant.stated(),
      'weights_sha256': model.weights.digest,
      'preprocessing': model.preprocess.describe(),
      **image_settings(self.source, *fields),
    }

  def environment(self, run: loop.Run) -> dict[str, Any]:
    """Facts that can change the last digits of a run's values."""
    execution = self.model.execution
    return {
      'batch_rows': run.rows,
      'device': devices.describe(execution.devices),
      'arithmetic': execution.arithmetic,
      'versions': version.versions(),
    }

  def origin(self) -> dict[str, Any]:
    """Where the weights are from."""
    weights = self.model.weights
    return {'weights': weights.source, 'trained': weights.trained}

  def end(self, *lines: str, failed: int = 0, meaning: str = '') -> int:
    """Says a job's last lines, after the warnings; returns the exit status.

    Args:
      *lines: where the results are.
      failed: images that could not be read.
      meaning: what became of them.
    """
    warnings = [f'WARNING: {text}' for text in self.model.weights.warnings]
    for line in (*warnings, *lines):
      console.say(line)
    if not failed:
      return 0
    console.say(f'{counted(failed, "image")} could not be read{meaning}')
    return 3


def set_up(
  config: ConfigDict, most: int | None = None, *, own_numbers: bool = False
) -> Setup:
  """Checks the config, cheap things first, and loads the weights.

  Args:
    config: the settings.
    most: images that the job takes; None: any number.
    own_numbers: whether labels stay the data's own if none names a class here
      of the classes that the data names.

  Raises:
    UserError: a setting is wrong, or the images or weights cannot be used.
  """
  source = open_images(config)
  overrides = preprocess_overrides(config)
  if most and len(source.items) > most:
    raise errors.UserError(
      f'{source.description}: this job shows 1 to {most}. Give a list file with'
      ' those that you want to see, or a smaller folder.'
    )
  execution = runner.start(
    config.use_gpu,
    config.arithmetic,
    config.compilation_cache,
    console.say,
    application=True,
  )
  loaded = load_weights(config)
  own = loaded.preprocess.overridden(**overrides)
  model = Model(
    loaded,
    own,
    execution,
    class_names=config.class_names,
    batch_size=config.batch_size,
  )
  if model.module.classes > 1:
    source = truth.resolved(source, model.classes, keep=own_numbers)
  console.say(f'images: {source.description}')
  console.say(f'input: {own.describe()}')
  console.say(f'device: {devices.describe(execution.devices)}')
  return Setup(source, model, config.threads, config.on_error)


def open_images(config: ConfigDict) -> sources.Source:
  """The images, after the settings have been checked as far as is cheap."""
  errors.check_choice('on_error', config.on_error, pipeline.ON_ERROR)
  for key in ('batch_size', 'threads'):
    if config[key] < 0:
      raise errors.UserError(f'{key}={config[key]} must be 0 or more.')
  preprocess_overrides(config)
  weight_options(config)
  if config.data in _DEFAULT_DATA and not os.path.exists(config.data):
    raise errors.UserError(
      f'no data was given, and its default, {config.data}, is not in this'
      ' folder. Set data=PATH: a list, a folder, an image, tar archives,'
      ' Parquet files or crops.'
    )
  return sources.open_source(config.data, must_exist=config.on_error == 'fail')


def image_settings(source: sources.Source, *fields: str) -> dict[str, Any]:
  """The images, for the settings of a run; `fields` are those of an item."""
  facts = [[getattr(item, field) for field in fields] for item in source.items]
  return {
    'images': len(facts),
    'images_sha256': hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
  }


def own_preprocess(config: ConfigDict) -> preprocess.Preprocess:
  """How the network of a config takes images.

  Weights are read where nothing else tells it, as a file does not by its name.
  """
  options = weight_options(config)
  if config.weights in lookup.FAMILIES:
    own = weights.recorded(config.weights, options).preprocess
  elif config.weights == weights.RANDOM:
    own = presets.usual(options.depth or structure.DEFAULT_DEPTH)
  else:
    own = load_weights(config).preprocess
  return own.overridden(**preprocess_overrides(config))


def preprocess_overrides(config: ConfigDict) -> dict[str, Any]:
  """The config's settings of the preprocessing, checked."""
  given = {name: config[name] for name in preprocess.FIELDS}
  preprocess.check_overrides(**given)
  return given


def weight_options(config: ConfigDict) -> weights.Options:
  """The config's settings of the weights, checked."""
  fields = {name: config[name] for name in variant.FIELDS}
  return weights.Options(
    config.layer_num,
    fields,
    config.conv_order,
    config.seed,
    weights_prefix=config.weights_prefix,
  )


def load_weights(config: ConfigDict, *, finite: bool = True) -> weights.Weights:
  """Loads the weights, and logs what they are."""
  options = dataclasses.replace(weight_options(config), finite=finite)
  return weights.load_logged(
    config.weights, options, lambda text: console.say(f'WARNING: {text}')
  )


def described_network(
  config: ConfigDict,
) -> tuple[resnet.ResNet, int, dict[str, str]]:
  """A network to describe, and facts about its weights.

  A file of weights is read, as only it tells the network; a checkpoint of the
  zoo, `auto` and `random` need none.

  Returns:
    The network, the side of its images in pixels, and facts.

  Raises:
    UserError: the weights cannot be used, or the side is out of bounds.
  """
  name, options = config.weights, weight_options(config)
  is_path = os.path.exists(pathlib.Path(name).expanduser())
  facts = {}
  if name in lookup.FAMILIES:
    record = weights.recorded(name, options)
    module = resnet.published(record.depth).clone(variant=record.variant)
    preset = record.preprocess
  elif name in (weights.AUTO, weights.RANDOM) and not is_path:
    depth = options.depth or structure.DEFAULT_DEPTH
    module = resnet.published(depth, options.variant)
    preset = presets.usual(depth)
  else:
    loaded = load_weights(config)
    module, preset = loaded.module, loaded.preprocess
    facts = {'digest': loaded.digest, 'source': loaded.source}
  size = config.crop_size or preset.crop_size
  preprocess.check_crop_size(size)
  return options.applied(module), size, facts


def report_stages(clock: timing.Clock) -> None:
  """Says which stage was the bound, if anything was done."""
  if line := clock.line():
    console.say(line)
