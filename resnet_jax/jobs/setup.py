# SPDX-License-Identifier: Apache-2.0
"""From a config to typed objects: images, weights, a model."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.data import pipeline, preprocess, presets, sources
from resnet_jax.engine import devices, gradcam, loop, reductions, runner
from resnet_jax.model import Model
from resnet_jax.models import resnet, variant
from resnet_jax.system import console, errors, timing
from resnet_jax.zoo import lookup

# Exit status of a run that finished without some of the images.
SOME_FAILED = 3


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
    """All images and the network; see `Model.prepared`."""
    return self.model.prepared(
      self.source.items,
      layers,
      reduction,
      grad_cam=grad_cam,
      resumed=resumed,
      check_decoding=True,
    )

  def stream(
    self, run: loop.Run, clock: timing.Clock, start: int = 0
  ) -> Iterator[loop.Computed]:
    """The run's batches and values; see `loop.Run.stream`."""
    return run.stream(
      start, threads=self.threads, on_error=self.on_error, clock=clock
    )


def set_up(config: ConfigDict, most: int | None = None) -> Setup:
  """Checks the config, cheap things first, and loads the weights.

  Args:
    config: all of it.
    most: images that the job takes; None: any number.

  Raises:
    UserError: a setting is wrong, or the images or weights cannot be used.
  """
  errors.check_choice('on_error', config.on_error, pipeline.ON_ERROR)
  for key in ('batch_size', 'threads'):
    if config[key] < 0:
      raise errors.UserError(f'{key}={config[key]}: 0 is the least.')
  overrides = preprocess_overrides(config)
  weight_options(config)
  source = sources.open_source(
    config.data, must_exist=config.on_error == 'fail'
  )
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
  console.say(f'images: {source.description}')
  console.say(f'input: {own.describe()}')
  console.say(f'device: {devices.describe(execution.devices)}')
  model = Model(
    loaded,
    own,
    execution,
    class_names=config.class_names,
    batch_size=config.batch_size,
  )
  return Setup(source, model, config.threads, config.on_error)


def preprocess_overrides(config: ConfigDict) -> dict[str, Any]:
  """The config's settings of the preprocessing, checked."""
  given = {name: config[name] for name in preprocess.FIELDS}
  preprocess.check_overrides(**given)
  return given


def weight_options(
  config: ConfigDict, *, finite: bool = True
) -> weights.Options:
  """The config's settings of the weights."""
  return weights.Options(
    config.layer_num,
    {name: config[name] for name in variant.FIELDS},
    config.conv_order,
    config.seed,
    finite,
  )


def load_weights(config: ConfigDict, *, finite: bool = True) -> weights.Weights:
  """Loads the weights, and reports what they are."""
  with console.Bytes() as bar:
    loaded = weights.load(
      config.weights,
      weight_options(config, finite=finite),
      say=console.say,
      report=bar.set,
    )
  console.say(f'weights: {loaded.source}')
  console.say(resnet.describe(loaded.model))
  console.say(f'digest {loaded.digest}')
  for warning in loaded.warnings:
    console.say(f'WARNING: {warning}')
  for note in loaded.notes:
    console.say(f'NOTE: {note}')
  return loaded


def described_network(
  config: ConfigDict,
) -> tuple[resnet.ResNet, preprocess.Preprocess, dict[str, str]]:
  """The network, its preprocessing, and what is known of its weights.

  A file of weights is read, as only it tells the network; a checkpoint of the
  zoo, `auto` and `random` need none.
  """
  name, depth = config.weights, config.layer_num or weights.DEFAULT_DEPTH
  is_path = os.path.exists(pathlib.Path(name).expanduser())
  if name in lookup.FAMILIES:
    record = lookup.find(name, depth)
    module = resnet.published(depth).clone(variant=record.variant)
    preset = record.preprocess
  elif name in (weights.AUTO, weights.RANDOM) and not is_path:
    module, preset = resnet.published(depth), presets.usual(depth)
  else:
    loaded = load_weights(config)
    facts = {'digest': loaded.digest, 'source': loaded.source}
    return loaded.model, loaded.preprocess, facts
  return weight_options(config).applied(module), preset, {}


def image_size(config: ConfigDict, preset: preprocess.Preprocess) -> int:
  """The side of the images that a network is described for, in pixels.

  Raises:
    UserError: it is out of bounds.
  """
  size = config.crop_size or preset.crop_size
  if not resnet.MIN_SIZE <= size <= 4096:
    raise errors.UserError(
      f'crop_size={size} is not between {resnet.MIN_SIZE} and 4096.'
    )
  return size


def report_stages(clock: timing.Clock) -> None:
  """Says which stage was the bound, if anything was done."""
  if line := clock.line():
    console.say(line)
