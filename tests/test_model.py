# SPDX-License-Identifier: Apache-2.0
"""A network in a notebook."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from numpy_resnet import NumpyResNet
from PIL import Image

import resnet_jax
from resnet_jax.data import mean as mean_lib
from resnet_jax.weights import paddle

LAYER = 'res5_2_branch2b_bn'


@pytest.fixture(scope='module')
def model():
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return resnet_jax.load('resnet18', weights='random', batch_size=4)


def test_the_three_lines_of_the_readme(model, image_folder):
  path = image_folder / 'a.png'
  features = model.features(path, LAYER)
  assert features.shape == (1, 512, 7, 7)
  prediction = model.predict(str(path))
  assert len(prediction.best) == 5
  assert prediction.label == model.features(path, 'logits').argmax()
  assert prediction.best[0].wnid in str(prediction)


def test_untrained_weights_warn():
  with pytest.warns(UserWarning, match='UNTRAINED'):
    resnet_jax.load(18, weights='random')


def test_paths_images_and_lists_agree(model, image_folder):
  paths = sorted(image_folder.rglob('*.*'))
  assert len(paths) == 7
  together = model.features(paths, LAYER)
  images = [Image.open(path) for path in paths]
  for given in (images, list(map(str, paths)), [paths[0], *images[1:]]):
    np.testing.assert_array_equal(model.features(given, LAYER), together)
  single = model.features(images[6], LAYER)
  # Another program: a product of other sizes is summed in another order.
  scale = np.sqrt(np.mean(together**2))
  assert np.abs(single[0] - together[6]).max() < 1e-4 * scale
  assert len(model.predict(paths)) == 7
  assert len(model.predict(paths[:1])) == 1


def test_an_array_is_taken_as_cropped_rgb(tmp_path):
  independent = NumpyResNet(18)
  rgb = np.random.default_rng(3).integers(0, 256, (3, 40, 52, 3), np.uint8)
  bgr = rgb[..., ::-1] - np.array(mean_lib.MEAN_BGR)
  expected = independent(bgr.transpose(0, 3, 1, 2))
  paddle.write(independent.parameters, tmp_path / 'weights')
  model = resnet_jax.load(
    'resnet18', weights=tmp_path / 'weights', batch_size=2
  )
  got = model.features(rgb, ['pool1', 'res3_*_addto', 'output'])
  assert list(got) == ['pool1', 'res3_1_addto', 'res3_2_addto', 'output']
  for name, value in got.items():
    scale = np.sqrt(np.mean(expected[name] ** 2))
    assert np.abs(value - expected[name]).max() / scale < 5e-4
  predicted = [prediction.label for prediction in model.predict(rgb)]
  assert predicted == list(expected['output'].argmax(axis=1).ravel())


def test_one_layer_is_an_array_and_several_are_a_dict(model, image_folder):
  path = image_folder / 'a.png'
  assert isinstance(model.features(path, 'avgpool'), np.ndarray)
  for several in (['avgpool'], 'avgpool,pool1', 'res5_*_addto', 'avgpoo?'):
    assert isinstance(model.features(path, several), dict)
  pooled = model.features(path, LAYER, pool='avg', dtype='float16')
  assert pooled.shape == (1, 512, 1, 1)
  assert pooled.dtype == np.float16
  assert model.layers[0] == 'conv1_conv'


def test_a_stream_gives_what_features_gives_batch_by_batch(model, image_folder):
  paths = sorted(image_folder.rglob('*.*'))
  together = model.features(paths, LAYER)
  (image_folder / 'broken.png').write_bytes(b'')
  found = list(model.stream(image_folder, LAYER, on_error='record'))
  assert [batch.start for batch, _ in found] == [0, 4]
  keys = [key for batch, _ in found for key in batch.keys]
  assert keys == [
    path.relative_to(image_folder).as_posix()
    for path in sorted([*paths, image_folder / 'broken.png'])
  ]
  values = np.concatenate([values[LAYER] for _, values in found])
  mask = np.concatenate([batch.mask for batch, _ in found])
  assert [key for key, real in zip(keys, mask, strict=True) if not real] == [
    'broken.png'
  ]
  scale = np.sqrt(np.mean(together**2))
  assert np.abs(values[mask] - together).max() < 1e-4 * scale
  with pytest.raises(
    resnet_jax.UserError, match=r'broken\.png: the file is empty'
  ):
    model.stream(image_folder, LAYER)


def test_a_stream_of_an_array_starts_where_it_is_told(model):
  pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
  whole = model.features(pixels, 'pool1,avgpool')
  for batch, values in model.stream(pixels, 'pool1,avgpool', start=4):
    rows = slice(batch.start, batch.start + len(batch.keys))
    assert list(values) == ['pool1', 'avgpool']
    for name, value in values.items():
      np.testing.assert_allclose(value, whole[name][rows], rtol=1e-5, atol=1e-5)
  assert rows == slice(4, 7)


@pytest.mark.parametrize(
  ('images_given', 'message'),
  [
    (
      np.zeros((2, 64, 64, 3)),
      r'of float64 \(2, 64, 64, 3\) as images',
    ),
    (np.zeros((64, 64, 3), np.uint8), r'add an axis, array\[None\]'),
    (np.zeros((2, 3, 64, 64), np.uint8), r'array\.transpose\(0, 2, 3, 1\)'),
    ([np.zeros((64, 64, 3), np.uint8)], r'np\.stack\(images\)'),
    (jnp.zeros((2, 64, 64, 3), np.uint8), r'np\.asarray\(images\)'),
    (None, 'cannot take an image of type NoneType'),
    (ROOT, r'is a folder\. model\.stream'),
    (np.zeros((1, 31, 64, 3), np.uint8), '32 or more'),
    (np.zeros((0, 64, 64, 3), np.uint8), 'as images'),
    ([], 'the list of images is empty'),
    ([3], 'cannot take an image of type int'),
    ('nowhere.jpg', 'cannot read the image nowhere.jpg: No such file'),
  ],
)
def test_what_is_no_image_is_refused(model, images_given, message):
  with pytest.raises(resnet_jax.UserError, match=message):
    model.features(images_given, 'pool1')


def test_wrong_arguments_say_what_is_allowed(model, image_folder):
  with pytest.raises(resnet_jax.UserError, match='Allowed: resnet18, resnet34'):
    resnet_jax.load('resnet51', weights='random')
  with pytest.raises(resnet_jax.UserError, match='batch_size=-1 is neither'):
    resnet_jax.load('resnet18', weights='random', batch_size=-1)
  with pytest.raises(resnet_jax.UserError, match="Did you mean 'bfloat16'"):
    resnet_jax.load('resnet18', weights='random', arithmetic='bfloat')
  with pytest.raises(resnet_jax.UserError, match="Did you mean 'bicubic'"):
    resnet_jax.load('resnet18', weights='random', interpolation='cubic')
  with pytest.raises(resnet_jax.UserError, match="weights='PATH'"):
    resnet_jax.load('/path/r18.safetensors')
  with pytest.raises(resnet_jax.UserError, match="crop_size='abc' is not a"):
    resnet_jax.load('resnet18', weights='random', crop_size='abc')
  with pytest.raises(resnet_jax.UserError, match='no layer was asked for'):
    model.features(image_folder / 'a.png', None)
  with pytest.raises(resnet_jax.UserError, match='Did you mean'):
    model.features(image_folder / 'a.png', 'res5_2_branch2b_b')
  with pytest.raises(resnet_jax.UserError, match='Allowed: none, avg, max'):
    model.features(image_folder / 'a.png', 'pool1', pool='mean')


@pytest.mark.filterwarnings('ignore:UNTRAINED')
def test_cropped_arrays_do_not_go_with_ten_crops_or_another_mean(tmp_path):
  ten = resnet_jax.load('resnet18', weights='random', multi_crop=True)
  with pytest.raises(resnet_jax.UserError, match='already cropped'):
    ten.features(np.zeros((1, 224, 224, 3), np.uint8), 'pool1')
  path = tmp_path / 'mean.npz'
  np.savez(path, data_mean=np.full(3 * 64 * 64, 100, np.float32))
  model = resnet_jax.load(18, weights='random', mean=path, crop_size=64)
  model.features(np.zeros((1, 64, 64, 3), np.uint8), 'conv1_conv')
  with pytest.raises(resnet_jax.UserError, match='crops of 40x64 need'):
    model.features(np.zeros((1, 40, 64, 3), np.uint8), 'conv1_conv')


def test_the_package_lists_its_names_and_no_others():
  assert 'load' in dir(resnet_jax)
  for name in resnet_jax.__all__:
    assert getattr(resnet_jax, name) is not None
  with pytest.raises(AttributeError, match="no attribute 'laod'"):
    resnet_jax.laod  # noqa: B018


def test_one_image_several_times_in_a_list(model, image_folder):
  images = [Image.open(image_folder / 'b.jpg')] * 8
  values = model.features(images, 'pool1')
  for value in values:
    np.testing.assert_array_equal(value, values[0])
  whole = (image_folder / 'b.jpg').read_bytes()
  (image_folder / 'b.jpg').write_bytes(whole[: len(whole) // 2])
  with (
    Image.open(image_folder / 'b.jpg') as broken,
    pytest.raises(resnet_jax.UserError, match='number 1 of the list: '),
  ):
    model.features([images[0], broken], 'pool1')
