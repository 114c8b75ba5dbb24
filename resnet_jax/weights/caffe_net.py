# SPDX-License-Identifier: Apache-2.0
"""Caffe's NetParameter: the layers of a `.caffemodel`.

Source: BVLC Caffe, src/caffe/proto/caffe.proto (field numbers) and
src/caffe/util/upgrade_proto.cpp (older formats).
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from resnet_jax.codecs import blob, faults, protobuf
from resnet_jax.codecs.tensor import map_file


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """Field numbers of a layer in one of the two formats."""

  text: str
  name: int
  kind: int
  blobs: int
  settings: Mapping[int, str]


# By the field of NetParameter that holds the layers.
_LAYERS = {
  100: _Numbers(
    'layer',
    1,
    2,
    7,
    {106: 'convolution', 121: 'pooling', 139: 'batch norm'},
  ),
  2: _Numbers('V1 layers', 4, 5, 6, {10: 'convolution', 19: 'pooling'}),
}
_V0_LAYER = 1  # of a V1 layer
_V1_INNER_PRODUCT = 14
INNER_PRODUCT = 'InnerProduct'

# A ResNet-152 has 773 layers, and three blobs at most.
_MAX_LAYERS = 2000
_MAX_BLOBS = 8

# Wire types of NetParameter's other fields; first fields of a layer by format.
_NET_WIRES = {
  **dict.fromkeys((1, 3, 6, 8), protobuf.BYTES),
  **dict.fromkeys((4, 5, 7), protobuf.VARINT),
}
_LAYER_BEGINS = {100: (1, 2), 2: (1, 2, 3, 4, 5)}


@dataclasses.dataclass(frozen=True)
class CaffeLayer:
  """A layer.

  Attributes:
    name: the net's.
    kind: its type; in V1 files only 'InnerProduct' or ''.
    blobs: its parameters.
    settings: messages by the values of `_Numbers.settings`.
  """

  name: str
  kind: str
  blobs: tuple[blob.Blob, ...]
  settings: Mapping[str, memoryview]


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
    while at < len(head):
      number, wire, at = protobuf.key(head, at)
      length = 0
      if wire == protobuf.BYTES:
        length, at = protobuf.varint(head, at)
      if number in _LAYERS:
        begins = _LAYER_BEGINS[number]
        return wire == protobuf.BYTES and protobuf.key(head, at)[0] in begins
      if _NET_WIRES.get(number) != wire:
        return False
      if wire == protobuf.VARINT:
        _, at = protobuf.varint(head, at)
      elif number == 1 and not bytes(head[at:][:length]).decode().isprintable():
        return False
      at += length
  except ValueError:
    pass
  return False


def _layers(view: memoryview) -> tuple[str, dict[str, CaffeLayer]]:
  found: dict[str, CaffeLayer] = {}
  ways: dict[str, None] = {}
  count = 0
  for field in protobuf.fields(view):
    if field.number not in _LAYERS:
      continue
    count += 1
    if count > _MAX_LAYERS:
      raise faults.RefusedError(f'it has more than {_MAX_LAYERS} layers')
    numbers = _LAYERS[field.number]
    ways[numbers.text] = None
    try:
      layer = _layer(field.message(), numbers)
    except ValueError as error:
      raise ValueError(f'layer {count}: {error}') from error
    if layer.blobs and layer.name in found and found[layer.name].blobs:
      raise ValueError(f"two layers have the name '{layer.name[:99]}'")
    if layer.blobs or layer.name not in found:
      found[layer.name] = layer
  if len(ways) > 1:
    raise faults.RefusedError(
      f'it has both {" and ".join(ways)}; Caffe writes one kind'
    )
  if not any(layer.blobs for layer in found.values()):
    raise faults.RefusedError(
      f'it has {count} layers, none with weights. Give a trained network'
    )
  return next(iter(ways)), found


def _layer(message: memoryview, numbers: _Numbers) -> CaffeLayer:
  name = kind = ''
  blobs: list[blob.Blob] = []
  settings = {}
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
      settings[numbers.settings[field.number]] = field.message()
    elif numbers is _LAYERS[2] and field.number == _V0_LAYER:
      raise faults.RefusedError(
        "it is in Caffe's oldest format (V0), which is not supported; upgrade"
        " it with Caffe's upgrade_net_proto_binary"
      )
  return CaffeLayer(name, kind, tuple(blobs), settings)


def _kind(field: protobuf.Field) -> str:
  if field.wire == protobuf.BYTES:
    return field.text()
  return INNER_PRODUCT if field.integer() == _V1_INNER_PRODUCT else ''
