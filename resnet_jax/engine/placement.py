# SPDX-License-Identifier: Apache-2.0
"""The parameters of a network on its devices.

On a CPU, all devices use one copy, and the vectors are one array: a call takes
two microseconds for each array and device, which counts where it computes a
single image.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.models import folding, resnet, sharing

# Bytes; XLA's on a CPU.
_ALIGNMENT = 64

# The name of the vectors' array, which no parameter has.
_VECTORS = 'vectors'


@dataclasses.dataclass(frozen=True)
class Key:
  """What one array on the devices is.

  Attributes:
    names: of the parameters in it.
    sharding: of the array.
    shape: of the array, which differs between the algorithms of a convolution.
  """

  names: tuple[str, ...]
  sharding: jax.sharding.Sharding
  shape: tuple[int, ...]


Placed = dict[Key, jax.Array]


def place(
  module: resnet.ResNet,
  parameters: Mapping[str, np.ndarray],
  needed: Sequence[str],
  mesh: jax.sharding.Mesh,
  placed: Placed,
) -> dict[str, jax.Array]:
  """Puts parameters on devices: a copy on each, or its part of them.

  Args:
    module: the network, with its `inference`.
    parameters: `layer/leaf` arrays of the network as defined.
    needed: names of parameters of the network with its `inference`.
    mesh: the devices.
    placed: arrays on the devices already; gets those that were missing.

  Returns:
    Arrays for `unpacked`.
  """
  keys = _keys(module, needed, mesh)
  missing = {name: key for name, key in keys.items() if key not in placed}
  names = [name for key in missing.values() for name in key.names]
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  folded = folding.folded(module, parameters, names)
  for key in missing.values():
    arrays = [next(folded)[1] for _ in key.names]
    array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    aligned = _aligned(array) if on_cpu else array
    placed[key] = jax.device_put(aligned, key.sharding)
  return {name: placed[key] for name, key in keys.items()}


def unpacked(
  module: resnet.ResNet, needed: Sequence[str], arrays: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """The parameters by name, from what `place` returned."""
  if _VECTORS not in arrays:
    return arrays
  shapes = resnet.parameter_shapes(module)
  found = {name: array for name, array in arrays.items() if name != _VECTORS}
  begin = 0
  for name in _whole_vectors(module, needed):
    end = begin + shapes[name][0]
    found[name] = arrays[_VECTORS][begin:end]
    begin = end
  return found


def _keys(
  module: resnet.ResNet, needed: Sequence[str], mesh: jax.sharding.Mesh
) -> dict[str, Key]:
  shapes = resnet.parameter_shapes(module)
  held = resnet.parameter_shapes(module, held=True)
  keys = {}
  vectors: tuple[str, ...] = ()
  if mesh.devices.flat[0].platform == 'cpu':
    vectors = _whole_vectors(module, needed)
  for name in needed:
    if name in vectors:
      continue
    # Along the axis of which a device has a part, if there is one.
    spec = PartitionSpec(
      *(
        sharing.AXIS if part < whole else None
        for part, whole in zip(held[name], shapes[name], strict=True)
      )
    )
    keys[name] = Key((name,), NamedSharding(mesh, spec), shapes[name])
  if vectors:
    count = sum(shapes[name][0] for name in vectors)
    copied = NamedSharding(mesh, PartitionSpec())
    keys[_VECTORS] = Key(vectors, copied, (count,))
  return keys


def _whole_vectors(
  module: resnet.ResNet, needed: Sequence[str]
) -> tuple[str, ...]:
  """The vectors that each device has whole."""
  shapes = resnet.parameter_shapes(module)
  held = resnet.parameter_shapes(module, held=True)
  return tuple(
    name
    for name in needed
    if len(shapes[name]) == 1 and held[name] == shapes[name]
  )


def _aligned(array: np.ndarray) -> np.ndarray:
  """A copy that all devices of a CPU use in place.

  JAX copies what is not aligned, once a device.
  """
  room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
  first = -room.ctypes.data % _ALIGNMENT
  copy = room[first : first + array.nbytes].view(array.dtype)
  copy = copy.reshape(array.shape)
  copy[...] = array
  return copy
