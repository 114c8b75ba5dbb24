# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions with fewer multiplications.

Winograd's minimal filtering: a tile of 4x4 results costs 36 products a channel
instead of 144, one of 2x2 results 16 instead of 36; the rest is additions.
Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
arXiv:1509.09308, sections 4.1 and 4.3, F(2x2, 3x3) and F(4x4, 3x3).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
  """The transforms of a tile, applied from both sides.

  Attributes:
    size: results in each direction.
    data: of the input's `size` + 2 lines.
    kernel: of the kernel's three lines.
    result: of the products.
  """

  size: int
  data: np.ndarray
  kernel: np.ndarray
  result: np.ndarray

  @property
  def points(self) -> int:
    """Products a channel."""
    return (self.size + 2) ** 2

  def transformed(self, kernel: np.ndarray) -> np.ndarray:
    """A kernel (3, 3, Ci, Co) as `convolve` takes it, (points, Ci, Co)."""
    flat = kernel.reshape(9, -1)
    both = np.kron(self.kernel, self.kernel).astype(np.float32) @ flat
    return both.reshape(-1, *kernel.shape[2:])


LARGE = Tile(
  4,
  np.array(
    [
      [4, 0, -5, 0, 1, 0],
      [0, -4, -4, 1, 1, 0],
      [0, 4, -4, -1, 1, 0],
      [0, -2, -1, 2, 1, 0],
      [0, 2, -1, -2, 1, 0],
      [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
  ),
  np.array(
    [
      [1 / 4, 0, 0],
      [-1 / 6, -1 / 6, -1 / 6],
      [-1 / 6, 1 / 6, -1 / 6],
      [1 / 24, 1 / 12, 1 / 6],
      [1 / 24, -1 / 12, 1 / 6],
      [0, 0, 1],
    ],
    np.float64,
  ),
  np.array(
    [
      [1, 1, 1, 1, 1, 0],
      [0, 1, -1, 2, -2, 0],
      [0, 1, 1, 4, 4, 0],
      [0, 1, -1, 8, -8, 1],
    ],
    np.float32,
  ),
)
SMALL = Tile(
  2,
  np.array(
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32
  ),
  np.array(
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    np.float64,
  ),
  np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32),
)


# Traced once for all the layers of a shape.
@functools.partial(jax.jit, static_argnames=('tile', 'beside'))
def convolve(
  x: jax.Array, kernel: jax.Array, tile: Tile, beside: int = 1
) -> jax.Array:
  """A 3x3 convolution of stride 1, padded by 1.

  Args:
    x: (N, H, W, Ci).
    kernel: (points, Ci, Co), as `Tile.transformed` gives it.
    tile: of the kernel.
    beside: rows of padding to add; 0 if `x` has them.

  Returns:
    (N, H, W, Co).
  """
  n, height, width, channels = x.shape
  height -= 2 - 2 * beside
  size = tile.size
  rows, columns = -(-height // size), -(-width // size)
  below, right = rows * size - height, columns * size - width
  pads = (0, 0), (beside, beside + below), (1, 1 + right), (0, 0)
  x = jnp.pad(x, pads)
  # The first direction as a small matrix product over all pixels, the second
  # as sums of slices: the fastest on a CPU of all combinations measured.
  x = jnp.stack(_every(x, size, 1, rows))
  x = _product(tile.data, x)  # (size + 2, N, rows, W, Ci)
  parts = _every(x, size, 3, columns)
  x = jnp.stack([_combined(line, parts) for line in tile.data], axis=1)
  x = x.reshape(tile.points, n * rows * columns, channels)
  x = lax.dot_general(
    x, kernel, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
  )
  x = _product(np.kron(tile.result, tile.result), x)
  x = x.reshape(size, size, n, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
  x = x.reshape(n, rows * size, columns * size, -1)
  return x[:, :height, :width]


def _every(x: jax.Array, size: int, axis: int, count: int) -> list[jax.Array]:
  """The first, second, ... lines of all overlapping tiles along an axis."""
  return [
    lax.slice_in_dim(x, first, first + size * (count - 1) + 1, size, axis)
    for first in range(size + 2)
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
