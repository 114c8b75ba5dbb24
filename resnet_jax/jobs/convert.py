# SPDX-License-Identifier: Apache-2.0
"""The job `convert`: weights of any format to safetensors, Paddle's, Orbax'."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.data import labels
from resnet_jax.jobs import setup
from resnet_jax.system import console, errors, files
from resnet_jax.system.text import counted
from resnet_jax.weights import (
  assemble,
  metadata,
  orbax,
  paddle,
  safetensors,
  saving,
)

TARGETS = ('safetensors', 'paddle', 'orbax')


def run(config: ConfigDict) -> int:
  """Converts, then reads the result back and compares the digests."""
  errors.check_choice('convert_to', config.convert_to, TARGETS)
  if not config.output:
    raise errors.UserError(
      'no output. Give --config.output=FILE.safetensors, or, with'
      ' --config.convert_to=paddle or orbax, --config.output=DIRECTORY.'
    )
  target = pathlib.Path(config.output).expanduser()
  is_file = target.suffix == saving.SUFFIX
  if is_file != (config.convert_to == 'safetensors'):
    raise errors.UserError(
      f'output={target} does not match convert_to={config.convert_to}: a'
      f" safetensors file ends with '{saving.SUFFIX}', a directory of Paddle or"
      ' Orbax does not.'
      ' Change one of the two.'
    )
  saving.check_target(target, 'output')
  given = setup.preprocess_overrides(config)
  loaded = setup.load_weights(config)
  parameters, digest = loaded.parameters, loaded.digest
  if config.convert_to == 'paddle' and loaded.module.biases:
    console.say(
      f'NOTE: {counted(len(loaded.module.biases), "convolution")} with a bias:'
      " Paddle's format has none, so they go into the means of the batch norms."
      ' Their _conv values are without them from then on; all others stay.'
    )
    parameters = paddle.without_biases(parameters)
    digest = weights.digest(parameters)
  order, source = config.conv_order, loaded.path
  text = metadata.written(
    _overridden(config, given, loaded),
    loaded.source,
    digest,
    files.sha256(source) if source and source.is_file() else '',
    order if config.convert_to == 'paddle' else '',
  )
  if config.convert_to == 'paddle':
    paddle.write(parameters, target, order, text)
  else:
    writer = {'safetensors': safetensors, 'orbax': orbax}[config.convert_to]
    writer.write(target, parameters, text)
  again = weights.load(str(target), weights.Options(conv_order=order))
  if again.digest != digest:
    raise errors.UserError(
      f'{target} reads back with digest {again.digest} instead of'
      f' {digest}: the disk or the memory is faulty. Remove it.'
    )
  console.say(f'{target} reads back to the digest {digest}')
  console.result(str(target))
  return 0


def _overridden(
  config: ConfigDict, given: Mapping[str, Any], loaded: weights.Weights
) -> assemble.Loaded:
  """The network with the user's preprocessing and class names."""
  preprocess = loaded.preprocess.overridden(**given)
  console.say(f'input: {preprocess.describe()}')
  class_names: tuple[str, ...] = ()
  if config.class_names:
    classes = labels.classes(loaded.module.classes, config.class_names)
    class_names = tuple(c.name for c in classes)
  return saving.stated(loaded, preprocess, class_names)
