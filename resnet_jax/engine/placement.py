# SPDX-License-Identifier: Apache-2.0
"""The parameters of a network on its devices.

On a CPU, all devices use one copy, and the vectors are one array: JAX looks at
each array of each device at each call, which counts where that computes a
single image.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.models import folding, resnet, sharing

# Bytes; XLA's on a CPU.
_ALIGNMENT = 64

# The name of the vectors' array, which no parameter has.
_VECTORS = 'vectors'


@dataclasses.dataclass(frozen=True)
class Block:
  """An array on the devices.

  Attributes:
    names: of the parameters in it.
    shape: of the array, which differs between the algorithms of a convolution.
    dtype: of its numbers.
    spec: along which axis a device has a part, if along any.
    devices: that have it: of a whole array all, whatever program uses it.
  """

  names: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: str
  spec: PartitionSpec
  devices: tuple[jax.Device, ...]


# What each of the devices has.
Placed = dict[Block, list[jax.Array]]


class Placement:
  """Where the parameters of one program lie."""

  def __init__(
    self,
    module: resnet.ResNet,
    needed: Sequence[str],
    mesh: Mesh,
    devices: Sequence[jax.Device],
  ) -> None:
    """Puts nothing on a device yet.

    Args:
      module: the network, with its `inference`.
      needed: names of parameters of the network with its `inference`.
      mesh: the devices that work.
      devices: all available.
    """
    self._module = module
    self._mesh = mesh
    self._vectors: tuple[str, ...] = ()
    self._whole = resnet.parameter_shapes(module)
    held = resnet.parameter_shapes(module, held=True)
    every, working = tuple(devices), tuple(mesh.devices.flat)
    if every[0].platform == 'cpu':
      self._vectors = tuple(
        name
        for name in needed
        if len(held[name]) == 1 and held[name] == self._whole[name]
      )
    self._blocks = {}
    for name in needed:
      if name in self._vectors:
        continue
      axes = (
        sharing.AXIS if part < whole else None
        for part, whole in zip(held[name], self._whole[name], strict=True)
      )
      shape, dtype = self._whole[name], folding.dtype(module, name)
      if held[name] == shape:
        block = Block((name,), shape, dtype, PartitionSpec(), every)
      else:
        block = Block((name,), shape, dtype, PartitionSpec(*axes), working)
      self._blocks[name] = block
    if self._vectors:
      count = sum(self._whole[name][0] for name in self._vectors)
      block = Block(self._vectors, (count,), 'float32', PartitionSpec(), every)
      self._blocks[_VECTORS] = block

  @property
  def specs(self) -> dict[str, PartitionSpec]:
    """The parts of the arrays that a device has."""
    return {name: block.spec for name, block in self._blocks.items()}

  @property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What `place` returns, without the numbers."""
    return {
      name: jax.ShapeDtypeStruct(
        block.shape, block.dtype, sharding=self._sharding(block)
      )
      for name, block in self._blocks.items()
    }

  def place(
    self, parameters: Mapping[str, np.ndarray], placed: Placed
  ) -> dict[str, jax.Array]:
    """Puts the parameters on the devices.

    Args:
      parameters: `layer/leaf` arrays of the network as defined.
      placed: what is on the devices already; gets what was missing.
    """
    missing = [block for block in self._blocks.values() if block not in placed]
    names = [name for block in missing for name in block.names]
    folded = folding.folded(self._module, parameters, names)
    for block in missing:
      arrays = [next(folded)[1] for _ in block.names]
      array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
      placed[block] = self._put(block, array)
    return {
      name: jax.make_array_from_single_device_arrays(
        block.shape,
        self._sharding(block),
        placed[block][: self._mesh.size],
      )
      for name, block in self._blocks.items()
    }

  def unpacked(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters by name, from the arrays of a device."""
    found = {name: array for name, array in arrays.items() if name != _VECTORS}
    begin = 0
    for name in self._vectors:
      end = begin + self._whole[name][0]
      found[name] = arrays[_VECTORS][begin:end]
      begin = end
    return found

  def _sharding(self, block: Block) -> NamedSharding:
    return NamedSharding(self._mesh, block.spec)

  def _put(self, block: Block, array: np.ndarray) -> list[jax.Array]:
    if block.spec != PartitionSpec():
      whole = jax.device_put(array, self._sharding(block))
      return [shard.data for shard in whole.addressable_shards]
    if block.devices[0].platform == 'cpu':
      array = _aligned(array)
    return [jax.device_put(array, device) for device in block.devices]


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
