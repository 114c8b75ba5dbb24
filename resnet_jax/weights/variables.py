# SPDX-License-Identifier: Apache-2.0
"""Weights from a Flax module's variables, as training leaves them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
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
    UserError: the variables are another network's, or not finite; the module
      or the preprocessing is something else.
  """
  for name, value, kind, way in (
    ('module', module, resnet.ResNet, 'Model.module'),
    ('preprocess', preprocess, Preprocess, 'Model.preprocess'),
  ):
    if not isinstance(value, kind):
      raise errors.UserError(
        f'{name} is of type {type(value).__name__}, and a {kind.__name__} is'
        f' expected. Give one, such as {way}.'
      )
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
  values = {name: _array(place, found[place]) for place, name in places.items()}
  origins = {
    name: assemble.Origin(place, values[name].shape, str(values[name].dtype))
    for place, name in places.items()
  }
  wrong = [
    f'{origins[name].name} has the shape {values[name].shape}, not {shape}'
    for name, shape in shapes.items()
    if values[name].shape != shape
  ]
  if wrong:
    raise errors.UserError(
      f'these variables cannot be used: {some(wrong, 4)}. Give those of'
      f' {resnet.describe(module)}, or the module that they are of.'
    )
  # What is too large for float32 is reported as not finite.
  with np.errstate(over='ignore'):
    parameters = {
      name: np.ascontiguousarray(value, np.float32)
      for name, value in values.items()
    }
  faults = [
    f'{origins[name].name} {fault}'
    for name, value in parameters.items()
    if (fault := _fault(name, value))
  ]
  if faults:
    finite = all(np.isfinite(value).all() for value in parameters.values())
    advice = (
      'Give them as training leaves them.'
      if finite
      else 'Values that are not finite come from a learning rate that is too'
      ' high.'
    )
    raise errors.UserError(
      f'these variables cannot be used: {some(faults, 4)}. {advice}'
    )
  return assemble.Loaded(
    FORMAT,
    module,
    parameters,
    origins,
    assemble.KERAS_LAYOUT.text,
    preprocess,
  )


def _array(place: str, leaf: Any) -> np.ndarray:
  """A leaf as an array of real numbers; raises a UserError if it is none."""
  try:
    value = np.asarray(leaf)
  # JAX's own: an array that was donated, or is still traced.
  except (ValueError, TypeError, RuntimeError) as error:
    raise errors.UserError(
      f'{place} of type {type(leaf).__name__} is no array:'
      f' {str(error)[:200]} Give an array of numbers.'
    ) from error
  real = (jnp.floating, jnp.integer)
  if not any(jnp.issubdtype(value.dtype, kind) for kind in real):
    raise errors.UserError(
      f'{place} of type {type(leaf).__name__} has values of type'
      f' {value.dtype}. Give an array of real numbers.'
    )
  return value


def _fault(name: str, value: np.ndarray) -> str:
  if bad := value.size - int(np.isfinite(value).sum()):
    return f'has {bad} of {value.size} values that are not finite'
  if name.endswith('/var') and (value < 0).any():
    return 'has a negative variance'
  return ''
