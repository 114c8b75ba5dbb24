# SPDX-License-Identifier: Apache-2.0
"""Each algorithm of a convolution or a pool, against the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from resnet_jax.engine import runner
from resnet_jax.models import convolution, layers, resnet
from resnet_jax.models.variant import STEM_POOLS
from resnet_jax.system import errors
from resnet_jax.weights import random

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
    ('winograd', 3, 1),
    ('matrix product', 1, 1),
    ('matrix product', 1, 2),
    ('direct', 1, 2),
    ('direct', 3, 1),
    ('direct', 3, 2),
    ('direct', 7, 2),
  ],
)
def test_every_algorithm_is_the_convolution(name, side, stride, size):
  x, kernel = numbers((2, *size, 5)), numbers((side, side, 5, 6), 1)
  shape = convolution.Shape(side, stride, 5, 6)
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
  assert np.abs(error).max() < (2e-5 if name == 'winograd' else 1e-5)
  assert np.sqrt(np.mean(error**2)) < 3e-6


def test_winograd_is_as_near_to_float64_as_the_direct_way():
  """With as many channels as a stage of a ResNet-50 has."""
  x, kernel = numbers((1, 14, 14, 256)), numbers((3, 3, 256, 8), 1)
  shape = convolution.Shape(3, 1, 256, 8)
  expected = by_definition(x, kernel, 1)
  for name in ('winograd', 'direct'):
    prepared = convolution.prepared(
      kernel, convolution.kernel_shape(shape, name)
    )
    found = convolution.convolve(x, prepared, shape, HIGHEST, name)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error < 2e-6, name


def flops(arithmetic, platform='cpu', side=3, stride=1):
  """Floating-point operations of a layer, by XLA's own count."""
  conv = layers.Conv(64, side, stride, layers.Inference(arithmetic, platform))
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
  assert flops('bfloat16') == pytest.approx(direct, rel=0.01)
  assert flops('float32', stride=2) == flops('direct', stride=2)


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
  parameters = random.initialise(resnet.parameter_shapes(model), 0)
  mean = np.float32([1, 2, 3]).reshape(3, 1, 1)
  images = np.random.default_rng(0).integers(
    0, 256, (2, 1, 40, 40, 3), np.uint8
  )

  def run(arithmetic):
    execution = runner.Execution(
      tuple(jax.devices('cpu')[:1]), arithmetic=arithmetic
    )
    run = runner.Runner(
      model, parameters, ['res5_2_addto'], mean, execution=execution
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
