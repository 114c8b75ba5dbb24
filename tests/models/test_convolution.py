# SPDX-License-Identifier: Apache-2.0
"""Each algorithm of a convolution or a pool, against the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import runner
from resnet_jax.models import convolution, layers, resnet, structure, winograd
from resnet_jax.models.variant import STEM_POOLS
from resnet_jax.system import errors
from resnet_jax.weights import random

TILES = {'winograd 4x4': winograd.LARGE, 'winograd 2x2': winograd.SMALL}
SIZES = [(1, 1), (5, 7), (14, 14), (57, 33)]
HIGHEST = lax.Precision.HIGHEST


def numbers(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_definition(x, kernel, stride):
  """The convolution in float64, one product of the kernel after another."""
  side = len(kernel)
  n, height, width, _ = x.shape
  rows, columns = -(-height // stride), -(-width // stride)
  pad = side // 2
  padded = np.pad(
    x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0))
  )
  total = np.zeros((n, rows, columns, kernel.shape[-1]))
  for i in range(side):
    for j in range(side):
      part = padded[:, i : i + height : stride, j : j + width : stride]
      total += part @ kernel[i, j].astype(np.float64)
  return total


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
  ('name', 'side', 'stride'),
  [
    ('winograd 4x4', 3, 1),
    ('winograd 2x2', 3, 1),
    ('matrix product', 1, 1),
    ('matrix product', 1, 2),
    ('shifted products', 3, 1),
    ('shifted products', 3, 2),
    ('direct', 1, 2),
    ('direct', 3, 1),
    ('direct', 3, 2),
    ('direct', 7, 2),
  ],
)
def test_every_algorithm_is_the_convolution(name, side, stride, size):
  x, kernel = numbers((2, *size, 5)), numbers((side, side, 5, 6), 1)
  shape = structure.Unit(side, stride, 5, 6)
  prepared = convolution.prepared(kernel, convolution.kernel_shape(shape, name))
  assert prepared.dtype == np.float32
  found = convolution.convolve(x, prepared, shape, HIGHEST, name)
  expected = by_definition(x, kernel, stride)
  pads = [(side // 2, side // 2)] * 2
  plain = lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=HIGHEST,
  )
  assert found.shape == plain.shape == expected.shape
  scale = np.sqrt(np.mean(expected**2))
  error = (found - expected) / scale
  assert np.abs(plain - expected).max() < 1e-5 * scale
  # The worst of twenty thousand values; Winograd's transforms add to it.
  assert np.abs(error).max() < (2e-5 if name in TILES else 1e-5)
  assert np.sqrt(np.mean(error**2)) < 3e-6


def rounding(terms, passes=0, growth=1.0):
  """The most that float32 is off, in units of the result's rms.

  Each rounding is off by 2**-24 of its value at most, so by that over the root
  of 3 in the rms, and independently of the others.  A sum of n products of
  independent numbers has n of them; one term after the other is the worst
  order: the partial sums' mean square is half of the last one's.

  Args:
    terms: of the sum over channels.
    passes: roundings of the linear transforms around it, each of the whole.
    growth: by how much more the transforms let an error grow than the values.
  """
  return growth * 2.0**-24 * np.sqrt((terms / 2 + 2 + passes) / 3)


def flops(arithmetic, platform='cpu', side=3, stride=1):
  """Floating-point operations of a layer, by XLA's own count."""
  unit = structure.Unit(side, stride, 64, 64)
  conv = layers.Conv(unit, layers.Inference(arithmetic, platform))
  dtype = convolution.ARITHMETICS[arithmetic].dtype
  x = jax.ShapeDtypeStruct((1, 56, 56, 64), dtype)
  variables = jax.eval_shape(conv.init, jax.random.key(0), x)
  return jax.jit(conv.apply).lower(variables, x).cost_analysis()['flops']


def test_3x3_convolutions_take_fewer_operations_on_a_cpu():
  direct = flops('direct')
  # 36 products for 16 results instead of 144, and the transforms.
  assert direct / 4 < flops('float32') < direct / 2
  assert flops('float32', platform='gpu') == direct
  assert flops('tf32') == direct
  # The products of each weight are added up one after another.
  assert flops('bfloat16') == pytest.approx(direct, rel=0.05)
  assert flops('float32', stride=2) == flops('direct', stride=2)


def growth_of_winograd(tile):
  """In the mean of a tile: 10.8 for 4x4 results.

  The products' variance is that of the transformed input times that of the
  transformed kernel, and their errors, unlike they themselves, do not cancel.
  """
  data, kernel, result = (
    np.square(np.kron(matrix, matrix).astype(np.float64))
    for matrix in (tile.data, tile.kernel, tile.result)
  )
  products = data.sum(axis=1) * kernel.sum(axis=1)
  return np.sqrt(np.mean(result @ products) / 9)


@pytest.mark.parametrize('name', ['direct', *TILES])
@pytest.mark.parametrize(
  ('size', 'channels', 'outputs'),
  [(14, 64, 8), (14, 128, 8), (14, 256, 8), (14, 512, 8), (7, 512, 32)],
)
def test_the_error_is_what_the_arithmetic_allows(name, size, channels, outputs):
  """Whatever order, vectors and fused operations a CPU takes."""
  x = numbers((1, size, size, channels))
  kernel = numbers((3, 3, channels, outputs), 1)
  shape = structure.Unit(3, 1, channels, outputs)
  prepared = convolution.prepared(kernel, convolution.kernel_shape(shape, name))
  found = convolution.convolve(x, prepared, shape, HIGHEST, name)
  error = found - by_definition(x, kernel, 1)
  # The rms away from the border, where all nine taps are inside.
  error = np.sqrt(np.mean(error**2) / (9 * channels))
  if name == 'direct':
    assert error < rounding(9 * channels)
  else:
    # Two passes of up to 4 terms and one of 9 before, the sum of 36 behind.
    assert error < rounding(channels, 20, growth_of_winograd(TILES[name]))


@pytest.mark.parametrize('size', [(16, 16), (17, 16), (8, 9), (3, 5), (57, 33)])
@pytest.mark.parametrize('rule', STEM_POOLS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_pool_of_slices_is_the_pool_of_windows(rule, size, dtype):
  # Below zero, so that a padding of zeros would win.
  x = jnp.asarray(numbers((2, *size, 3)) - 10, dtype)
  x = x.at[0, -1, -1].set(-jnp.inf).at[1, :3, :3].set(-jnp.inf)
  slices, windows = (
    layers.stem_pool(x, rule, platform) for platform in ('cpu', 'gpu')
  )
  assert slices.dtype == windows.dtype == x.dtype
  np.testing.assert_array_equal(
    np.asarray(slices, np.float32), np.asarray(windows, np.float32)
  )
  # A window of nothing but -inf, and none that its padding makes so.
  if rule == 'ceil':
    assert (slices[1, 0, 0] == -jnp.inf).all()
    assert jnp.isfinite(slices[0]).all()


@pytest.fixture(scope='module')
def values():
  """A small network's `avgpool`, for each arithmetic."""
  model = resnet.ResNet(18)
  parameters = random.initialise(model, 0)
  preprocess = Preprocess((1.0, 2.0, 3.0))
  images = np.random.default_rng(0).integers(
    0, 256, (2, 1, 40, 40, 3), np.uint8
  )

  def run(arithmetic):
    execution = runner.Execution(
      tuple(jax.devices('cpu')[:1]), arithmetic=arithmetic
    )
    run = runner.Runner(
      model, parameters, ['res5_2_addto'], preprocess, execution=execution
    )
    return run.fetch(run(images))['res5_2_addto']

  return {name: run(name) for name in convolution.ARITHMETICS}


def test_what_the_arithmetics_do_to_the_values(values):
  direct = values['direct']
  scale = np.sqrt(np.mean(direct**2))
  # Two algorithms, and not one under two names.
  error = np.abs(values['float32'] - direct).max() / scale
  assert 0 < error < 5e-5
  # A CPU has no TF32.
  np.testing.assert_array_equal(values['tf32'], direct)
  # Eight bits, some twenty times one after the other.
  assert values['bfloat16'].dtype == np.float32
  error = np.abs(values['bfloat16'] - direct) / scale
  assert error.mean() > 1e-3
  assert error.max() < 0.3


def test_an_unknown_arithmetic_is_one_message():
  with pytest.raises(errors.UserError) as caught:
    runner.Execution(arithmetic='float16')
  assert str(caught.value) == (
    "unknown arithmetic 'float16'. Did you mean 'bfloat16'? Allowed: float32,"
    ' direct, tf32, bfloat16.'
  )
