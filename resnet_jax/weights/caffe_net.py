# SPDX-License-Identifier: Apache-2.0
"""Caffe's NetParameter: the layers of a `.caffemodel`.

Source: BVLC Caffe, src/caffe/proto/caffe.proto (field numbers) and
src/caffe/util/upgrade_proto.cpp (older formats).
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from resnet_jax.codecs import blob, faults, protobuf
from resnet_jax.codecs.tensor import map_file

# By the name of a setting: its field numbers in the message (pads and strides
# have one for both directions and one for each), and its default.
_Stated = Mapping[str, tuple[tuple[int, ...], float]]
_CONVOLUTION: _Stated = {
  'group': ((5,), 1),
  'stride': ((6, 13, 14), 1),
  'dilation': ((18,), 1),
}
_POOLING: _Stated = {'pad': ((4, 9, 10), 0)}
_BATCH_NORM: _Stated = {'epsilon': ((3,), 1e-5)}


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """Field numbers of a layer in one of the two formats."""

  text: str
  name: int
  kind: int
  blobs: int
  settings: Mapping[int, _Stated]
  begins: tuple[int, ...]


# By the field of NetParameter that holds the layers.
_V2 = {106: _CONVOLUTION, 121: _POOLING, 139: _BATCH_NORM}
_V1 = {10: _CONVOLUTION, 19: _POOLING}
_LAYERS = {
  100: _Numbers('layer', 1, 2, 7, _V2, (1, 2)),
  2: _Numbers('V1 layers', 4, 5, 6, _V1, (1, 2, 3, 4, 5)),
}
_V0_LAYER = 1  # of a V1 layer
_V1_INNER_PRODUCT = 14
INNER_PRODUCT = 'InnerProduct'

# A ResNet-152 has 773 layers, and three blobs at most.
_MAX_LAYERS = 2000
_MAX_BLOBS = 8

# Wire types of NetParameter's other fields.
_NET_WIRES = {
  **dict.fromkeys((1, 3, 6, 8), protobuf.BYTES),
  **dict.fromkeys((4, 5, 7), protobuf.VARINT),
}


@dataclasses.dataclass(frozen=True)
class CaffeLayer:
  """A layer.

  Attributes:
    name: the net's.
    kind: its type; in V1 files only 'InnerProduct' or ''.
    blobs: its parameters.
    settings: values of 'group', 'stride', 'dilation', 'pad' and 'epsilon', for
      layers that have them.
  """

  name: str
  kind: str
  blobs: tuple[blob.Blob, ...]
  settings: Mapping[str, set[float]]


def recognise(head: bytes) -> bool:
  """Whether bytes begin as a NetParameter or a SolverState does."""
  return _is_solver_state(head) or _begins_as_net(memoryview(head))


def read(path: pathlib.Path) -> tuple[str, dict[str, CaffeLayer]]:
  """The format of a file's layers, and the layers by name.

  Several layers may share a name, usually ones without weights; the one with
  weights is returned.

  Raises:
    UserError: the file is damaged, or is not a network with weights.
  """
  with faults.reported(path):
    view = map_file(path)
    if _is_solver_state(bytes(view[:512])):
      raise faults.RefusedError(
        'it is the state of a solver (.solverstate), not a network. Give the'
        ' .caffemodel that was saved with it'
      )
    return _layers(view)


def _is_solver_state(head: bytes) -> bool:
  """Whether bytes begin with an iteration and the name of a .caffemodel."""
  try:
    fields = protobuf.fields(memoryview(head))
    first, second = next(fields), next(fields)
    return (
      (first.number, first.wire) == (1, protobuf.VARINT)
      and second.number == 2
      and second.text().endswith('.caffemodel')
    )
  except (ValueError, StopIteration):
    return False


def _begins_as_net(head: memoryview) -> bool:
  """Whether bytes hold a NetParameter's fields up to its first layer."""
  at = 0
  try:
    while True:
      number, wire, at = protobuf.key(head, at)
      value, at = protobuf.varint(head, at)
      if number in _LAYERS:
        first, _, _ = protobuf.key(head, at)
        return wire == protobuf.BYTES and first in _LAYERS[number].begins
      if _NET_WIRES.get(number) != wire:
        return False
      if wire == protobuf.BYTES:
        if number == 1 and not bytes(head[at:][:value]).decode().isprintable():
          return False
        at += value
  except ValueError:
    return False


def _layers(view: memoryview) -> tuple[str, dict[str, CaffeLayer]]:
  found: dict[str, CaffeLayer] = {}
  texts: set[str] = set()
  layers = (field for field in protobuf.fields(view) if field.number in _LAYERS)
  for count, field in enumerate(layers, start=1):
    if count > _MAX_LAYERS:
      raise faults.RefusedError(f'it has more than {_MAX_LAYERS} layers')
    numbers = _LAYERS[field.number]
    texts.add(numbers.text)
    try:
      layer = _layer(field.message(), numbers)
    except ValueError as error:
      raise ValueError(f'layer {count}: {error}') from error
    if layer.name not in found or not found[layer.name].blobs:
      found[layer.name] = layer
    elif layer.blobs:
      raise ValueError(f"two layers have the name '{layer.name[:99]}'")
  if not any(layer.blobs for layer in found.values()):
    raise faults.RefusedError(
      f'it has {len(found)} layers, none with weights. Give a trained network'
    )
  return ' and '.join(sorted(texts)), found


def _layer(message: memoryview, numbers: _Numbers) -> CaffeLayer:
  name = kind = ''
  blobs: list[blob.Blob] = []
  settings: dict[str, set[float]] = {}
  for field in protobuf.fields(message):
    if field.number == numbers.name:
      name = field.text()
    elif field.number == numbers.kind:
      kind = _kind(field)
    elif field.number == numbers.blobs:
      if len(blobs) == _MAX_BLOBS:
        raise faults.RefusedError(
          f'its layer {name[:99]} has more than {_MAX_BLOBS} blobs'
        )
      try:
        blobs.append(blob.parse_blob(field.message()))
      except ValueError as error:
        raise ValueError(f'{name[:99]}.{len(blobs)}: {error}') from error
    elif field.number in numbers.settings:
      for key, stated in numbers.settings[field.number].items():
        settings[key] = _stated(field.message(), *stated)
    elif numbers is _LAYERS[2] and field.number == _V0_LAYER:
      raise faults.RefusedError(
        "it is in Caffe's oldest format (V0), which is not supported; upgrade"
        " it with Caffe's upgrade_net_proto_binary"
      )
  if kind == 'BatchNorm':
    settings.setdefault('epsilon', {_BATCH_NORM['epsilon'][1]})
  return CaffeLayer(name, kind, tuple(blobs), settings)


def _stated(
  message: memoryview, numbers: tuple[int, ...], default: float
) -> set[float]:
  found: set[float] = set()
  for field in protobuf.fields(message):
    if field.number in numbers and isinstance(default, int):
      found.update(field.integers(16))
    elif field.number in numbers:
      # The shortest decimal of that float32: 1e-05, not 9.9999997e-06.
      found.add(float(str(np.float32(field.float32()))))
  return found or {default}


def _kind(field: protobuf.Field) -> str:
  if field.wire == protobuf.BYTES:
    return field.text()
  return INNER_PRODUCT if field.integer() == _V1_INNER_PRODUCT else ''
