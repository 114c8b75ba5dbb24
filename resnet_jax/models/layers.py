# SPDX-License-Identifier: Apache-2.0
"""The layers of a ResNet, each a module so that its value can be captured.

All take and return (N, H, W, C) arrays.  Paddings are written out: 'SAME' is
none of the rules that published weights were trained with.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

STEM_POOLS = ('ceil', 'pad1')


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
  """

  features: int
  kernel: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, ceil(H / stride), ceil(W / stride), Co)."""
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    pad = self.kernel // 2
    return lax.conv_general_dilated(
      x,
      self.param('kernel', _zeros, shape),
      window_strides=(self.stride, self.stride),
      padding=((pad, pad), (pad, pad)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      # On a GPU the default would round the factors to 10 bits (TF32).
      precision=lax.Precision.HIGHEST,
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
    x = (x - mean[None, None, None]) * factor[None, None, None]
    x = x + bias[None, None, None]
    return nn.relu(x) if self.relu else x


class AddTo(nn.Module):
  """The end of a block: the branch and its shortcut summed, then ReLU."""

  def __call__(self, branch: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Two (N, H, W, C) to one."""
    return nn.relu(branch + shortcut)


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


class StemPool(nn.Module):
  """Max pool 3x3, stride 2.

  Attributes:
    rule: 'ceil', Caffe's and Paddle's: no padding, the number of windows
      rounded up, so that at an even size the last window hangs over the
      right and the bottom edge; or 'pad1', torchvision's and Keras': one
      pixel on every side.  At 112 both give 56, on grids one pixel apart.
  """

  rule: str

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to half the size by `rule`."""
    pads = {
      'ceil': [(0, (size - 3) % 2) for size in x.shape[1:3]],
      'pad1': [(1, 1), (1, 1)],
    }
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads[self.rule])


class GlobalAveragePool(nn.Module):
  """The mean over all positions, whatever the size."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, 1, 1, C)."""
    return x.mean(axis=(1, 2), keepdims=True)


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
