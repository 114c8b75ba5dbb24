# SPDX-License-Identifier: Apache-2.0
"""Weights in public layouts on which the program once failed."""

import json
import math
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from makers import run_program, user_error
from torch_files import built, call, tensor, value, zip_file

import resnet_jax
from resnet_jax import weights
from resnet_jax.codecs import faults
from resnet_jax.data import labels
from resnet_jax.models import resnet
from resnet_jax.weights import assemble, torch_names

MODEL = resnet.ResNet(18, 1000)
COUNT = 512 * 512 * 9 + 8


def shapes(classes=1000):
  """The shapes of ResNet-18's tensors by torchvision's names."""
  known = resnet.parameter_shapes(MODEL.clone(classes=classes))
  return {
    name: assemble.TORCH_LAYOUT.stored(known[ours])
    for name, ours in torch_names.torchvision(18).items()
    if ours in known
  }


# ------------------------------------------------- PyTorch's checkpoints

# All tensors view one storage, from a place of their network's on, so that the
# files are small.
VALUES = np.random.default_rng(0).uniform(0.1, 1, COUNT).astype('<f4')


def view(shape, at=0):
  return tensor('0', tuple(shape), offset=at, count=COUNT)


def layers(prefix='', names=None, at=0):
  """Tensors of any shapes, by their names below a prefix."""
  return {f'{prefix}{n}': view(s, at) for n, s in (names or {}).items()}


def full(prefix='', at=0):
  return layers(prefix, shapes(), at)


def body(prefix='', at=0):
  return layers(prefix, shapes(0), at)


def linear(name, outputs, inputs):
  return layers(
    names={f'{name}.weight': (outputs, inputs), f'{name}.bias': [outputs]}
  )


def norm(name):
  leaves = ('weight', 'bias', 'running_mean', 'running_var')
  return layers(f'{name}.', {leaf: [512] for leaf in leaves})


def sequential(prefix):
  place = {'conv1': 0, 'bn1': 1, **{f'layer{n}': n + 3 for n in range(1, 5)}}
  renamed = {}
  for name, shape in shapes(0).items():
    first, _, rest = name.partition('.')
    renamed[f'{place[first]}.{rest}'] = shape
  return layers(prefix, renamed)


def namespace(**attributes):
  return built('argparse.Namespace', b')\x81', attributes)


def number(text='x' * 8):
  dtype = built(
    'numpy.dtype', value(('f8', False, True)) + b'R', (3, '<', None)
  )
  return call('numpy._core.multiarray.scalar', dtype, text)


MLP = linear('fc.0', 512, 512) | linear('fc.2', 128, 512)
ONE = [1]


def below(prefix, state):
  return {f'{prefix}{name}': made for name, made in state.items()}


# Contents, classes, and what the notes say.
CHECKPOINTS = {
  'moco_v2 finetuned': (
    {
      'epoch': 1,
      'arch': 'resnet18',
      'state_dict': below('module.encoder_q.', body() | MLP)
      | layers(names={'module.queue': (128, 8)}),
    },
    0,
    ("not read: 'epoch'.", 'tensors of module.encoder_q.fc.0'),
  ),
  'simsiam': (
    {
      'state_dict': body('module.encoder.')
      | linear('module.encoder.fc.0', 512, 512)
      | linear('module.predictor.0', 8, 8)
    },
    0,
    ('4 tensors of module.encoder.fc.0, module.predictor.0',),
  ),
  'swav': (
    body('module.')
    | linear('module.projection_head.0', 8, 512)
    | layers(names={'module.prototypes.weight': (8, 8)}),
    0,
    ('3 tensors of module.projection_head.0, module.prototypes',),
  ),
  'barlow_twins': (
    {
      'model': body('module.backbone.')
      | layers(
        'module.',
        {
          'projector.0.weight': (8, 512),
          'bn.running_mean': [8],
          'bn.running_var': [8],
        },
      )
    },
    0,
    ("under 'model'", "prefix 'module.backbone.'", 'module.projector.0'),
  ),
  'mmpretrain': (
    {
      'meta': {},
      'state_dict': body('backbone.') | linear('head.fc', 1000, 512),
    },
    1000,
    ('The classifier is head.fc.', "not read: 'meta'"),
  ),
  'vissl_or_spark': (
    {'arch': 'resnet18', 'module': full(), 'is_pretrain': True},
    1000,
    ("under 'module'",),
  ),
  'torchvision_reference': (
    {
      'model': full(),
      'optimizer': {},
      'epoch': 1,
      'args': namespace(lr=0.1),
      'model_ema': full('module.', 4) | layers(names={'n_averaged': ()}),
    },
    1000,
    ("'args' (argparse.Namespace), 'model_ema'", "prefix='model_ema.module'"),
  ),
  'timm_training': (
    {
      'epoch': 1,
      'arch': 'resnet18',
      'state_dict': full(),
      'state_dict_ema': full(at=4),
      'args': namespace(model='resnet18', gp=None, model_kwargs={}),
      'metric': 70.0,
    },
    1000,
    ("weights_prefix='state_dict_ema'",),
  ),
  'ema_only': (
    full('module.') | layers(names={'n_averaged': ()}),
    1000,
    ('1 tensor of n_averaged',),
  ),
  'only an average': (
    {'model_ema': full('module.'), 'epoch': 1},
    1000,
    ("under 'model_ema'",),
  ),
  'numpy_accuracy': (
    {'state_dict': full(), 'best_acc1': number()},
    1000,
    ("'best_acc1' (numpy._core.multiarray.scalar)",),
  ),
  'multistep': (
    {
      'state_dict': full(),
      'lr_scheduler': {'milestones': call('collections.Counter', {3: 1})},
    },
    1000,
    ("not read: 'lr_scheduler'",),
  ),
  'last_linear': (
    body() | linear('last_linear', 1000, 512),
    1000,
    ('The classifier is last_linear.',),
  ),
  'linear': (body('net.') | linear('linear', 5, 512), 5, ()),
  'classifier.1': (
    {'net': body('backbone.') | linear('classifier.1', 5, 512)},
    5,
    ("under 'net'",),
  ),
  'a chain': (
    full('module.0._orig_mod.') | layers(names={'module.1.mean': [3]}),
    1000,
    ("prefix 'module.0._orig_mod.'", '1 tensor of module.1.mean'),
  ),
  'sequential': (sequential('backbone.'), 0, ()),
  'sequential with a head': (
    sequential('0.') | linear('1.1', 7, 512),
    7,
    ('The classifier is 1.1.',),
  ),
  'a head that does not fit': (
    body() | linear('fc', 10, 1024),
    0,
    ('2 tensors of fc.',),
  ),
  'parts in dicts': (
    {
      'encoder': body(),
      'fc': {'weight': view((3, 512)), 'bias': view([3])},
      'x': 1,
    },
    3,
    ("read: 'x'.",),
  ),
  'a norm before the head': (
    body('base.') | norm('bottleneck') | linear('classifier', 9, 512),
    0,
    ('classifier is not taken for the classifier: bottleneck.weight',),
  ),
  'a neck before the head': (
    {
      'net': body('backbone.')
      | linear('neck.0', 512, 512)
      | linear('head', 9, 512)
    },
    0,
    ('head is not taken for the classifier: net.neck.0.weight',),
  ),
  'layers before the head': (
    body('backbone.')
    | linear('projection.0', 64, 512)
    | linear('projection.2', 512, 64)
    | linear('fc', 9, 512),
    0,
    ('fc is not taken for the classifier: projection.2.weight',),
  ),
  'what only the teacher has': (
    {
      'student': body('backbone.') | linear('fc', 9, 512),
      'ema_model': body('backbone.') | linear('neck.0', 512, 512),
    },
    9,
    ("weights_prefix='ema_model.backbone'",),
  ),
  'moco_v1': (
    body('module.encoder_q.')
    | linear('module.encoder_q.fc', 128, 512)
    | layers(names={'module.queue': (128, 64)}),
    0,
    ('its 128 outputs are an embedding',),
  ),
  'an embedding beside a queue': (
    body('net.')
    | linear('net.fc', 128, 512)
    | layers(names={'memory_bank.bank': (128, 64)}),
    0,
    ('net.fc is not taken for the classifier',),
  ),
  'unet': (
    body('encoder.')
    | layers(
      names={
        'decoder.blocks.0.conv1.0.weight': (64, 64, 3, 3),
        'segmentation_head.0.weight': (3, 16, 3, 3),
      }
    ),
    0,
    ('2 tensors of decoder.blocks.0.conv1.0, segmentation_head.0.',),
  ),
  'cls_head.fc': (body('backbone.') | linear('cls_head.fc', 5, 512), 5, ()),
  'ema_network': (
    {'network': full(), 'ema_network': full(at=4)},
    1000,
    ("weights_prefix='ema_network'",),
  ),
  'deep': (
    {'state': {'model_state': full('model.')}, 'steps': 3},
    1000,
    ("under 'state.model_state'", "not read: 'steps'"),
  ),
}


def load(tmp_path, contents, prefix=''):
  path = tmp_path / 'model.pth'
  path.write_bytes(zip_file(contents, {'0': VALUES.tobytes()}))
  return weights.load(str(path), weights.Options(weights_prefix=prefix))


def assert_holds(loaded, at=0):
  """Each parameter is the values from a place of the storage on."""
  layout = assemble.TORCH_LAYOUT
  for array in loaded.parameters.values():
    stored = layout.stored(array.shape)
    given = VALUES[at : at + math.prod(stored)].reshape(stored)
    np.testing.assert_array_equal(
      array, given.transpose(layout.axes(array.ndim))
    )


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_the_one_network_of_a_checkpoint_is_read(tmp_path, name):
  contents, classes, said = CHECKPOINTS[name]
  loaded = load(tmp_path, contents)
  assert loaded.module == MODEL.clone(
    classes=classes, variant=torch_names.VARIANT
  )
  assert_holds(loaded)
  notes = '\n'.join(loaded.notes)
  for text in said:
    assert text in notes


# Contents, the prefixes, and short choices.
TWO = {
  'moco_v2': (
    {
      'state_dict': below('module.encoder_q.', body() | MLP)
      | below('module.encoder_k.', body(at=4) | MLP)
      | layers(names={'module.queue': (128, 8)})
    },
    ('state_dict.module.encoder_q', 'state_dict.module.encoder_k'),
    ('encoder_q', 'module.encoder_k.'),
  ),
  'moco_v3': (
    {
      'state_dict': body('module.base_encoder.')
      | body('module.momentum_encoder.', 4)
      | linear('module.predictor.0', 8, 8)
    },
    ('state_dict.module.base_encoder', 'state_dict.module.momentum_encoder'),
    ('base_encoder', 'momentum_encoder'),
  ),
  'dino_full': (
    {
      'student': body('module.backbone.'),
      'teacher': body('backbone.', 4)
      | layers(names={'head.mlp.0.weight': (4, 512)}),
      'epoch': 1,
      'args': namespace(arch='resnet18'),
    },
    ('student.module.backbone', 'teacher.backbone'),
    ('student', 'teacher'),
  ),
  'robustness': (
    {
      'model': full('module.model.')
      | full('module.attacker.model.', 4)
      | layers(
        names={
          'module.normalizer.new_mean': (3, 1, 1),
          'module.attacker.normalize.new_mean': (3, 1, 1),
        }
      )
    },
    ('model.module.model', 'model.module.attacker.model'),
    ('module.model', 'attacker'),
  ),
  'without a prefix': (full() | full('copy.', 4), ('.', 'copy'), ('.', 'copy')),
}


@pytest.mark.parametrize('name', TWO)
def test_of_two_networks_one_is_chosen(tmp_path, name):
  contents, prefixes, short = TWO[name]
  message = user_error(load, tmp_path, contents)
  assert 'holds 2 complete networks' in message
  for prefix in prefixes:
    assert f"'{prefix}' (ResNet-18)" in message
  assert f"weights_prefix='{prefixes[0]}'" in message
  for choices in (prefixes, short):
    for choice, at in zip(choices, (0, 4), strict=True):
      assert_holds(load(tmp_path, contents, choice), at)
  assert 'no complete ResNet there' in user_error(
    load, tmp_path, contents, 'encoder_x'
  )


def test_a_network_of_a_safetensors_file_is_chosen(tmp_path):
  arrays = {
    f'{prefix}{name}': np.full(shape, value, np.float16)
    for prefix, value in (('encoder_q.', 1), ('encoder_k.', 2))
    for name, shape in shapes(0).items()
  } | {'queue': np.zeros(3, np.float16)}
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(arrays, path)
  message = user_error(weights.load, str(path))
  assert "'encoder_k' (ResNet-18), 'encoder_q' (ResNet-18)" in message
  loaded = weights.load(str(path), weights.Options(weights_prefix='encoder_k'))
  assert all((array == 2).all() for array in loaded.parameters.values())
  notes = '\n'.join(loaded.notes)
  assert f'{len(shapes(0)) + 1} tensors of encoder_q, queue' in notes


def test_an_average_is_taken_if_it_is_chosen(tmp_path):
  contents = CHECKPOINTS['torchvision_reference'][0]
  loaded = load(tmp_path, contents, 'model_ema')
  assert_holds(loaded, 4)
  assert "not read: 'model', 'optimizer'" in '\n'.join(loaded.notes)


def test_the_setting_chooses_in_python_and_in_jobs(tmp_path):
  load(tmp_path, TWO['dino_full'][0], 'teacher')
  path = tmp_path / 'model.pth'
  model = resnet_jax.load(weights=path, weights_prefix='teacher')
  assert_holds(model.weights, 4)
  job = (f'--config.weights={path}', '--job=summary')
  done = run_program(tmp_path, '--config=configs/resnet.py', *job, check=1)
  assert "'teacher.backbone' (ResNet-18)" in done.stderr
  run_program(
    tmp_path,
    '--config=configs/resnet.py:weights_prefix=teacher',
    *job,
    check=0,
  )


def test_a_prefix_where_there_is_nothing_to_choose_is_refused(tmp_path):
  options = weights.Options(weights_prefix='encoder_q')
  assert "weights_prefix='encoder_q' chooses" in user_error(
    weights.load, 'random', options
  )
  folder = tmp_path / 'paddle'
  folder.mkdir()
  (folder / '_conv1_conv.w0').write_bytes(bytes(20))
  assert 'Leave weights_prefix out' in user_error(
    weights.load, str(folder), options
  )


@pytest.mark.parametrize(
  ('inside', 'message'),
  [
    ({'layer1.0.se.fc1.weight': ONE}, 'layer1.0.se.fc1.weight'),
    ({'conv1.offset': [64]}, 'conv1.offset'),
    ({'maxpool.1.filt': (1, 1, 3, 3)}, 'maxpool.1.filt'),
    ({'layer5.0.conv1.weight': ONE}, 'layer5.0.conv1.weight'),
    ({'cbam1.weight': ONE}, 'cbam1.weight'),
    ({'classifier.0.weight': (2, 512, 3, 3)}, 'a network that labels each'),
  ],
)
def test_another_network_is_not_taken_for_the_plain_one_in_it(
  tmp_path, inside, message
):
  contents = {'state_dict': body('backbone.') | layers('backbone.', inside)}
  assert message in user_error(load, tmp_path, contents)


@pytest.mark.parametrize(
  'name',
  [
    *('pool.p', 'gem.p', 'global_pool.p', 'attn_pool.q.weight'),
    *('aggregation.1.p', 'avgpool.p'),
  ],
)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_learned_pool_is_another_network(tmp_path, prefix, name):
  contents = body(prefix) | layers(names={name: ONE}) | linear('fc', 9, 512)
  assert name in user_error(load, tmp_path, contents)


@pytest.mark.parametrize(
  'name',
  [
    *('aspp.c0', 'decoder.aspp.0.convs.0.0', 'decoder.conv1', 'decoder.cbr.0'),
    *('segmentation_head.0', 'head.conv5.0', 'da_head.conv5a.0', 'ppm.1'),
    *('auxlayer.0', 'classifier', 'classifier.4', 'decoder.psp.blocks.0'),
    *('decode_head.conv_seg', 'auxiliary_head.conv_seg', 'conv_last.0'),
  ],
)
@pytest.mark.parametrize('kernel', [(1, 1), (3, 3)])
def test_a_dilated_body_is_not_taken_for_a_plain_one(tmp_path, name, kernel):
  beside = layers(names={f'{name}.weight': (2, 8, *kernel)})
  message = user_error(load, tmp_path, body('backbone.') | beside)
  assert f'{name}.weight is a convolution of a network that labels' in message


def test_a_convolution_may_have_a_bias(tmp_path):
  inside = layers('backbone.', {'layer1.0.conv2.bias': [64]})
  loaded = load(tmp_path, {'state_dict': body('backbone.') | inside})
  assert loaded.module.biases == {'res2_1_branch2b'}
  assert loaded.parameters['res2_1_branch2b_conv/bias'].shape == (64,)


def test_what_is_missing_is_named(tmp_path):
  for missing in ('conv1.weight', 'bn1.weight', 'layer4.1.bn2.bias'):
    contents = {'state_dict': body('module.'), 'epoch': 1}
    del contents['state_dict'][f'module.{missing}']
    assert f'1 names are missing (state_dict.module.{missing})' in user_error(
      load, tmp_path, contents
    )


def test_lists_in_messages_are_short(tmp_path):
  contents = full() | layers(
    names={f'layer9.{n}.weight': ONE for n in range(99)}
  )
  message = user_error(load, tmp_path, contents)
  assert '99 names are unknown (layer9.0.weight' in message
  assert 'and 93 more)' in message
  assert len(message) < 700


@pytest.mark.parametrize(
  ('stated', 'message'),
  [
    ({'arch': 'resnetblur18'}, 'arch=resnetblur18'),
    ({'arch': 'se_resnet18'}, 'arch=se_resnet18'),
    ({'args': namespace(arch='resnetaa18')}, 'arch=resnetaa18'),
    ({'hyper_parameters': {'backbone': 'Res2Net18'}}, 'backbone=Res2Net18'),
    ({'args': namespace(model='resnet18', gp='max')}, 'gp=max'),
    ({'args': namespace(dilation=True)}, 'dilation=True'),
    ({'args': namespace(dilation=9**999)}, 'dilation=(int)'),
    (
      {'args': namespace(model_kwargs={'act_layer': 'torch.nn.SiLU'})},
      'act_layer=silu',
    ),
    ({'args': {'model': {'name': 'resnetblur18'}}}, 'name=resnetblur18'),
    (
      {'hyper_parameters': {'backbone_name': 'resnet18d'}},
      'backbone_name=resnet18d',
    ),
    (
      {'hyper_parameters': {'cfg': {'model': {'backbone': 'resnetaa18'}}}},
      'backbone=resnetaa18',
    ),
    ({'hparams': {'net': {'model_name': 'seresnet18'}}}, 'model_name=seresnet'),
    ({'hparams': {'encoder_name': 'resnest18'}}, 'encoder_name=resnest18'),
    ({'args': namespace(dilated=True)}, 'dilated=True'),
    ({'config': {'dilation': (1, 1, 2, 4)}}, 'dilation=(1, 1, 2, 4)'),
    ({'args': namespace(pool='gem')}, 'pool=gem'),
    ({'config': {'model': {'pooling': {'type': 'Max'}}}}, 'pooling=max'),
    ({'args': namespace(activation='silu')}, 'activation=silu'),
    ({'args': namespace(bn_eps=1e-3)}, 'bn_eps=0.001'),
    ({'args': namespace(bn_tf=True)}, 'bn_tf=True'),
    ({'meta': {'architecture': 'resnet18', 'pooling': 'gem'}}, 'pooling=gem'),
    ({'meta': {'config': "dict(type='ResNetV1d')"}}, 'type=ResNetV1d'),
    ({'meta': {'config': 'dilations=(1,1,2,4)'}}, 'dilations=(1, 1, 2, 4)'),
    ({'meta': {'cfg': 'strides=(1, 2, 1, 1)'}}, 'strides=(1, 2, 1, 1)'),
    ({'arch': 'resnet34'}, 'states arch=resnet34, and its tensors are those'),
    ({'args': namespace(model='resnet50')}, 'contradicts itself'),
  ],
)
def test_arch_blur(tmp_path, stated, message):
  contents = {'state_dict': full()} | stated
  assert message in user_error(load, tmp_path, contents)


@pytest.mark.parametrize(
  'name',
  [
    *('resnet18', 'ResNet-18', 'tv_resnet18', 'resnet18.a1_in1k', 'resnet'),
    *('torchvision.models.resnet18', 'gluon_resnet18_v1b', 'resnet18_cifar10'),
    # Of widths that the tensors tell.
    *('wide_resnet18_2', 'ig_resnext18_32x16d.fb_wsl'),
    *('timm/resnet18.tv_in1k', 'swsl_resnet18', 'runs/resnet18/best.pth'),
    *('resnet18_ema', 'resnet18_fold0', 'pytorch_resnet18'),
    *('resnet18-5c106cde', 'resnet18_imagenet_224'),
    'ResNet18_Weights.IMAGENET1K_V1',
  ],
)
def test_the_names_of_plain_networks_are_known(tmp_path, name):
  assert_holds(load(tmp_path, {'arch': name, 'state_dict': full()}))


@pytest.mark.parametrize(
  'stated',
  [
    {'config': {'dilation': (1, 1, 1, 1), 'norm_layer': 'SyncBatchNorm'}},
    {'args': namespace(activation='softmax', pool='avg', bn_eps=None)},
    {'args': namespace(arch='resnet18', teacher='resnet50d')},
    {'hparams': {'teacher': {'arch': 'resnetblur50'}, 'pool': view(ONE)}},
    {'meta': {'config': "type='ResNet', depth=18, strides=(1, 2, 2, 2)"}},
  ],
  ids=str,
)
def test_settings_of_plain_networks_are_not_refused(tmp_path, stated):
  assert_holds(load(tmp_path, {'state_dict': full()} | stated))


def test_a_name_that_says_nothing_is_noted(tmp_path):
  loaded = load(tmp_path, {'arch': 'simple_net', 'state_dict': full()})
  assert "states arch='simple_net'" in '\n'.join(loaded.notes)


# -------------------------------------------- folders of timm and Transformers


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Weights of 1000 and of 2 classes, by timm's names and Transformers'."""
  folder = tmp_path_factory.mktemp('files')
  paths = {}
  for naming in (torch_names.torchvision, torch_names.hugging_face):
    for classes in (1000, 2):
      known = resnet.parameter_shapes(MODEL.clone(classes=classes))
      arrays = {
        name: np.ones(assemble.TORCH_LAYOUT.stored(known[ours]), np.float32)
        for name, ours in naming(18).items()
      }
      path = folder / f'{naming.__name__}_{classes}'
      safetensors.numpy.save_file(arrays, path)
      paths[naming, classes] = path
  return paths


@pytest.fixture
def folder(tmp_path, files):
  def make(config, classes=1000, naming=torch_names.torchvision):
    path = tmp_path / 'model'
    path.mkdir(exist_ok=True)
    (path / 'model.safetensors').unlink(missing_ok=True)
    (path / 'model.safetensors').symlink_to(files[naming, classes])
    (path / 'config.json').write_text(json.dumps(config))
    return str(path)

  return make


# As timm/resnet18.a1_in1k has it.
CFG = {
  'tag': 'a1_in1k',
  'custom_load': False,
  'input_size': [3, 224, 224],
  'test_input_size': [3, 288, 288],
  'fixed_input_size': False,
  'interpolation': 'bicubic',
  'crop_pct': 0.95,
  'test_crop_pct': 1.0,
  'crop_mode': 'center',
  'mean': [0.485, 0.456, 0.406],
  'std': [0.229, 0.224, 0.225],
  'num_classes': 1000,
  'pool_size': [7, 7],
  'first_conv': 'conv1',
  'classifier': 'fc',
}
TIMM = {
  'architecture': 'resnet18',
  'num_classes': 1000,
  'num_features': 512,
  'global_pool': 'avg',
}


def timm(top=None, inside=None):
  return TIMM | (top or {}) | {'pretrained_cfg': CFG | (inside or {})}


def test_a_published_folder_of_timms_is_read(folder):
  loaded = weights.load(folder(timm()))
  assert loaded.module == MODEL.clone(variant=torch_names.VARIANT)
  assert loaded.preprocess.resize_size == 235
  assert loaded.notes == ()
  assert loaded.loaded.class_names == ()
  # As timm once wrote it; null is timm's default.
  flat = weights.load(folder(CFG | TIMM | {'crop_mode': None}))
  assert flat.preprocess == loaded.preprocess


@pytest.mark.parametrize(
  ('top', 'inside', 'message'),
  [
    ({'architecture': 'resnetblur18'}, {}, 'architecture=resnetblur18'),
    ({'architecture': 'resnet18d'}, {}, 'architecture=resnet18d'),
    ({'architecture': 'resnetv2_18'}, {}, 'architecture=resnetv2_18'),
    ({'architecture': 'seresnet18'}, {}, 'architecture=seresnet18'),
    ({'architecture': 'vgg16'}, {}, 'architecture=vgg16'),
    ({'architecture': 'resnet34'}, {}, 'architecture=resnet34'),
    ({'num_classes': 10}, {}, 'num_classes=10'),
    ({'global_pool': 'max'}, {}, 'global_pool=max'),
    ({'model_args': {'act_layer': 'silu'}}, {}, 'act_layer=silu'),
    ({'model_args': {'aa_layer': 'blur'}}, {}, 'aa_layer=blur'),
    ({'model_args': {'output_stride': 8}}, {}, 'output_stride=8'),
    ({'model_args': {'norm_layer': 'groupnorm'}}, {}, 'norm_layer=groupnorm'),
    ({'model_args': {'stem_rate': 2}}, {}, 'stem_rate=2'),
    ({'model_args': 'all'}, {}, 'model_args=all'),
    ({'model_args': {'layers': [3, 4, 6, 3]}}, {}, 'layers=[3, 4, 6, 3]'),
    ({'model_args': {'block': 'Bottleneck'}}, {}, 'block=bottleneck'),
    ({'model_args': {'channels': [32, 64, 128, 256]}}, {}, 'channels=[32, 64'),
    ({'model_args': {'num_classes': 9}}, {}, 'num_classes=9'),
    ({'model_args': {'in_chans': 1}}, {}, 'in_chans=1'),
    ({'model_args': {'stem_type': 'deep'}}, {}, 'stem_type=deep'),
    ({'model_args': {'base_width': 32}}, {}, 'base_width=32'),
    ({'model_args': {'cardinality': 32}}, {}, 'cardinality=32'),
    ({'model_args': {'block_reduce_first': 2}}, {}, 'block_reduce_first=2'),
    ({}, {'architecture': 'resnet50'}, 'architecture=resnet50'),
    ({}, {'architecture': 'resnet18d'}, 'architecture=resnet18d'),
    ({}, {'crop_mode': 'squash'}, 'crop_mode=squash'),
    ({}, {'crop_mode': 'border'}, 'crop_mode=border'),
    ({}, {'input_size': [3, 224, 160]}, 'input_size=[3, 224, 160]'),
    ({}, {'input_size': [1, 224, 224]}, 'input_size=[1, 224, 224]'),
    ({}, {'label_offset': 1}, 'label_offset=1'),
  ],
)
def test_what_timms_configuration_states_is_not_ignored(
  folder, top, inside, message
):
  assert message in user_error(weights.load, folder(timm(top, inside)))


def test_what_timms_configuration_states_is_honoured(folder):
  args = {
    **{'drop_rate': 0.1, 'act_layer': 'relu', 'num_classes': 1000},
    **{'scriptable': True, 'exportable': True, 'checkpoint_path': ''},
    **{'pretrained_strict': True, 'bn_momentum': 0.1, 'img_size': 224},
    **{'norm_layer': 'syncbatchnorm', 'layers': [2, 2, 2, 2], 'in_chans': 3},
    **{'block': 'BasicBlock', 'channels': [64, 128, 256, 512]},
    **{'base_width': 64, 'cardinality': 1, 'stem_width': 64},
  }
  squash = {'crop_mode': 'squash', 'crop_pct': 1.0}
  loaded = weights.load(folder(timm({'model_args': args}, squash)))
  assert loaded.preprocess.resize == 'squash'
  assert loaded.preprocess.crop_size == 224


@pytest.mark.parametrize(
  'names', [['cat', 'dog'], {'0': 'cat', '1': 'dog'}], ids=str
)
def test_timms_class_names_are_taken(folder, names):
  stated = timm({'num_classes': 2, 'label_names': names}, {'num_classes': 2})
  loaded = weights.load(folder(stated, 2))
  assert loaded.loaded.class_names == ('cat', 'dog')
  stated['label_descriptions'] = {'cat': 'a cat'}
  loaded = weights.load(folder(stated, 2))
  assert loaded.loaded.class_names == ('a cat', 'dog')
  stated['label_names'] = ['cat']
  assert 'names 1 classes in label_names' in user_error(
    weights.load, folder(stated, 2)
  )


# As microsoft/resnet-18 has it.
TRANSFORMERS = {
  'architectures': ['ResNetForImageClassification'],
  'depths': [2, 2, 2, 2],
  'downsample_in_first_stage': False,
  'embedding_size': 64,
  'hidden_act': 'relu',
  'hidden_sizes': [64, 128, 256, 512],
  'layer_type': 'basic',
  'model_type': 'resnet',
  'num_channels': 3,
}


def names_of(folder, names):
  config = TRANSFORMERS | {'id2label': {str(i): n for i, n in enumerate(names)}}
  path = folder(config, 1000, torch_names.hugging_face)
  return resnet_jax.load(weights=path).classes


def test_a_thousand_names_that_are_not_imagenets_are_taken(folder):
  own = [f'species {i}' for i in range(1000)]
  assert [c.name for c in names_of(folder, own)] == own
  # ImageNet's, but in another order.
  shuffled = [c.name for c in labels.imagenet_classes()][::-1]
  assert [c.name for c in names_of(folder, shuffled)] == shuffled


def test_imagenets_names_in_other_spellings_keep_their_wordnet_ids(folder):
  known = labels.imagenet_classes()
  for spelled in (
    [c.name for c in known],
    [c.name.split(', ')[0].upper().replace(' ', '_') for c in known],
    [c.name.split(', ')[-1] for c in known],
    [c.wnid for c in known],
  ):
    assert names_of(folder, spelled) == known


def test_a_file_beside_a_configuration_says_so(folder):
  file = folder(timm()) + '/model.safetensors'
  assert 'config.json is not read: give the folder' in '\n'.join(
    weights.load(file).notes
  )


# ------------------------------------------------------- contents of all kinds


@pytest.mark.parametrize(
  'contents',
  [
    *([full()], (3, full()), {'models': [full()]}, {0: full(), 1: 'x'}),
    {'a': {'b': {'c': {'d': {'e': {'f': full()}}}}}},
    {'state_dict': full(), 'optimizer': {'state': {0: {'exp_avg': view(ONE)}}}},
  ],
  ids=['list', 'tuple', 'a list in a dict', 'numbers', 'deep', 'optimizer'],
)
def test_a_state_dict_lies_in_any_container(tmp_path, contents):
  assert_holds(load(tmp_path, contents))


def test_names_may_be_bytes(tmp_path):
  def encoded(text):
    return call('_codecs.encode', text, 'latin1')

  entries = b''.join(encoded(name) + made for name, made in full().items())
  assert_holds(load(tmp_path, b'}(' + entries + b'u'))


def test_a_dot_chooses_the_names_without_a_prefix_of_a_place(tmp_path):
  contents = {'state_dict': full() | full('copy.', 4)}
  assert_holds(load(tmp_path, contents, '.'))
  assert_holds(load(tmp_path, {'model': full()}, '.'))


def test_what_is_checked_is_not_called_unread(tmp_path):
  contents = {'state_dict': full(), 'arch': 'resnet18'}
  assert 'not read' not in '\n'.join(load(tmp_path, contents).notes)


def test_numpy_arrays_in_place_of_tensors_are_named(tmp_path):
  array = call('numpy._core.multiarray._reconstruct', 0)
  for contents in ({'conv1.weight': array}, {'model': {'conv1.weight': array}}):
    message = user_error(load, tmp_path, contents)
    assert 'holds NumPy arrays' in message
    assert 'torch.as_tensor(array)' in message


def test_a_large_pickle_is_not_called_damaged(tmp_path):
  contents = {'state_dict': full(), 'history': 'x' * (5 << 20)}
  message = user_error(load, tmp_path, contents)
  assert 'damaged' not in message
  assert 'histories' in message
  assert 'save a clean one' in message


# What Git has instead of a large file, and had.
POINTERS = [
  f'{start}version {address}\noid sha256:{"0" * 64}\nsize 9\n'.encode()
  for start in ('', '\ufeff')
  for address in (
    'https://git-lfs.github.com/spec/v1',
    'https://hawser.github.com/spec/v1',
    'http://git-media.io/v/2',
  )
]


@pytest.mark.parametrize('pointer', POINTERS, ids=str)
def test_a_pointer_in_a_folder_of_weights_says_what_it_is(
  tmp_path, folder, pointer
):
  model = pathlib.Path(folder(TRANSFORMERS, 1000, torch_names.hugging_face))
  for name in (
    *('preprocessor_config.json', 'model.safetensors', 'config.json'),
    *('pytorch_model.bin', '_conv1_conv.w0'),
  ):
    path = model / name
    if name == 'pytorch_model.bin':
      (model / 'config.json').write_text(json.dumps(TRANSFORMERS))
      (model / 'model.safetensors').unlink()
    path.unlink(missing_ok=True)
    path.write_bytes(pointer)
    message = user_error(weights.load, str(model))
    assert message == f'{path} is {faults.GIT_LFS_SAYS}.'
    if name == 'preprocessor_config.json':
      path.unlink()
  single = tmp_path / 'weights'
  single.write_bytes(pointer)
  assert faults.GIT_LFS_SAYS in user_error(weights.load, str(single))


def test_a_configuration_may_begin_with_a_mark(folder):
  path = pathlib.Path(folder(timm()))
  text = (path / 'config.json').read_text()
  (path / 'config.json').write_text(text, 'utf-8-sig')
  assert weights.load(str(path)).preprocess.resize_size == 235


@pytest.mark.parametrize(
  ('stated', 'message'),
  [
    ({'depths': [3, 4, 6, 3]}, 'depths=[3, 4, 6, 3]'),
    ({'hidden_sizes': [256, 512, 1024, 2048]}, 'hidden_sizes=[256, 512'),
    ({'layer_type': 'bottleneck'}, 'layer_type=bottleneck'),
    ({'architectures': ['RegNetForImageClassification']}, "['RegNetFor"),
    ({'downsample_in_bottleneck': 'yes'}, 'downsample_in_bottleneck=yes'),
  ],
)
def test_what_transformers_configuration_states_must_fit(
  folder, stated, message
):
  path = folder(TRANSFORMERS | stated, 1000, torch_names.hugging_face)
  assert message in user_error(weights.load, path)


def test_flipped_channels_are_not_ignored(folder):
  path = pathlib.Path(folder(TRANSFORMERS, 1000, torch_names.hugging_face))
  stated = {
    **{'size': 224, 'resample': 3, 'do_flip_channel_order': True},
    **{'image_mean': [0.5] * 3, 'image_std': [0.5] * 3},
  }
  (path / 'preprocessor_config.json').write_text(json.dumps(stated))
  assert 'do_flip_channel_order=True' in user_error(weights.load, str(path))


def test_wordnet_ids_are_kept_beside_descriptions(folder):
  stated = timm(
    {
      'num_classes': 2,
      'label_names': ['n03888257', 'n01440764'],
      'label_descriptions': {'n03888257': 'parachute', 'n01440764': 'tench'},
    },
    {'num_classes': 2},
  )
  loaded = weights.load(folder(stated, 2))
  assert loaded.loaded.class_names == ('n03888257', 'n01440764')


def test_lists_that_refer_to_themselves_are_read_once(tmp_path):
  # As b'2a' appends the list to itself.
  for count in (999, 1 << 20):
    message = user_error(load, tmp_path, b']' + b'2a' * count)
    assert 'holds no state dict' in message


def test_a_pointer_of_predictions_says_what_it_is(tmp_path):
  path = tmp_path / 'predictions.jsonl'
  path.write_bytes(POINTERS[0])
  files = (f'--config.first={path}', f'--config.second={tmp_path}')
  job = ('--config=configs/resnet.py', '--job=compare', *files)
  done = run_program(tmp_path, *job, check=1)
  assert f'{path} is {faults.GIT_LFS_SAYS}.' in done.stderr
