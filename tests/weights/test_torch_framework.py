# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that PyTorch and Transformers wrote, and what these compute."""

import zipfile
from typing import Any

import numpy as np
import pytest
from makers import user_error

from resnet_jax import weights
from resnet_jax.data import presets
from resnet_jax.models import resnet, structure
from resnet_jax.system import errors
from resnet_jax.weights import assemble, torch_names
from resnet_jax.weights import torch as reader

torch = pytest.importorskip('torch')
randomise = pytest.importorskip('torch_networks').randomise
Module: Any = torch.nn.Module
pytestmark = pytest.mark.frameworks

OPTIONS = assemble.Options()
VARIANT = torch_names.VARIANT


@pytest.fixture(autouse=True, scope='module')
def few_threads():
  before = torch.get_num_threads()
  torch.set_num_threads(2)
  yield
  torch.set_num_threads(before)


# ------------------------------------------------- a network, by PyTorch


class Block(Module):
  """Torchvision's BasicBlock or Bottleneck, by its names."""

  def __init__(self, channels, width, stride, bottleneck):
    super().__init__()
    out = width * (4 if bottleneck else 1)
    self.count = 3 if bottleneck else 2
    shapes = (
      [(channels, width, 1), (width, width, 3), (width, out, 1)]
      if bottleneck
      else [(channels, width, 3), (width, width, 3)]
    )
    for number, (c_in, c_out, kernel) in enumerate(shapes, start=1):
      # The first 3x3 has the stride.
      strided = number == (2 if bottleneck else 1)
      conv = _conv(c_in, c_out, kernel, stride if strided else 1)
      setattr(self, f'conv{number}', conv)
      setattr(self, f'bn{number}', torch.nn.BatchNorm2d(c_out))
    self.downsample = None
    if stride > 1 or channels != out:
      self.downsample = torch.nn.Sequential(
        _conv(channels, out, 1, stride), torch.nn.BatchNorm2d(out)
      )

  def forward(self, x):
    """Its output."""
    shortcut = self.downsample(x) if self.downsample else x
    for number in range(1, self.count + 1):
      x = getattr(self, f'bn{number}')(getattr(self, f'conv{number}')(x))
      x = torch.relu(x) if number < self.count else x
    return torch.relu(x + shortcut)


def _conv(c_in, c_out, kernel, stride):
  return torch.nn.Conv2d(
    c_in, c_out, kernel, stride, padding=kernel // 2, bias=False
  )


class Network(Module):
  """Torchvision's ResNet, by its names; the values of stages come along."""

  def __init__(self, depth, classes=1000):
    super().__init__()
    architecture = structure.ARCHITECTURES[depth]
    self.conv1, self.bn1 = _conv(3, 64, 7, 2), torch.nn.BatchNorm2d(64)
    channels = 64
    for stage, blocks in enumerate(architecture.blocks, start=1):
      width, made = 32 * 2**stage, []
      for block in range(blocks):
        stride = 2 if stage > 1 and block == 0 else 1
        made.append(Block(channels, width, stride, architecture.bottleneck))
        channels = width * (4 if architecture.bottleneck else 1)
      setattr(self, f'layer{stage}', torch.nn.Sequential(*made))
    self.fc = torch.nn.Linear(channels, classes) if classes else None

  def forward(self, x):
    """Its values by our layers' names."""
    x = self.conv1(x)
    values = {'conv1_conv': x}
    x = values['conv1_bn'] = torch.relu(self.bn1(x))
    x = values['pool1'] = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
      for block, module in enumerate(getattr(self, f'layer{stage}'), start=1):
        x = values[f'res{stage + 1}_{block}_addto'] = module(x)
    x = values['avgpool'] = x.mean((2, 3), keepdim=True)
    if self.fc is not None:
      x = values['logits'] = self.fc(x.flatten(1))
      values['output'] = torch.softmax(x, 1)
    return values


def make(depth, classes=1000):
  return randomise(Network(depth, classes))


@pytest.fixture(scope='module')
def network18():
  return make(18)


def load(tmp_path, contents, **saving):
  path = tmp_path / 'model.pth'
  torch.save(contents, path, **saving)
  return load_file(path)


def load_file(path):
  with open(path, 'rb') as file:
    assert reader.recognise(path, file.read(512))
  return reader.load(path, OPTIONS)


IMAGES = np.random.default_rng(0).normal(0, 1, (2, 96, 96, 3)).astype('f4')


@torch.no_grad()
def computed(network, images=IMAGES):
  return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def assert_alike(loaded, expected, images=IMAGES):
  """Every value, within 5e-4 of its layer's root mean square."""
  got = resnet.capture(loaded.module, loaded.parameters, images, list(expected))
  for name, theirs in expected.items():
    values = np.asarray(theirs)
    values = values.reshape(*values.shape, *[1] * (4 - values.ndim))
    values = values.transpose(0, 2, 3, 1)
    assert got[name].shape == values.shape, name
    rms = np.sqrt(np.mean(values**2))
    assert rms > 0
    assert np.abs(got[name] - values).max() / rms < 5e-4, name


def assert_holds(loaded, network):
  """The network's own values, to the bit."""
  state = {
    name: value.float().numpy()
    for name, value in network.state_dict().items()
    if not name.endswith('num_batches_tracked')
  }
  naming = torch_names.torchvision(loaded.module.depth)
  assert len(loaded.parameters) == len(state)
  for name, value in state.items():
    axes = assemble.TORCH_LAYOUT.axes(value.ndim)
    ours = loaded.parameters[naming[name]]
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, value.transpose(axes), name)


# ------------------------------------------------------------ torchvision's


@pytest.mark.parametrize('depth', [18, 50])
def test_activations_are_those_of_pytorch(tmp_path, depth):
  network = make(depth)
  loaded = load(tmp_path, network.state_dict())
  assert loaded.module == resnet.ResNet(depth, 1000, VARIANT)
  assert loaded.preprocess == presets.TORCHVISION
  assert loaded.format == "PyTorch checkpoint, torchvision's and timm's names"
  assert loaded.notes == ()
  assert loaded.guesses == (torch_names.GUESSED,)
  origin = loaded.origins['logits/kernel']
  assert origin.name == 'fc.weight'
  assert origin.shape[0] == 1000
  expected = computed(network)
  assert len(expected) == 6 + sum(structure.ARCHITECTURES[depth].blocks)
  assert_alike(loaded, expected)


ZIP = {'_use_new_zipfile_serialization': True}
ROW = {'_use_new_zipfile_serialization': False}


@pytest.mark.parametrize(
  'saving',
  [
    ZIP,
    ROW,
    *({**ROW, 'pickle_protocol': protocol} for protocol in (1, 3, 4, 5)),
    {**ZIP, 'pickle_protocol': 5},
  ],
  ids=str,
)
def test_every_form_of_a_file_gives_the_same(tmp_path, network18, saving):
  assert_holds(load(tmp_path, network18.state_dict(), **saving), network18)


def test_without_checksums(tmp_path, network18):
  torch.serialization.set_crc32_options(False)
  try:
    loaded = load(tmp_path, network18.state_dict())
  finally:
    torch.serialization.set_crc32_options(True)
  assert_holds(loaded, network18)


def test_data_parallel_is_taken_off_and_told(tmp_path, network18):
  parallel = torch.nn.DataParallel(network18)
  loaded = load(tmp_path, parallel.state_dict())
  assert_holds(loaded, network18)
  assert "The prefix 'module.'" in loaded.notes[0]


@pytest.mark.parametrize(
  ('saving', 'place'), [(ZIP, 'state_dict'), (ROW, 'model')], ids=str
)
def test_a_training_checkpoint(tmp_path, network18, place, saving):
  optimizer = torch.optim.SGD(network18.parameters(), 0.1, momentum=0.9)
  contents = {
    'epoch': 3,
    place: network18.state_dict(),
    # A tensor beside the state dict, as PyTorch's ImageNet example has it.
    'best_acc1': torch.tensor(71.5),
    'optimizer': optimizer.state_dict(),
  }
  loaded = load(tmp_path, contents, **saving)
  assert_holds(loaded, network18)
  assert loaded.notes[:2] == (
    f"The state dict is under '{place}'.",
    "Also in the file, but not read: 'epoch', 'best_acc1', 'optimizer'.",
  )


@pytest.mark.parametrize(
  ('saving', 'dtype'),
  [(ZIP, 'float16'), (ROW, 'bfloat16'), (ZIP, 'float64')],
  ids=str,
)
def test_other_widths_become_float32(tmp_path, dtype, saving):
  network = make(18).to(getattr(torch, dtype))
  loaded = load(tmp_path, network.state_dict(), **saving)
  assert_holds(loaded, network)
  assert loaded.notes[0] == (
    f'102 of 102 tensors are {dtype}; they become float32.'
  )
  assert loaded.origins['conv1_bn/mean'].dtype == dtype


def test_seven_classes_and_none(tmp_path):
  network = make(18, classes=7)
  loaded = load(tmp_path, network.state_dict())
  assert loaded.module.classes == 7
  assert_alike(loaded, computed(network))
  headless = {
    name: value
    for name, value in network.state_dict().items()
    if not name.startswith('fc.')
  }
  loaded = load(tmp_path, headless)
  assert loaded.module.classes == 0
  expected = computed(network)
  del expected['logits'], expected['output']
  assert_alike(loaded, expected)


@pytest.mark.parametrize('saving', [ZIP, ROW], ids=str)
def test_parameters_and_views_of_one_storage(tmp_path, network18, saving):
  state = network18.state_dict()
  flat = torch.cat([value.float().flatten() for value in state.values()])
  views, at = {}, 0
  for name, value in state.items():
    views[name] = flat[at : at + value.numel()].view(value.shape)
    at += value.numel()
  assert_holds(load(tmp_path, views, **saving), network18)
  assert load(tmp_path, views, **saving).notes == ()

  # Channels last, transposed, and as torch.nn.Parameter.
  changed = dict(state)
  changed['conv1.weight'] = state['conv1.weight'].to(
    memory_format=torch.channels_last
  )
  changed['fc.weight'] = state['fc.weight'].t().contiguous().t()
  changed['fc.bias'] = torch.nn.Parameter(state['fc.bias'])
  assert not changed['fc.weight'].is_contiguous()
  assert_holds(load(tmp_path, changed, **saving), network18)


def test_all_depths_are_known_by_their_names(tmp_path):
  for depth in structure.IMAGENET:
    with torch.device('meta'):
      state = Network(depth).state_dict()
    listed = {n for n in state if not n.endswith('num_batches_tracked')}
    assert set(torch_names.torchvision(depth)) == listed
    shapes = resnet.parameter_shapes(resnet.ResNet(depth, variant=VARIANT))
    for name, ours in torch_names.torchvision(depth).items():
      stored = assemble.TORCH_LAYOUT.stored(shapes[ours])
      assert tuple(state[name].shape) == stored
  # The deepest, whole.
  with torch.device('meta'):
    deep = Network(152)
  state = deep.to_empty(device='cpu').state_dict()
  for value in state.values():
    value.fill_(1)
  assert load(tmp_path, state).module == resnet.ResNet(152, 1000, VARIANT)


# ------------------------------------------------------------- Transformers'


DEPTHS = {
  18: ('basic', (64, 128, 256, 512)),
  50: ('bottleneck', (256, 512, 1024, 2048)),
}


def hugging_face(depth, classes=1000):
  transformers = pytest.importorskip('transformers')
  kind, sizes = DEPTHS.get(depth, DEPTHS[50 if depth > 34 else 18])
  config = transformers.ResNetConfig(
    depths=structure.ARCHITECTURES[depth].blocks,
    layer_type=kind,
    hidden_sizes=sizes,
    num_labels=classes,
  )
  # Transformers' default is the network that is taken.
  assert not config.downsample_in_bottleneck
  return transformers.ResNetForImageClassification(config)


@torch.no_grad()
def hugging_face_values(network):
  images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
  found = network.resnet(images, output_hidden_states=True)
  logits = network(images).logits
  last = structure.ARCHITECTURES[_depth(network)].blocks
  stages = [f'res{s}_{n}_addto' for s, n in enumerate(last, start=2)]
  values = dict(zip(['pool1', *stages], found.hidden_states, strict=True))
  values['avgpool'] = found.pooler_output
  return values | {'logits': logits, 'output': torch.softmax(logits, 1)}


def _depth(network):
  blocks, kind = tuple(network.config.depths), network.config.layer_type
  return next(
    depth
    for depth, a in structure.ARCHITECTURES.items()
    if a.blocks == blocks and a.bottleneck == (kind == 'bottleneck')
  )


@pytest.mark.parametrize('depth', [18, 50])
def test_activations_are_those_of_transformers(tmp_path, depth):
  network = randomise(hugging_face(depth))
  expected = hugging_face_values(network)
  assert len(expected) == 8
  loaded = load(tmp_path, network.state_dict())
  assert loaded.format == "PyTorch checkpoint, Hugging Face's names"
  assert loaded.module == resnet.ResNet(depth, 1000, VARIANT)
  assert_alike(loaded, expected)
  # ResNetModel: no head, and no prefix.
  loaded = load(tmp_path, network.resnet.state_dict())
  assert loaded.module.classes == 0
  del expected['logits'], expected['output']
  assert_alike(loaded, expected)


def test_all_depths_of_transformers_by_their_names():
  for depth in structure.IMAGENET:
    with torch.device('meta'):
      state = hugging_face(depth).state_dict()
    listed = {n for n in state if not n.endswith('num_batches_tracked')}
    assert set(torch_names.hugging_face(depth)) == listed


# ------------------------------------------------------------------- refused


@pytest.mark.filterwarnings(
  "ignore:Couldn't retrieve source code:UserWarning"  # of this test's classes
)
@pytest.mark.parametrize('saving', [ZIP, ROW], ids=str)
def test_what_is_no_tensor_is_left_out_by_name(tmp_path, network18, saving):
  import argparse  # noqa: PLC0415
  import collections  # noqa: PLC0415

  state = network18.state_dict()
  for beside, name in (
    (argparse.Namespace(lr=0.1), 'argparse.Namespace'),
    (np.float64(71.5), '_core.multiarray.scalar'),
    (torch.device('cpu'), 'torch.device'),
    (torch.zeros(2, dtype=torch.uint16), 'torch._utils._rebuild_tensor_v3'),
    (torch.zeros(2).to_sparse(), 'torch._utils._rebuild_sparse_tensor'),
    ({1, 2}, 'builtins.set'),
    (collections.Counter([3]), 'collections.Counter'),
    (torch.zeros(1).expand(5), 'a tensor that repeats values'),
  ):
    contents = {'state_dict': state, 'args': beside}
    loaded = load(tmp_path, contents, **saving)
    assert_holds(loaded, network18)
    assert (
      f"not read: 'args' ({'numpy.' * name.startswith('_core')}{name}"
      in (loaded.notes[1])
    )
  message = user_error(
    load, tmp_path, torch.nn.Sequential(torch.nn.ReLU()), **saving
  )
  assert 'it holds torch.nn.modules.container.Sequential, and' in message
  assert message.endswith("torch.save(model.state_dict(), 'clean.pth').")


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_checkpoint_with_an_optimizer_and_a_scheduler(
  tmp_path, network18, protocol
):
  optimizer = torch.optim.AdamW(network18.parameters(), 0.1)
  scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
  average = torch.optim.swa_utils.AveragedModel(network18)
  contents = {
    'model': torch.nn.DataParallel(network18).state_dict(),
    'optimizer': optimizer.state_dict(),
    'lr_scheduler': scheduler.state_dict(),
    'swa': average.state_dict(),
    'seen': {1, 2},
  }
  loaded = load(tmp_path, contents, pickle_protocol=protocol)
  assert_holds(loaded, network18)
  assert any("weights_prefix='swa.module'" in note for note in loaded.notes)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of TorchScript
@pytest.mark.filterwarnings('ignore::FutureWarning')  # the same
def test_torchscript_is_refused_by_name(tmp_path):
  path = tmp_path / 'script.pt'
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  with pytest.raises(errors.UserError, match='it holds a TorchScript program'):
    load_file(path)


def test_other_networks_and_dtypes_are_refused(tmp_path, network18):
  state = dict(network18.state_dict())
  message = user_error(
    load, tmp_path, state | {'layer1.0.se.weight': torch.ones(2)}
  )
  assert '1 names are unknown (layer1.0.se.weight)' in message
  message = user_error(
    load, tmp_path, state | {'conv1.weight': torch.ones(64, 1, 7, 7)}
  )
  assert 'conv1.weight has the shape (64, 1, 7, 7)' in message
  for dtype in (torch.int64, torch.uint8, torch.complex64, torch.bool):
    wrong = torch.ones(64, dtype=dtype)
    message = user_error(load, tmp_path, state | {'bn1.bias': wrong})
    assert f'bn1.bias is {str(dtype).removeprefix("torch.")}, not' in message
  message = user_error(
    load, tmp_path, state | {'bn1.bias': torch.full((64,), np.nan)}
  )
  assert 'not finite' in message
  assert 'bn1.bias (64 of 64)' in message


def test_a_repacked_archive(tmp_path, network18):
  packed, path = tmp_path / 'packed.pth', tmp_path / 'model.pth'
  torch.save(network18.state_dict(), path)
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w') as new:
      # Not in PyTorch's order.
      for entry in sorted(old.namelist()):
        new.writestr(entry, old.read(entry), method, compresslevel=1)
    if method == zipfile.ZIP_STORED:
      assert_holds(load_file(packed), network18)
    else:
      with pytest.raises(errors.UserError, match='compressed or encrypted'):
        load_file(packed)


@pytest.mark.parametrize('first', [False, True])
def test_a_folder_of_save_pretrained(tmp_path, first):
  """Stride and names from its files, values from the network itself."""
  transformers = pytest.importorskip('transformers')
  config = transformers.ResNetConfig(
    depths=[3, 4, 6, 3],
    downsample_in_bottleneck=first,
    id2label={0: 'rose', 1: 'tulip', 2: 'aster'},
  )
  torch.manual_seed(0)
  network = transformers.ResNetForImageClassification(config).eval()
  network.save_pretrained(tmp_path / 'model')
  loaded = weights.load(str(tmp_path / 'model'))
  assert loaded.module.variant.stride_in == ('1x1' if first else '3x3')
  assert loaded.loaded.class_names == ('rose', 'tulip', 'aster')
  x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
  with torch.no_grad():
    expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2))).logits.numpy()
  found = resnet.capture(loaded.module, loaded.parameters, x, ['logits'])
  difference = np.abs(np.asarray(found['logits'])[:, 0, 0] - expected).max()
  assert difference < 5e-4 * np.sqrt(np.mean(expected**2))
