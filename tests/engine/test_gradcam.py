# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM against what it must be by other ways of computing."""

import numpy as np
import pytest
from conftest import ROOT
from numpy_resnet import NumpyCifar

import resnet_jax
from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import gradcam, reductions, runner
from resnet_jax.models import resnet
from resnet_jax.system import errors

MEAN = np.array(presets.CIFAR.mean, np.float32).reshape(3, 1, 1)

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')


def _noise(count, size):
  random = np.random.default_rng(3)
  return random.integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope='module')
def model():
  return resnet_jax.load('resnet18', weights='random')


@pytest.mark.parametrize('label', [None, 7])
def test_of_the_last_block_it_is_the_classifiers_own_row(model, label):
  """There d logit / d value = weight / positions, exactly."""
  images = _noise(3, 96)
  cam = model.grad_cam(images, label)
  values = model.features(images, 'res5_2_addto').astype(np.float64)
  weights = model.weights.parameters['logits/kernel'].astype(np.float64)
  for row, prediction in enumerate(model.predict(images)):
    own = weights[:, prediction.label if label is None else label] / 9
    expected = np.maximum(np.einsum('chw,c->hw', values[row], own), 0)
    assert cam[row].max() > 0
    np.testing.assert_allclose(cam[row], expected, atol=1e-5 * cam.max())


def test_of_a_middle_layer_it_agrees_with_finite_differences():
  """A batch norm's bias moves a whole channel, so it has the mean gradient.

  Held against the NumPy network in float64, which knows no gradients.
  """
  layer, label = 'res2_2_branch2b_bn', 4
  network = NumpyCifar(20, classes=10)
  images = _noise(1, 32)
  x = images.transpose(0, 3, 1, 2).astype(np.float64)
  x = (x - MEAN) / 60
  base = dict(network(x))
  values = base[layer]
  name, step = f'{layer}/bias', 1e-6
  bias = network.parameters[name].astype(np.float64)
  gradient = np.zeros(16)
  for channel in range(16):
    network.parameters[name] = bias + step * np.eye(16)[channel]
    moved = network(x)['logits'] - base['logits']
    gradient[channel] = moved[0, label, 0, 0] / step
  network.parameters[name] = bias.astype(np.float32)
  weights = gradient / values[0, 0].size
  expected = np.maximum(np.einsum('chw,c->hw', values[0], weights), 0)

  run = runner.Runner(
    resnet.published(20),
    network.parameters,
    (layer,),
    Preprocess(presets.CIFAR.mean, channels='RGB', std=(60.0, 60.0, 60.0)),
    grad_cam=gradcam.GradCam(layer, label),
  )
  found = run.fetch(run(images[:, None]))
  np.testing.assert_allclose(
    found[layer], values, atol=1e-4 * np.abs(values).max()
  )
  cam = found[gradcam.GRAD_CAM][0, 0]
  assert expected.max() > 0
  np.testing.assert_allclose(cam, expected, atol=1e-3 * expected.max())


def test_an_image_does_not_depend_on_its_neighbours(model):
  images = _noise(3, 96)
  together = model.grad_cam(images, 5, 'layer3.0.conv1')
  alone = model.grad_cam(images[1:2], 5, 'layer3.0.conv1')
  assert together.shape == (3, 6, 6)
  np.testing.assert_allclose(
    together[1], alone[0], atol=1e-4 * together[1].max()
  )


def test_values_beside_it_are_those_without_it(model):
  images = _noise(1, 96)
  what = gradcam.GradCam('res4_1_addto')
  beside = model._values(
    images, ('res3_1_addto', 'output'), reductions.Reduction(), what
  )
  assert list(beside) == ['res3_1_addto', 'output', gradcam.GRAD_CAM]
  for name, values in model.features(
    images, ['res3_1_addto', 'output']
  ).items():
    np.testing.assert_allclose(beside[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'label': 1000}, r'there is no class 1000. Allowed: 0 to 999'),
    ({'layer': 'avgpool'}, r'avgpool has none\. Choose for example res5_2_add'),
    ({'label': 'n0212304'}, "label='n0212304' is none of"),
    ({'layer': 'res5_*'}, "'res5_\\*' stands for 12 layers"),
    ({'layer': 'res9'}, "ResNet-18 has no layer 'res9'"),
  ],
)
def test_what_it_cannot_look_at(model, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    model.grad_cam(_noise(1, 64), **arguments)


def test_a_wordnet_id_is_a_class(model):
  images = _noise(1, 64)
  np.testing.assert_array_equal(
    model.grad_cam(images, 'n02123045'), model.grad_cam(images, 281)
  )


def test_ten_crops_are_not_one_image():
  model = resnet_jax.load('resnet18', weights='random', multi_crop=True)
  image = ROOT / 'example/chelsea.png'
  with pytest.raises(errors.UserError, match='Grad-CAM looks at one crop'):
    model.grad_cam(image)
  with pytest.raises(errors.UserError, match='averages over ten crops'):
    model.crops(image)


def test_crops_are_what_the_network_sees(model):
  crops = model.crops(ROOT / 'example/chelsea.png')
  assert crops.shape == (1, 224, 224, 3)
  assert crops.dtype == np.uint8
  whole = model.features(ROOT / 'example/chelsea.png', 'conv1_bn')
  cut = model.features(crops, 'conv1_bn')
  np.testing.assert_array_equal(whole, cut)
