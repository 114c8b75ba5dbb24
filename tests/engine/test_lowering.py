# SPDX-License-Identifier: Apache-2.0
"""The program for devices that are not at hand: what XLA is given for them.

On a GPU or a TPU the compiler chooses the algorithms and fuses what follows a
convolution, so it is given the network as it is.  Lowering needs no device.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import reductions, runner
from resnet_jax.models import convolution, layers, resnet, structure
from resnet_jax.models.variant import Variant

# As JAX calls them when it lowers, and as a device calls itself.
PLATFORMS = {'cuda': 'gpu', 'tpu': 'tpu'}
NETWORKS = {
  '18': resnet.ResNet(18),
  '50': resnet.ResNet(50),
  'resnext50_32x4d': resnet.ResNet(
    50, variant=Variant(inner_width=128, groups=32, stride_in='3x3')
  ),
}
WANTED = ('res3_2_addto', 'logits')
# All that is left: the rest of a network is these.
OPERATIONS = {
  *('add', 'subtract', 'multiply', 'divide', 'maximum', 'convert', 'constant'),
  *('broadcast_in_dim', 'reshape', 'reverse', 'reduce', 'return'),
  *('convolution', 'reduce_window', 'dot_general', 'transpose'),
}


@functools.cache
def lowered(name, platform, arithmetic='float32'):
  """The StableHLO of a network for four images."""
  network = NETWORKS[name].clone(
    inference=layers.Inference(
      arithmetic, PLATFORMS[platform], frozenset(WANTED)
    )
  )
  shapes = resnet.parameter_shapes(network)
  parameters = {
    needed: jax.ShapeDtypeStruct(shapes[needed], jnp.float32)
    for needed in resnet.needed_parameters(network, WANTED)
  }
  apply = functools.partial(
    runner._apply,
    module=network,
    layers=WANTED,
    preprocess=Preprocess(),
    reduction=reductions.Reduction(),
    grad_cam=None,
    channels_first=True,
    pieces=1,
  )
  mean = jax.ShapeDtypeStruct((3, 1, 1), jnp.float32)
  images = jax.ShapeDtypeStruct((4, 1, 224, 224, 3), jnp.uint8)
  traced = jax.jit(apply).trace(parameters, mean, images)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def lines(text, operation):
  return [
    x
    for x in text.splitlines()
    if re.search(rf'= "?stablehlo\.{operation}\b', x)
  ]


def attribute(line, name):
  """The number that an operation states."""
  return int(re.search(rf'{name} = (\d+)', line)[1])


@pytest.fixture(params=PLATFORMS)
def platform(request):
  return request.param


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_is_plain_convolutions(name, platform):
  text = lowered(name, platform)
  module = NETWORKS[name]
  units = list(structure.units(module.depth, module.variant))
  found = lines(text, 'convolution')
  assert len(found) == len(units)
  for line, unit in zip(found, units, strict=True):
    assert '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]' in line
    shape = f'{unit.kernel}x{unit.kernel}x{unit.inputs // unit.groups}'
    assert f'tensor<{shape}x{unit.outputs}xf32>' in line
    assert attribute(line, 'feature_group_count') == unit.groups
    stride = re.search(r'stride = \[(\d+), (\d+)\]', line)
    assert stride
    assert stride.groups() == (str(unit.stride),) * 2
    pad = unit.kernel // 2
    assert f'pad = [[{pad}, {pad}], [{pad}, {pad}]]' in line


@pytest.mark.parametrize('name', NETWORKS)
def test_nothing_but_operations_that_the_compiler_fuses(name, platform):
  text = lowered(name, platform)
  assert 'custom_call' not in text
  used = set(re.findall(r'stablehlo\.(\w+)', text)) - {'precision'}
  assert used <= OPERATIONS
  # The classifier, and only it.
  [dot] = lines(text, 'dot_general')
  assert 'x1000xf32>' in dot
  # Each wanted value once, from (N, H, W, C) to (N, C, H, W); and the mean.
  transposes = [x for x in lines(text, 'transpose') if '<3x1x1xf32>' not in x]
  assert len(transposes) == len(WANTED)
  assert all('dims = [0, 3, 1, 2]' in line for line in transposes)
  assert len(lines(text, 'reduce_window')) == 1


@pytest.mark.parametrize('name', NETWORKS)
def test_offsets_sums_and_relus_are_maps_of_four_axes(name, platform):
  """Flat ones, as a CPU has them, would not be fused with a convolution."""
  text = lowered(name, platform)
  module = NETWORKS[name]
  units = list(structure.units(module.depth, module.variant))
  blocks = structure.blocks(module.depth, module.variant)
  maps = re.compile(r'tensor<4x\d+x\d+x\d+xf32>$')
  added = [x for x in lines(text, 'add') if maps.search(x)]
  # An offset a convolution, a sum a block, and the classifier's bias.
  assert len(added) == len(units) + len(blocks) + 1
  relus = re.findall(r'call @relu\w*\(%\d+\) : \((.*?)\)', text)
  assert len(relus) == sum(unit.relu for unit in units) + len(blocks)
  assert all(maps.fullmatch(shape) for shape in relus)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize(
  ('arithmetic', 'precision', 'dtype'),
  [
    ('float32', 'HIGHEST', 'f32'),
    ('direct', 'HIGHEST', 'f32'),
    ('tf32', 'DEFAULT', 'f32'),
    ('bfloat16', 'DEFAULT', 'bf16'),
  ],
)
def test_products_are_as_precise_as_asked(
  name, platform, arithmetic, precision, dtype
):
  text = lowered(name, platform, arithmetic)
  for line in lines(text, 'convolution'):
    stated = re.findall(r'#stablehlo<precision (\w+)>', line)
    assert stated == [precision] * 2
    assert set(re.findall(r'x(b?f\d+)>', line)) == {dtype}
  # The classifier and the pool are always in float32.
  [dot] = lines(text, 'dot_general')
  assert 'precision = [HIGHEST, HIGHEST]' in dot
  assert 'bf16' not in dot


def test_every_arithmetic_is_tried():
  assert set(convolution.ARITHMETICS) == {
    'float32',
    'direct',
    'tf32',
    'bfloat16',
  }
