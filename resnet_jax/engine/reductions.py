# SPDX-License-Identifier: Apache-2.0
"""What is kept of a layer's values."""

import dataclasses
from collections.abc import Sequence

import jax

from resnet_jax.models import resnet
from resnet_jax.system import errors

POOLS = ('none', 'avg', 'max')
DTYPES = ('float32', 'float16')

Shapes = dict[str, tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class Reduction:
  """How a layer's values are reduced.

  Attributes:
    pool: 'none', or 'avg' or 'max' over all positions.
    dtype: 'float32' or 'float16'.
  """

  pool: str = 'none'
  dtype: str = 'float32'

  def __post_init__(self) -> None:
    errors.check_choice('pool', self.pool, POOLS)
    errors.check_choice('dtype', self.dtype, DTYPES)

  def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The (C, H, W) that is left of a layer's."""
    return shape if self.pool == 'none' else (shape[0], 1, 1)


def output_shapes(
  module: resnet.ResNet,
  layers: Sequence[str],
  reduction: Reduction,
  height: int,
  width: int,
) -> Shapes:
  """The (C, H, W) of each layer, reduced, for images of a size."""
  shapes = resnet.value_shapes(module, height, width)
  return {name: reduction.shape(shapes[name]) for name in layers}


def reduce(value: jax.Array, count: int, pool: str) -> jax.Array:
  """(N * crops, H, W, C) to (N, H, W, C), averaged over an image's crops."""
  if pool == 'avg':
    value = value.mean(axis=(1, 2), keepdims=True)
  elif pool == 'max':
    value = value.max(axis=(1, 2), keepdims=True)
  return value.reshape(count, -1, *value.shape[1:]).mean(axis=1)
