# SPDX-License-Identifier: Apache-2.0
"""From (N, H, W, C), as the network computes, to (N, C, H, W), as stored.

On a CPU, XLA fuses the transpose with what computes the values, and reads the
memory across its cache lines: two thirds of the time of all layers of a
ResNet-50.  NumPy, some pixels at a time, takes half of that, the copy to the
host included.
"""

from collections.abc import Mapping

import jax
import numpy as np

# Of a block: few enough to stay in a core's nearest cache while each channel is
# picked out, and enough to write long pieces.
_PIXELS = 64


def fetched(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
  """Arrays (..., N, H, W, C) on a CPU's devices, as (..., N, C, H, W).

  Args:
    arrays: sharded along any of the axes before H, or not at all.
  """
  return {name: _channels_first(array) for name, array in arrays.items()}


def _channels_first(array: jax.Array) -> np.ndarray:
  *front, height, width, channels = array.shape
  result = np.empty((*front, channels, height * width), array.dtype)
  for shard in array.addressable_shards:
    if shard.replica_id:
      continue
    # A view of the device's memory.
    part = np.asarray(shard.data)
    _transpose(
      part.reshape(-1, height * width, channels),
      result[shard.index[: len(front)]],
    )
  return result.reshape(*front, channels, height, width)


def _transpose(x: np.ndarray, target: np.ndarray) -> None:
  """Writes x (N, pixels, C) into a target (..., C, pixels)."""
  places = np.ndindex(target.shape[:-2])
  for place, image in zip(places, x, strict=True):
    for first in range(0, len(image), _PIXELS):
      block = slice(first, first + _PIXELS)
      target[place][:, block] = image[block].T
