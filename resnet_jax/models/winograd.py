# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions with fewer multiplications.

Winograd's minimal filtering: a tile of 4x4 results costs 36 products a channel
instead of 144; the rest is additions.  Source: Lavin and Gray, "Fast Algorithms
for Convolutional Neural Networks", arXiv:1509.09308, section 4.3, F(4x4, 3x3).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Results of a tile in each direction, and its products a channel.
SIZE = 4
POINTS = (SIZE + 2) ** 2

# Applied from both sides: to a tile of the input, a kernel, and the products.
_DATA = np.array(
  [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
  ],
  np.float32,
)
_KERNEL = np.array(
  [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
  ],
  np.float64,
)
_RESULT = np.array(
  [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
  ],
  np.float32,
)


def transformed(kernel: np.ndarray) -> np.ndarray:
  """A kernel (3, 3, Ci, Co) as `convolve` takes it, (POINTS, Ci, Co)."""
  flat = kernel.reshape(9, -1)
  both = np.kron(_KERNEL, _KERNEL).astype(np.float32) @ flat
  return both.reshape(-1, *kernel.shape[2:])


# Traced once for all the layers of a shape.
@jax.jit
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 3x3 convolution of stride 1, padded by 1.

  Args:
    x: (N, H, W, Ci).
    kernel: (POINTS, Ci, Co), as `transformed` gives it.

  Returns:
    (N, H, W, Co).
  """
  n, height, width, channels = x.shape
  rows, columns = -(-height // SIZE), -(-width // SIZE)
  below, right = rows * SIZE + 1 - height, columns * SIZE + 1 - width
  x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
  # The first direction as a small matrix product over all pixels, the second
  # as sums of slices: the fastest on a CPU of all combinations measured.
  x = jnp.stack(_every(x, 1, rows))
  x = _product(_DATA, x)  # (6, N, rows, W, Ci)
  parts = _every(x, 3, columns)
  x = jnp.stack([_combined(line, parts) for line in _DATA], axis=1)
  x = x.reshape(POINTS, n * rows * columns, channels)
  x = lax.dot_general(
    x, kernel, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
  )
  x = _product(np.kron(_RESULT, _RESULT), x)
  x = x.reshape(SIZE, SIZE, n, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
  x = x.reshape(n, rows * SIZE, columns * SIZE, -1)
  return x[:, :height, :width]


def _every(x: jax.Array, axis: int, count: int) -> list[jax.Array]:
  """The first, second, ... lines of all overlapping tiles along an axis."""
  return [
    lax.slice_in_dim(x, first, first + SIZE * (count - 1) + 1, SIZE, axis)
    for first in range(SIZE + 2)
  ]


def _product(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """A matrix times x, over the first axis of x."""
  flat = x.reshape(len(x), -1)
  product = lax.dot(jnp.asarray(matrix), flat, precision=lax.Precision.HIGHEST)
  return product.reshape(-1, *x.shape[1:])


def _combined(factors: np.ndarray, parts: list[jax.Array]) -> jax.Array:
  """The sum of parts times factors, skipping factors of 0."""
  terms = [
    part if factor == 1 else part * factor
    for factor, part in zip(factors, parts, strict=True)
    if factor
  ]
  return sum(terms[1:], terms[0])
