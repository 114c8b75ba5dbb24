# SPDX-License-Identifier: Apache-2.0
"""The job `convert`: weights of any format to safetensors or to Paddle's."""

import dataclasses
import hashlib
import pathlib

from ml_collections import ConfigDict

from resnet_jax import inputs, weights
from resnet_jax.data import labels, recipe
from resnet_jax.jobs import common
from resnet_jax.system import console, errors
from resnet_jax.weights import assemble, metadata, paddle, safetensors

TARGETS = ('safetensors', 'paddle')
SUFFIX = '.safetensors'


def run(config: ConfigDict) -> int:
  """Converts, then reads the result back and compares the digests."""
  errors.check_choice('convert_to', config.convert_to, TARGETS)
  if not config.output:
    raise errors.UserError(
      'no output. Give --config.output=FILE.safetensors, or, with'
      ' --config.convert_to=paddle, --config.output=DIRECTORY.'
    )
  target = pathlib.Path(config.output).expanduser()
  is_file = target.suffix == SUFFIX
  if is_file != (config.convert_to == 'safetensors'):
    raise errors.UserError(
      f'output={target} does not match convert_to={config.convert_to}: a'
      f" safetensors file ends with '{SUFFIX}', a Paddle directory does not."
      ' Change one of the two.'
    )
  if target.exists():
    raise errors.UserError(
      f'{target} exists already; remove it, or name another output.'
    )
  said = common.input_wishes(config)
  loaded = common.load_weights(config)
  held = _overridden(config, said, loaded)
  text = metadata.written(
    held,
    loaded.source,
    loaded.digest,
    _file_digest(loaded.path),
    config.conv_order if config.convert_to == 'paddle' else '',
  )
  if config.convert_to == 'paddle':
    paddle.write(loaded.parameters, target, config.conv_order, text)
  else:
    safetensors.write(target, loaded.parameters, text)
  again = weights.load(
    str(target), weights.LoadOptions(conv_order=config.conv_order)
  )
  if again.digest != loaded.digest:
    raise errors.UserError(
      f'{target} reads back with digest {again.digest} instead of'
      f' {loaded.digest}: the disk or the memory is faulty. Remove it.'
    )
  console.say(f'{target} reads back to the same digest')
  print(target)
  return 0


def _file_digest(path: pathlib.Path | None) -> str:
  if path is None or not path.is_file():
    return ''
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _overridden(
  config: ConfigDict, said: inputs.Wishes, loaded: weights.Weights
) -> assemble.Loaded:
  """What the result records: preprocessing and classes, user's over stored."""
  how = inputs.preprocess_for(said, loaded.recipe)
  console.say(f'input: {how.describe()}')
  if how.mean.values.shape != (3, 1, 1):
    raise errors.UserError(
      'a mean image cannot be stored with the weights. Convert with three'
      ' values for mean=, and give the mean image where the weights are used.'
    )
  held = loaded.loaded
  class_names = held.class_names
  if config.class_names:
    classes = labels.classes(held.model.classes, config.class_names)
    class_names = tuple(c.name for c in classes)
  first, second, third = (float(v) for v in how.mean.values.ravel())
  stored = recipe.Recipe(
    how.channels,
    # The stored decimals, unless the user overrides them.
    held.recipe.mean if config.mean == 'auto' else (first, second, third),
    how.std,
    how.resize_size,
    how.crop_size,
    how.interpolation,
    how.rounding,
    how.resize,
  )
  return dataclasses.replace(held, recipe=stored, class_names=class_names)
