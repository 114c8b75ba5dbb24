# SPDX-License-Identifier: Apache-2.0
"""The layers of a ResNet, each a module so that its value can be captured.

All take and return (N, H, W, C) arrays.  Paddings are written out: 'SAME' is
none of the rules that published weights were trained with.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import convolution

STEM_POOLS = ('ceil', 'pad1')


@dataclasses.dataclass(frozen=True)
class Inference:
  """How a network is computed where it is only run.

  Attributes:
    arithmetic: a key of `convolution.ARITHMETICS`.
    platform: of the device, as JAX calls it: 'cpu', 'gpu', ...
    apart: layers whose own values are asked for, and that are therefore not
      joined to what follows them.
  """

  arithmetic: str = 'float32'
  platform: str = ''
  apart: frozenset[str] = frozenset()

  @property
  def rules(self) -> convolution.Arithmetic:
    """What the arithmetic stands for."""
    return convolution.ARITHMETICS[self.arithmetic]

  def algorithm(self, shape: convolution.Shape) -> str:
    """A convolution's, see `convolution.algorithm`."""
    return convolution.algorithm(shape, self.rules, self.platform)

  def kernel_shape(self, shape: convolution.Shape) -> tuple[int, ...]:
    """Of a convolution's kernel, see `convolution.kernel_shape`."""
    return convolution.kernel_shape(shape, self.algorithm(shape))


# A network as it is defined.
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
    how = self.inference
    shape = convolution.Shape(
      self.kernel, self.stride, x.shape[-1], self.features
    )
    kernel = self.param('kernel', _zeros, how.kernel_shape(shape))
    return convolution.convolve(
      x,
      kernel.astype(x.dtype),
      shape,
      how.rules.precision,
      how.algorithm(shape),
    )

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, ceil(H / stride), ceil(W / stride), Co)."""
    return self.convolved(x)


class FoldedConv(Conv):
  """A convolution with its batch norm folded in, and what follows it.

  Named after the last layer that it stands for.

  Attributes:
    relu: whether a ReLU follows.
    pool: the rule of the pool behind that, '' for none.  It comes before the
      offset, where there are four times as many numbers; the largest of sums is
      the sum with the largest, to the bit.
  """

  relu: bool = True
  pool: str = ''

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, H', W', Co)."""
    x = self.convolved(x)
    if self.pool:
      x = stem_pool(x, self.pool, self.inference.platform)
    # By a name of its own: the batch norm has a bias, and its own values.
    offset = self.param('offset', _zeros, (self.features,))
    return convolution.shifted(
      x, offset.astype(x.dtype), self.relu, self.inference.platform
    )


class BatchNorm(nn.Module):
  """Batch norm by the stored mean and variance, and the ReLU that follows.

  The ReLU is inside because the original's `_bn` layers include theirs.
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

  The paper's option A, which leaves open where the zeros go; here, as in the
  weights that were published, half of them before the channels and half behind.

  Args:
    x: (N, H, W, C).
    channels: of the result, C or more.
    stride: of the pixels that are taken.

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
      rounded up, so that at an even size the last window hangs over the right
      and the bottom edge; or 'pad1', torchvision's and Keras': one pixel on
      every side.  At 112 both give 56, on grids one pixel apart.
    platform: of the device.
  """
  padding = [stem_pool_padding(rule, size) for size in x.shape[1:3]]
  return convolution.max_pool(x, padding, platform)


def stem_pool_padding(rule: str, size: int) -> tuple[int, int]:
  """What `stem_pool` pads before and behind a height or width."""
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
