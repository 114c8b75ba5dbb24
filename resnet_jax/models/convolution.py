# SPDX-License-Identifier: Apache-2.0
"""The algorithms of convolutions, sums and pools, by shape and platform.

`layers` defines what is computed; this module chooses the algorithm, by the
platform and the arithmetic that the user chose (docs/performance.md).
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax.models import sharing, structure, winograd
from resnet_jax.models.variant import Variant


@dataclasses.dataclass(frozen=True)
class Arithmetic:
  """How numbers are multiplied and added.

  Attributes:
    precision: of the products of float32 numbers.
    dtype: of the activations and kernels.
    winograd: whether 3x3 convolutions of stride 1 take Winograd's algorithm
      where it is faster (on a CPU).
  """

  precision: lax.Precision = lax.Precision.HIGHEST
  dtype: str = 'float32'
  winograd: bool = False


# Fewer channels make a product no faster.
_LEAST_CHANNELS = 64
# With so few tiles, reading the transformed kernel takes longer than the
# products; that of small tiles has less than half of the numbers.
_FEW_TILES = 16

_TILES = {'winograd 4x4': winograd.LARGE, 'winograd 2x2': winograd.SMALL}

ARITHMETICS = {
  # Full float32 products: JAX's default on a GPU rounds the factors to 10 bits
  # (TF32).  Winograd's error against float64 is in docs/performance.md.
  'float32': Arithmetic(winograd=True),
  'direct': Arithmetic(),
  'tf32': Arithmetic(precision=lax.Precision.DEFAULT),
  'bfloat16': Arithmetic(precision=lax.Precision.DEFAULT, dtype='bfloat16'),
}


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a device computes at a time.

  Attributes:
    tiles: of 4x4 pixels in the maps of each stage, from the stem on; (): many.
    share: how devices share an image.
  """

  tiles: tuple[int, ...] = ()
  share: sharing.Share = sharing.ALONE

  def has_few_tiles(self, unit: structure.Unit) -> bool:
    """Whether a unit's kernel has more numbers than its maps."""
    return bool(self.tiles) and self.tiles[unit.stage - 1] <= _FEW_TILES


# A batch of images, each whole on a device.
MANY = Workload()


def workload(
  depth: int,
  variant: Variant,
  size: tuple[int, int],
  images: tuple[int, int],
  share: sharing.Share,
) -> Workload:
  """The workload of a network.

  Args:
    depth: of the network.
    variant: of the network.
    size: height and width of an image.
    images: at a time, before the last stage and in it.
    share: how devices share an image.
  """
  stem, blocks = (
    structure.ARCHITECTURES[depth],
    structure.blocks(depth, variant),
  )
  scale = stem.stride * (2 if stem.pool else 1)
  sides = [-(-side // scale) for side in size]
  last, tiles = blocks[-1].stage, []
  for stage in range(1, last + 1):
    if stage > 2:
      sides = [-(-side // 2) for side in sides]
    rows, columns = sides
    if share.has_rows(stage):
      rows //= share.devices
    count = images[1] if stage == last else images[0]
    tiles.append(count * -(-rows // 4) * -(-columns // 4))
  return Workload(tuple(tiles), share)


def algorithm(
  unit: structure.Unit,
  arithmetic: Arithmetic,
  platform: str,
  work: Workload = MANY,
) -> str:
  """The name of an algorithm that `convolve` knows."""
  # A GPU's library chooses for itself, and fuses what follows.
  if platform != 'cpu':
    return 'direct'
  if unit.kernel == 1:
    return 'matrix product'
  # Also in groups: XLA's own take up to five times as long
  # (docs/performance.md).
  if arithmetic.dtype == 'bfloat16':
    ours = (unit.kernel, unit.groups) == (3, 1)
    return 'shifted products' if ours else 'float32'
  if arithmetic.winograd and (unit.kernel, unit.stride) == (3, 1):
    return 'winograd 2x2' if work.has_few_tiles(unit) else 'winograd 4x4'
  return 'direct'


def kernel_shape(unit: structure.Unit, name: str) -> tuple[int, ...]:
  """The shape of the kernel that `convolve` takes for an algorithm."""
  inputs = unit.inputs // unit.groups
  if name not in _TILES:
    return unit.kernel, unit.kernel, inputs, unit.outputs
  return _TILES[name].points, inputs * _joined_groups(unit), unit.outputs


def _joined_groups(unit: structure.Unit) -> int:
  """How many groups are computed as one, with zeros between them.

  A product of few channels takes as long as one of `_LEAST_CHANNELS`.
  """
  own = unit.inputs // unit.groups
  return max(
    n
    for n in range(1, unit.groups + 1)
    if unit.groups % n == 0 and (n == 1 or n * own <= _LEAST_CHANNELS)
  )


def prepared(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A kernel (ky, kx, Ci / groups, Co) as `kernel_shape` gives it."""
  if kernel.shape == shape:
    return kernel
  own, outputs = kernel.shape[2:]
  if (joined := shape[1] // own) > 1:
    # An output takes the inputs of its own group, and zeros for the others'.
    wide = np.zeros((*kernel.shape[:2], joined, own, outputs), kernel.dtype)
    # Groups have as many outputs as inputs.
    group = np.arange(outputs) // own % joined
    for place in range(joined):
      chosen = group == place
      wide[:, :, place, :, chosen] = kernel[..., chosen].transpose(3, 0, 1, 2)
    kernel = wide.reshape(*kernel.shape[:2], shape[1], outputs)
  tile = next(t for t in _TILES.values() if t.points == shape[0])
  return tile.transformed(kernel)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  unit: structure.Unit,
  precision: lax.Precision,
  name: str,
  *,
  share: sharing.Share = sharing.ALONE,
  seam: tuple[int, int] = (0, 0),
) -> jax.Array:
  """A convolution padded by kernel // 2 on every side.

  Args:
    x: (N, H, W, Ci); a device's rows or channels, where they are shared, but
      of the stem the whole image.
    kernel: (ky, kx, Ci / groups, Co), or as `prepared` gives it; a device's
      channels, where they are shared.
    unit: the convolution.
    precision: of the products of float32 numbers.
    name: of the algorithm.
    share: how devices share an image.
    seam: of the stem, where it is shared, further rows above and below.

  Returns:
    (N, ceil(H / stride), ceil(W / stride), Co), of a device's rows or channels
    where they are shared; of bfloat16 on a CPU in float32.
  """
  pad = unit.kernel // 2
  if pad and share.has_rows(unit.stage):
    if unit.stage == 1:
      x = sharing.own_rows(x, unit, share.devices, *seam)
    else:
      # A device's rows are a multiple of the stride.
      x = sharing.with_neighbours(x, pad, pad + 1 - unit.stride)
    pad = 0
  x = _convolved(x, kernel, unit, precision, name, pad=pad)
  if share.takes_part(unit):
    return sharing.total(x)
  if share.gives_part(unit) and not share.keeps_part(unit):
    return sharing.whole_channels(x)
  return x


def _convolved(
  x: jax.Array,
  kernel: jax.Array,
  unit: structure.Unit,
  precision: lax.Precision,
  name: str,
  *,
  pad: int,
) -> jax.Array:
  """A convolution with `pad` rows added above and below."""
  if name in _TILES:
    parts = x.shape[-1] // kernel.shape[1]
    one = functools.partial(winograd.convolve, tile=_TILES[name], beside=pad)
    if parts == 1:
      return one(x, kernel)
    pairs = zip(
      jnp.split(x, parts, axis=-1),
      jnp.split(kernel, parts, axis=-1),
      strict=True,
    )
    return jnp.concatenate([one(*pair) for pair in pairs], axis=-1)
  if name == 'matrix product':
    x = x[:, :: unit.stride, :: unit.stride]
    flat = _product(x, kernel.reshape(x.shape[-1], -1), precision)
    return flat.reshape(*x.shape[:3], -1)
  if name == 'shifted products':
    return _shifted_products(x, kernel, unit.stride, precision, pad=pad)
  if name == 'float32':
    # XLA on a CPU would convert them, too, and convert the sums back.
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(unit.stride,) * 2,
    padding=((pad,) * 2, (unit.kernel // 2,) * 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=unit.groups,
    precision=precision,
  )


def _product(
  x: jax.Array, kernel: jax.Array, precision: lax.Precision
) -> jax.Array:
  """(..., Ci) times (Ci, Co), in float32: (positions, Co).

  Flat, so that it is one product and not a batch.  To float32, because a CPU's
  instructions for bfloat16 add so, and XLA uses them for no other type.
  """
  return lax.dot(
    x.reshape(-1, len(kernel)),
    kernel,
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def _shifted_products(
  x: jax.Array,
  kernel: jax.Array,
  stride: int,
  precision: lax.Precision,
  *,
  pad: int,
) -> jax.Array:
  """A convolution as the sum of a matrix product for each of its weights.

  XLA's own on a CPU knows no bfloat16: it converts the numbers to float32.
  """
  side = len(kernel)
  padded = jnp.pad(x, ((0, 0), (pad,) * 2, (side // 2,) * 2, (0, 0)))
  rows, columns = padded.shape[1] - side + 1, x.shape[2]
  total = sum(
    _product(
      padded[:, i : i + rows : stride, j : j + columns : stride],
      kernel[i, j],
      precision,
    )
    for i in range(side)
    for j in range(side)
  )
  shape = (len(x), -(-rows // stride), -(-columns // stride), -1)
  return jnp.asarray(total).reshape(shape)


def shifted(
  x: jax.Array, offset: jax.Array, relu: bool, platform: str
) -> jax.Array:
  """X (N, H, W, C) plus an offset (C,), and the ReLU if one follows.

  Flat on a CPU, as the matrix products are; a GPU's library fuses it with the
  convolution only in the original shape.
  """
  shape = (-1, x.shape[-1]) if platform == 'cpu' else x.shape
  y = x.reshape(shape) + offset.reshape((1,) * (len(shape) - 1) + (-1,))
  return (nn.relu(y) if relu else y).reshape(x.shape)


def rectified_sum(x: jax.Array, y: jax.Array, platform: str) -> jax.Array:
  """The ReLU of x + y, two arrays (N, H, W, C).

  On a CPU written as another expression with the same bits.  XLA takes a value
  that ends with a maximum with 0 for cheap, and computes it again wherever it
  is used: the sums of all blocks so far for every further block, a quarter of
  ResNet-152's time.  A sum of two arrays it keeps.
  """
  if platform != 'cpu':
    return nn.relu(x + y)
  # Flat, as the matrix products take it, for the same reason.
  flat, other = (array.reshape(-1, array.shape[-1]) for array in (x, y))
  return (jnp.maximum(flat, -other) + other).reshape(x.shape)


def max_pool(
  x: jax.Array, padding: list[tuple[int, int]], platform: str
) -> jax.Array:
  """Max pool 3x3, stride 2.

  Args:
    x: (N, H, W, C).
    padding: before and after the rows, and the columns.
    platform: on a CPU a maximum of slices is three times as fast as XLA's
      windows.

  Returns:
    (N, H', W', C).
  """
  if platform != 'cpu':
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
  for axis, (before, after) in enumerate(padding, start=1):
    count = (x.shape[axis] + before + after - 3) // 2 + 1
    parts = [
      _every_second(x, axis, first - before, count) for first in range(3)
    ]
    x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
  return x


def _every_second(x: jax.Array, axis: int, first: int, count: int) -> jax.Array:
  """`count` lines of an axis, step 2 from `first`; -inf outside of `x`."""
  start = first % 2 if first < 0 else first
  last = min(first + 2 * (count - 1), x.shape[axis] - 1)
  inside = lax.slice_in_dim(x, start, last + 1, 2, axis)
  before = (start - first) // 2
  widths = [(0, 0)] * x.ndim
  widths[axis] = (before, count - before - inside.shape[axis])
  return jnp.pad(inside, widths, constant_values=-jnp.inf)
