# SPDX-License-Identifier: Apache-2.0
"""The algorithms of convolutions, sums and pools, by shape and platform.

`layers` defines what is computed; this module chooses the algorithm, by the
platform and the arithmetic that the user chose (docs/performance.md).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax.models import structure, winograd


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

ARITHMETICS = {
  # Full float32 products: JAX's default on a GPU rounds the factors to 10 bits
  # (TF32).  Winograd's error against float64 is in docs/performance.md.
  'float32': Arithmetic(winograd=True),
  'direct': Arithmetic(),
  'tf32': Arithmetic(precision=lax.Precision.DEFAULT),
  'bfloat16': Arithmetic(precision=lax.Precision.DEFAULT, dtype='bfloat16'),
}


def algorithm(
  unit: structure.Unit, arithmetic: Arithmetic, platform: str
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
    return 'winograd'
  return 'direct'


def kernel_shape(unit: structure.Unit, name: str) -> tuple[int, ...]:
  """The shape of the kernel that `convolve` takes for an algorithm."""
  inputs = unit.inputs // unit.groups
  if name != 'winograd':
    return unit.kernel, unit.kernel, inputs, unit.outputs
  return winograd.POINTS, inputs * _joined_groups(unit), unit.outputs


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
  return winograd.transformed(kernel)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  unit: structure.Unit,
  precision: lax.Precision,
  name: str,
) -> jax.Array:
  """A convolution padded by kernel // 2 on every side.

  Args:
    x: (N, H, W, Ci).
    kernel: (ky, kx, Ci / groups, Co), or as `prepared` gives it.
    unit: the convolution.
    precision: of the products of float32 numbers.
    name: of the algorithm.

  Returns:
    (N, ceil(H / stride), ceil(W / stride), Co); on a CPU in float32.
  """
  if name == 'winograd':
    parts = unit.inputs // kernel.shape[1]
    if parts == 1:
      return winograd.convolve(x, kernel)
    pairs = zip(
      jnp.split(x, parts, axis=-1),
      jnp.split(kernel, parts, axis=-1),
      strict=True,
    )
    return jnp.concatenate([winograd.convolve(*p) for p in pairs], axis=-1)
  if name == 'matrix product':
    x = x[:, :: unit.stride, :: unit.stride]
    flat = _product(x, kernel.reshape(unit.inputs, unit.outputs), precision)
    return flat.reshape(*x.shape[:3], unit.outputs)
  if name == 'shifted products':
    return _shifted_products(x, kernel, unit.stride, precision)
  if name == 'float32':
    # XLA on a CPU would convert them, too, and convert the sums back.
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(unit.stride,) * 2,
    padding=((unit.kernel // 2,) * 2,) * 2,
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
  x: jax.Array, kernel: jax.Array, stride: int, precision: lax.Precision
) -> jax.Array:
  """A convolution as the sum of a matrix product for each of its weights.

  XLA's own on a CPU knows no bfloat16: it converts the numbers to float32.
  """
  side = len(kernel)
  padding = (side // 2,) * 2
  padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
  rows, columns = x.shape[1:3]
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
