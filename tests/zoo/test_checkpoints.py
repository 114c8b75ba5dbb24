# SPDX-License-Identifier: Apache-2.0
"""Fine-tuned, headless and renamed checkpoints, as a user runs them."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT

import resnet_jax
from resnet_jax import weights
from resnet_jax.models import resnet
from resnet_jax.weights import torch_names
from resnet_jax.zoo import lookup, records

CONFIG = '--config=configs/resnet.py'
IMAGE = ROOT / 'example' / 'chelsea.png'


def _write(path, model, held=None):
  """A file as torchvision's names have it."""
  held = held or weights.untrained(model, 2)
  stored = {}
  for theirs, ours in torch_names.torchvision(model.depth).items():
    if ours in held.parameters:
      array = held.parameters[ours]
      axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
      stored[theirs] = np.ascontiguousarray(array.transpose(axes))
  safetensors.numpy.save_file(stored, path)
  return path


@pytest.fixture(scope='module')
def headless(tmp_path_factory):
  path = tmp_path_factory.mktemp('w') / 'model.bin'
  return _write(path, resnet.ResNet(18, 0))


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  path = tmp_path_factory.mktemp('w') / 'model.bin'
  return _write(path, resnet.ResNet(18, 3))


def test_without_a_head_features_work(run_main, headless, tmp_path):
  done = run_main(
    CONFIG,
    '--job=extract',
    f'--config.weights={headless}',
    f'--config.data={IMAGE}',
    '--config.output_layer=layer1.0.conv1,avgpool',
    check=0,
  )
  assert 'ResNet-18, no head' in done.stderr
  assert "safetensors, torchvision's and timm's names" in done.stderr
  assert 'NOTE: the file states neither the place of the strides' in done.stderr
  assert 'RGB, minus (123.675, 116.28, 103.53), over' in done.stderr
  store = resnet_jax.load_features(tmp_path / 'features')
  assert store['avgpool'].shape == (1, 512, 1, 1)
  assert store['res2_1_branch2a_conv'].shape == (1, 64, 56, 56)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--job=predict'], 'these weights have no head (no classifier), so'),
    (
      ['--job=extract', '--config.output_layer=fc'],
      "layer 'fc': these weights have no head",
    ),
  ],
)
def test_without_a_head_predict_says_so(run_main, headless, arguments, message):
  done = run_main(
    CONFIG,
    *arguments,
    f'--config.weights={headless}',
    f'--config.data={IMAGE}',
    check=1,
  )
  assert message in done.stderr


def test_without_a_head_in_a_notebook(headless):
  model = resnet_jax.load(weights=headless)
  assert model.layers[-1] == 'avgpool'
  assert model.features(IMAGE, 'global_pool').shape == (1, 512, 1, 1)
  with pytest.raises(resnet_jax.UserError, match='have no head'):
    model.predict(IMAGE)


def test_other_classes_have_the_names_that_the_user_gives(
  run_main, three, tmp_path
):
  (tmp_path / 'names.txt').write_text('Katze\nHund\n Maus \n', 'utf-8')
  common = [f'--config.weights={three}', f'--config.data={IMAGE}']
  done = run_main(
    CONFIG,
    '--job=predict',
    *common,
    '--config.class_names=names.txt',
    '--config.predictions=p.jsonl',
    check=0,
  )
  assert {line.split()[-1] for line in done.stdout.splitlines()[1:]} == {
    *('Katze', 'Hund', 'Maus')
  }
  _, line = map(json.loads, (tmp_path / 'p.jsonl').read_text().splitlines())
  assert len(line['best']) == 3
  assert line['best'][0]['wnid'] == ''
  done = run_main(CONFIG, '--job=predict', *common, check=0)
  assert 'class 0' in done.stdout
  # A converted file carries the names.
  run_main(
    CONFIG,
    '--job=convert',
    *common[:1],
    '--config.class_names=names.txt',
    '--config.output=w.safetensors',
    check=0,
  )
  model = resnet_jax.load(weights=tmp_path / 'w.safetensors')
  assert [c.name for c in model.classes] == ['Katze', 'Hund', 'Maus']
  assert model.predict(IMAGE).best[0].name in ('Katze', 'Hund', 'Maus')


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'a\nb\n', 'has 2 names, and the classifier 3 classes'),
    (b'\xff\xfe\n', 'cannot be read'),
    (None, 'cannot be read'),
  ],
)
def test_wrong_class_names(three, tmp_path, data, message):
  if data is not None:
    (tmp_path / 'n').write_bytes(data)
  with pytest.raises(resnet_jax.UserError, match=message):
    resnet_jax.load(weights=three, class_names=tmp_path / 'n')


def test_the_depth_is_the_files(run_main, three):
  done = run_main(
    f'{CONFIG}:34', '--job=inspect', f'--config.weights={three}', check=1
  )
  assert 'holds ResNet-18, not ResNet-34: set layer_num=18' in done.stderr
  with pytest.raises(resnet_jax.UserError, match='holds ResNet-18'):
    resnet_jax.load('resnet50', weights=three)


def test_the_users_variant_is_run_and_recorded(run_main, tmp_path):
  path = _write(tmp_path / 'w', resnet.ResNet(50, 2))
  run_main(
    CONFIG,
    '--job=extract',
    f'--config.weights={path}',
    f'--config.data={IMAGE}',
    '--config.stride_in=1x1',
    '--config.epsilon=2e-5',
    check=0,
  )
  settings = resnet_jax.load_features(tmp_path / 'features').settings
  assert settings['variant'] == {
    'stride_in': '1x1',
    'stem_pool': 'pad1',
    'epsilon': 2e-5,
  }
  other = resnet_jax.load(weights=path, stride_in='1x1', epsilon=2e-5)
  expected = other.features(IMAGE, 'avgpool')
  del other
  found = resnet_jax.load_features(tmp_path / 'features')['avgpool'][:]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  own = resnet_jax.load(weights=path)
  assert np.abs(own.features(IMAGE, 'avgpool') - expected).max() > 1e-3


def test_a_name_of_torchvision_is_its_value_before_the_relu(three):
  model = resnet_jax.load(weights=three)
  both = model.features(IMAGE, 'layer1.0.bn1,layer1.0.relu')
  linear, rectified = both.values()
  assert list(both) == [*model.resolve('layer1.0.bn1,layer1.0.relu')]
  assert linear.shape == (1, 64, 56, 56)
  assert linear.min() < 0
  np.testing.assert_array_equal(rectified, np.maximum(linear, 0))


def test_a_renamed_published_file_is_recognised(three, monkeypatch):
  """By its hash; with it come variant and preprocessing."""
  digits = hashlib.sha256(three.read_bytes()).hexdigest()
  published = lookup.find('timm.a1_in1k', 18)
  shapes = resnet.parameter_shapes(resnet.ResNet(18, 3))
  record = records.Record(
    **vars(published)
    | {
      'file': records.File(
        ('http://a/b',), records.Hash('sha256', digits[:8]), None
      ),
      'parameters': resnet.learned_count(shapes),
    }
  )
  monkeypatch.setattr(lookup, 'RECORDS', (record,))
  loaded = weights.load(str(three))
  assert 'timm.a1_in1k-18 of the zoo' in loaded.source
  assert loaded.preprocess.interpolation == 'bicubic'
  assert loaded.notes == ()
