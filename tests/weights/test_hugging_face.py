# SPDX-License-Identifier: Apache-2.0
"""Folders of Transformers' `save_pretrained`."""

import json

import numpy as np
import pytest
import safetensors.numpy

from resnet_jax import weights
from resnet_jax.data import presets
from resnet_jax.models import resnet
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import torch_names

# What ships with microsoft/resnet-50.
PREPROCESSOR = {
  'crop_pct': 0.875,
  'do_normalize': True,
  'do_resize': True,
  'image_mean': [0.485, 0.456, 0.406],
  'image_std': [0.229, 0.224, 0.225],
  'resample': 3,
  'size': 224,
}


@pytest.fixture(scope='module')
def tensors():
  held = weights.untrained(resnet.ResNet(18, 3), 1)
  return {
    theirs: np.ascontiguousarray(
      held.parameters[ours].transpose(
        {4: (3, 2, 0, 1), 2: (1, 0)}.get(held.parameters[ours].ndim, (0,))
      )
    )
    for theirs, ours in torch_names.hugging_face(18).items()
  }


@pytest.fixture
def folder(tmp_path, tensors):
  path = tmp_path / 'resnet'

  def make(config=None, preprocessor=PREPROCESSOR):
    path.mkdir()
    safetensors.numpy.save_file(tensors, path / 'model.safetensors')
    stated = {'model_type': 'resnet'} | (config or {})
    (path / 'config.json').write_text(json.dumps(stated))
    if preprocessor is not None:
      text = json.dumps(preprocessor)
      (path / 'preprocessor_config.json').write_text(text)
    return str(path)

  return make


def test_the_files_beside_the_weights_tell_the_rest(folder):
  names = {'0': 'rose', '1': 'tulip', '2': 'aster'}
  config = {'id2label': names, 'downsample_in_bottleneck': True}
  loaded = weights.load(folder(config))
  assert loaded.module == resnet.ResNet(18, 3, Variant('1x1', 'pad1'))
  assert loaded.loaded.class_names == ('rose', 'tulip', 'aster')
  assert loaded.preprocess == presets.HUGGING_FACE
  assert loaded.loaded.format == 'Hugging Face folder, model.safetensors'
  assert loaded.notes == ()


def test_without_a_preprocessor_the_usual_input_is_taken_and_said(folder):
  placeholders = {str(i): f'LABEL_{i}' for i in range(3)}
  loaded = weights.load(folder({'id2label': placeholders}, None))
  assert loaded.module.variant.stride_in == '3x3'
  assert loaded.preprocess == presets.HUGGING_FACE
  assert loaded.loaded.class_names == ()
  assert 'has no preprocessor_config.json' in loaded.notes[0]


def test_another_preprocessing_is_taken(folder):
  loaded = weights.load(
    folder(
      preprocessor={
        'image_mean': [0.5, 0.5, 0.5],
        'image_std': [0.5, 0.25, 0.125],
        'resample': 2,
        'size': {'shortest_edge': 128},
        'crop_pct': 1,
      }
    )
  )
  preprocess = loaded.preprocess
  assert preprocess.mean == (127.5, 127.5, 127.5)
  assert preprocess.std == (127.5, 63.75, 31.875)
  assert (preprocess.resize_size, preprocess.crop_size) == (128, 128)
  assert preprocess.interpolation == 'bilinear'


@pytest.mark.parametrize(
  ('config', 'preprocessor', 'message'),
  [
    ({'model_type': 'vit'}, None, 'says model_type=vit, not resnet'),
    ({'downsample_in_first_stage': True}, None, 'another network'),
    ({'hidden_act': 'gelu'}, None, 'hidden_act=gelu, not relu'),
    ({'id2label': {'0': 'a'}}, None, 'names 1 classes in id2label, and the'),
    ({}, PREPROCESSOR | {'resample': 0}, 'not supported.*resample 0'),
    ({}, PREPROCESSOR | {'size': 384}, 'not supported.*size 384'),
    ({}, PREPROCESSOR | {'size': {}}, 'not supported.*KeyError'),
    ({}, PREPROCESSOR | {'image_mean': [1, 2]}, 'not supported.*ValueError'),
    ({}, PREPROCESSOR | {'image_std': [1, 0, 1]}, 'std=.* is not three'),
    ({}, PREPROCESSOR | {'do_normalize': False}, 'do_normalize=False'),
    ({}, PREPROCESSOR | {'rescale_factor': 0.1}, 'rescale_factor=0.1'),
    (
      {},
      PREPROCESSOR | {'image_processor_type': 'ViTImageProcessor'},
      'ViTImageProcessor',
    ),
    (
      {},
      PREPROCESSOR | {'size': {'height': 224, 'width': 224}},
      'not supported.*KeyError',
    ),
    ({}, PREPROCESSOR | {'crop_pct': -1}, 'resize_size=-224 is not'),
    ({}, PREPROCESSOR | {'crop_pct': 0}, 'ZeroDivisionError'),
    ({}, [], 'preprocessor_config.json is damaged: it is not a JSON object'),
  ],
)
def test_what_is_not_known_is_one_error(folder, config, preprocessor, message):
  with pytest.raises(errors.UserError, match=message):
    weights.load(folder(config, preprocessor))


def test_a_folder_of_timms(tmp_path):
  held = weights.untrained(resnet.ResNet(18, 3), 1)
  stored = {
    theirs: np.ascontiguousarray(
      held.parameters[ours].transpose(
        {4: (3, 2, 0, 1), 2: (1, 0)}.get(held.parameters[ours].ndim, (0,))
      )
    )
    for theirs, ours in torch_names.torchvision(18).items()
  }
  safetensors.numpy.save_file(stored, tmp_path / 'model.safetensors')
  stated = {
    'mean': [0.5, 0.5, 0.5],
    'std': [0.25, 0.5, 0.5],
    'crop_pct': 0.95,
    'interpolation': 'bicubic',
    'input_size': [3, 224, 224],
  }
  config = {'architecture': 'resnet18', 'pretrained_cfg': stated}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  loaded = weights.load(str(tmp_path))
  assert loaded.loaded.format == 'timm folder, model.safetensors'
  assert loaded.preprocess.mean == (127.5, 127.5, 127.5)
  assert loaded.preprocess.std == (63.75, 127.5, 127.5)
  assert (loaded.preprocess.resize_size, loaded.preprocess.crop_size) == (
    235,
    224,
  )
  assert loaded.preprocess.interpolation == 'bicubic'
  assert loaded.notes == ()
  stated['interpolation'] = 'hamming'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match="unknown interpolation 'hamming'"):
    weights.load(str(tmp_path))
