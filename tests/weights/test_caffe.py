# SPDX-License-Identifier: Apache-2.0
"""Caffe's files: against OpenCV's reader and network, and damaged."""

import functools
import re
import struct
import tracemalloc

import make_reference
import numpy as np
import pytest
from make_reference import _bytes_field, _int_field
from reference_weights import (
  convolution_layers,
  reference_parameters,
  write_paddle_directory,
)

from resnet_jax import weights
from resnet_jax.data import presets
from resnet_jax.models import names, resnet, structure
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import assemble, caffe, paddle

OPTIONS = assemble.Options()
V1_TYPES = {'Convolution': 4, 'InnerProduct': 14, 'ReLU': 18}


# Drawn once for the cases of a depth that follow one another.
@functools.lru_cache(maxsize=1)
def parameters(depth):
  return reference_parameters(depth, seed=0)


def network(depth=50, stride_in='1x1'):
  """Layers by name: kind, blobs, and settings; as Caffe's own names are."""
  stored = parameters(depth)
  theirs = make_reference.caffe_names(depth)
  layers = {'data': ('Input', [], b'')}
  halving = {}
  if stride_in == '3x3':
    for stage in (3, 4, 5):
      halving[f'res{stage}_1_branch2a'] = 1
      halving[f'res{stage}_1_branch2b'] = 2
  for layer, _, c_out, size, stride in convolution_layers(depth):
    conv = theirs[f'{layer}_conv']
    end = '_conv1' if layer == 'conv1' else conv.removeprefix('res')
    settings = _int_field(1, c_out) + _int_field(4, size)
    settings += _int_field(6, halving.get(layer, stride))
    kernel = stored[f'_{layer}_conv.w0'].transpose(0, 3, 1, 2)
    layers[conv] = ('Convolution', [kernel], _bytes_field(106, settings))
    gamma, mean, var, beta = (
      stored[f'_{layer}_bn.{leaf}'] for leaf in ('w0', 'w1', 'w2', 'wbias')
    )
    layers[f'bn{end}'] = ('BatchNorm', [mean, var, np.ones(1)], b'')
    layers[f'scale{end}'] = ('Scale', [gamma, beta], b'')
    layers[f'{conv}_relu'] = ('ReLU', [], b'')
  layers['fc1000'] = (
    'InnerProduct',
    [stored['_output.w0'].T, stored['_output.wbias']],
    b'',
  )
  return layers


def blob(array, *, legacy=False, double=False):
  array = np.asarray(array)
  if legacy:
    shape = (1,) * (4 - array.ndim) + array.shape
    stated = b''.join(_int_field(n, size) for n, size in enumerate(shape, 1))
  else:
    dims = b''.join(_int_field(1, size) for size in array.shape)
    stated = _bytes_field(7, dims)
  if double:
    return stated + _bytes_field(8, array.astype('<f8').tobytes())
  return stated + _bytes_field(5, array.astype('<f4').tobytes())


def layer_message(name, kind, blobs, settings=b'', **encoding):
  message = _bytes_field(1, name) + _bytes_field(2, kind)
  for content in blobs:
    raw = isinstance(content, bytes)
    message += _bytes_field(7, content if raw else blob(content, **encoding))
  return _bytes_field(100, message + settings)


def v1_message(name, kind, blobs, settings=b''):
  del settings
  message = _bytes_field(2, 'bottom') + _bytes_field(4, name)
  message += _int_field(5, V1_TYPES.get(kind, 39))
  for array in blobs:
    message += _bytes_field(6, blob(array, legacy=True))
  return _bytes_field(2, message)


def write(path, layers, message=layer_message, **encoding):
  with open(path, 'wb') as file:
    file.write(_bytes_field(1, 'ResNet'))
    for name, (kind, blobs, settings) in layers.items():
      file.write(message(name, kind, blobs, settings, **encoding))
  return path


def load(path, options=OPTIONS):
  with open(path, 'rb') as file:
    assert caffe.recognise(path, file.read(512))
  return caffe.load(path, options)


@pytest.fixture(scope='module')
def paddle_digest(tmp_path_factory):
  @functools.cache
  def digest(depth):
    path = tmp_path_factory.mktemp('paddle') / 'model'
    write_paddle_directory(parameters(depth), str(path))
    return weights.digest(paddle.load(path, OPTIONS).parameters)

  return digest


@functools.cache
def _original():
  layers = network()
  return layers, {
    name: layer_message(name, *layer) for name, layer in layers.items()
  }


@pytest.fixture
def changed(tmp_path):
  """Writes ResNet-50 with a change of its layers."""

  def make(change):
    before, messages = _original()
    layers = dict(before)
    change(layers)
    path = tmp_path / 'changed.caffemodel'
    with open(path, 'wb') as file:
      file.write(_bytes_field(1, 'ResNet'))
      for name, layer in layers.items():
        same = layer is before.get(name)
        file.write(messages[name] if same else layer_message(name, *layer))
    return path

  return make


@pytest.fixture(autouse=True)
def _no_large_files_stay(tmp_path):
  yield
  for path in tmp_path.iterdir():
    if path.is_file():
      path.unlink()


# ------------------------------------------------------------- the framework


def prototxt(depth, size):
  """A deploy prototxt for images of any size, which the authors' are not."""
  theirs = make_reference.caffe_names(depth)
  text = [
    f'name: "ResNet-{depth}" input: "data"',
    f'input_shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }}',
  ]

  def layer(name, kind, bottoms, settings='', top=''):
    below = ' '.join(f'bottom: "{bottom}"' for bottom in bottoms)
    text.append(
      f'layer {{ name: "{name}" type: "{kind}" {below} top: "{top or name}"'
      f' {settings} }}'
    )

  def conv_bn(ours, bottom, c_out, kernel, stride):
    conv = theirs[f'{ours}_conv']
    end = '_conv1' if ours == 'conv1' else conv.removeprefix('res')
    bias = 'true' if ours == 'conv1' and depth == 50 else 'false'
    layer(
      conv,
      'Convolution',
      [bottom],
      f'convolution_param {{ num_output: {c_out} kernel_size: {kernel}'
      f' stride: {stride} pad: {kernel // 2} bias_term: {bias} }}',
    )
    layer(
      f'bn{end}',
      'BatchNorm',
      [conv],
      'batch_norm_param { use_global_stats: true }',
    )
    layer(f'scale{end}', 'Scale', [f'bn{end}'], 'scale_param {bias_term: true}')
    top = f'scale{end}'
    if not ours.endswith(('branch1', 'branch2c')):
      top = f'{conv}_relu'
      layer(top, 'ReLU', [f'scale{end}'])
    return top

  shortcut = bottom = ''
  for ours, _, c_out, kernel, stride in convolution_layers(depth):
    if ours == 'conv1':
      top = conv_bn(ours, 'data', c_out, kernel, stride)
      layer(
        'pool1',
        'Pooling',
        [top],
        'pooling_param { pool: MAX kernel_size: 3 stride: 2 }',
      )
      bottom = 'pool1'
      continue
    block, branch = ours.rsplit('_', 1)
    if branch == 'branch1':
      shortcut = conv_bn(ours, bottom, c_out, kernel, stride)
      continue
    if branch == 'branch2a':
      shortcut = shortcut or bottom
    bottom = conv_bn(ours, bottom, c_out, kernel, stride)
    if branch == 'branch2c':
      relu = theirs[f'{block}_addto']
      layer(f'{relu}_sum', 'Eltwise', [shortcut, bottom])
      layer(relu, 'ReLU', [f'{relu}_sum'])
      bottom, shortcut = relu, ''
  layer(
    'pool5',
    'Pooling',
    [bottom],
    'pooling_param { pool: AVE global_pooling: true }',
  )
  layer(
    'fc1000',
    'InnerProduct',
    ['pool5'],
    'inner_product_param { num_output: 1000 }',
  )
  layer('prob', 'Softmax', ['fc1000'])
  return '\n'.join(text)


def test_every_layer_has_the_values_that_opencv_computes(tmp_path):
  pytest.importorskip('cv2')
  random = np.random.default_rng(0)
  path, text = tmp_path / 'r.caffemodel', tmp_path / 'r.prototxt'
  conv1_bias = random.normal(0, 20, 64).astype(np.float32)
  make_reference.write_caffemodel(
    path, 50, parameters(50), conv1_bias=conv1_bias, bn_factor=999.98
  )
  text.write_text(prototxt(50, 96))
  x = random.normal(0, 50, (1, 3, 96, 96)).astype(np.float32)
  theirs = make_reference.run_opencv(str(text), str(path), 50, x)
  loaded = load(path)
  layers = names.layer_names(50)
  assert set(layers) == set(theirs)
  ours = resnet.capture(
    loaded.module, loaded.parameters, x.transpose(0, 2, 3, 1), layers
  )
  for name in layers:
    expected = theirs[name].reshape(1, theirs[name].shape[1], -1)
    value = np.asarray(ours[name]).transpose(0, 3, 1, 2)
    value = value.reshape(expected.shape)
    rms = np.sqrt(np.mean(expected**2))
    assert np.abs(value - expected).max() < 5e-4 * rms, name


def test_a_file_says_how_it_was_read(tmp_path):
  path = tmp_path / 'r.caffemodel'
  make_reference.write_caffemodel(path, 50, parameters(50))
  loaded = load(path)
  assert loaded.format == 'Caffe model (layer)'
  assert loaded.module == resnet.ResNet(
    50,
    1000,
    variant=Variant(stride_in='1x1', stem_pool='ceil', epsilon=1e-5),
    biases=frozenset({'conv1'}),
  )
  assert loaded.preprocess == presets.CAFFE
  assert loaded.layout == '(Co, Ci, ky, kx), (out, in)'
  assert loaded.notes == ()
  origins = loaded.origins
  assert origins['conv1_conv/kernel'] == assemble.Origin(
    'conv1.0', (64, 3, 7, 7), 'float32'
  )
  assert origins['conv1_bn/mean'].name == 'bn_conv1.0'
  assert origins['res2_1_branch2a_bn/var'].name == 'bn2a_branch2a.1'
  assert origins['res2_1_branch2a_bn/bias'].name == 'scale2a_branch2a.1'
  assert origins['logits/kernel'].shape == (1000, 2048)


@pytest.mark.parametrize('depth', [50, 101])
def test_the_parameters_are_those_of_the_paddle_directory(
  tmp_path, paddle_digest, depth
):
  path = tmp_path / 'r.caffemodel'
  make_reference.write_caffemodel(path, depth, parameters(depth))
  loaded = load(path)
  assert loaded.module.depth == depth
  # The authors' ResNet-50 alone has a bias, here of zeros.
  assert loaded.module.biases == ({'conv1'} if depth == 50 else set())
  bare = paddle.without_biases(loaded.parameters)
  assert weights.digest(bare) == paddle_digest(depth)


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_all_names_of_all_depths_are_the_authors(depth):
  naming = caffe.naming(depth)
  known = set(naming.values())
  biases = {name for name in known if name.endswith('_conv/bias')}
  assert known - biases == set(names.parameter_names(depth))
  assert len(known) == len(naming)
  theirs = make_reference.caffe_names(depth)
  for blob_name, ours in naming.items():
    layer = ours.split('/')[0]
    owner = blob_name.rpartition('.')[0]
    if layer.endswith('_conv') or layer == 'logits':
      assert owner == theirs[layer]
    else:
      conv = theirs[layer.replace('_bn', '_conv')]
      end = '_conv1' if conv == 'conv1' else conv.removeprefix('res')
      assert owner in (f'bn{end}', f'scale{end}')
  assert caffe.naming(18) == caffe.naming(34) == {}


# ------------------------------------------------------- other forms of files


def test_v1_layers_and_legacy_shapes(tmp_path, paddle_digest):
  path = write(tmp_path / 'v1', network(), v1_message)
  loaded = load(path)
  assert loaded.format == 'Caffe model (V1 layers)'
  assert weights.digest(loaded.parameters) == paddle_digest(50)
  assert loaded.origins['logits/kernel'].shape == (1000, 2048)


def test_float64_is_read_as_float32(tmp_path, paddle_digest):
  path = write(tmp_path / 'double', network(), double=True)
  loaded = load(path)
  assert weights.digest(loaded.parameters) == paddle_digest(50)
  assert loaded.origins['conv1_bn/mean'].dtype == 'float64'


def test_mean_and_variance_are_divided_by_their_factor(tmp_path):
  layers = network()
  kind, (mean, var, _), settings = layers['bn2a_branch2a']
  layers['bn2a_branch2a'] = (
    kind,
    [np.float32(mean * 8), np.float32(var * 8), np.float32([8])],
    settings,
  )
  loaded = load(write(tmp_path / 'factor', layers))
  name = 'res2_1_branch2a_bn'
  np.testing.assert_array_equal(loaded.parameters[f'{name}/mean'], mean)
  np.testing.assert_array_equal(loaded.parameters[f'{name}/var'], var)


def test_a_classifier_of_another_name_and_size(tmp_path):
  layers = network()
  _, (kernel, bias), _ = layers.pop('fc1000')
  layers['my/classes'] = ('InnerProduct', [kernel[:7], bias[:7]], b'')
  loaded = load(write(tmp_path / 'tuned', layers))
  assert loaded.module.classes == 7
  np.testing.assert_array_equal(
    loaded.parameters['logits/kernel'], kernel[:7].T
  )
  np.testing.assert_array_equal(loaded.parameters['logits/bias'], bias[:7])
  assert loaded.origins['logits/bias'].name == 'my/classes.1'


def test_without_a_classifier(tmp_path):
  layers = network()
  del layers['fc1000']
  loaded = load(write(tmp_path / 'headless', layers))
  assert loaded.module.classes == 0
  assert list(loaded.parameters) == list(names.parameter_names(50, head=False))


def test_strides_and_epsilon_are_the_files(tmp_path):
  layers = network(stride_in='3x3')
  epsilon = _bytes_field(139, b'\x1d' + struct.pack('<f', 2e-5))
  layers = {
    name: (kind, blobs, epsilon if kind == 'BatchNorm' else settings)
    for name, (kind, blobs, settings) in layers.items()
  }
  loaded = load(write(tmp_path / 'v1.5', layers))
  assert loaded.module == resnet.ResNet(
    50, variant=Variant(stride_in='3x3', epsilon=2e-5)
  )


# ------------------------------------------------- half the width, and groups


def _authors_name(unit):
  """The convolution's name, and how the names of its batch norm end."""
  conv = make_reference.caffe_names(50)[f'{unit}_conv']
  return conv, '_conv1' if unit == 'conv1' else conv.removeprefix('res')


def _open_nsfw_name(unit):
  if unit == 'conv1':
    return 'conv_1', '_1'
  stage, number, branch = re.fullmatch(r'res(.)_(.)_(.*)', unit).groups()
  branch = 'proj_shortcut' if branch == 'branch1' else branch
  end = f'_stage{int(stage) - 2}_block{int(number) - 1}_{branch}'
  return f'conv{end}', end


def drawn(module):
  """Values of which none is usual, with biases, and variances of 0."""
  random, values = np.random.default_rng(3), {}
  for name, shape in resnet.parameter_shapes(module).items():
    value = random.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
    if name.endswith(('/var', '/scale')):
      value = random.uniform(0.5, 2, shape)
    if name.endswith('_branch2a_bn/var'):
      value[::5] = 0
    values[name] = value.astype(np.float32)
  return values


def as_layers(module, values, name_of=_authors_name, head='fc1000', groups=0):
  """The layers of Caffe that hold a network's parameters."""
  layers = {}
  for unit in structure.units(module.depth, module.variant):
    conv, end = name_of(unit.name)
    blobs = [values[f'{unit.name}_conv/kernel'].transpose(3, 2, 0, 1)]
    if unit.name in module.biases:
      blobs.append(values[f'{unit.name}_conv/bias'])
    stated = _int_field(1, unit.outputs) + _int_field(6, unit.stride)
    if unit.groups > 1 and groups:
      stated += _int_field(5, groups)
    layers[conv] = ('Convolution', blobs, _bytes_field(106, stated))
    norm = {n: values[f'{unit.name}_bn/{n}'] for n in names.NORM_LEAVES}
    statistics = [norm['mean'], norm['var'], np.ones(1)]
    layers[f'bn{end}'] = ('BatchNorm', statistics, b'')
    layers[f'scale{end}'] = ('Scale', [norm['scale'], norm['bias']], b'')
  classifier = [values['logits/kernel'].T, values['logits/bias']]
  layers[head] = ('InnerProduct', classifier, b'')
  return layers


@pytest.mark.parametrize(
  ('name_of', 'head'),
  [(_authors_name, 'fc1000'), (_open_nsfw_name, 'fc_nsfw')],
)
def test_half_the_width_with_biases_and_variances_of_zero(
  tmp_path, name_of, head
):
  variant = Variant(width=32)
  units = frozenset(u.name for u in structure.units(50, variant))
  module = resnet.ResNet(50, 2, variant, units)
  values = drawn(module)
  path = write(tmp_path / 'half', as_layers(module, values, name_of, head))
  loaded = load(path)
  assert loaded.module == module
  assert loaded.parameters['res2_1_branch2c_conv/kernel'].shape[3] == 128
  for name, value in values.items():
    np.testing.assert_array_equal(loaded.parameters[name], value)
  conv, end = name_of('res5_3_branch2b')
  origins = loaded.origins
  assert origins['res5_3_branch2b_conv/bias'].name == f'{conv}.1'
  assert origins['res5_3_branch2b_bn/var'].name == f'bn{end}.1'
  assert origins['logits/kernel'].name == f'{head}.0'
  x = np.random.default_rng(0).normal(0, 50, (1, 32, 32, 3))
  output = resnet.capture(
    loaded.module, loaded.parameters, x.astype(np.float32), ['output']
  )['output']
  assert np.isfinite(output).all()


@pytest.mark.parametrize(
  ('stated', 'fault'),
  [
    (32, ''),
    (
      0,
      'res2a_branch2b states group 1, and its kernel has the shape of 32, .*'
      ' and 13 more',
    ),
    (16, 'res2a_branch2b states group 16, and its kernel has the shape of 32'),
  ],
)
def test_groups_are_those_of_the_kernels(tmp_path, stated, fault):
  variant = Variant(width=32, inner_width=32, groups=32)
  module = resnet.ResNet(50, 2, variant)
  path = tmp_path / 'groups'
  write(path, as_layers(module, drawn(module), groups=stated))
  if fault:
    with pytest.raises(errors.UserError, match=fault):
      load(path)
  else:
    assert load(path).module.variant == Variant(width=32, groups=32)


# -------------------------------------------------------------- what is wrong


def _replace(name, *, kind=None, blobs=None, settings=None):
  def change(layers):
    old = layers[name]
    layers[name] = (
      old[0] if kind is None else kind,
      old[1] if blobs is None else blobs,
      old[2] if settings is None else settings,
    )

  return change


def _second_head(layers):
  layers['fc2'] = layers['fc1000']


def _statistics(factor):
  return _replace(
    'bn2a_branch2a', blobs=[np.zeros(64), np.ones(64), np.full(1, factor)]
  )


@pytest.mark.parametrize(
  ('change', 'fault'),
  [
    (
      _second_head,
      r'names are unknown \(fc2',
    ),
    (_statistics(0), 'is untrained: the factor bn2a_branch2a.2 is 0'),
    (_statistics(-1), 'damaged: the factor bn2a_branch2a.2 is -1.0'),
    (_statistics(np.nan), 'damaged: the factor bn2a_branch2a.2 is nan'),
    (_statistics(np.inf), 'damaged: the factor bn2a_branch2a.2 is inf'),
    (
      _replace('bn2a_branch2a', blobs=[np.zeros(64), np.ones(64)]),
      r'bn2a_branch2a has blobs of shapes \(64,\), \(64,\); it must',
    ),
    (
      _replace('bn2a_branch2a', blobs=[np.ones(64)] * 3),
      'it must have mean, variance and one factor',
    ),
    (
      _replace('bn2a_branch2a', blobs=[np.ones(64), np.ones(64), [1], [1]]),
      r'1 names are unknown \(bn2a_branch2a.3\)',
    ),
    (
      _replace('scale2a_branch2a', blobs=[np.ones(64)]),
      r'1 names are missing \(scale2a_branch2a.1\)',
    ),
    (
      lambda layers: layers.pop('res5c_branch2c'),
      r'nearest is ResNet-50. 1 names are missing \(res5c_branch2c.0\)',
    ),
    (
      _replace('scale2a_branch2a', blobs=[np.ones(64), np.ones(63)]),
      r'scale2a_branch2a.1 has the shape \(63,\), not \(64,\)',
    ),
    (
      _replace('res2a_branch2a', blobs=[np.ones((64, 64))]),
      r'res2a_branch2a.0 has the shape \(64, 64\), not \(64, 64, 1, 1\)',
    ),
    (
      _replace('fc1000', blobs=[np.zeros((0, 2048)), np.zeros(0)]),
      'fc1000.0 has the shape .0, 2048.; it must have',
    ),
    (
      _replace('res5a_branch2a', settings=_bytes_field(106, _int_field(6, 1))),
      r'strides of its convolutions are not those of one \(',
    ),
    (
      _replace('res5b_branch2b', settings=_bytes_field(106, _int_field(18, 2))),
      'not hold a plain ResNet: res5b_branch2b is dilated',
    ),
    (
      _replace('res5b_branch2b', settings=_bytes_field(106, b'\x0b')),
      'damaged: layer .*: field 1 is a group',
    ),
    (
      lambda layers: layers.update(
        pool1=('Pooling', [], _bytes_field(121, _int_field(4, 1)))
      ),
      'does not hold a plain ResNet: pool1 is padded',
    ),
    (
      _replace(
        'bn5c_branch2c',
        settings=_bytes_field(139, b'\x1d' + struct.pack('<f', 0.001)),
      ),
      'have the eps 1e-05, 0.001, where one',
    ),
    (
      _replace('bn5c_branch2c', settings=_bytes_field(139, b'\x1a\0')),
      'damaged: layer .*: field 3 is a string of bytes, not 4 bytes',
    ),
  ],
)
def test_another_network_says_what_is_wrong(changed, change, fault):
  with pytest.raises(errors.UserError, match=fault) as caught:
    load(changed(change))
  assert 'changed.caffemodel' in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'blobs', 'fault'),
  [
    (
      'scale2a_branch2a',
      [np.full(64, np.nan), np.zeros(64)],
      r'not finite, or too large for float32, in scale2a_branch2a.0 \(64 of 64',
    ),
    (
      'bn2a_branch2a',
      [np.zeros(64), np.full(64, -1), np.ones(1)],
      'negative variances in bn2a_branch2a.1',
    ),
  ],
)
def test_values_that_no_network_has(changed, name, blobs, fault):
  with pytest.raises(errors.UserError, match=fault):
    load(changed(_replace(name, blobs=blobs)))


def test_values_that_are_not_finite_can_be_looked_at(changed):
  path = changed(_statistics(np.nan))
  loaded = load(path, assemble.Options(finite=False))
  assert np.isnan(loaded.parameters['res2_1_branch2a_bn/var']).all()


SMALL = [np.zeros((2, 3), np.float32)]


def _layers(*messages):
  return _bytes_field(1, 'net') + b''.join(messages)


def _with(content):
  return _layers(layer_message('conv1', 'Convolution', [content]))


ONE = blob(SMALL[0])


@pytest.mark.parametrize(
  ('content', 'fault'),
  [
    (_layers(layer_message('a', 'X', SMALL))[:-1], 'are left. Get it again'),
    (_with(ONE[:-1]), 'layer 1: conv1.0: field 5 needs 24 bytes, and 23'),
    (
      _with(_bytes_field(7, _bytes_field(1, b'\x02\x04')) + ONE[6:]),
      r'conv1.0: an array of shape \(2, 4\) holds 6 values',
    ),
    (
      _with(_bytes_field(7, _bytes_field(1, b'\xff' * 9 + b'\x01') * 4)),
      r'conv1.0: an array of shape \(18446744073709551615, .* holds 0',
    ),
    (
      _with(_bytes_field(7, _bytes_field(1, b'\xff' * 11))),
      'conv1.0: an integer has more than 10 bytes',
    ),
    (_with(_bytes_field(7, b'\x0b\x0c')), 'conv1.0: field 1 is a group'),
    (
      _layers(layer_message('a', 'X', SMALL, b'\x0b')),
      'layer 1: field 1 is a group',
    ),
    (_layers(layer_message('a', 'X', SMALL)) + b'\0', 'breaks off|number 0'),
    (
      _layers(*[layer_message('a', 'X', SMALL)] * 2),
      "damaged: two layers have the name 'a'",
    ),
    (
      _layers(layer_message('a', 'ReLU', [])),
      'refused: it has 1 layers, none with weights',
    ),
    (
      _layers(*[layer_message('a', 'X', [])] * 2001),
      'refused: it has more than 2000 layers',
    ),
    (
      _layers(layer_message('a', 'X', SMALL * 9)),
      'layer a has more than 8 blobs',
    ),
    (
      _layers(_bytes_field(2, _bytes_field(1, _bytes_field(1, 'conv1')))),
      r"refused: it is in Caffe's oldest format \(V0\)",
    ),
    (
      _layers(_bytes_field(100, _bytes_field(1, b'\xff\xff'))),
      'layer 1: field 1 is not UTF-8',
    ),
    (
      _int_field(1, 5000) + _bytes_field(2, 'net_iter_5000.caffemodel'),
      r'state of a solver \(.solverstate\), not a network. Give the .caffem',
    ),
    (
      _layers(layer_message('mine' * 99, 'X', SMALL)),
      r'its names are (mine){24}min, ..., where conv1.0, bn_conv1.0',
    ),
  ],
)
def test_a_damaged_file_says_why(tmp_path, content, fault):
  path = tmp_path / 'damaged.caffemodel'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match=fault) as caught:
    load(path)
  assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
  with pytest.raises(errors.UserError, match='cannot read'):
    caffe.load(tmp_path / 'none', OPTIONS)


@pytest.mark.parametrize(
  'head',
  [
    b'',
    b'name: "ResNet-50"\ninput: "data"\n',
    b'\nlayer {\n  name: "data"\n}\n' * 20,
    b'\x89HDF\r\n\x1a\n' + b'\0' * 99,
    b'PK\3\4' + b'\0' * 99,
    b'\x80\x02}q\0.',
    b'\x1f\x8b\x08\0',
    b'\0' * 512,
    b'\x08\x01\x10\x03\x18\x80\x02',  # a mean image
    b'\x08\x07\x12\x07pytorch\x1a\x041.13',  # ONNX
    b'\x0a\x10\x0a\x04node\x12\x08Identity' * 9,  # TensorFlow
    _bytes_field(1, 'net'),
    _bytes_field(100, b''),
  ],
)
def test_other_files_are_not_recognised(tmp_path, head):
  assert not caffe.recognise(tmp_path, head)


def test_any_flipped_bit_of_the_lengths_gives_one_error(tmp_path):
  whole = _layers(
    *(layer_message(name, 'X', SMALL) for name in ('conv1', 'bn_conv1'))
  )
  path = tmp_path / 'flipped.caffemodel'
  for bit in range(8 * len(whole)):
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    with pytest.raises(errors.UserError, match=r'flipped\.caffemodel'):
      caffe.load(path, OPTIONS)


def test_a_crafted_file_takes_no_memory_out_of_proportion(tmp_path):
  huge = _bytes_field(7, _bytes_field(1, b'\xff\xff\xff\xff\x07' * 4))
  path = tmp_path / 'huge.caffemodel'
  path.write_bytes(_layers(*[layer_message('a', 'X', [huge] * 8)] * 2000))
  tracemalloc.start()
  with pytest.raises(errors.UserError, match='holds 0 values'):
    caffe.load(path, OPTIONS)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1 << 20
