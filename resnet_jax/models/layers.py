# SPDX-License-Identifier: Apache-2.0
"""The layers of a ResNet, each a module so that its value can be captured.

All take and return (N, H, W, C) arrays.  Paddings are explicit: no published
weights were trained with 'SAME'.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import convolution


@dataclasses.dataclass(frozen=True)
class Inference:
  """How a network is computed at inference.

  Attributes:
    arithmetic: a key of `convolution.ARITHMETICS`.
    platform: the device's, as JAX calls it: 'cpu', 'gpu', ...
    apart: layers whose own values are wanted, so that they are not joined to
      the layers after them.
  """

  arithmetic: str = 'float32'
  platform: str = ''
  apart: frozenset[str] = frozenset()

  @property
  def rules(self) -> convolution.Arithmetic:
    """The arithmetic's data type and precision."""
    return convolution.ARITHMETICS[self.arithmetic]

  def algorithm(self, shape: convolution.Shape) -> str:
    """The algorithm of a convolution; see `convolution.algorithm`."""
    return convolution.algorithm(shape, self.rules, self.platform)

  def kernel_shape(self, shape: convolution.Shape) -> tuple[int, ...]:
    """The shape of a kernel; see `convolution.kernel_shape`."""
    return convolution.kernel_shape(shape, self.algorithm(shape))


# Every layer as defined, in float32.
DEFINITION = Inference()


def _ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  del key
  return jnp.ones(shape)


def _zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  del key
  return jnp.zeros(shape)


class Conv(nn.Module):
  """A square convolution without bias, padded by kernel // 2 on every side.

  Attributes:
    features: output channels.
    kernel: its height and width, an odd number.
    stride: in both directions.
    inference: how it is computed.
  """

  features: int
  kernel: int
  stride: int = 1
  inference: Inference = DEFINITION

  def convolved(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, ceil(H / stride), ceil(W / stride), Co)."""
    shape = convolution.Shape(
      self.kernel, self.stride, x.shape[-1], self.features
    )
    kernel = self.param('kernel', _zeros, self.inference.kernel_shape(shape))
    return convolution.convolve(
      x,
      kernel.astype(x.dtype),
      shape,
      self.inference.rules.precision,
      self.inference.algorithm(shape),
    )

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, ceil(H / stride), ceil(W / stride), Co)."""
    return self.convolved(x)


class FoldedConv(Conv):
  """A convolution with its batch norm, ReLU and pool folded in.

  It has the name of the last layer that it replaces.

  Attributes:
    relu: whether a ReLU follows.
    pool: the padding of the pool after that; '': no pool.  It runs before the
      offset is added, which then adds a quarter of the numbers; the maximum
      of x + c is the maximum of x, plus c, to the bit.
  """

  relu: bool = True
  pool: str = ''

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, H', W', Co)."""
    x = self.convolved(x)
    if self.pool:
      x = stem_pool(x, self.pool, self.inference.platform)
    # Not `bias`: that is the batch norm's, with other values.
    offset = self.param('offset', _zeros, (self.features,))
    return convolution.shifted(
      x, offset.astype(x.dtype), self.relu, self.inference.platform
    )


class BatchNorm(nn.Module):
  """Batch norm by the stored mean and variance, and the ReLU after it.

  The ReLU is part of it because the original's `_bn` layers include theirs.
  """

  epsilon: float
  relu: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to the same shape."""
    shape = (x.shape[-1],)
    scale = self.param('scale', _ones, shape)
    bias = self.param('bias', _zeros, shape)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape).value
    var = self.variable('batch_stats', 'var', jnp.ones, shape).value
    factor = scale * lax.rsqrt(var + self.epsilon)
    mean, factor, bias = (v.reshape(1, 1, 1, -1) for v in (mean, factor, bias))
    y = ((x - mean) * factor + bias).astype(x.dtype)
    return nn.relu(y) if self.relu else y


class AddTo(nn.Module):
  """The end of a block: the branch and its shortcut summed, then ReLU."""

  inference: Inference = DEFINITION

  def __call__(self, branch: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Two (N, H, W, C) to one."""
    return convolution.rectified_sum(branch, shortcut, self.inference.platform)


def padded_shortcut(x: jax.Array, channels: int, stride: int) -> jax.Array:
  """A shortcut without parameters, where a block changes the shape.

  The paper's option A.  Half of the zeros go before the channels and half
  after, as in akamaster/pytorch_resnet_cifar10, whose weights are in use; the
  paper does not say.

  Args:
    x: (N, H, W, C).
    channels: of the result, C or more.
    stride: between the pixels that are kept.

  Returns:
    (N, ceil(H / stride), ceil(W / stride), channels).
  """
  zeros = channels - x.shape[-1]
  sides = (zeros // 2, zeros - zeros // 2)
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), sides))


def stem_pool(x: jax.Array, rule: str, platform: str = '') -> jax.Array:
  """Max pool 3x3, stride 2.

  Args:
    x: (N, H, W, C).
    rule: 'ceil', Caffe's and Paddle's: no padding, the number of windows
      rounded up, so that at an even size the last window extends over the
      right and the bottom edge; or 'pad1', torchvision's and Keras': one pixel
      on every side.  At 112 both give 56, on grids one pixel apart.
    platform: the device's.
  """
  padding = [stem_pool_padding(rule, size) for size in x.shape[1:3]]
  return convolution.max_pool(x, padding, platform)


def stem_pool_padding(rule: str, size: int) -> tuple[int, int]:
  """The padding of `stem_pool` before and after a height or width."""
  return {'ceil': (0, (size - 3) % 2), 'pad1': (1, 1)}[rule]


class StemPool(nn.Module):
  """The pool of the stem; see `stem_pool`."""

  rule: str
  inference: Inference = DEFINITION

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to half the size by `rule`."""
    return stem_pool(x, self.rule, self.inference.platform)


class GlobalAveragePool(nn.Module):
  """The mean over all positions, whatever the size."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, 1, 1, C)."""
    return x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)


class Classifier(nn.Module):
  """A fully connected layer over the channels."""

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, 1, 1, C) to (N, 1, 1, classes)."""
    kernel = self.param('kernel', _zeros, (x.shape[-1], self.classes))
    bias = self.param('bias', _zeros, (self.classes,))
    x = lax.dot_general(
      x, kernel, (((3,), (0,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    return x + bias[None, None, None]


class Softmax(nn.Module):
  """Probabilities over the channels."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, 1, 1, C) to the same shape, each C summing to 1."""
    return nn.softmax(x, axis=-1)
