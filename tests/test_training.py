# SPDX-License-Identifier: Apache-2.0
"""Networks that train, as ordinary Flax modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from makers import user_error

import resnet_jax
from resnet_jax import weights
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import gradients, layers, resnet
from resnet_jax.models import variables as variables_lib
from resnet_jax.system import errors

BATCH = jax.sharding.PartitionSpec('batch')
SAME = jax.sharding.PartitionSpec()
PREPROCESS = Preprocess(
  mean=(125.0, 123.0, 114.0),
  std=(63.0, 62.0, 67.0),
  resize='none',
  crop_size=32,
  channels='RGB',
)
NAMES = [f'kind {n}' for n in range(5)]


def images(count, size=32, seed=0):
  shape = (count, size, size, 3)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def rms(array):
  return np.sqrt(np.mean(array**2))


def inputs(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, 32, 32, 3)).astype('f')


LABELS = np.arange(8) % 5
_STAGES = ('conv', 'res2')


@pytest.fixture(scope='module')
def module():
  return resnet.ResNet(20, 5)


@pytest.fixture(scope='module')
def start(module):
  variables = jax.jit(module.init)(jax.random.key(3), inputs(1))
  return jax.tree.map(np.asarray, variables)


def loss_of(module):
  """A function of (params, batch_stats, x, labels)."""

  def loss(params, batch_stats, x, labels):
    logits, changed = module.apply(
      {'params': params, 'batch_stats': batch_stats},
      x,
      train=True,
      logits=True,
      mutable=['batch_stats'],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits[:, 0, 0], labels
    )
    return losses.mean(), changed['batch_stats']

  return loss


def gradient_of(module):
  """A function of (variables, x, labels): (loss, batch_stats), gradient."""
  gradient = jax.value_and_grad(loss_of(module), has_aux=True)
  return lambda variables, *rest: gradient(
    variables['params'], variables['batch_stats'], *rest
  )


def assert_close(got, expected, tolerance):
  """Each leaf to a tolerance of the largest value in it."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * np.abs(b).max()
    ),
    got,
    expected,
  )


def distance(one, other):
  """The norm of the difference of two trees, over the other's."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  squares = [(((a - b) ** 2).sum(), (b**2).sum()) for a, b in pairs]
  return np.sqrt(sum(d for d, _ in squares) / sum(s for _, s in squares))


# -------------------------------------------------------------- the variables


@pytest.mark.parametrize('depth', [20, 18, 50])
def test_the_module_and_its_variables_give_the_features(depth):
  with pytest.warns(UserWarning, match='UNTRAINED'):
    model = resnet_jax.load(
      depth, weights='random', batch_size=2, arithmetic='direct'
    )
  pixels = images(2, 64)
  x = model.normalised(pixels)
  got = model.module.apply(model.variables, x, train=False)
  logits = model.module.apply(model.variables, x, logits=True)
  expected = model.features(pixels, ['logits', 'output'])
  for value, name in ((got, 'output'), (logits, 'logits')):
    difference = np.asarray(value).transpose(0, 3, 1, 2) - expected[name]
    assert rms(difference) < 1e-5 * rms(expected[name])
  shapes = jax.eval_shape(model.module.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
    jnp.shape, model.variables
  )


def test_images_are_normalised_as_the_program_does(module, start):
  model = resnet_jax.from_variables(module, start, PREPROCESS)
  pixels = images(3)
  expected = model.features(pixels, 'input').transpose(0, 2, 3, 1)
  np.testing.assert_allclose(model.normalised(pixels), expected, rtol=1e-6)
  within = jax.jit(model.normalised)(jnp.asarray(pixels))
  np.testing.assert_allclose(within, expected, rtol=1e-6)


def test_it_starts_as_the_paper_does(start):
  """He et al.: normal, variance 2 / fan-in; batch norms as identity."""
  kernel = start['params']['res4_2_branch2a_conv']['kernel']
  assert kernel.shape == (3, 3, 64, 64)
  assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.02
  assert abs(kernel.mean()) < 0.01 * kernel.std()
  assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated
  assert (start['params']['conv1_bn']['scale'] == 1).all()
  assert (start['batch_stats']['conv1_bn']['mean'] == 0).all()


# ---------------------------------------------------------------- train mode


def test_batch_norm_takes_the_statistics_of_the_batch():
  x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 7)).astype(np.float32)
  norm = layers.BatchNorm(1e-3, False, layers.Training(momentum=0.75))
  variables = norm.init(jax.random.key(0), x)
  assert (variables['batch_stats']['mean'] == 0).all()
  got, changed = norm.apply(variables, x, mutable=['batch_stats'])
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(got, (x - mean) / np.sqrt(var + 1e-3), atol=1e-5)
  stored = changed['batch_stats']
  np.testing.assert_allclose(stored['mean'], 0.25 * mean, rtol=1e-5)
  np.testing.assert_allclose(stored['var'], 0.75 + 0.25 * var, rtol=1e-5)


def test_equal_values_have_no_negative_variance():
  x = np.full((2, 8, 8, 3), 1234.567, np.float32)
  norm = layers.BatchNorm(1e-5, True, layers.Training())
  variables = norm.init(jax.random.key(0), x)
  got, changed = norm.apply(variables, x, mutable=['batch_stats'])
  assert np.isfinite(got).all()
  assert (changed['batch_stats']['var'] >= 0).all()


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(7, 9), (8, 8), (32, 40)])
def test_gradients_of_a_convolution_are_those_of_the_definition(stride, size):
  """In float64, with the sums written out."""
  random = np.random.default_rng(0)
  x = random.normal(size=(6, *size, 4))
  kernel = random.normal(size=(3, 3, 4, 5))
  out = tuple(-(-n // stride) for n in size)
  weight = random.normal(size=(6, *out, 5))
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  padded_gradient = np.zeros_like(padded)
  of_kernel, value = np.zeros_like(kernel), np.zeros_like(weight)
  for ky in range(3):
    for kx in range(3):
      window = np.s_[
        :,
        ky : ky + stride * (out[0] - 1) + 1 : stride,
        kx : kx + stride * (out[1] - 1) + 1 : stride,
      ]
      value += padded[window] @ kernel[ky, kx]
      of_kernel[ky, kx] = np.einsum('nhwc,nhwd->cd', padded[window], weight)
      padded_gradient[window] += weight @ kernel[ky, kx].T

  def total(x, kernel):
    y = gradients.convolve(x, kernel, stride, jax.lax.Precision.HIGHEST)
    return (y * weight.astype(np.float32)).sum(), y

  (_, got), (of_x, of_k) = jax.value_and_grad(total, (0, 1), has_aux=True)(
    x.astype(np.float32), kernel.astype(np.float32)
  )
  assert_close(got, value, 1e-5)
  assert_close(of_x, padded_gradient[:, 1:-1, 1:-1], 1e-5)
  assert_close(of_k, of_kernel, 1e-5)


def test_the_gradient_is_the_slope_of_the_loss(module, start):
  """Central differences of the whole network in a random direction."""
  x = inputs(8)
  loss = jax.jit(loss_of(module))
  (_, _), gradient = jax.jit(gradient_of(module))(start, x, LABELS)
  slope = optax.tree_utils.tree_vdot(gradient, gradient)
  step = 1e-3 / float(np.sqrt(slope))

  def at(factor):
    params = jax.tree.map(
      lambda p, g: p + factor * g, start['params'], gradient
    )
    return float(loss(params, start['batch_stats'], x, LABELS)[0])

  numeric = (at(step) - at(-step)) / (2 * step)
  assert abs(numeric / float(slope) - 1) < 0.02


@pytest.mark.parametrize(
  ('training', 'tolerance'),
  [
    (layers.Training(remat=True), 1e-4),
    (layers.Training(arithmetic='bfloat16'), 0.5),
  ],
)
def test_ways_of_training_change_no_names(module, start, training, tolerance):
  x = inputs(8)
  (loss, stats), gradient = jax.jit(gradient_of(module))(start, x, LABELS)
  other = module.clone(training=training)
  program = jax.jit(gradient_of(other)).lower(start, x, LABELS)
  (its_loss, its_stats), its_gradient = program.compile()(start, x, LABELS)
  assert abs(its_loss - loss) < tolerance * loss / 10
  assert_close(its_stats, stats, tolerance / 5)
  assert_close(its_gradient, gradient, tolerance)
  assert {a.dtype for a in jax.tree.leaves(its_gradient)} == {np.dtype('f')}
  assert {a.dtype for a in jax.tree.leaves(its_stats)} == {np.dtype('f')}
  assert ('bf16' in program.as_text()) == (training.arithmetic == 'bfloat16')
  assert ('optimization_barrier' in program.as_text()) == training.remat


@pytest.mark.parametrize('how', ['shard_map', 'pmap'])
def test_statistics_are_synchronised_over_devices(module, start, how):
  """Two devices with half of the batch do what one does with the whole.

  Two stages only: more take long to compile for two devices.
  """
  x = inputs(8, seed=1)
  weight = inputs(1, seed=2)[..., :1]

  def loss_of_stages(params, batch_stats, x, axis_name=''):
    other = module.clone(training=layers.Training(axis_name=axis_name))
    variables = {'params': params, 'batch_stats': batch_stats}
    y, changed = other.apply(
      variables, x, end=2, train=True, mutable=['batch_stats']
    )
    return (weight * y**2).mean(), changed['batch_stats']

  loss = functools.partial(loss_of_stages, axis_name='batch')

  def of_all(*both):
    value, stats = loss(*both)
    return jax.lax.pmean(value, 'batch'), stats

  def in_shard_map(*both):
    # It knows that the parameters are the same, and sums their gradients.
    return jax.value_and_grad(of_all, has_aux=True)(*both)

  def in_pmap(*both):
    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(*both)
    value, gradient = jax.lax.pmean((value, gradient), 'batch')
    return (value, stats), gradient

  # Those of the first two stages.
  few = {
    name: {layer: v for layer, v in tree.items() if layer[:4] in _STAGES}
    for name, tree in start.items()
  }
  both = few['params'], few['batch_stats']
  one = jax.jit(jax.value_and_grad(loss_of_stages, has_aux=True))(*both, x)
  if how == 'pmap':
    program = jax.pmap(in_pmap, 'batch', in_axes=(None, None, 0))
    two = program(*both, x.reshape(2, 4, 32, 32, 3))
    for leaf in jax.tree.leaves(two):
      np.testing.assert_array_equal(leaf[0], leaf[1])
    two = jax.tree.map(lambda leaf: leaf[0], two)
  else:
    program = jax.shard_map(
      in_shard_map,
      mesh=jax.sharding.Mesh(np.array(jax.devices()[:2]), ('batch',)),
      in_specs=(SAME, SAME, BATCH),
      out_specs=SAME,
    )
    two = jax.jit(program)(*both, x)
  ((value, stats), gradient), ((its, its_stats), its_gradient) = one, two
  assert abs(its - value) < 1e-5 * abs(value)
  assert_close(its_stats, stats, 1e-5)
  # Rounding moves some values to the other side of a ReLU.
  assert distance(its_gradient, gradient) < 0.01
  # The halves differ, so that this is not so without the axis.
  alone = jax.jit(jax.value_and_grad(loss_of_stages, has_aux=True))
  halves = [alone(*both, half) for half in (x[:4], x[4:])]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
  assert distance(mean, gradient) > 0.05
  assert distance(halves[0][0][1], stats) > 1e-3


def test_a_network_learns_and_becomes_a_model(module, start, tmp_path):
  """Eight images by heart; then saved, loaded, and read by every job's way."""
  pixels = images(8)
  model = resnet_jax.from_variables(module, start, PREPROCESS, NAMES)
  optimizer = optax.sgd(0.05, momentum=0.9)

  @jax.jit
  def step(variables, state):
    (loss, stats), gradient = gradient_of(model.module)(
      variables, model.normalised(jnp.asarray(pixels)), LABELS
    )
    updates, state = optimizer.update(gradient, state)
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, 'batch_stats': stats}, state, loss

  variables, state = dict(start), optimizer.init(start['params'])
  for _ in range(40):
    variables, state, loss = step(variables, state)
  assert loss < 0.1
  trained = resnet_jax.from_variables(
    module, variables, model.preprocess, NAMES
  )
  predictions = trained.predict(pixels)
  assert [p.label for p in predictions] == LABELS.tolist()
  assert predictions[1].best[0].name == 'kind 1'
  assert trained.weights.trained
  path = tmp_path / 'trained.safetensors'
  trained.save(path)
  again = resnet_jax.load(weights=path)
  assert again.weights.digest == trained.weights.digest
  assert again.preprocess == PREPROCESS
  assert [c.name for c in again.classes] == NAMES
  assert again.module == module
  np.testing.assert_array_equal(
    again.features(pixels, 'output'), trained.features(pixels, 'output')
  )
  assert 'exists already' in user_error(trained.save, path)
  assert '.safetensors' in user_error(trained.save, tmp_path / 'a.bin')


def test_a_step_in_nnx_is_the_same_step(module, start):
  """As docs/training.md has it."""
  x = inputs(8)

  @nnx.jit
  def made():
    return nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x)

  network = made()
  state = nnx.state(network)
  values = {
    layer: leaves | start['batch_stats'].get(layer, {})
    for layer, leaves in start['params'].items()
  }
  nnx.replace_by_pure_dict(state, values)
  nnx.update(network, state)

  def loss(network):
    logits = network(x, train=True, logits=True, mutable=['batch_stats'])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits[:, 0, 0], LABELS
    ).mean()

  value, gradient = nnx.jit(nnx.value_and_grad(loss))(network)
  (expected, stats), its_gradient = jax.jit(gradient_of(module))(
    start, x, LABELS
  )
  assert abs(value - expected) < 1e-5 * expected
  assert_close(nnx.to_pure_dict(gradient), its_gradient, 1e-4)
  got = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
  assert_close(got, stats, 1e-5)
  params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
  model = resnet_jax.from_variables(
    module, {'params': params, 'batch_stats': got}, PREPROCESS
  )
  assert model.weights.trained


# -------------------------------------------------------------------- errors


def test_variables_of_another_network_are_refused(module, start):
  def refused(changed, **options):
    return user_error(
      resnet_jax.from_variables, module, changed, PREPROCESS, **options
    )

  without = {'params': start['params']}
  assert '38 are missing (batch_stats/conv1_bn/mean' in refused(without)
  more = start | {'cache': {'x': np.zeros(1)}}
  assert '1 are unknown (cache/x)' in refused(more)
  flat = variables_lib.flat(start)
  name = 'params/logits/kernel'

  def with_value(name, value):
    changed = {n.split('/', 1)[1]: v for n, v in flat.items()}
    return variables_lib.tree(changed | {name.split('/', 1)[1]: value})

  assert 'has the shape (64, 6), not (64, 5)' in refused(
    with_value(name, np.zeros((64, 6)))
  )
  broken = np.full((64, 5), np.nan)
  assert '320 of 320 values that are not finite' in refused(
    with_value(name, broken)
  )
  negative = with_value('batch_stats/conv1_bn/var', -np.ones(16))
  assert 'has a negative variance' in refused(negative)
  assert 'batch_size' in refused(start, batch_size=-1)
  assert '5' in refused(start, class_names=['one'])
  joined = module.clone(inference=layers.Inference(platform='cpu'))
  assert 'computed for inference' in user_error(
    resnet_jax.from_variables, joined, start, PREPROCESS
  )


@pytest.mark.parametrize(
  ('leaf', 'expected'),
  [
    ('abc', 'params/logits/kernel of type str has values of type <U3'),
    ([[1, 2], [3]], 'params/logits/kernel of type list is no array'),
    (object(), 'values of type object'),
    (None, 'values of type object'),
    (np.ones((64, 5), bool), 'values of type bool'),
    (np.full((64, 5), 1 + 2j), 'values of type complex128'),
    (jax.random.key(0), 'is no array'),
    (np.ones((64, 6)), 'has the shape (64, 6), not (64, 5)'),
    (np.full((64, 5), 1e300), '320 of 320 values that are not finite'),
  ],
)
def test_leaves_are_arrays_of_real_numbers(module, start, leaf, expected):
  params = start['params'] | {
    'logits': start['params']['logits'] | {'kernel': leaf}
  }
  changed = {**start, 'params': params}
  message = user_error(resnet_jax.from_variables, module, changed, PREPROCESS)
  assert expected in message
  assert ('learning rate' in message) == ('not finite' in message)


def test_arguments_of_another_type_are_refused(module, start):
  for given, expected in (
    ((None, start, PREPROCESS), 'module is of type NoneType'),
    ((module, start, None), 'preprocess is of type NoneType'),
    ((module, None, PREPROCESS), 'are missing'),
    ((module, start, PREPROCESS, 5), 'class_names has a int'),
    ((module, start, PREPROCESS, [1, 2, 3, 4, 5]), 'class_names has a int'),
    ((module, start, PREPROCESS, None), 'class_names has a NoneType'),
  ):
    assert expected in user_error(resnet_jax.from_variables, *given)
  model = resnet_jax.from_variables(module, start, PREPROCESS)
  for path in (None, 5):
    message = user_error(model.save, path)
    assert f'a path of type {type(path).__name__} names no file' in message


def test_joined_layers_do_not_train(start):
  joined = resnet.ResNet(20, 5, inference=layers.Inference(platform='cpu'))
  with pytest.raises(ValueError, match='joined for inference'):
    joined.apply(start, inputs(1), train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('wrong', [{'momentum': 1}, {'arithmetic': 'int8'}])
def test_settings_of_training_are_checked(wrong):
  with pytest.raises(errors.UserError, match=next(iter(wrong))):
    layers.Training(**wrong)


def test_half_precision_variables_become_float32(module, start):
  half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), start)
  model = resnet_jax.from_variables(module, half, PREPROCESS)
  expected = jax.tree.map(lambda a: np.asarray(a, np.float32), half)
  for name, value in variables_lib.flat(model.variables).items():
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, variables_lib.flat(expected)[name])
  assert model.weights.digest == weights.digest(model.weights.parameters)
