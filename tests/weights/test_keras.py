# SPDX-License-Identifier: Apache-2.0
"""Files of Keras: written by Keras itself, older ones as it wrote them."""

import gc
import importlib
import json
import os
import re
import shutil
import zipfile
import zlib

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest
from makers import refusal

from resnet_jax import weights
from resnet_jax.data import presets
from resnet_jax.models import aliases, costs, programs, resnet, structure
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import assemble
from resnet_jax.weights import keras as keras_files

# Keras' variables do not take NumPy 2's `copy`.
pytestmark = pytest.mark.filterwarnings(
  "ignore:__array__ implementation doesn't accept a copy keyword"
)

OPTIONS = assemble.Options()
LAYOUTS = {
  'weights.h5': keras_files.WEIGHTS,
  'model.h5': keras_files.MODEL,
  'model.weights.h5': keras_files.WEIGHTS_3,
  'model.keras': keras_files.ARCHIVE,
}
# All of Keras' convolutions have a bias.
BIASES = frozenset(unit.name for unit in structure.units(50, Variant()))
BN_LEAVES = {
  'scale': 'gamma',
  'bias': 'beta',
  'mean': 'moving_mean',
  'var': 'moving_variance',
}


def framework():
  """Keras, imported late: it takes 120 MB of each of pytest's workers."""
  # Keras reads it when it is imported.
  os.environ['KERAS_BACKEND'] = 'jax'
  return importlib.import_module('keras')


def load(path):
  return keras_files.load(path, OPTIONS)


def recognised(path):
  return keras_files.recognise(path, path.read_bytes()[:512])


def randomise(model, seed):
  """Gives every weight a value of its own, such that values stay tame."""
  random = np.random.default_rng(seed)

  def value(variable):
    shape, leaf = variable.shape, variable.path.rsplit('/', 1)[-1]
    if leaf == 'kernel':
      normal = random.standard_normal(shape, np.float32)
      # Features are large here: a classifier of small numbers keeps its
      # probabilities off 0 and 1.
      scale = np.sqrt(2 / np.prod(shape[:-1])) * (
        1 if len(shape) > 2 else 0.003
      )
      return normal * np.float32(scale)
    if leaf == 'moving_variance':
      return random.uniform(0.5, 2, shape)
    if leaf == 'gamma':
      last = '_3_bn' in variable.path
      return random.uniform(0.5, 1.5, shape) * (0.3 if last else 1)
    return random.normal(0, 0.2, shape)

  for variable in model.weights:
    variable.assign(value(variable))
  return model


def save_weights(model, path):
  """As `save_weights` wrote until Keras 3; `save` still writes the like."""
  with h5py.File(path, 'w') as file:
    importlib.import_module(
      'keras.src.legacy.saving.legacy_h5_format'
    ).save_weights_to_hdf5_group(file, model)


def save_everything(model, folder):
  save_weights(model, folder / 'weights.h5')
  for name in list(LAYOUTS)[1:]:
    (model.save_weights if 'weights' in name else model.save)(folder / name)


def expected_parameters(model, owners):
  """Ours by Keras' own variables."""
  result = {}
  for ours, theirs in owners.items():
    if theirs not in {layer.name for layer in model.layers}:
      continue
    layer = model.get_layer(theirs)
    if ours.endswith('_bn'):
      values = {k: np.asarray(getattr(layer, v)) for k, v in BN_LEAVES.items()}
    else:
      values = {'kernel': np.asarray(layer.kernel)}
      values['bias'] = np.array(layer.bias)
    result |= {f'{ours}/{leaf}': value for leaf, value in values.items()}
  return result


def assert_same(parameters, expected):
  assert parameters.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(parameters[name], value, err_msg=name)


def checksums(parameters):
  return {
    name: (value.dtype, value.shape, zlib.crc32(np.ascontiguousarray(value)))
    for name, value in parameters.items()
  }


def assert_activations_agree(model, loaded, names, tolerance=5e-4):
  """Compares values (Keras' layer: canonical name) on a random input."""
  x = np.random.default_rng(1).normal(0, 60, (2, 64, 64, 3)).astype('f4')
  # Compiled whole: by single operations they are hundreds of programs.
  ours = jax.jit(
    lambda parameters: resnet.capture(
      loaded.module, parameters, x, list(names.values())
    )
  )(loaded.parameters)
  wanted = [model.get_layer(name).output for name in names]
  part = framework().Model(model.input, wanted)
  state = part.trainable_variables, part.non_trainable_variables
  with jax.numpy_rank_promotion('allow'):
    theirs, _ = jax.jit(part.stateless_call)(
      *([variable.value for variable in some] for some in state), x
    )
  for (theirs_name, name), value in zip(names.items(), theirs, strict=True):
    expected = np.asarray(value)
    got = np.asarray(ours[name]).reshape(expected.shape)
    rms = np.sqrt(np.mean(expected**2))
    assert 1e-4 < rms < 1e4, theirs_name
    assert np.abs(got - expected).max() / rms < tolerance, theirs_name


def _order_gives_names(model, depth, path):
  """Saves a model, asserts that it is read; returns the number of classes."""
  model.save_weights(path)
  owners = programs.owners(depth, 'keras')
  # Checksums, and the model let go: a ResNet-152 is 240 MB each time.
  expected = checksums(expected_parameters(model, owners))
  del model
  gc.collect()
  assert checksums(load(path).parameters) == expected
  strip_names(path)
  got = load(path)
  assert got.module.depth == depth
  assert checksums(got.parameters) == expected
  return got.module.classes


# Before the other tests' networks are there: less memory.
@pytest.mark.parametrize('depth', [101, 152])
def test_the_order_alone_gives_the_names_of_deeper_ones(tmp_path, depth):
  def build():
    build = getattr(framework().applications, f'ResNet{depth}')
    model = build(weights=None, include_top=False, input_shape=(64, 64, 3))
    random = np.random.default_rng(depth)
    for variable in model.weights:
      # All differ, so that no mistaken order can pass.
      variable.assign(random.random(variable.shape, np.float32))
    return model

  assert _order_gives_names(build(), depth, tmp_path / 'a.weights.h5') == 0


@pytest.fixture(scope='module')
def model():
  made = framework().applications.ResNet50(
    weights=None, classes=10, input_shape=(64, 64, 3)
  )
  return randomise(made, 0)


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
  """The same network in all four layouts."""
  folder = tmp_path_factory.mktemp('keras')
  save_everything(model, folder)
  return folder


@pytest.fixture(scope='module')
def loaded(saved):
  return load(saved / 'weights.h5')


# ------------------------------------------------------------- Keras' files


def test_every_name_has_keras_values(model, loaded):
  """Every layer, before and behind ReLUs, with biases and pads."""
  names = {}
  for layer in model.layers:
    (names[layer.name],) = aliases.select(f'keras:{layer.name}', 50)
    if layer.name != 'conv1_bn':
      # The one name that Keras has for another value than the canonical one.
      assert aliases.select(layer.name, 50) == (names[layer.name],)
  # The input, 53 convolutions, 53 batch norms, 49 ReLUs, 16 sums, three pools,
  # two pads, the probabilities; the sums' ReLUs are among the 49.
  assert len(names) == 1 + 53 + 53 + 49 + 16 + 3 + 2 + 1 - 1
  assert_activations_agree(model, loaded, names)
  # The biases are counted.
  found = costs.costs(loaded.module, 64, 64)
  assert sum(cost.parameters for cost in found) == sum(
    variable.value.size for variable in model.trainable_variables
  )


@pytest.mark.parametrize('name', LAYOUTS)
def test_all_layouts_hold_the_same_network(model, saved, loaded, name):
  path = saved / name
  assert recognised(path)
  got = load(path)
  assert got.format == LAYOUTS[name]
  assert got.notes == ()
  assert weights.digest(got.parameters) == weights.digest(loaded.parameters)
  assert got.origins == loaded.origins
  assert got.module == resnet.ResNet(
    50, 10, Variant('1x1', 'pad1', 1.001e-5), BIASES
  )
  assert got.preprocess == presets.CAFFE
  assert_same(
    got.parameters, expected_parameters(model, programs.owners(50, 'keras'))
  )


def test_names_are_those_that_a_keras_user_knows(loaded):
  origins = loaded.origins
  assert origins['res2_1_branch2a_conv/kernel'].name == (
    'conv2_block1_1_conv/kernel'
  )
  assert origins['res2_1_branch2a_bn/mean'].name == (
    'conv2_block1_1_bn/moving_mean'
  )
  assert origins['res2_1_branch2a_conv/bias'].name == (
    'conv2_block1_1_conv/bias'
  )
  assert origins['logits/kernel'].name == 'predictions/kernel'
  assert origins['logits/kernel'].shape == (2048, 10)
  assert loaded.layout == '(ky, kx, Ci, Co), (in, out)'
  assert keras_files.naming(18) == keras_files.naming(34) == {}
  assert keras_files.naming(50)['predictions/bias'] == 'logits/bias'


def strip_names(path):
  """Leaves a file as older versions wrote it: layers by class and number."""
  with h5py.File(path, 'r+') as file:

    def strip(name, entry):
      if name.endswith('vars') and 'name' in entry.attrs:
        del entry.attrs['name']

    file.visititems(strip)


def test_the_order_alone_gives_the_names(model, tmp_path):
  assert _order_gives_names(model, 50, tmp_path / 'a.weights.h5') == 10


def test_the_configuration_gives_the_names(saved, tmp_path, loaded):
  with zipfile.ZipFile(saved / 'model.keras') as archive:
    archive.extract('model.weights.h5', tmp_path)
    config = archive.read('config.json')
  strip_names(tmp_path / 'model.weights.h5')
  path = tmp_path / 'renamed'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=0) as new:
    new.write(tmp_path / 'model.weights.h5', 'model.weights.h5')
    new.writestr('config.json', config)
  assert recognised(path)
  assert_same(load(path).parameters, loaded.parameters)
  # Another order of layers is another order of names.
  turned = json.loads(config)
  turned['config']['layers'].reverse()
  with zipfile.ZipFile(path, 'w') as new:
    new.write(tmp_path / 'model.weights.h5', 'model.weights.h5')
    new.writestr('config.json', json.dumps(turned))
  with pytest.raises(errors.UserError, match='conv1_conv/kernel has the shape'):
    load(path)


def test_groups_may_have_the_names_of_layers(saved, tmp_path, loaded):
  path = tmp_path / 'a.h5'
  with (
    h5py.File(saved / 'model.weights.h5') as old,
    h5py.File(path, 'w') as new,
  ):
    for group in old['layers'].values():
      if len(group['vars']):
        name = group['vars'].attrs['name']
        copy = new.create_group(f'_layer_checkpoint_dependencies/{name}')
        old.copy(group['vars'], copy, 'vars', without_attrs=True)
  assert_same(load(path).parameters, loaded.parameters)


def test_bfloat16_as_keras_3_writes_it(saved, tmp_path, loaded):
  path = tmp_path / 'a.h5'
  shutil.copy(saved / 'model.weights.h5', path)
  with h5py.File(path, 'r+') as file:
    group = file['layers/dense/vars']
    value = group['0'][()].astype(ml_dtypes.bfloat16)
    del group['0']
    group.create_dataset('0', data=value).attrs['dtype'] = 'bfloat16'
  got = load(path)
  assert got.origins['logits/kernel'].dtype == 'bfloat16'
  expected = loaded.parameters['logits/kernel'].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(
    got.parameters['logits/kernel'], expected.astype('f4')
  )


def without_layers(source, target, pattern):
  """Copies a file of weights without some layers."""
  with h5py.File(source) as old, h5py.File(target, 'w') as new:
    new.attrs['layer_names'] = list(old)
    for name in old:
      if not re.fullmatch(pattern, name):
        old.copy(name, new)


def test_headless_files_have_no_classifier(saved, tmp_path):
  without_layers(saved / 'weights.h5', tmp_path / 'a', 'predictions|avg_pool')
  got = load(tmp_path / 'a')
  assert got.module.classes == 0
  assert got.notes == ()
  assert 'logits/kernel' not in got.parameters


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
  """A network that somebody trained on, with the optimizer's state."""
  body = framework().applications.ResNet50(
    weights=None, include_top=False, input_shape=(64, 64, 3)
  )
  made = framework().Sequential(
    [
      framework().Input((64, 64, 3)),
      framework().layers.Rescaling(2.0),
      framework().layers.RandomFlip(seed=1),
      body,
      framework().layers.GlobalAveragePooling2D(),
      framework().layers.Dropout(0.5, seed=1),
      framework().layers.Dense(7, name='flowers'),
    ]
  )
  # Only the head, or the files would be three times as large.
  body.trainable = False
  randomise(made, 2)
  made.compile('adam', 'mse')
  made.optimizer.build(made.trainable_variables)
  folder = tmp_path_factory.mktemp('tuned')
  save_everything(made, folder)
  return folder, body, made


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_fine_tuned_model_with_its_own_head(tuned, name):
  folder, body, made = tuned
  got = load(folder / name)
  expected = expected_parameters(body, programs.owners(50, 'keras'))
  head = made.get_layer('flowers')
  expected['logits/kernel'] = np.array(head.kernel)
  expected['logits/bias'] = np.array(head.bias)
  assert_same(got.parameters, expected)
  notes = ' '.join((*got.notes, *got.warnings))
  assert 'also has the layers rescaling, which are left out' in notes
  assert 'its classifier is flowers, not predictions.' in notes
  if name != 'weights.h5':
    assert "also holds an optimizer's state, which is not read." in notes
  # Only a configuration tells.
  if name in ('model.h5', 'model.keras'):
    assert "flowers ends with 'linear'; here 'output' is the softmax" in notes


def test_the_configuration_tells_epsilon_and_contradicts(model, tmp_path):
  def save(name, change):
    def clone(layer):
      config = layer.get_config()
      change(layer.name, config)
      return layer.__class__.from_config(config)

    framework().models.clone_model(model, clone_function=clone).save(
      tmp_path / name
    )
    return tmp_path / name

  def other_epsilon(name, config):
    if name.endswith('_bn'):
      config['epsilon'] = 1e-3

  assert load(save('a.keras', other_epsilon)).module.variant.epsilon == 1e-3

  def stride_of_v1_5(name, config):
    if name in ('conv3_block1_1_conv', 'conv3_block1_2_conv'):
      config['strides'] = (1, 1) if '1_conv' in name else (2, 2)
    if name == 'conv3_block2_3_bn':
      config['epsilon'] = 1e-2

  path = save('b.keras', stride_of_v1_5)
  with pytest.raises(errors.UserError) as caught:
    load(path)
  assert 'by its configuration' in str(caught.value)
  assert 'conv3_block1_1_conv has strides=[1, 1], not (2, 2)' in str(
    caught.value
  )
  assert 'conv3_block1_2_conv has strides=[2, 2], not (1, 1)' in str(
    caught.value
  )


def test_v2_is_another_network(tmp_path):
  other = framework().applications.ResNet50V2(
    weights=None, include_top=False, input_shape=(64, 64, 3)
  )
  save_weights(other, tmp_path / 'a.h5')
  other.save_weights(tmp_path / 'a.weights.h5')
  for name in ('a.h5', 'a.weights.h5'):
    with pytest.raises(errors.UserError, match=r'v2 \(pre-activation: it has'):
      load(tmp_path / name)
  strip_names(tmp_path / 'a.weights.h5')
  with pytest.raises(errors.UserError, match='49 layers of the class batch_n'):
    load(tmp_path / 'a.weights.h5')


# ------------------------------------------- files as older versions wrote


def old_name(layer):
  """What Keras called a layer until 2018."""
  usual = {'conv1_conv': 'conv1', 'conv1_bn': 'bn_conv1'}
  match = re.fullmatch(r'conv(\d)_block(\d)_(\d)_(conv|bn)', layer)
  if not match:
    return usual.get(layer, 'fc1000')
  stage, block, number, kind = match.groups()
  branch = ('1', '2a', '2b', '2c')[int(number)]
  letter = 'abcdef'[int(block) - 1]
  prefix = {'conv': 'res', 'bn': 'bn'}[kind]
  return f'{prefix}{stage}{letter}_branch{branch}'


KERAS_1 = {
  'kernel': 'W',
  'bias': 'b',
  'moving_mean': 'running_mean',
  'moving_variance': 'running_std',
}


def rewrite(source, target, name_of, change=lambda a: a, **storage):
  """Copies a file of weights with other names; (layer, leaf) to (...)."""
  with h5py.File(source) as old, h5py.File(target, 'w') as new:
    new.attrs['layer_names'] = np.array(list(old), 'S')
    for layer in old:
      for leaf, dataset in old.get(f'{layer}/{layer}', {}).items():
        path = name_of(layer, leaf)
        new.create_dataset(path, data=change(dataset[()]), **storage)


def test_the_names_of_keras_2(saved, tmp_path, loaded):
  def name_of(layer, leaf):
    # A second model in a session: the scope is numbered, the group is not.
    return f'{layer}/{layer}_1/{leaf}:0'

  rewrite(saved / 'weights.h5', tmp_path / 'a', name_of)
  got = load(tmp_path / 'a')
  assert_same(got.parameters, loaded.parameters)
  assert got.origins == loaded.origins


@pytest.fixture(scope='module')
def old(saved, tmp_path_factory):
  path = tmp_path_factory.mktemp('old') / 'old.h5'

  def name_of(layer, leaf):
    name = old_name(layer)
    return f'{name}/{name}_{KERAS_1.get(leaf, leaf)}:0'

  rewrite(saved / 'weights.h5', path, name_of)
  return path


def test_the_names_until_2018(model, old, loaded):
  got = load(old)
  assert got.module == resnet.ResNet(
    50, 10, Variant('1x1', 'pad1', 1e-3), BIASES
  )
  assert_same(got.parameters, loaded.parameters)
  assert got.origins['res4_6_branch2c_bn/var'].name == (
    'bn4f_branch2c/moving_variance'
  )
  (note,) = got.notes
  assert 'names that Keras used until 2018' in note
  assert '55 pixels, not 56' in note

  def clone(layer):
    config = layer.get_config()
    if 'epsilon' in config:
      config['epsilon'] = 1e-3
    return layer.__class__.from_config(config)

  reference = framework().models.clone_model(model, clone_function=clone)
  reference.set_weights(model.get_weights())
  names = {'pool1_pool': 'pool1', 'conv5_block3_out': 'res5_3_addto'}
  assert_activations_agree(reference, got, names | {'predictions': 'output'})


def test_an_old_model_without_padding_is_refused(old, tmp_path):
  path = tmp_path / 'a.h5'
  layers = [
    {'class_name': 'MaxPooling2D', 'config': {'name': 'max_pooling2d_1'}}
  ]
  with h5py.File(old) as source, h5py.File(path, 'w') as new:
    new.attrs['model_config'] = json.dumps(
      {'class_name': 'Model', 'config': {'layers': layers}}
    )
    source.copy(source, new, 'model_weights')
  with pytest.raises(errors.UserError, match='pool1_pad is missing: its max'):
    load(path)


@pytest.mark.parametrize(
  ('storage', 'dtype'),
  [
    (
      {'compression': 1, 'shuffle': True, 'fletcher32': True, 'chunks': True},
      '>f2',
    ),
    ({'chunks': True, 'fletcher32': True}, '<f8'),
  ],
)
def test_repacked_files(saved, tmp_path, loaded, storage, dtype):
  def change(array):
    return array.astype(dtype)

  rewrite(
    *(saved / 'weights.h5', tmp_path / 'a', '{0}/{0}/{1}'.format, change),
    **storage,
  )
  got = load(tmp_path / 'a')
  assert got.origins['logits/kernel'].dtype == np.dtype(dtype).name
  for name, value in loaded.parameters.items():
    np.testing.assert_array_equal(
      got.parameters[name], value.astype(dtype).astype('<f4'), err_msg=name
    )


# ------------------------------------------------- hostile and damaged files


@pytest.fixture
def crafted(tmp_path):
  """An HDF5 file by a function that fills one of Keras' groups."""

  def make(fill):
    path = tmp_path / 'crafted.h5'
    with h5py.File(path, 'w') as file:
      file.attrs['layer_names'] = ['conv1_conv']
      fill(file.create_group('conv1_conv'))
    return path

  return make


def test_what_is_not_plain_is_refused(crafted):
  def fill(group):
    group['a'] = h5py.SoftLink('/nowhere')

  message = refusal(load, crafted(fill))
  assert 'conv1_conv/a is a soft link or' in message


@pytest.mark.parametrize('name', ['a', 'optimizer_weights'])
def test_links_to_other_files_are_not_followed(tmp_path, crafted, name):
  # To open it would wait for ever.
  os.mkfifo(tmp_path / 'pipe')

  def fill(group):
    group.file[name] = h5py.ExternalLink(str(tmp_path / 'pipe'), '/')

  message = refusal(load, crafted(fill))
  wanted = 'or a link to another file' if name == 'a' else 'plain ResNet'
  assert wanted in message


@pytest.mark.parametrize(
  ('value', 'dtype'),
  [
    (np.zeros((7, 7, 3, 64), 'i4'), 'int32'),
    (np.array(['x', 'y'], h5py.string_dtype()), 'object'),
    (np.zeros(3, [('a', 'f4'), ('b', 'i8')]), 'void96'),
  ],
)
def test_types_that_are_no_weights(saved, tmp_path, value, dtype):
  without_layers(saved / 'weights.h5', tmp_path / 'a', 'conv1_conv')
  with h5py.File(tmp_path / 'a', 'r+') as file:
    file['conv1_conv/conv1_conv/kernel'] = value
    file['conv1_conv/conv1_conv/bias'] = np.zeros(64, 'f4')
  message = refusal(load, tmp_path / 'a')
  assert f'conv1_conv/kernel is {dtype}, not one of float16' in message


def test_a_chunk_that_inflates_to_more_than_stated(saved, tmp_path):
  without_layers(saved / 'weights.h5', tmp_path / 'a', 'conv1_conv')
  with h5py.File(tmp_path / 'a', 'r+') as file:
    group = file.create_group('conv1_conv/conv1_conv')
    group['bias'] = np.zeros(64, 'f4')
    kernel = group.create_dataset(
      'kernel', (7, 7, 3, 64), 'f4', chunks=(7, 7, 3, 64), compression=1
    )
    # 64 MiB in 64 KiB: HDF5 itself would take the memory.
    kernel.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(2**26), 9))
  message = refusal(load, tmp_path / 'a')
  assert 'is damaged: conv1_conv/kernel' in message


def test_hdf5_of_others_is_listed(tmp_path):
  path = tmp_path / 'a'
  with h5py.File(path, 'w') as file:
    file['features'] = np.zeros(3)
    file.create_group('labels/more')
  assert recognised(path)
  message = refusal(load, path)
  assert 'is an HDF5 file, but not of Keras' in message
  assert 'It holds features, labels.' in message


def test_another_network_is_listed(crafted):
  def fill(group):
    group.file['block1_conv1/block1_conv1/kernel:0'] = np.zeros((3, 3, 3, 64))

  message = refusal(load, crafted(fill))
  assert 'does not hold a plain ResNet: its names are' in message
  assert 'block1_conv1/kernel, ..., where conv1_conv/kernel' in message


def test_a_name_that_is_there_twice(crafted):
  def fill(group):
    for leaf in ('kernel:0', 'kernel:1'):
      group[f'conv1_conv/{leaf}'] = np.zeros(3, 'f4')

  assert 'holds conv1_conv/kernel twice' in refusal(load, crafted(fill))


def test_two_networks_without_names(tmp_path):
  path = tmp_path / 'a'
  with h5py.File(path, 'w') as file:
    for place in ('layers/functional', 'layers/functional_1'):
      file[f'{place}/layers/conv2d/vars/0'] = np.zeros(3, 'f4')
  assert 'holds two networks, layers/functional/layers' in refusal(load, path)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ('{', 'configuration is not what Keras writes (JSONDecodeError'),
    (
      '[' * 100_000,
      'configuration is not what Keras writes (ValueError: its JSON',
    ),
    ('[]', 'configuration is not what Keras writes (TypeError'),
    ('{"config": 3}', 'configuration is not what Keras writes (TypeError'),
    ('{"config": {"layers": 3}}', 'is not what Keras writes (TypeError'),
    ('{"config": {"layers": [{}]}}', "writes (KeyError: 'config')"),
    ('{"config": {"name": 3}}', 'is not what Keras writes (TypeError'),
    (['a', 'b'], 'its attribute model_config is not a string'),
    (3, 'its attribute model_config is not a string'),
    ('x' * (2**24 + 1), 'its attribute model_config has more than 16777216'),
  ],
)
def test_configurations_that_are_none(tmp_path, config, message):
  path = tmp_path / 'a'
  with h5py.File(path, 'w') as file:
    file.attrs['model_config'] = config
    file['model_weights/a/a/kernel'] = np.zeros(3, 'f4')
  assert message in refusal(load, path)


@pytest.mark.parametrize('epsilon', ['"x"', '0.5, "a": 1}}, {}', '2.0', '{}'])
def test_an_epsilon_that_is_none(tmp_path, epsilon):
  path = tmp_path / 'a'
  with h5py.File(path, 'w') as file:
    file.attrs['model_config'] = (
      '{"config": {"layers": [{"class_name": "BatchNormalization", "config":'
      f' {{"name": "conv1_bn", "epsilon": {epsilon}}}}}]}}}}'
    )
    file['model_weights/a/a/kernel'] = np.zeros(3, 'f4')
  message = refusal(load, path)
  assert 'epsilon is' in message or 'is not what Keras writes' in message


def damage(path, target, position, value):
  data = bytearray(path.read_bytes())
  data[position] = value
  target.write_bytes(data)


@pytest.fixture
def small(tmp_path):
  """All kinds of things that a file of Keras has, in 30 KiB."""
  path = tmp_path / 'small.h5'
  with h5py.File(path, 'w') as file:
    file.attrs['model_config'] = '{"class_name": "Model", "config": {}}'
    for number in range(9):
      group = file.create_group(f'model_weights/conv{number}')
      group.attrs['weight_names'] = np.array(['kernel:0'], 'S')
      group['kernel:0'] = np.arange(9, dtype='f4')
      group.create_dataset('b', data=np.arange(99.0), compression=1)
  return path


def test_truncated_files(small, tmp_path):
  data, path = small.read_bytes(), tmp_path / 'short'
  for size in (0, 7, 8, 50, 100, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:size])
    assert recognised(path) == (size >= 8)
    assert 'is damaged: ' in refusal(load, path)


def test_a_heap_that_would_never_end(small, tmp_path):
  # HDF5 2.0 would read it for ever: after the object comes one of no bytes.
  data = small.read_bytes()
  start = data.index(b'GCOL')
  damage(small, tmp_path / 'b', start + 24, data[start + 24] + 52)
  message = refusal(load, tmp_path / 'b')
  assert f'an object in the heap at {start} is 0 bytes' in message


@pytest.mark.parametrize('version', ['earliest', 'latest'])
def test_a_text_that_states_4_gib(tmp_path, version):
  text = json.dumps({'config': {'layers': 'x' * 300}})
  path = tmp_path / 'a'
  with h5py.File(path, 'w', libver=version) as file:
    file['model_weights/a/a/kernel'] = np.zeros(3, 'f4')
    file.attrs['other'] = 'y'
    file.attrs['model_config'] = text
  assert 'is not what Keras writes' in refusal(load, path)
  data = path.read_bytes()
  at = data.index(len(text).to_bytes(4, 'little'), data.index(b'model_config'))
  path.write_bytes(data[:at] + b'\xff\xff\xff\xff' + data[at + 4 :])
  message = refusal(load, path)
  # The newer version has checksums.
  assert (
    'has more than 16777216 bytes' in message or 'incorrect metadata' in message
  )


def test_any_changed_byte_gives_a_result_or_the_one_error(small, tmp_path):
  random = np.random.default_rng(0)
  size = small.stat().st_size
  for position in random.choice(size, 400, replace=False):
    damage(small, tmp_path / 'b', position, random.integers(256))
    refusal(load, tmp_path / 'b')


@pytest.fixture
def archive(tmp_path, small):
  """A zip file like those of Keras, by its members."""

  def make(members=(), compression=zipfile.ZIP_STORED):
    path = tmp_path / 'a.keras'
    usual = {'config.json': b'{"class_name": "Model", "config": {}}'}
    usual['model.weights.h5'] = small.read_bytes()
    with zipfile.ZipFile(path, 'w', compression) as made:
      for name, data in (usual | dict(members)).items():
        if data is not None:
          made.writestr(name, data)
    return path

  return make


@pytest.mark.parametrize(
  ('members', 'message'),
  [
    ({'config.json': None}, "no item named 'config.json'"),
    ({'model.weights.h5': b'no HDF5'}, 'is damaged: '),
    ({'config.json': b'\xff'}, 'is damaged: '),
    (
      {'model.weights.h5': bytes(2**22)},
      'model.weights.h5 states 4194304 bytes, compressed to',
    ),
    (
      {'config.json': bytes(2**24 + 1)},
      'config.json states 16777217 bytes, compressed to',
    ),
  ],
)
def test_archives_that_are_none(archive, members, message):
  path = archive(members, zipfile.ZIP_DEFLATED)
  assert recognised(path)
  assert message in refusal(load, path)


def test_a_truncated_archive_is_known(archive):
  path = archive()
  with zipfile.ZipFile(path) as made:
    members = {name: made.read(name) for name in made.namelist()}
  with zipfile.ZipFile(path, 'w') as made:
    # As Keras writes it.
    for name, data in ({'metadata.json': b'{}'} | members).items():
      made.writestr(name, data)
  whole = path.read_bytes()
  for size in (43, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    assert recognised(path)
    assert f'{path} is damaged: ' in refusal(load, path)


def test_a_large_bomb_is_refused_sooner(archive, monkeypatch):
  monkeypatch.setattr(keras_files, '_MAX_UNPACKED', 2**20)
  noise = np.random.default_rng(0).bytes(2**20)
  members = {'model.weights.h5': noise + bytes(3 * 2**20)}
  message = refusal(load, archive(members, zipfile.ZIP_DEFLATED))
  assert 'model.weights.h5 states 4194304 bytes, compressed to' in message


def test_other_compressions_are_refused(archive):
  for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    assert f'by method {method}; ' in refusal(load, archive({}, method))


def test_changed_bytes_of_an_archive_are_found(archive, tmp_path):
  path = archive()
  data = path.read_bytes()
  start = data.index(b'\x89HDF')
  damage(path, tmp_path / 'b', start + 9000, data[start + 9000] ^ 1)
  assert 'Bad CRC-32' in refusal(load, tmp_path / 'b')
  random = np.random.default_rng(0)
  # Its end is the table of contents.
  for position in random.choice(np.r_[4:99, -300:0], 100, replace=False):
    damage(path, tmp_path / 'b', position, random.integers(256))
    recognised(tmp_path / 'b')
    refusal(load, tmp_path / 'b')


def test_a_huge_table_of_contents_is_not_read(archive):
  path = archive({f'assets/{number}': b'' for number in range(2000)})
  assert not recognised(path)
  assert 'its zip directory has 113009 bytes, more than 65536' in refusal(
    load, path
  )


def test_other_files_are_not_recognised(tmp_path):
  assert not keras_files.recognise(tmp_path / 'none', b'PK\x03\x04')
  assert not keras_files.recognise(tmp_path, b'')
  path = tmp_path / 'a.zip'
  with zipfile.ZipFile(path, 'w') as made:
    made.writestr('archive/data.pkl', b'')
  assert not recognised(path)
  assert 'cannot read' in refusal(load, tmp_path / 'none')
