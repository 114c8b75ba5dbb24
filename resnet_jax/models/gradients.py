# SPDX-License-Identifier: Apache-2.0
"""A 3x3 convolution to train with, whose kernel's gradient is fast on a CPU.

XLA's CPU compiler copies both factors of a kernel's gradient into another
order, which takes longer than the products.  Here it is matrix products over a
few images at a time, small enough for the processor's cache.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Pixels of a product, measured on a CPU: of 2048 to 16384 the fastest.
_PIXELS = 4096


def convolve(
  x: jax.Array, kernel: jax.Array, stride: int, precision: lax.Precision
) -> jax.Array:
  """A 3x3 convolution padded by 1, in one group.

  Args:
    x: (N, H, W, Ci).
    kernel: (3, 3, Ci, Co).
    stride: in both directions.
    precision: of the products of float32 numbers.

  Returns:
    (N, ceil(H / stride), ceil(W / stride), Co).
  """
  # Within `shard_map` a kernel is the same on all devices and its gradient is
  # not, until it is summed; JAX sums it here, where the kernel is made to
  # depend on the images, in name only.
  of_device = jnp.broadcast_to(lax.stop_gradient(x[0, 0, 0, 0]), kernel.shape)
  kernel = lax.select(jnp.zeros(kernel.shape, bool), of_device, kernel)
  return _convolve(x, kernel, stride, precision)


def _direct(
  x: jax.Array, kernel: jax.Array, stride: int, precision: lax.Precision
) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=precision,
  )


_convolve = jax.custom_vjp(_direct, nondiff_argnums=(2, 3))


def _forward(
  x: jax.Array, kernel: jax.Array, stride: int, precision: lax.Precision
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _direct(x, kernel, stride, precision), (x, kernel)


def _backward(
  stride: int,
  precision: lax.Precision,
  kept: tuple[jax.Array, jax.Array],
  gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept

  def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _direct(x, kernel, stride, precision)

  def blocked(x: jax.Array, gradient: jax.Array) -> jax.Array:
    return _blocked(x, gradient, stride, precision)

  def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
    return jax.vjp(functools.partial(direct, x), kernel)[1](gradient)[0]

  return (
    jax.vjp(lambda x: direct(x, kernel), x)[1](gradient)[0],
    lax.platform_dependent(x, gradient, cpu=blocked, default=of_kernel),
  )


_convolve.defvjp(_forward, _backward)


def _blocked(
  x: jax.Array, gradient: jax.Array, stride: int, precision: lax.Precision
) -> jax.Array:
  """The gradient of a kernel (3, 3, Ci, Co).

  With the input's rows shifted by ky side by side, and the gradient's columns
  shifted the other way by kx, one product of two narrow matrices has all nine
  places of the kernel.
  """
  n, height, width, inputs = x.shape
  outputs = gradient.shape[-1]
  if stride > 1:
    missing = [(size - 1) % stride for size in (height, width)]
    gradient = lax.pad(
      gradient,
      jnp.zeros((), gradient.dtype),
      [(0, 0, 0), *((0, after, stride - 1) for after in missing), (0, 0, 0)],
    )

  block = math.gcd(n, max(1, _PIXELS // (height * width)))

  def product(images: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, gradient = images
    rows = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    columns = jnp.pad(gradient, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return lax.dot_general(
      jnp.concatenate(
        [rows[:, k : k + height] for k in range(3)], axis=-1
      ).reshape(-1, 3 * inputs),
      jnp.concatenate(
        [columns[:, :, 2 - k : 2 - k + width] for k in range(3)], axis=-1
      ).reshape(-1, 3 * outputs),
      (((0,), (0,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.float32,
    )

  blocks = (
    x.reshape(n // block, block, height, width, inputs),
    gradient.reshape(n // block, block, height, width, outputs),
  )
  total = lax.map(product, blocks).sum(0)
  kernel = total.reshape(3, inputs, 3, outputs).transpose(0, 2, 1, 3)
  return kernel.astype(x.dtype)
