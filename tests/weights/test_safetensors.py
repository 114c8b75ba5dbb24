# SPDX-License-Identifier: Apache-2.0
"""Our own safetensors, and foreign ones, written by the real library."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from resnet_jax import weights
from resnet_jax.data import presets
from resnet_jax.models import resnet
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import assemble, formats, metadata, torch_names
from resnet_jax.weights import (
  safetensors as ours,
)

MODEL = resnet.ResNet(
  18, 7, variant=Variant(stride_in='3x3', stem_pool='pad1', epsilon=2e-5)
)
OPTIONS = assemble.Options()


@pytest.fixture(scope='module')
def held():
  loaded = weights.untrained(MODEL, 3)
  preprocess = dataclasses.replace(
    presets.TORCHVISION, resize_size=235, interpolation='bicubic'
  )
  names = tuple(f'Straße {i}' for i in range(7))
  return dataclasses.replace(
    loaded, preprocess=preprocess, class_names=names, trained=True
  )


@pytest.fixture
def file(tmp_path, held):
  path = tmp_path / 'w.bin'
  digest = weights.digest(held.parameters)
  text = metadata.written(held, 'a test', digest, 'ab' * 32)
  ours.write(path, held.parameters, text)
  return path


def _edit(path, change):
  """Rewrites a file with its tensors and metadata changed."""
  with safetensors.safe_open(path, 'numpy') as opened:
    stated = json.loads(opened.metadata()['resnet_jax'])
    arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  del stated['checksum']
  change(arrays, stated)
  stated['checksum'] = metadata.checksum(stated)
  data = safetensors.numpy.save(arrays, {'resnet_jax': json.dumps(stated)})
  path.write_bytes(data)


def test_ours_is_loaded_with_no_other_information(file, held):
  loaded = weights.load(str(file))
  assert loaded.module == MODEL
  assert loaded.preprocess == held.preprocess
  assert loaded.loaded.class_names == held.class_names
  assert loaded.trained
  assert loaded.digest == weights.digest(held.parameters)
  assert 'resnet_jax safetensors' in loaded.source
  assert 'converted from a test' in loaded.source


def test_ours_is_readable_by_the_library(file, held):
  arrays = safetensors.numpy.load_file(file)
  assert set(arrays) == set(held.parameters)
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, held.parameters[name])


def test_float16_numbers_take_two_bytes_and_lose_nothing(tmp_path, held):
  halves = {
    name: array.astype(np.float16).astype(np.float32)
    for name, array in held.parameters.items()
  }
  first = next(iter(halves))
  other = dict(halves) | {first: halves[first].copy()}
  # Too large, and too fine, for float16.
  other[first].flat[:2] = 1e6, 1 + 2**-20
  for values, width in ((halves, 2), (other, 4)):
    path = tmp_path / f'{width}.safetensors'
    ours.write(path, values, metadata.written(held, 'x', ''))
    count = sum(array.size for array in values.values())
    assert width * count < path.stat().st_size < 1.1 * width * count
    found = weights.load(str(path)).parameters
    for name, array in values.items():
      assert found[name].dtype == np.float32
      np.testing.assert_array_equal(found[name], array)


def test_untrained_weights_stay_untrained(tmp_path):
  loaded = weights.untrained(MODEL)
  path = tmp_path / 'w.safetensors'
  digest = weights.digest(loaded.parameters)
  text = metadata.written(loaded, 'random', digest)
  ours.write(path, loaded.parameters, text)
  assert weights.load(str(path)).warnings[0].startswith('UNTRAINED')


def test_a_changed_value_is_noticed(file):
  def change(arrays, stated):
    arrays['conv1_conv/kernel'][0, 0, 0, 0] += 1

  _edit(file, change)
  with pytest.raises(errors.UserError, match='was changed since it was writt'):
    weights.load(str(file))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('stride_in', '2x2'),
    ('stem_pool', 'same'),
    ('epsilon', 'small'),
    ('epsilon', -1),
    ('epsilon', float('nan')),
    ('preprocessing', {}),
    ('preprocessing', None),
    ('class_names', ['one']),
    ('class_names', 5),
  ],
)
def test_damaged_metadata_is_one_error(file, key, value):
  _edit(file, lambda arrays, stated: stated.update({key: value}))
  with pytest.raises(
    errors.UserError, match=r'damaged|not one of|unknown|not b'
  ):
    weights.load(str(file))


@pytest.mark.parametrize('key', ['stride_in', 'preprocessing', 'digest'])
def test_missing_metadata_is_one_error(file, key):
  _edit(file, lambda arrays, stated: stated.pop(key))
  with pytest.raises(errors.UserError, match=f'damaged.*{key}'):
    weights.load(str(file))


def test_missing_and_unknown_names_are_listed(file):
  def change(arrays, stated):
    del arrays['conv1_bn/var']
    arrays['mine'] = np.zeros(3, np.float32)

  _edit(file, change)
  with pytest.raises(errors.UserError) as caught:
    weights.load(str(file))
  assert '1 names are missing (conv1_bn/var)' in str(caught.value)
  assert '1 names are unknown (mine)' in str(caught.value)
  assert 'the nearest is ResNet-18' in str(caught.value)


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (np.zeros((64, 2), np.float32), r'has the shape \(64, 2\), not \(64,\)'),
    (np.zeros(64, np.int64), 'is int64, not one of float16'),
    (np.full(64, np.nan, np.float32), r'not finite.*conv1_bn/var \(64 of 64\)'),
    (np.full(64, 1e300), 'too large for float32'),
    (np.full(64, -1, np.float32), 'negative variances in conv1_bn/var'),
  ],
)
def test_wrong_tensors_are_named(file, value, message):
  _edit(file, lambda arrays, stated: arrays.update({'conv1_bn/var': value}))
  with pytest.raises(errors.UserError, match=message):
    weights.load(str(file))


def test_inspection_may_see_what_is_not_finite(file):
  value = np.full(64, np.nan, np.float32)
  _edit(file, lambda arrays, stated: arrays.update({'conv1_bn/var': value}))
  loaded = weights.load(str(file), weights.Options(finite=False))
  assert np.isnan(loaded.parameters['conv1_bn/var']).all()


@pytest.mark.parametrize('cut', [9, 100, 10_000, -1])
def test_a_truncated_file_is_damaged(file, cut):
  file.write_bytes(file.read_bytes()[:cut])
  with pytest.raises(errors.UserError, match=r'damaged|an unknown format'):
    weights.load(str(file))


def test_flipped_bits_are_noticed(file):
  data = bytearray(file.read_bytes())
  random = np.random.default_rng(0)
  for place in random.integers(0, len(data), 60):
    flipped = bytearray(data)
    flipped[place] ^= 1 << int(random.integers(8))
    file.write_bytes(flipped)
    with pytest.raises(errors.UserError):
      weights.load(str(file))


@pytest.mark.parametrize(
  'header',
  [
    # Offsets beyond the file, a shape whose product overflows, and no tensor.
    {'a': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}},
    {'a': {'dtype': 'F32', 'shape': [2**33, 2**33], 'data_offsets': [0, 4]}},
    {'a': {'dtype': 'F99', 'shape': [1], 'data_offsets': [0, 4]}},
    {},
  ],
)
def test_a_crafted_header_takes_no_memory(tmp_path, header):
  text = json.dumps(header).encode()
  path = tmp_path / 'w'
  path.write_bytes(struct.pack('<Q', len(text)) + text + b'\0\0\0\0')
  with pytest.raises(errors.UserError, match='damaged'):
    weights.load(str(path))


def test_a_claimed_header_beyond_the_file_is_no_safetensors(tmp_path):
  path = tmp_path / 'w'
  path.write_bytes(struct.pack('<Q', 2**62) + b'{')
  with pytest.raises(errors.UserError, match='in an unknown format'):
    weights.load(str(path))


@pytest.mark.parametrize(
  ('naming', 'depth'),
  [
    (torch_names.torchvision, 18),
    (torch_names.torchvision, 50),
    (torch_names.hugging_face, 18),
    (torch_names.hugging_face, 50),
  ],
)
@pytest.mark.parametrize('head', [True, False])
def test_foreign_names_and_layouts(tmp_path, naming, depth, head):
  model = resnet.ResNet(depth, 5 if head else 0)
  held = weights.untrained(model, 1)
  stored = {
    theirs: np.ascontiguousarray(_to_torch(held.parameters[name]))
    for theirs, name in naming(depth).items()
    if name in held.parameters
  }
  path = tmp_path / 'model'
  safetensors.numpy.save_file(stored, path, {'format': 'pt'})
  loaded = weights.load(str(path))
  assert loaded.digest == weights.digest(held.parameters)
  assert loaded.module == model.clone(variant=torch_names.VARIANT)
  usual = {
    torch_names.torchvision: presets.TORCHVISION,
    torch_names.hugging_face: presets.HUGGING_FACE,
  }
  assert loaded.preprocess == usual[naming]
  assert torch_names.GUESSED in loaded.notes


def test_half_precision_becomes_float32(tmp_path):
  held = weights.untrained(resnet.ResNet(18, 5), 1)
  stored = {
    theirs: np.ascontiguousarray(
      _to_torch(held.parameters[name]).astype(np.float16)
    )
    for theirs, name in torch_names.torchvision(18).items()
    if name in held.parameters
  }
  path = tmp_path / 'model'
  safetensors.numpy.save_file(stored, path)
  loaded = weights.load(str(path))
  for name, array in loaded.parameters.items():
    assert array.dtype == np.float32
    expected = held.parameters[name].astype(np.float16)
    np.testing.assert_array_equal(array, expected)


def _to_torch(array):
  return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,)))


def test_what_is_no_weights_is_said(tmp_path):
  known = 'Weights are read from: Orbax checkpoint'
  for data, what in (
    (b'', 'is empty'),
    (b'<!DOCTYPE html><html>', 'a web page or XML, not weights'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
    (b'\x89PNG\r\n', 'an image'),
    (b'hello world, this is text', "it begins with b'hello world, thi'"),
  ):
    path = tmp_path / 'w'
    path.write_bytes(data)
    with pytest.raises(errors.UserError) as caught:
      formats.load(path, OPTIONS)
    assert what in str(caught.value)
    assert known in str(caught.value)


def test_a_directory_that_is_no_model_lists_what_it_holds(tmp_path):
  (tmp_path / 'model.bin').write_bytes(b'')
  with pytest.raises(errors.UserError) as caught:
    formats.load(tmp_path, OPTIONS)
  assert 'it holds model.bin); name the file in it' in str(caught.value)
