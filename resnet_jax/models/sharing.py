# SPDX-License-Identifier: Apache-2.0
"""One image computed by several devices at once.

With fewer images than devices, some devices would idle.  Instead they share an
image.  Of the stages whose rows divide evenly, each device has an equal number
of rows, and gets rows of its neighbours where windows reach over the seam.  Of
the others it has an equal number of each block's output channels, and of the
kernels what leads to them.  An exchange makes the devices wait for one another,
which costs more than the bytes (docs/performance.md); so there is one in each
block of rows and two in each of channels, and none in the stem, where each
device computes the rows at the seam for itself.

All of it runs under `jax.shard_map` over the axis AXIS.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import structure
from resnet_jax.models.variant import Variant

AXIS = 'share'

# The fewer rows a device has, the more exchanges cost beside computing
# (docs/performance.md).
_MOST_DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Share:
  """How devices share an image.

  Attributes:
    devices: their number; 1: nothing is shared.
    whole_from: the first stage with all rows and a share of the channels; the
      stages before it have a share of the rows.
  """

  devices: int = 1
  whole_from: int = 0

  def has_rows(self, stage: int) -> bool:
    """Whether a stage has a share of the rows; 1 is the stem."""
    return self.devices > 1 and stage < self.whole_from

  def has_channels(self, stage: int) -> bool:
    """Whether a stage has a share of the channels."""
    return self.devices > 1 and stage >= self.whole_from

  def takes_part(self, unit: structure.Unit) -> bool:
    """Whether a convolution has a share of the input channels."""
    return self.has_channels(unit.stage) and unit.after_sum

  def gives_part(self, unit: structure.Unit) -> bool:
    """Whether a convolution computes a share of the output channels."""
    # One in groups costs little.
    return (
      self.has_channels(unit.stage) and not unit.after_sum and unit.groups == 1
    )

  def keeps_part(self, unit: structure.Unit) -> bool:
    """Whether a device goes on with its share of the output channels."""
    return self.gives_part(unit) and not unit.relu


# Nothing is shared.
ALONE = Share()


def possible(depth: int, variant: Variant, height: int, devices: int) -> Share:
  """How up to `devices` share an image of a height, as evenly as they can.

  Networks without a pool (CIFAR) take less time than the exchange would.
  """
  count = 1 << (min(devices, _MOST_DEVICES).bit_length() - 1)
  if not structure.ARCHITECTURES[depth].pool:
    return ALONE
  while count > 1:
    rows, left = divmod(height, 4 * count)
    share = Share(count, _whole_from(depth, variant, rows))
    units = structure.units(depth, variant)
    if rows and not left and all(unit.outputs % count == 0 for unit in units):
      return share
    count //= 2
  return ALONE


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


def own_rows(
  x: jax.Array, unit: structure.Unit, devices: int, above: int, below: int
) -> jax.Array:
  """The rows of a whole image that a device's rows of a convolution need.

  Args:
    x: (N, H, W, C), on all devices.
    unit: the convolution.
    devices: that share it.
    above: further rows of the result.
    below: further rows of the result.

  Returns:
    (N, rows, W, C), with rows of zeros beyond the image.
  """
  pad, stride, own = unit.kernel // 2, unit.stride, x.shape[1] // devices
  sides = pad + stride * above, pad + stride * below
  x = jnp.pad(x, ((0, 0), sides, (0, 0), (0, 0)))
  count = own + stride * (above + below - 1) + unit.kernel
  return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * own, count, axis=1)


def filled_beyond(
  x: jax.Array, devices: int, above: int, below: int, fill: float
) -> jax.Array:
  """A device's rows, with those beyond the image replaced.

  Args:
    x: (N, above + rows + below, W, C).
    devices: that share it.
    above: rows that belong to the device above, beyond the image on the first.
    below: likewise, on the last.
    fill: replaces them.
  """
  place, row = lax.axis_index(AXIS), jnp.arange(x.shape[1])
  first = (place == 0) & (row < above)
  last = (place == devices - 1) & (row >= x.shape[1] - below)
  return jnp.where((first | last)[None, :, None, None], fill, x)


def whole_rows(x: jax.Array) -> jax.Array:
  """(N, rows, W, C) of each device to (N, H, W, C) on all."""
  return lax.all_gather(x, AXIS, axis=1, tiled=True)


def whole_channels(x: jax.Array) -> jax.Array:
  """(N, H, W, channels) of each device to (N, H, W, C) on all."""
  return lax.all_gather(x, AXIS, axis=3, tiled=True)


def whole(x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """The whole value of a (C, H, W), whatever part of it a device has."""
  if x.shape[1] < shape[1]:
    return whole_rows(x)
  return whole_channels(x) if x.shape[3] < shape[0] else x


def total(x: jax.Array) -> jax.Array:
  """The sum over all devices, on all."""
  return lax.psum(x, AXIS)
