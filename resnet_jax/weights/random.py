# SPDX-License-Identifier: Apache-2.0
"""Untrained weights from a seed: the same bytes on every machine.

Convolutions and classifier follow the paper's section 3.4, the method of He et
al., "Delving Deep into Rectifiers" (arXiv:1502.01852): normal, variance 2 /
fan-in.  Batch norm starts as identity (scale 1, bias 0), except that the last
one of a block, whose output is added to the shortcut, has a small scale, as is
usual since Goyal et al. (arXiv:1706.02677, section 5.1).

When training starts, batch norm takes its statistics from the batch.  There is
no batch here, so two things replace it: every filter after conv1 has its own
mean removed, and with it the mean that every rectified value has; and the
stored variance is the one expected for photographs, by formula.  Without them
the last features would be one huge constant for all images.
"""

import concurrent.futures
import dataclasses
import math
import zlib

import numpy as np

from resnet_jax.system import cores

# Draws are rounded to multiples of this: differences in the last bit of another
# machine's logarithm disappear, and sums in float64 are exact, hence the same
# in any order.
_GRAIN = 2.0**-20

# The scale of a block's last batch norm.  With 1, the errors of the formulas
# add up over the 36 blocks of ResNet-152's res4: its probabilities were 1 and
# 0, the same for every image.
_BRANCH_SCALE = 0.25


@dataclasses.dataclass(frozen=True)
class Stem:
  """Statistics of a network's input, each a mean and a mean square.

  Attributes:
    image: of conv1's input.
    after: of the first block's input.
  """

  image: tuple[float, float]
  after: tuple[float, float]


# Photographs minus the mean colour, as in tests/reference; after pool1 the
# maximum of nine similar, rectified normal values, measured on photographs.
IMAGENET = Stem((0.0, 2300.0), (0.58, 0.89))


def initialise(
  shapes: dict[str, tuple[int, ...]], seed: int, stem: Stem = IMAGENET
) -> dict[str, np.ndarray]:
  """Float32 arrays for `layer/leaf` shapes, in the order of computing.

  Every kernel has a generator of its own, seeded with `seed` and its name:
  NumPy's `RandomState`, whose stream is guaranteed never to change.

  Args:
    shapes: of the parameters.
    seed: 0 to 2**32 - 1.
    stem: from which the variances are derived.
  """
  # A block's last batch norm: the one whose name comes last.
  last = {
    name.rsplit('_branch2', 1)[0]: name.split('/')[0]
    for name in shapes
    if '_branch2' in name
  }.values()
  kernels = [name for name in shapes if name.endswith('/kernel')]
  # NumPy releases the interpreter lock while it draws.
  with concurrent.futures.ThreadPoolExecutor(cores.count()) as pool:
    drawn = dict(
      zip(
        kernels,
        pool.map(lambda name: _kernel(seed, name, shapes[name]), kernels),
        strict=True,
      )
    )
  signal = _Signal(stem)
  variance = 1.0
  parameters = {}
  for name, shape in shapes.items():
    layer, leaf = name.split('/')
    if leaf == 'kernel':
      parameters[name] = drawn[name]
      if layer.endswith('_conv'):
        variance = signal.convolved(layer, shape)
      continue
    value = {'bias': 0.0, 'scale': 1.0, 'mean': 0.0, 'var': variance}[leaf]
    if leaf == 'scale' and layer in last:
      value = _BRANCH_SCALE
    parameters[name] = np.full(shape, value, np.float32)
  return parameters


def _kernel(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
  kernel = _normal(seed, name, shape)
  fan_in = math.prod(shape[:-1])
  if not name.startswith('conv1_conv/'):
    axes = tuple(range(len(shape) - 1))
    kernel = kernel - kernel.sum(axis=axes, keepdims=True) / fan_in
  return (kernel * math.sqrt(2 / fan_in)).astype(np.float32)


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
  generator = np.random.RandomState([seed, zlib.crc32(name.encode())])
  values = generator.standard_normal(shape)
  return np.round(values / _GRAIN) * _GRAIN


class _Signal:
  """Follows the mean and mean square of a value through the network.

  Every batch norm is assumed to return a standard normal value, which the
  returned variances make true.
  """

  def __init__(self, stem: Stem) -> None:
    self._stem = stem
    self._block = ''
    self._entry = stem.after
    self._projected = False
    # Channels that enter the block, and that leave its last convolution.
    self._channels = (1, 1)

  def convolved(self, layer: str, shape: tuple[int, ...]) -> float:
    """The variance of the output of a convolution, (ky, kx, Ci, Co)."""
    if layer == 'conv1_conv':
      entering = self._stem.image
    else:
      block, branch = layer.removesuffix('_conv').rsplit('_', 1)
      if block != self._block:
        self._entry = self._leave_block()
        self._block, self._projected = block, False
        self._channels = (shape[-2], shape[-1])
      outer = branch in ('branch1', 'branch2a')
      entering = self._entry if outer else _rectified(0.0, 1.0)
      self._projected |= branch == 'branch1'
      self._channels = (self._channels[0], shape[-1])
    mean, square = entering
    return _coarse(2 * (square - mean**2))

  def _leave_block(self) -> tuple[float, float]:
    if not self._block:
      return self._stem.after
    if self._projected:
      return _rectified(0.0, 1 + _BRANCH_SCALE**2)
    mean, square = self._entry
    mean, square = _rectified(mean, square - mean**2 + _BRANCH_SCALE**2)
    # The channels that pad a shortcut get the branch alone.
    kept = self._channels[0] / self._channels[1]
    alone = _rectified(0.0, _BRANCH_SCALE**2)
    return (
      kept * mean + (1 - kept) * alone[0],
      kept * square + (1 - kept) * alone[1],
    )


def _rectified(mean: float, variance: float) -> tuple[float, float]:
  """Mean and mean square of max(0, x) for a normal x."""
  sigma = math.sqrt(variance)
  ratio = mean / sigma
  above = (1 + math.erf(ratio / math.sqrt(2))) / 2
  density = math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
  return (
    _coarse(mean * above + sigma * density),
    _coarse((mean**2 + variance) * above + mean * sigma * density),
  )


def _coarse(value: float) -> float:
  # Another machine's erf or exp may differ in the last bit.
  return round(value * 1024) / 1024


# Images over their standard deviation; measured on photographs of 32x32.
CIFAR = Stem((0.0, 1.25), _rectified(0.0, 1.0))
