# SPDX-License-Identifier: Apache-2.0
"""One image computed by several devices at once.

With fewer images than devices, some devices would idle.  Instead they share an
image: each has an equal number of its rows, in order, and exchanges rows at the
seams before a layer whose windows reach over them.  From the stage on whose
rows do not divide evenly, each has the whole maps and computes its share of the
output channels, with its share of the kernel.

All of it runs under `jax.shard_map` over the axis AXIS.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import structure
from resnet_jax.models.variant import Variant

AXIS = 'share'

# Each stage has half of the rows of the one before, and pieces of maps cost more
# to exchange than to compute (docs/performance.md).
_MOST_DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Share:
  """How devices share an image.

  Attributes:
    devices: their number; 1: nothing is shared.
    whole_from: the first stage with whole maps and a share of the channels;
      the stages before it have a share of the rows.
  """

  devices: int = 1
  whole_from: int = 0

  def has_rows(self, stage: int) -> bool:
    """Whether a stage has a share of the rows; 1 is the stem."""
    return self.devices > 1 and stage < self.whole_from

  def has_channels(self, stage: int) -> bool:
    """Whether a stage has a share of the channels."""
    return self.devices > 1 and stage >= self.whole_from

  def outputs(self, unit: structure.Unit) -> int:
    """The output channels of a convolution that a device computes.

    All of one in groups, which costs little.
    """
    if self.has_channels(unit.stage) and unit.groups == 1:
      return unit.outputs // self.devices
    return unit.outputs


def possible(depth: int, variant: Variant, height: int, devices: int) -> Share:
  """How up to `devices` share an image of a height, as evenly as they can.

  Networks without a pool (CIFAR) take less time than the exchange would.
  """
  count = 1 << (min(devices, _MOST_DEVICES).bit_length() - 1)
  if not structure.ARCHITECTURES[depth].pool:
    return Share()
  while count > 1:
    rows, left = divmod(height, 4 * count)
    share = Share(count, _whole_from(depth, variant, rows))
    units = structure.units(depth, variant)
    if rows and not left and all(unit.outputs % count == 0 for unit in units):
      return share
    count //= 2
  return Share()


def _whole_from(depth: int, variant: Variant, rows: int) -> int:
  """The first stage whose rows do not divide; `rows`: a device's of res2."""
  last = structure.blocks(depth, variant)[-1].stage
  for stage in range(3, last + 1):
    if rows % 2:
      return stage
    rows //= 2
  return last + 1


def with_neighbours(
  x: jax.Array, above: int, below: int, fill: float = 0.0
) -> jax.Array:
  """A device's rows with the last ones of the device above, and so on.

  Args:
    x: (N, rows, W, C).
    above: rows of the device above.
    below: rows of the device below.
    fill: instead of rows beyond the image.

  Returns:
    (N, above + rows + below, W, C).
  """
  # One exchange: each takes a lock, which is what costs time.
  edges = jnp.concatenate([x[:, :below], x[:, x.shape[1] - above :]], axis=1)
  every = lax.all_gather(edges, AXIS)
  beyond = jnp.full((1, *edges.shape), fill, x.dtype)
  every = jnp.concatenate([beyond, every, beyond])
  place = lax.axis_index(AXIS)
  before = lax.dynamic_index_in_dim(every, place, keepdims=False)[:, below:]
  behind = lax.dynamic_index_in_dim(every, place + 2, keepdims=False)[:, :below]
  return jnp.concatenate([before, x, behind], axis=1)


def whole_rows(x: jax.Array) -> jax.Array:
  """(N, rows, W, C) of each device to (N, H, W, C) on all."""
  return lax.all_gather(x, AXIS, axis=1, tiled=True)


def whole_channels(x: jax.Array) -> jax.Array:
  """(N, H, W, channels) of each device to (N, H, W, C) on all."""
  return lax.all_gather(x, AXIS, axis=3, tiled=True)
