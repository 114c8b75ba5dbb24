# SPDX-License-Identifier: Apache-2.0
"""A Keras model's configuration, JSON: are its layers those of a ResNet?

It is the attribute `model_config` of an HDF5 file of a whole model, and
`config.json` in a `.keras` file: each layer has `class_name` and `config`, and
a model's `config` has `layers`.  Nothing is built from it.  Source: Keras
3.15.1, `saving/serialization_lib.py`, and its files.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.system import errors, files

_STRIDED = re.compile(r'conv1_conv|res[345]_1_(branch1|branch2a)_conv')
# Fields of layers that have a name of their own.
_NAMED: dict[str, dict[str, Any]] = {
  'conv1_pad': {'padding': ((3, 3), (3, 3))},
  'pool1_pad': {'padding': ((1, 1), (1, 1))},
  'pool1_pool': {'pool_size': (3, 3), 'strides': (2, 2), 'padding': 'valid'},
}


@dataclasses.dataclass(frozen=True)
class KerasLayer:
  """A layer of a model.

  Attributes:
    kind: its class in Keras: 'Conv2D'.
    name: of the layer.
    fields: its configuration.
  """

  kind: str
  name: str
  fields: Mapping[str, Any]

  @property
  def snake_kind(self) -> str:
    """The class as in Keras' default names: 'max_pooling2d'."""
    return re.sub(r'(?<!^)(?=[A-Z][a-z])', '_', self.kind).lower()


def parse(path: pathlib.Path, text: str | None) -> tuple[KerasLayer, ...]:
  """The layers, with those of nested models in their places; () for no text.

  Raises:
    UserError: it is not in Keras' format.
  """
  if text is None:
    return ()
  try:
    # A stack, because a file can nest models deeply.
    waiting, found = [files.read_json(text)], []
    while waiting:
      entry = waiting.pop()
      fields = entry['config']
      if 'layers' in fields:
        waiting.extend(reversed(fields['layers']))
        continue
      name = fields.get('name', '')
      if not isinstance(name, str):
        raise TypeError(f'the name {ascii(name)[:99]}')
      found.append(KerasLayer(str(entry['class_name']), name, fields))
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f"{path} is damaged: the model's configuration is not what Keras writes"
      f' ({type(error).__name__}: {error}). Save the model again.'
    ) from error
  return tuple(found)


def check(
  path: pathlib.Path, layers: Sequence[KerasLayer], canonical: Mapping[str, str]
) -> None:
  """Raises a UserError that names all layers that differ from ResNet's.

  Args:
    path: for messages.
    layers: of the model; may be empty.
    canonical: of each layer of the file, the canonical one.
  """
  faults = [
    f'{layer.name} has {field}={_short(layer.fields[field])}, not {value}'
    for layer in layers
    for field, value in _expected(layer, canonical).items()
    if field in layer.fields and _plain(layer.fields[field]) != value
  ]
  kinds = {layer.kind for layer in layers}
  if 'MaxPooling2D' in kinds and 'pool1_pad' not in {x.name for x in layers}:
    faults.append(
      'pool1_pad is missing: its max pool has no padding, as in Keras until'
      ' August 2018 (55 pixels, not 56), which is not supported'
    )
  if faults:
    raise errors.UserError(
      f"{path} does not hold keras.applications' ResNet, by its configuration:"
      f' {"; ".join(faults[:20])}. Give a ResNet50, ResNet101 or ResNet152 of'
      ' keras.applications.'
    )


def epsilon(
  path: pathlib.Path, layers: Sequence[KerasLayer], canonical: Mapping[str, str]
) -> float | None:
  """The epsilon of the batch norms; None if it is not stated.

  Raises:
    UserError: it is not one number between 0 and 1.
  """
  stated = [
    layer.fields['epsilon']
    for layer in layers
    if layer.name in canonical and 'epsilon' in layer.fields
  ]
  if not stated:
    return None
  value = stated[0]
  same = stated == [value] * len(stated)
  if not same or not isinstance(value, float) or not 0 < value < 1:
    listed = ', '.join(dict.fromkeys(map(_short, stated)))[:200]
    raise errors.UserError(
      f'{path}: epsilon is {listed}. All batch norms must have the same,'
      ' between 0 and 1.'
    )
  return value


def _expected(
  layer: KerasLayer, canonical: Mapping[str, str]
) -> dict[str, Any]:
  """The fields of a layer in a ResNet, if it states them."""
  if layer.kind == 'Activation' and layer.name.endswith(('_relu', '_out')):
    return {'activation': 'relu'}
  ours = canonical.get(layer.name, '')
  if layer.kind != 'Conv2D' or not ours:
    return _NAMED.get(layer.name, {})
  stride = 2 if _STRIDED.fullmatch(ours) else 1
  expected: dict[str, Any] = {
    'strides': (stride, stride),
    'dilation_rate': (1, 1),
    'groups': 1,
    'activation': 'linear',
  }
  # For a 1x1 kernel the two are the same.
  if ours == 'conv1_conv':
    expected['padding'] = 'valid'
  elif ours.endswith('branch2b_conv'):
    expected['padding'] = 'same'
  return expected


def _plain(value: Any) -> Any:
  return tuple(map(_plain, value)) if isinstance(value, list) else value


def _short(value: Any) -> str:
  return ascii(value)[:99]
