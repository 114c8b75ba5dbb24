# SPDX-License-Identifier: Apache-2.0
"""What jobs have in common: from a config to typed things, and messages."""

import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax import errors, inputs, runner, terminal, weights
from resnet_jax.data import pipeline, preprocess, sources
from resnet_jax.jobs import console
from resnet_jax.models import resnet

# Exit status of a run that went to its end without some of the pictures.
SOME_FAILED = 3

# Of one batch's features, on the device and again on the host.
_MAX_BATCH_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything that a job over pictures works with."""

  source: sources.Source
  how: preprocess.Preprocess
  weights: weights.Weights
  device: jax.Device

  @property
  def model(self) -> resnet.ResNet:
    """The network."""
    return self.weights.model


def wishes(config: ConfigDict, *, finite: bool = True) -> weights.Wishes:
  """What the config says of the weights."""
  return weights.Wishes(
    config.layer_num,
    config.stride_in,
    config.stem_pool,
    config.epsilon,
    config.conv_order,
    config.seed,
    finite,
  )


def load_weights(config: ConfigDict, *, finite: bool = True) -> weights.Weights:
  """Loads the weights, and says what they are."""
  with terminal.Bytes() as bar:
    loaded = weights.load(
      config.weights,
      wishes(config, finite=finite),
      say=console.say,
      report=bar.set,
    )
  model = loaded.model
  head = f'{model.classes} classes' if model.classes else 'no head'
  console.say(f'weights: {loaded.source}')
  console.say(
    f'ResNet-{model.depth}, {head}, stride in {model.stride_in}, stem pool'
    f' {model.stem_pool}, epsilon {model.epsilon:g}; digest {loaded.digest}'
  )
  for warning in loaded.warnings:
    console.say(f'WARNING: {warning}')
  for note in loaded.loaded.notes:
    console.say(f'NOTE: {note}')
  return loaded


def input_wishes(config: ConfigDict) -> inputs.Wishes:
  """What the config says of the preprocessing."""
  keys = [field.name for field in dataclasses.fields(inputs.Wishes)]
  return inputs.Wishes(**{key: config[key] for key in keys})


def set_up(config: ConfigDict) -> Setup:
  """Checks the config, cheap things first, and loads the weights."""
  errors.check_choice('on_error', config.on_error, pipeline.ON_ERROR)
  for key, least in (('batch_size', 1), ('threads', 0)):
    if config[key] < least:
      raise errors.UserError(f'{key}={config[key]}: {least} is the least.')
  said = input_wishes(config)
  wishes(config)
  source = sources.open_source(
    config.data, must_exist=config.on_error == 'fail'
  )
  device = runner.select_device(config.use_gpu)
  loaded = load_weights(config)
  how = inputs.preprocess_for(said, loaded.recipe)
  console.say(f'pictures: {source.description}')
  console.say(f'input: {how.describe()}')
  console.say(f'device: {device}')
  return Setup(source, how, loaded, device)


def make_runner(
  setup: Setup,
  layers: Sequence[str],
  reduction: runner.Reduction | None = None,
) -> runner.Runner:
  """The network, ready for the pictures of a job."""
  return runner.Runner.prepared(
    setup.how,
    setup.model,
    setup.weights.parameters,
    layers,
    reduction=reduction,
    device=setup.device,
  )


def batch_rows(config: ConfigDict, setup: Setup, row_bytes: int) -> int:
  """Pictures that go through the network at once."""
  rows = config.batch_size // setup.how.crops
  rows = min(rows, len(setup.source.items), _MAX_BATCH_BYTES // row_bytes)
  return max(1, rows)


def threads(config: ConfigDict) -> int:
  """Threads that decode."""
  return config.threads or os.cpu_count() or 1


def versions() -> dict[str, str]:
  """Versions of what determines the values."""
  packages = ('jax', 'jaxlib', 'flax', 'numpy', 'pillow')
  return {'resnet_jax': resnet_jax.__version__} | {
    package: importlib.metadata.version(package) for package in packages
  }
