# SPDX-License-Identifier: Apache-2.0
"""The paper's CIFAR networks: layers, weights, images, settings."""

import shutil

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from makers import config_of
from numpy_resnet import NumpyCifar
from PIL import Image
from scipy import ndimage

import resnet_jax
from resnet_jax import jobs, weights
from resnet_jax.data import crops, decoding, labels, preprocess, presets
from resnet_jax.engine import runner
from resnet_jax.models import aliases, costs, layers, names, resnet, structure
from resnet_jax.system import errors
from resnet_jax.weights import paddle, torch_names

# In units of a layer's rms, as in test_network.
TOLERANCE = 5e-4


def noise(*shape):
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


# ------------------------------------------------------------- the network


@pytest.mark.parametrize(
  ('depth', 'millions', 'exact'),
  # The paper's table 6; exactly: 16*27 + 32 of the stem, n blocks of 4672, of
  # 18560 (the first 13952), of 73984 (the first 55552), and 650.
  [
    (20, 0.27, 269_722),
    (32, 0.46, 464_154),
    (44, 0.66, 658_586),
    (56, 0.85, 853_018),
  ],
)
def test_parameter_counts_are_the_papers(depth, millions, exact):
  count = resnet.learned_count(resnet.parameter_shapes(resnet.published(depth)))
  assert count == exact
  assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize('depth', structure.CIFAR)
def test_layers_are_named_as_in_the_other_networks(depth):
  found = names.layer_names(depth)
  assert found[:4] == (
    'conv1_conv',
    'conv1_bn',
    'res2_1_branch2a_conv',
    'res2_1_branch2a_bn',
  )
  last = f'res4_{(depth - 2) // 6}'
  assert found[-5:] == (
    f'{last}_branch2b_bn',
    f'{last}_addto',
    'avgpool',
    'logits',
    'output',
  )
  assert sum(name.endswith('_conv') for name in found) + 1 == depth
  assert not any('branch1' in n or 'pool1' in n for n in found)
  assert set(names.layer_names(depth, head=False)) == set(found[:-2])


@pytest.mark.parametrize(
  ('asked', 'layer'),
  [
    ('res4_9_addto', 'res4_9_addto'),
    ('conv1', 'conv1_conv'),
    ('layer2.0.conv1', 'res3_1_branch2a_conv'),
    ('layer3.8.bn2', 'res4_9_branch2b_bn'),
    ('layer3.8.bn1', 'res4_9_branch2a_bn_linear'),
    ('layer3.0.shortcut', 'res4_1_shortcut'),
    ('layer3', 'res4_9_addto'),
    ('linear', 'logits'),
  ],
)
def test_layers_by_the_names_of_their_program(asked, layer):
  assert aliases.select(asked, 56) == (layer,)


def test_layers_of_the_larger_networks_are_not_there():
  with pytest.raises(errors.UserError) as caught:
    aliases.select('pool1', 20)
  message = str(caught.value)
  assert "ResNet-20 has no layer 'pool1'" in message
  assert 'Allowed: conv1_conv, conv1_bn, avgpool, logits, output' in message
  assert 'BLOCK is res2_1 to res2_3, res3_1 to res3_3, res4_1 to' in message
  assert 'BRANCH is branch2a, branch2b; globs such as res4_*_addto' in message
  with pytest.raises(errors.UserError, match=r"'res5_\*'"):
    aliases.select('res5_*', 20)
  with pytest.raises(errors.UserError, match=r"'linear': these .* no head"):
    aliases.select('linear', 20, head=False)


def test_a_depth_that_nobody_published_lists_all():
  with pytest.raises(errors.UserError, match='no ResNet has 26 layers') as e:
    structure.check_depth(26)
  assert str(e.value).endswith(
    'Allowed: 18, 34, 50, 101, 152 (ImageNet), 20, 32, 44, 56 (CIFAR).'
  )


@pytest.mark.parametrize(
  ('depth', 'size'), [(20, (32, 32)), (32, (32, 32)), (20, (37, 50))]
)
def test_every_layer_agrees_with_a_direct_numpy_network(depth, size):
  images = noise(2, *size, 3)
  independent = NumpyCifar(depth, classes=10)
  rgb = (images - np.array(presets.CIFAR.mean)) / presets.CIFAR.std
  expected = independent(rgb.transpose(0, 3, 1, 2))

  model = resnet.published(depth)
  wanted = names.layer_names(depth)
  assert set(wanted) == set(expected)
  run = runner.Runner(
    model,
    independent.parameters,
    wanted,
    presets.CIFAR,
  )
  got = run.fetch(run(images[:, None]))
  shapes = resnet.value_shapes(model, *size)
  for name in wanted:
    assert got[name].shape == (2, *shapes[name]) == expected[name].shape
    scale = np.sqrt(np.mean(expected[name] ** 2))
    error = np.abs(got[name] - expected[name]).max() / scale
    assert error < TOLERANCE, name


def test_a_padded_shortcut_takes_every_second_pixel_between_zeros():
  x = np.arange(1, 19, dtype=np.float32).reshape(1, 3, 3, 2)
  got = np.asarray(layers.PaddedShortcut(5, 2).apply({}, x))
  assert got.tolist() == [
    [
      [[0, 1, 2, 0, 0], [0, 5, 6, 0, 0]],
      [[0, 13, 14, 0, 0], [0, 17, 18, 0, 0]],
    ]
  ]


def test_costs_are_those_computed_by_hand():
  found = {c.layer: c for c in costs.costs(resnet.published(20), 32, 32)}
  taps = 9 * 16 * 16 * 32 * 32
  # A stage's first convolution has half the channels to take.
  assert sum(c.multiply_adds for c in found.values()) == (
    9 * 3 * 16 * 32 * 32 + 6 * taps + 2 * (taps // 2 + 5 * taps) + 640
  )
  # 3 of the stem; 2 for each convolution of res2, 4 of res3, 8 of res4, of
  # which the first of a stage has the step of the stage before.
  assert found['res4_3_addto'].receptive_field == 3 + 12 + 2 + 20 + 4 + 40
  assert found['res4_3_addto'].stride == 4
  assert found['res4_3_addto'].shape == (64, 8, 8)


@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    (
      resnet.published(20),
      'ResNet-20, 10 classes, shortcuts padded with zeros, epsilon 1e-05',
    ),
    (
      resnet.ResNet(50, 0, torch_names.VARIANT),
      'ResNet-50, no head, stride in 3x3, stem pool pad1, epsilon 1e-05',
    ),
  ],
)
def test_a_network_is_described_by_what_it_has(model, expected):
  assert resnet.describe(model) == expected


# -------------------------------------------------------------- the weights


@pytest.fixture(scope='module')
def trained():
  """Made-up parameters of ResNet-20, by our names."""
  independent = NumpyCifar(20, classes=10)
  independent(noise(1, 3, 32, 32) / 50.0)
  return independent.parameters


def of_pytorch(parameters, prefix='module.'):
  """The state dict that pytorch_resnet_cifar10 has of them."""
  leaves = {'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}
  state = {}
  for ours, array in parameters.items():
    layer, leaf = ours.split('/')
    if layer == 'logits':
      theirs = 'linear'
    elif layer.startswith('conv1_'):
      theirs = {'conv': 'conv1', 'bn': 'bn1'}[layer[6:]]
    else:
      stage, block, branch, kind = layer.split('_')
      number = 'ab'.index(branch[-1]) + 1
      theirs = f'layer{int(stage[3:]) - 1}.{int(block) - 1}.{kind}{number}'
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
    name = f'{prefix}{theirs}.{leaves.get(leaf, "weight")}'
    state[name] = np.ascontiguousarray(array.transpose(axes))
  return state


@pytest.mark.parametrize('prefix', ['module.', ''])
def test_pytorchs_names_are_read(tmp_path, trained, prefix):
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file(of_pytorch(trained, prefix), path)
  loaded = weights.load(str(path))
  assert (loaded.module.depth, loaded.module.classes) == (20, 10)
  assert loaded.preprocess == presets.CIFAR
  assert loaded.loaded.format == ("safetensors, pytorch_resnet_cifar10's names")
  assert loaded.notes[-1] == torch_names.GUESSED_CIFAR
  assert len(loaded.notes) == 1 + bool(prefix)
  assert set(loaded.parameters) == set(trained)
  for name, array in trained.items():
    np.testing.assert_array_equal(loaded.parameters[name], array)
  with pytest.raises(
    errors.UserError,
    match='holds ResNet-20, not ResNet-56: set layer_num=20',
  ):
    weights.load(str(path), weights.Options(56))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      # The paper's option B, as others have it.
      {'layer2.0.shortcut.0.weight': np.zeros((32, 16, 1, 1), np.float32)},
      r'ResNet-20: 1 names are unknown'
      r' \(layer2.0.shortcut.0.weight\).*44, 56 \(CIFAR\)',
    ),
    (
      {'bn1.bias': None},
      r'nearest is ResNet-20: 1 names are missing \(bn1.bias\)',
    ),
    (
      # A wider one.
      {'conv1.weight': np.zeros((64, 3, 3, 3), np.float32)},
      r'conv1.weight has the shape \(64, 3, 3, 3\), not \(16, 3, 3, 3\)',
    ),
  ],
)
def test_other_networks_are_refused(tmp_path, trained, change, message):
  state = of_pytorch(trained, '') | change
  state = {name: array for name, array in state.items() if array is not None}
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file(state, path)
  with pytest.raises(errors.UserError, match=message):
    weights.load(str(path))


def test_without_a_head(tmp_path, trained):
  state = of_pytorch(trained)
  del state['module.linear.weight'], state['module.linear.bias']
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file(state, path)
  loaded = weights.load(str(path))
  assert (loaded.module.depth, loaded.module.classes) == (20, 0)
  assert loaded.preprocess == presets.CIFAR


def test_a_paddle_directory_keeps_them(tmp_path, trained):
  paddle.write(trained, tmp_path / 'w')
  loaded = weights.load(str(tmp_path / 'w'))
  assert (loaded.module.depth, loaded.module.classes) == (20, 10)
  assert loaded.preprocess == presets.CIFAR
  assert loaded.digest == weights.digest(trained)


def test_there_is_no_checkpoint_to_download(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError) as caught:
    weights.load('auto', weights.Options(32))
  assert str(caught.value).startswith(
    'no weights found: model/resnet_32 does not exist. The zoo has no'
    ' checkpoint of ResNet-32. Give weights=PATH'
  )


@pytest.mark.parametrize('depth', [20, 56])
def test_features_of_untrained_networks_are_not_degenerate(depth):
  loaded = weights.load('random', weights.Options(depth))
  assert loaded.module == resnet.published(depth)
  assert loaded.preprocess == presets.CIFAR
  # Smooth, as photographs are.
  coarse = np.random.default_rng(0).normal(0, 1, (8, 32, 32, 3))
  smooth = ndimage.gaussian_filter(coarse, (0, 2, 2, 0))
  images = np.clip(120 + 63 * smooth / smooth.std(), 0, 255).astype(np.uint8)
  wanted = [n for n in names.layer_names(depth) if n.endswith(('addto', 'put'))]
  run = runner.Runner(
    loaded.module,
    loaded.parameters,
    wanted,
    presets.CIFAR,
  )
  values = run.fetch(run(images[:, None]))
  probabilities = values.pop('output').reshape(8, 10)
  for name, value in values.items():
    assert 0.2 < np.sqrt(np.mean(value**2)) < 10, name
    assert 0.3 < np.mean(value > 0) < 0.95, name
    alike = np.corrcoef(value.reshape(8, -1))[np.triu_indices(8, 1)]
    assert alike.mean() < 0.6, name
  assert probabilities.max() < 0.9


# ------------------------------------------------------------- the images


def test_images_are_taken_as_they_are():
  how = presets.CIFAR
  assert how.resize == 'none'
  assert how.describe() == (
    'images of 32x32 as they are, RGB, minus (123.675, 116.28, 103.53), over'
    ' (58.395, 57.12, 57.375)'
  )
  pixels = noise(32, 32, 3)
  cut = crops.cut(Image.fromarray(pixels), how)
  np.testing.assert_array_equal(cut, pixels[None])
  got = crops.normalise(
    cut[None],
    np.float32(how.mean).reshape(3, 1, 1),
    False,
    np,
    channels='RGB',
    std=how.std,
  )
  expected = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
  np.testing.assert_allclose(got[0], expected, atol=1e-6)


@pytest.mark.parametrize('size', [(33, 32), (32, 31), (64, 64)])
def test_an_image_of_another_size_is_an_error(size):
  how = presets.CIFAR
  with pytest.raises(decoding.ImageError) as caught:
    crops.cut(Image.new('RGB', size), how)
  assert str(caught.value) == (
    f'it has {size[0]}x{size[1]} pixels, and resize=none takes 32x32 only; set'
    ' crop_size, or resize=short_side'
  )


def test_the_user_can_resize_all_the_same():
  how = presets.CIFAR.overridden(resize='short_side')
  assert how.describe().startswith('shorter side to 32 (bilinear), centre crop')
  # What that does to an image of 32x32: nothing.
  pixels = noise(32, 32, 3)
  np.testing.assert_array_equal(
    crops.cut(Image.fromarray(pixels), how)[0], pixels
  )
  how = presets.CIFAR.overridden(resize='short_side', resize_size=40)
  assert crops.cut(Image.new('RGB', (80, 60)), how).shape == (1, 32, 32, 3)


def test_ten_crops_need_room():
  with pytest.raises(errors.UserError) as caught:
    preprocess.Preprocess((1, 2, 3), 'none', crop_size=32, multi_crop=True)
  assert str(caught.value) == (
    'multi_crop=true needs resize=short_side: with resize=none an image is no'
    ' larger than one crop.'
  )


def test_the_classes_have_names():
  found = labels.classes(10, 'cifar10', stored=[str(i) for i in range(10)])
  assert tuple(c.name for c in found) == (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
  )
  # As folders sort, so that labels may come from folders.
  assert [c.name for c in found] == sorted(c.name for c in found)
  assert not any(c.wnid for c in found)
  with pytest.raises(
    errors.UserError, match='=cifar10 has 10 names, and the classifier 100'
  ):
    labels.classes(100, 'cifar10')
  with pytest.raises(errors.UserError, match='or one of cifar10'):
    labels.classes(10, 'cifar_10')


# ------------------------------------------------------------ as a user does


@pytest.fixture
def offline(tmp_path, monkeypatch):
  """No network, no cache, and the examples in the working directory."""
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  shutil.copytree(ROOT / 'example', tmp_path / 'example')
  monkeypatch.chdir(tmp_path)


def test_the_first_command_gives_the_right_answers(offline, run_main, capsys):
  done = run_main('--config=configs/cifar.py', '--job=predict', check=0)
  assert 'UNTRAINED' not in done.stderr
  assert 'cifar10-20 of the zoo' in done.stderr
  lines = done.stdout.splitlines()
  assert lines[0] == 'Label of example/cifar10/cat.jpg is: 3'
  assert lines[6] == 'Label of example/cifar10/horse.png is: 7'
  assert [lines[n].split()[1:] for n in (1, 7)] == [
    ['3', 'cat'],
    ['7', 'horse'],
  ]
  assert float(lines[1].split()[0]) > 0.5
  assert jobs.run('zoo', config_of('layer_num=20', 'cifar')) == 0
  assert 'in the package' in capsys.readouterr().out
  assert jobs.run('download', config_of('', 'cifar')) == 0
  assert 'cifar10-20 holds ResNet-20, digest' in capsys.readouterr().err


def test_the_embedded_network_is_the_usual_one_in_python(offline):
  model = resnet_jax.load('resnet20')
  assert model.weights.trained
  assert model.preprocess == presets.CIFAR10
  labels_of = [c.name for c in model.classes]
  assert ' '.join(labels_of) == (
    'airplane automobile bird cat deer dog frog horse ship truck'
  )
  # Photographs of any size, and images of the network's size as they are.
  photo = model.predict('example/cifar10/cat.jpg')
  small = Image.fromarray(model.crops('example/cifar10/cat.jpg')[0])
  assert small.size == (32, 32)
  np.testing.assert_array_equal(model.crops(small)[0], np.asarray(small))
  assert model.predict(small) == photo
  assert labels_of[photo.label] == 'cat'


def test_the_config_changes_defaults_and_adds_no_keys():
  ours, usual = config_of(file='cifar'), config_of()
  assert set(ours) == set(usual)
  changed = {key for key in usual if ours[key] != usual[key]}
  assert changed == {'layer_num', 'class_names', 'data', 'batch_size'}
  assert ours.layer_num == 20
  assert ours.class_names == 'cifar10'
  other = config_of('56,weights=random,batch_size=8', 'cifar')
  assert (other.layer_num, other.weights, other.batch_size) == (56, 'random', 8)


def test_predict_and_summary(run_main, tmp_path, trained):
  (tmp_path / 'small').mkdir()
  for number, pixels in enumerate(noise(3, 32, 32, 3)):
    Image.fromarray(pixels).save(tmp_path / 'small' / f'{number}.png')
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file(of_pytorch(trained), path)
  config = f'--config=configs/cifar.py:20,weights={path}'
  done = run_main(config, '--job=predict', '--config.data=small', check=0)
  independent = NumpyCifar(20, classes=10)
  independent.parameters = trained
  rgb = (noise(3, 32, 32, 3) - np.array(presets.CIFAR.mean)) / presets.CIFAR.std
  best = independent(rgb.transpose(0, 3, 1, 2))['logits'].argmax(axis=1)
  for number, label in enumerate(best.ravel()):
    assert f'Label of small/{number}.png is: {label}\n' in done.stdout
    assert labels.NAMED['cifar10'][label] in done.stdout

  # Loaded with no other information.
  run_main(config, '--job=convert', '--config.output=own.safetensors', check=0)
  assert (
    weights.load(str(tmp_path / 'own.safetensors')).preprocess == presets.CIFAR
  )

  Image.new('RGB', (33, 32)).save(tmp_path / 'small' / 'z.png')
  done = run_main(config, '--job=predict', '--config.data=small', check=1)
  assert 'z.png' in done.stderr
  assert 'it has 33x32 pixels, and resize=none takes 32x32' in done.stderr

  done = run_main('--config=configs/cifar.py:56', '--job=summary', check=0)
  line = done.stdout.splitlines()[-1]
  assert line.startswith(
    'ResNet-56 at 32x32: 853,018 learned parameters (857,082 with the'
    ' statistics), 0.13 G multiply-adds'
  )
  assert 'paper' not in line
