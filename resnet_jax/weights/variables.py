# SPDX-License-Identifier: Apache-2.0
"""Weights from a Flax module's variables, as training leaves them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import layers, resnet
from resnet_jax.models import variables as tree_lib
from resnet_jax.system import errors
from resnet_jax.system.text import some
from resnet_jax.weights import assemble

FORMAT = 'variables in memory'


def loaded(
  module: resnet.ResNet,
  variables: Mapping[str, Any],
  preprocess: Preprocess,
) -> assemble.Loaded:
  """A network and its variables in the form of a loaded file.

  Args:
    module: the network, with any `training`.
    variables: its collections `params` and `batch_stats`; others are an error.
    preprocess: how an image becomes the network's input.

  Raises:
    UserError: the variables are another network's, or not finite.
  """
  if module.inference != layers.DEFINITION:
    raise errors.UserError(
      'the module is one that is computed for inference. Give the one that was'
      ' trained, or module.clone(inference=layers.DEFINITION).'
    )
  shapes = resnet.parameter_shapes(module)
  places = {f'{tree_lib.collection(name)}/{name}': name for name in shapes}
  found = tree_lib.flat(variables)
  missing, unknown = places.keys() - found.keys(), found.keys() - places.keys()
  if missing or unknown:
    parts = [
      f'{len(names)} are {what} ({some(sorted(names), 4)})'
      for names, what in ((missing, 'missing'), (unknown, 'unknown'))
      if names
    ]
    raise errors.UserError(
      f'these variables are not those of {resnet.describe(module)}:'
      f' {"; ".join(parts)}. Give {{"params": ..., "batch_stats": ...}} as'
      ' module.init returns them.'
    )
  parameters, origins = {}, {}
  for place, name in places.items():
    value = np.asarray(found[place])
    origins[name] = assemble.Origin(place, value.shape, str(value.dtype))
    parameters[name] = np.ascontiguousarray(value, np.float32)
  faults = [
    f'{origins[name].name} {fault}'
    for name, shape in shapes.items()
    if (fault := _fault(name, parameters[name], shape))
  ]
  if faults:
    raise errors.UserError(
      f'these variables cannot be used: {some(faults, 4)}. Values that are not'
      ' finite come from a learning rate that is too high.'
    )
  return assemble.Loaded(
    FORMAT,
    module,
    parameters,
    origins,
    assemble.KERAS_LAYOUT.text,
    preprocess,
  )


def _fault(name: str, value: np.ndarray, shape: tuple[int, ...]) -> str:
  if value.shape != shape:
    return f'has the shape {value.shape}, not {shape}'
  if bad := value.size - int(np.isfinite(value).sum()):
    return f'has {bad} of {value.size} values that are not finite'
  if name.endswith('/var') and (value < 0).any():
    return 'has a negative variance'
  return ''
