# SPDX-License-Identifier: Apache-2.0
"""The network against independent programs, and that it stops where asked."""

import pathlib

import jax
import jax.numpy as jnp
import memory
import numpy as np
import pytest
from check_reference import check_reference
from numpy_resnet import NumpyResNet
from PIL import Image
from reference_weights import parameters_crc32, reference_parameters

from resnet_jax.data import mean as mean_lib
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import reductions, runner
from resnet_jax.models import aliases, layers, names, resnet, winograd
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import random

REFERENCE = pathlib.Path(__file__).parents[1] / 'reference'
MEAN = np.array(mean_lib.MEAN_BGR, np.float32).reshape(3, 1, 1)
# In units of a layer's rms; correct float32 programs reach 1.3e-4.
TOLERANCE = 5e-4


@pytest.mark.parametrize(
  ('depth', 'count'),
  [
    (18, 11_689_512),
    (34, 21_797_672),
    (50, 25_557_032),
    (101, 44_549_160),
    (152, 60_192_808),
  ],
)
def test_parameter_counts_are_the_published_ones(depth, count):
  shapes = resnet.parameter_shapes(resnet.ResNet(depth))
  assert resnet.learned_count(shapes) == count


# Where a convolution's own values are asked for, nothing is joined to it; and
# the stem's pool is joined unless its batch norm's are.
@pytest.mark.parametrize(
  ('depth', 'arithmetic', 'left_out'),
  [
    (50, 'float32', ()),
    (50, 'float32', ('_conv', 'conv1_bn')),
    (50, 'direct', ('_conv', 'conv1_bn')),
    (101, 'float32', ()),
    (152, 'float32', ('_conv', 'conv1_bn')),
  ],
)
def test_every_layer_agrees_with_the_float64_reference(
  depth, arithmetic, left_out, stored_parameters, capsys
):
  path = REFERENCE / f'reference_resnet{depth}_seed0.npz'
  with np.load(path) as reference:
    names_there = [
      name
      for name in map(str, reference['names'])
      if not name.endswith(left_out)
    ]
    images = [
      np.asarray(Image.open(REFERENCE / 'inputs' / f'{name}.png'))
      for name in reference['pictures']
    ]
  worst, parameters = {}, stored_parameters(depth)
  # Some layers, and one image, at a time, and no program kept: less memory.
  parts = 2 if depth == 50 else 3
  for some in (names_there[start::parts] for start in range(parts)):
    run = runner.Runner(
      resnet.ResNet(depth),
      parameters,
      some,
      Preprocess(),
      execution=runner.Execution(arithmetic=arithmetic),
    )
    found = [run.fetch(run(image[None, None])) for image in images]
    values = {
      name: np.concatenate([one.pop(name) for one in found]) for name in some
    }
    worst |= check_reference(path, lambda values=values: values)
    del run, values
    memory.give_back()
  parameters.close()
  capsys.readouterr()
  assert set(worst) == set(names_there)
  assert max(worst.values()) < TOLERANCE, max(worst.items(), key=lambda i: i[1])


@pytest.fixture(scope='module')
def stored_parameters(tmp_path_factory):
  """A function that gives the reference's parameters, read when needed."""
  folder = tmp_path_factory.mktemp('reference')

  def get(depth):
    path = folder / f'{depth}.npz'
    if not path.exists():
      np.savez(path, **_reference_parameters(depth))
    # One array at a time: a ResNet-152's are 240 MB.
    return np.load(path)

  yield get
  for path in folder.iterdir():
    path.unlink()


def _reference_parameters(depth):
  stored = reference_parameters(depth, seed=0)
  with np.load(REFERENCE / f'reference_resnet{depth}_seed0.npz') as reference:
    assert parameters_crc32(stored) == reference['parameters_crc32']
  return {
    name: _from_paddle(stored[aliases.paddle_parameter(name)])
    for name in names.parameter_names(depth)
  }


def _from_paddle(array):
  return array.transpose(1, 2, 3, 0) if array.ndim == 4 else array


@pytest.mark.parametrize(
  ('depth', 'stride_in', 'pool', 'size'),
  [
    (18, '1x1', 'ceil', (64, 64)),
    (18, '1x1', 'ceil', (32, 32)),
    (34, '1x1', 'ceil', (32, 53)),
    (18, '1x1', 'pad1', (45, 66)),
    (50, '3x3', 'pad1', (37, 50)),
    (50, '1x1', 'ceil', (65, 35)),
  ],
)
def test_every_layer_agrees_with_a_direct_numpy_network(
  depth, stride_in, pool, size
):
  images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
  independent = NumpyResNet(depth, stride_in, pool)
  bgr = images[..., ::-1].astype(np.float64) - MEAN.ravel()
  expected = independent(bgr.transpose(0, 3, 1, 2))

  model = resnet.ResNet(
    depth, variant=Variant(stride_in=stride_in, stem_pool=pool)
  )
  wanted = names.layer_names(depth)
  assert set(wanted) == set(expected)
  run = runner.Runner(model, independent.parameters, wanted, Preprocess())
  got = run.fetch(run(images[:, None]))
  shapes = resnet.value_shapes(model, *size)
  for name in wanted:
    assert got[name].shape == (2, *shapes[name]) == expected[name].shape
    scale = np.sqrt(np.mean(expected[name] ** 2))
    error = np.abs(got[name] - expected[name]).max() / scale
    assert error < TOLERANCE, name


@pytest.mark.parametrize(
  ('size', 'ceil', 'pad1'), [(112, 56, 56), (113, 56, 57), (16, 8, 8)]
)
def test_the_pool_rules_differ_on_odd_sizes_and_in_their_grid(size, ceil, pad1):
  x = np.arange(size * size, dtype=np.float32).reshape(1, size, size, 1)
  by_ceil = layers.StemPool('ceil').apply({}, x)
  by_pad1 = layers.StemPool('pad1').apply({}, x)
  assert by_ceil.shape == (1, ceil, ceil, 1)
  assert by_pad1.shape == (1, pad1, pad1, 1)
  assert by_ceil[0, 0, 0, 0] == 2 * size + 2
  assert by_pad1[0, 0, 0, 0] == size + 1


def test_what_lies_behind_the_deepest_layer_costs_nothing():
  model = resnet.ResNet(50)
  parameters = random.initialise(model, 0)
  images = (1, 1, 64, 64, 3)

  def cost(layer):
    run = runner.Runner(model, parameters, [layer], Preprocess())
    compiled = run.compile(images)
    taken = compiled.memory_analysis().argument_size_in_bytes
    return compiled.cost_analysis()['flops'], taken

  whole, front = cost('output'), cost('res2_3_addto')
  # Measured: 0.23 of the operations, 0.009 of the parameters.
  assert front[0] < 0.3 * whole[0]
  behind = [n for n in parameters if not n.startswith(('conv1', 'res2'))]
  assert whole[1] - front[1] == _joined_bytes(parameters, behind)
  # Not even there to be read.
  less = {k: v for k, v in parameters.items() if k not in behind}
  run = runner.Runner(model, less, ['res2_3_addto'], Preprocess())
  assert run.fetch(run(np.zeros(images, np.uint8)))['res2_3_addto'].any()


def _joined_bytes(parameters, chosen):
  """Of kernels, one number a channel for each, and the classifier."""
  total = 0
  for name in chosen:
    array = parameters[name]
    if name.endswith('_conv/kernel'):
      # Winograd's kernels for 3x3: 16 numbers instead of nine, in small tiles.
      winograd = array.shape[0] == 3 and jax.default_backend() == 'cpu'
      numbers = array.size // 9 * 16 if winograd else array.size
      total += 4 * (numbers + array.shape[-1])
    elif name.startswith('logits'):
      total += array.nbytes
  return total


def test_parameters_of_another_shape_are_refused():
  model = resnet.ResNet(18)
  tree = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  tree['params']['logits']['bias'] = jax.ShapeDtypeStruct((7,), jnp.float32)
  with pytest.raises(ValueError, match=r'logits/bias is \(7,\), not \(1000,\)'):
    jax.eval_shape(model.apply, tree, jnp.zeros((1, 32, 32, 3)))


def test_a_shape_of_layer_is_traced_once(monkeypatch):
  """Sixteen layers of ResNet-50 take Winograd's algorithm, of four shapes."""
  traced, product = [], winograd._product

  def noting(matrix, x):
    traced.append(x.shape)
    return product(matrix, x)

  monkeypatch.setattr(winograd, '_product', noting)
  model = resnet.ResNet(50).clone(inference=layers.Inference(platform='cpu'))
  shapes = resnet.parameter_shapes(model)
  jax.eval_shape(
    lambda parameters, x: resnet.capture(model, parameters, x, ['avgpool']),
    {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()},
    jax.ShapeDtypeStruct((1, 88, 72, 3), jnp.float32),
  )
  # Once for the input, once for the result.
  assert len(traced) == 2 * 4


def test_a_branch_that_does_not_lead_to_the_layer_is_not_computed():
  model = resnet.ResNet(50)
  parameters = random.initialise(model, 0)
  run = runner.Runner(model, parameters, ['res2_1_branch2a_bn'], Preprocess())
  taken = run.compile((1, 1, 32, 32, 3)).memory_analysis()
  front = ('conv1_', 'res2_1_branch2a_')
  needed = _joined_bytes(
    parameters, [name for name in parameters if name.startswith(front)]
  )
  # The vectors are one array, so that of the other branch is there, too.
  offset = parameters['res2_1_branch1_bn/bias'].nbytes
  rest = MEAN.nbytes + 32 * 32 * 3
  assert taken.argument_size_in_bytes == needed + offset + rest


def test_pool_dtype_and_ten_crops_are_what_numpy_makes_of_single_maps():
  model = resnet.ResNet(18)
  parameters = random.initialise(model, 0)
  cuts = np.random.default_rng(0).integers(0, 256, (2, 5, 40, 40, 3), np.uint8)
  layer = 'res3_1_addto'
  ten = np.concatenate([cuts, cuts[:, :, :, ::-1]], axis=1)
  single = runner.Runner(model, parameters, [layer], Preprocess())
  maps = np.stack([single.fetch(single(t[:, None]))[layer] for t in ten])
  for pool, expected in (
    ('none', maps.mean(axis=1)),
    ('avg', maps.mean(axis=(3, 4), keepdims=True).mean(axis=1)),
    ('max', maps.max(axis=(3, 4), keepdims=True).mean(axis=1)),
  ):
    run = runner.Runner(
      model,
      parameters,
      [layer],
      Preprocess(multi_crop=True),
      reduction=reductions.Reduction(pool, 'float32'),
    )
    got = run.fetch(run(cuts))[layer]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_float16_rounds_and_refuses_what_does_not_fit():
  model = resnet.ResNet(18)
  parameters = random.initialise(model, 0)
  images = np.full((1, 1, 32, 32, 3), 200, np.uint8)
  half = reductions.Reduction(dtype='float16')
  run = runner.Runner(
    model, parameters, ['pool1'], Preprocess(), reduction=half
  )
  exact = runner.Runner(model, parameters, ['pool1'], Preprocess())
  got = run.fetch(run(images))['pool1']
  assert got.dtype == np.float16
  expected = exact.fetch(exact(images))['pool1'].astype(np.float16)
  np.testing.assert_array_equal(got, expected)

  parameters['conv1_bn/scale'] = parameters['conv1_bn/scale'] * 1e6
  run = runner.Runner(
    model, parameters, ['pool1'], Preprocess(), reduction=half
  )
  with pytest.raises(errors.UserError, match=r'pool1 .*65504.*dtype=float32'):
    run.fetch(run(images))
  # Padding may be what it likes.
  run.fetch(run(images), np.array([False]))


def test_too_small_images_and_unknown_variants_are_errors():
  x = jnp.zeros((1, 31, 64, 3))
  with pytest.raises(ValueError, match='31x64: a ResNet takes 32x32 or more'):
    resnet.ResNet(18).init(jax.random.key(0), x)
  x = jnp.zeros((1, 32, 32, 3))
  with pytest.raises(errors.UserError, match="unknown stride_in '2x2'"):
    Variant(stride_in='2x2')
