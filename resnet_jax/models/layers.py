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
from jax.nn import initializers

from resnet_jax.models import (
  convolution,
  gradients,
  names,
  sharing,
  structure,
)
from resnet_jax.system import errors


@dataclasses.dataclass(frozen=True)
class Inference:
  """How a network is computed at inference.

  Attributes:
    arithmetic: a key of `convolution.ARITHMETICS`.
    platform: the device's, as JAX calls it: 'cpu', 'gpu', ...
    apart: layers whose own values are wanted, so that they are not joined to
      the layers after them.
    joins: whether convolutions, batch norms and the stem's pool are joined.
    work: what a device computes at a time.
  """

  arithmetic: str = 'float32'
  platform: str = ''
  apart: frozenset[str] = frozenset()
  joins: bool = True
  work: convolution.Workload = convolution.MANY

  @property
  def rules(self) -> convolution.Arithmetic:
    """The arithmetic's data type and precision."""
    return convolution.ARITHMETICS[self.arithmetic]

  def algorithm(self, unit: structure.Unit) -> str:
    """The algorithm of a convolution; see `convolution.algorithm`."""
    return convolution.algorithm(unit, self.rules, self.platform, self.work)

  def kernel_shape(self, unit: structure.Unit) -> tuple[int, ...]:
    """The shape of a kernel; see `convolution.kernel_shape`."""
    return convolution.kernel_shape(unit, self.algorithm(unit))

  def held_shape(self, unit: structure.Unit) -> tuple[int, ...]:
    """The shape of the part of a kernel that a device has."""
    *window, inputs, outputs = self.kernel_shape(unit)
    share = self.work.share
    if share.takes_part(unit):
      inputs //= share.devices
    if share.gives_part(unit):
      outputs //= share.devices
    return *window, inputs, outputs

  def held_outputs(self, unit: structure.Unit) -> int:
    """The channels of a unit's value that a device has."""
    share = self.work.share
    return unit.outputs // (share.devices if share.keeps_part(unit) else 1)

  def last_joined(self, unit: structure.Unit) -> str:
    """A convolution, or the batch norm or pool that is computed with it."""
    conv, norm = f'{unit.name}_conv', f'{unit.name}_bn'
    if not self.joins or conv in self.apart:
      return conv
    before_pool = {norm, norm + names.LINEAR, names.PADDED.get(unit.pool, '')}
    return norm if not unit.pool or before_pool & self.apart else unit.pool

  def keeps(self, value: str) -> bool:
    """Whether a value between the layers has to be there."""
    return not self.joins or value in self.apart


# Every layer as defined, in float32.
DEFINITION = Inference(joins=False)

# He et al., arXiv:1502.01852, as the paper has it: normal, variance 2 / fan-in.
_HE = initializers.variance_scaling(2.0, 'fan_in', 'normal')


@dataclasses.dataclass(frozen=True)
class Training:
  """How a network is computed in training.

  Attributes:
    arithmetic: a key of `convolution.ARITHMETICS`; parameters, gradients and
      statistics are float32 in all of them.
    momentum: the part of a running statistic that a batch leaves.
    axis_name: the mapped axis of `shard_map` or `pmap` over which the batch
      statistics are averaged; '': each device has its own.
    remat: whether the gradients compute a block's values again instead of
      keeping them: less memory, more time.
  """

  arithmetic: str = 'float32'
  momentum: float = 0.9
  axis_name: str = ''
  remat: bool = False

  def __post_init__(self) -> None:
    errors.check_choice('arithmetic', self.arithmetic, convolution.ARITHMETICS)
    if not 0 <= self.momentum < 1:
      raise errors.UserError(
        f'momentum={self.momentum} is not at least 0 and less than 1; 0.9 is'
        ' usual.'
      )


class Identity(nn.Module):
  """The array that it takes, under a name."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """The same array."""
    return x


def _parameter(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  initializer: nn.initializers.Initializer = initializers.zeros,
) -> jax.Array:
  """A parameter, initialised where there is none.

  That is `module.param`, except that it finds out the shape of its initializer
  by tracing it: a quarter of the time that it takes to trace a network.
  """
  if not module.has_variable('params', name):
    return module.param(name, initializer, shape)
  value: jax.Array = module.get_variable('params', name)
  if value.shape != shape:
    raise ValueError(f'{module.name}/{name} is {value.shape}, not {shape}')
  return value


class Rectifier(nn.Module):
  """A layer with a ReLU, whose value before it can be captured."""

  def linear(self, x: jax.Array) -> jax.Array:
    """The same array: the value that the layer's `_linear` names."""
    return x


class Conv(Rectifier):
  """A square convolution, padded by kernel // 2 on every side.

  Attributes:
    unit: its shape.
    inference: the arithmetic and the platform.
    bias: whether it has one, which is not folded in.
    folded: whether its batch norm and ReLU are folded in.  It then has the name
      of the last layer that it replaces.
    pool: the padding of the pool after these; '': no pool.  It runs before the
      offset is added, which then adds a quarter of the numbers; the maximum of
      x + c is the maximum of x, plus c, to the bit.
    train: whether the gradient with respect to the kernel is wanted.
  """

  unit: structure.Unit
  inference: Inference = DEFINITION
  bias: bool = False
  folded: bool = False
  pool: str = ''
  train: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, Ci) to (N, ceil(H / stride), ceil(W / stride), Co)."""
    unit, inference = self.unit, self.inference
    shape, share = inference.held_shape(unit), inference.work.share
    kernel = _parameter(self, 'kernel', shape, _HE).astype(x.dtype)
    precision, algorithm = inference.rules.precision, inference.algorithm(unit)
    outputs = (inference.held_outputs(unit),)
    dtype = x.dtype
    if self.train and (unit.kernel, unit.groups) == (3, 1):
      x = gradients.convolve(x, kernel, unit.stride, precision)
    else:
      seam = stem_pool_padding(self.pool, _EVEN) if self.pool else (0, 0)
      # Perhaps in float32, which is then rounded only once.
      x = convolution.convolve(
        x, kernel, unit, precision, algorithm, share=share, seam=seam
      )
    if not self.folded:
      if self.bias:
        bias = _parameter(self, 'bias', outputs)
        x += bias.astype(x.dtype)[None, None, None]
      return x.astype(dtype)
    if self.pool:
      x = stem_pool(x, self.pool, inference.platform, share, has_seam=True)
    # Not `bias`: that is the batch norm's, with other values.
    offset = _parameter(self, 'offset', outputs)
    offset = offset.astype(x.dtype)
    linear = f'{unit.name}_bn{names.LINEAR}'
    if unit.relu and linear in inference.apart:
      x = convolution.shifted(x, offset, False, inference.platform)
      return nn.relu(self.linear(x.astype(dtype)))
    x = convolution.shifted(x, offset, unit.relu, inference.platform)
    return x.astype(dtype)


class BatchNorm(Rectifier):
  """Batch norm, and the ReLU after it.

  The ReLU is part of it because the original's `_bn` layers include theirs.

  Attributes:
    epsilon: added to the variance.
    relu: whether a ReLU follows.
    training: None: by the stored mean and variance; else by the batch's, which
      change the stored ones.
  """

  epsilon: float
  relu: bool
  training: Training | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to the same shape."""
    shape = (x.shape[-1],)
    scale = self.param('scale', initializers.ones, shape)
    bias = _parameter(self, 'bias', shape)
    stored_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    stored_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    if self.training is None:
      mean, var = stored_mean.value, stored_var.value
    else:
      mean, var = _moments(x, self.training.axis_name)
      if not self.is_initializing():
        for stored, new in ((stored_mean, mean), (stored_var, var)):
          kept = self.training.momentum
          stored.value = kept * stored.value + (1 - kept) * new
    factor = scale * lax.rsqrt(var + self.epsilon)
    mean, factor, bias = (v.reshape(1, 1, 1, -1) for v in (mean, factor, bias))
    y = ((x - mean) * factor + bias).astype(x.dtype)
    return nn.relu(self.linear(y)) if self.relu else y


def _moments(x: jax.Array, axis_name: str) -> tuple[jax.Array, jax.Array]:
  """The mean and the variance (C,) of (N, H, W, C), over all devices."""
  x = x.astype(jnp.float32)
  moments = jnp.stack([x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))])
  if axis_name:
    moments = lax.pmean(moments, axis_name)
  mean, square = moments
  # Rounding must not make it negative.
  return mean, jnp.maximum(square - mean * mean, 0)


class AddTo(Rectifier):
  """The end of a block: the branch and its shortcut summed, then ReLU."""

  inference: Inference = DEFINITION

  def __call__(self, branch: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Two (N, H, W, C) to one."""
    if self.inference.keeps(f'{self.name}{names.LINEAR}'):
      return nn.relu(self.linear(branch + shortcut))
    return convolution.rectified_sum(branch, shortcut, self.inference.platform)


class PaddedShortcut(nn.Module):
  """A shortcut without parameters, where a block changes the shape.

  The paper's option A.  Half of the zeros go before the channels and half
  after, as in akamaster/pytorch_resnet_cifar10, whose weights are in use; the
  paper does not say.

  Attributes:
    channels: of the result.
    stride: between the pixels that are kept.
  """

  channels: int
  stride: int

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, ceil(H / stride), ceil(W / stride), channels)."""
    zeros = self.channels - x.shape[-1]
    sides = (zeros // 2, zeros - zeros // 2)
    x = x[:, :: self.stride, :: self.stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), sides))


class Padded(nn.Module):
  """A map with zeros around it.

  Attributes:
    sides: rows before and after, columns before and after.
  """

  sides: tuple[tuple[int, int], tuple[int, int]]

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to the padded size."""
    return jnp.pad(x, ((0, 0), *self.sides, (0, 0)))


def stem_pool(
  x: jax.Array,
  rule: str,
  platform: str = '',
  share: sharing.Share = sharing.ALONE,
  *,
  has_seam: bool = False,
) -> jax.Array:
  """Max pool 3x3, stride 2.

  Args:
    x: (N, H, W, C).
    rule: 'ceil', Caffe's and Paddle's: no padding, the number of windows
      rounded up, so that at an even size the last window extends over the
      right and the bottom edge; or 'pad1', torchvision's and Keras': one pixel
      on every side.  At 112 both give 56, on grids one pixel apart.
    platform: the device's.
    share: how devices share an image: the rows of `x`, if it is shared.
    has_seam: whether `x` has the rows that the pool needs of a neighbour.
  """
  padding = [stem_pool_padding(rule, size) for size in x.shape[1:3]]
  if share.devices > 1:
    seam = stem_pool_padding(rule, _EVEN)
    if has_seam:
      x = sharing.filled_beyond(x, share.devices, *seam, fill=-jnp.inf)
    else:
      x = sharing.with_neighbours(x, *seam, fill=-jnp.inf)
    padding[0] = (0, 0)
  return convolution.max_pool(x, padding, platform)


# Where devices share an image, each has an even number of the pool's rows.
_EVEN = 2


def stem_pool_padding(rule: str, size: int) -> tuple[int, int]:
  """The padding of `stem_pool` before and after a height or width."""
  return {'ceil': (0, (size - 3) % 2), 'pad1': (1, 1)}[rule]


class StemPool(nn.Module):
  """The pool of the stem; see `stem_pool`."""

  rule: str
  inference: Inference = DEFINITION

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to half the size by `rule`."""
    inference = self.inference
    return stem_pool(x, self.rule, inference.platform, inference.work.share)


class GlobalAveragePool(nn.Module):
  """The mean over all positions of a map of any size."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, 1, 1, C)."""
    return x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)


class Classifier(nn.Module):
  """A fully connected layer over the channels."""

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, 1, 1, C) to (N, 1, 1, classes)."""
    kernel = _parameter(self, 'kernel', (x.shape[-1], self.classes), _HE)
    bias = _parameter(self, 'bias', (self.classes,))
    x = lax.dot_general(
      x, kernel, (((3,), (0,)), ((), ())), precision=lax.Precision.HIGHEST
    )
    return x + bias[None, None, None]


class Softmax(nn.Module):
  """Probabilities over the channels."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """(N, 1, 1, C) to the same shape, each C summing to 1."""
    return nn.softmax(x, axis=-1)
