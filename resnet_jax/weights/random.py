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
import math
import zlib

import numpy as np

from resnet_jax.models import resnet, structure
from resnet_jax.system import cores

# Draws are rounded to multiples of this: differences in the last bit of another
# machine's logarithm disappear, and sums in float64 are exact, hence the same
# in any order.
_GRAIN = 2.0**-20

# The scale of a block's last batch norm.  With 1, the errors of the formulas
# add up over the 36 blocks of ResNet-152's res4: its probabilities were 1 and
# 0, the same for every image.
_BRANCH_SCALE = 0.25

# A mean and a mean square.
_Moments = tuple[float, float]
# Of conv1's input: photographs minus the mean colour, as in tests/reference,
# and for CIFAR those of 32x32 over their standard deviation.
_IMAGE, _CIFAR_IMAGE = (0.0, 2300.0), (0.0, 1.25)
# After pool1: the maximum of nine similar, rectified normal values, measured
# on photographs.
_POOLED = (0.58, 0.89)


def initialise(module: resnet.ResNet, seed: int) -> dict[str, np.ndarray]:
  """Float32 `layer/leaf` arrays of a network, in the order of computing.

  Every kernel has a generator of its own, seeded with `seed` and its name:
  NumPy's `RandomState`, whose stream is guaranteed never to change.

  Args:
    module: the network.
    seed: 0 to 2**32 - 1.
  """
  shapes = resnet.parameter_shapes(module)
  kernels = [name for name in shapes if name.endswith('/kernel')]
  # NumPy releases the interpreter lock while it draws.
  with concurrent.futures.ThreadPoolExecutor(cores.count()) as pool:
    drawn = pool.map(lambda name: _kernel(seed, name, shapes[name]), kernels)
    parameters = dict(zip(kernels, drawn, strict=True))
  blocks = structure.blocks(module.depth, module.variant)
  scales = {f'{block.branch[-1].name}_bn': _BRANCH_SCALE for block in blocks}
  variances = _variances(module.depth, blocks)
  for name, shape in shapes.items():
    layer, leaf = name.split('/')
    if leaf != 'kernel':
      value = {
        'scale': scales.get(layer, 1.0),
        'var': variances.get(layer, 1.0),
      }.get(leaf, 0.0)
      parameters[name] = np.full(shape, value, np.float32)
  return {name: parameters[name] for name in shapes}


def _kernel(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
  generator = np.random.RandomState([seed, zlib.crc32(name.encode())])
  kernel = np.round(generator.standard_normal(shape) / _GRAIN) * _GRAIN
  fan_in = math.prod(shape[:-1])
  if not name.startswith('conv1_conv/'):
    axes = tuple(range(len(shape) - 1))
    kernel = kernel - kernel.sum(axis=axes, keepdims=True) / fan_in
  return (kernel * math.sqrt(2 / fan_in)).astype(np.float32)


def _variances(
  depth: int, blocks: tuple[structure.Block, ...]
) -> dict[str, float]:
  """The variance that enters each batch norm, for photographs.

  Every batch norm is assumed to return a standard normal value, which these
  variances make true.
  """
  inner = _rectified(0.0, 1.0)
  cifar = depth in structure.CIFAR
  result = {'conv1_bn': _convolved(_CIFAR_IMAGE if cifar else _IMAGE)}
  entry = inner if cifar else _POOLED
  for block in blocks:
    for unit in block.units:
      outer = unit in (block.shortcut, block.branch[0])
      result[f'{unit.name}_bn'] = _convolved(entry if outer else inner)
    entry = _after(block, entry)
  return result


def _convolved(entering: _Moments) -> float:
  """The variance of a convolution's output."""
  mean, square = entering
  return _coarse(2 * (square - mean**2))


def _after(block: structure.Block, entry: _Moments) -> _Moments:
  """The moments of a block's output."""
  if block.shortcut:
    return _rectified(0.0, 1 + _BRANCH_SCALE**2)
  mean, square = entry
  mean, square = _rectified(mean, square - mean**2 + _BRANCH_SCALE**2)
  # The channels that pad a shortcut get the branch alone.
  kept = block.branch[0].inputs / block.outputs
  alone = _rectified(0.0, _BRANCH_SCALE**2)
  return (
    kept * mean + (1 - kept) * alone[0],
    kept * square + (1 - kept) * alone[1],
  )


def _rectified(mean: float, variance: float) -> _Moments:
  """The moments of max(0, x) for a normal x."""
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
