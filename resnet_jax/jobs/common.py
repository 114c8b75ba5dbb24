# SPDX-License-Identifier: Apache-2.0
"""What jobs have in common: from a config to typed things, and messages."""

import dataclasses
import importlib.metadata
import os
import sys

import jax
from ml_collections import ConfigDict

import resnet_jax
from resnet_jax import errors, runner, weights
from resnet_jax.data import pipeline, preprocess, sources
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
  model: resnet.ResNet
  weights: weights.Weights
  device: jax.Device


def say(text: str) -> None:
  """A line for the person who waits; results go to standard output."""
  print(text, file=sys.stderr, flush=True)


def set_up(config: ConfigDict) -> Setup:
  """Checks the config, cheap things first, and loads the weights."""
  errors.check_choice('on_error', config.on_error, pipeline.ON_ERROR)
  for key, least in (('batch_size', 1), ('threads', 0)):
    if config[key] < least:
      raise errors.UserError(f'{key}={config[key]}: {least} is the least.')
  how = preprocess.Preprocess(
    preprocess.parse_mean(config.mean, config.crop_size),
    config.resize,
    config.resize_size,
    config.crop_size,
    config.multi_crop,
    config.interpolation,
  )
  source = sources.open_source(
    config.data, must_exist=config.on_error == 'fail'
  )
  device = runner.select_device(config.use_gpu)
  model = resnet.ResNet(config.layer_num)
  loaded = weights.load(
    config.weights, model, conv_order=config.conv_order, seed=config.seed
  )
  say(f'ResNet-{model.depth} on {device}, weights: {loaded.source}')
  for warning in loaded.warnings:
    say(f'WARNING: {warning}')
  say(f'pictures: {source.description}')
  say(f'input: {how.describe()}')
  return Setup(source, how, model, loaded, device)


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
