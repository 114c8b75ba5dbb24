# SPDX-License-Identifier: Apache-2.0
"""Every name that PyTorch's programs list, against the value that they give.

The weights are random, so that no two values are alike by chance.
"""

import memory
import numpy as np
import pytest

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import runner
from resnet_jax.models import aliases, resnet
from resnet_jax.weights import assemble
from resnet_jax.weights import torch as reader

torch = pytest.importorskip('torch')
randomise = pytest.importorskip('torch_networks').randomise
transformers = pytest.importorskip('transformers')

# Builds of torchvision for other builds of PyTorch lack these, and then cannot
# be imported.  Nothing here uses them.
_OPERATORS = torch.library.Library('torchvision', 'FRAGMENT')
for _name in ('nms', 'qnms'):
  if not hasattr(torch.ops.torchvision, _name):
    _OPERATORS.define(
      f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
    )

torchvision = pytest.importorskip('torchvision')
timm = pytest.importorskip('timm')
pytestmark = pytest.mark.frameworks

TOLERANCE = 5e-4
WIDE = ('wide_resnet50_2', 'wide_resnet101_2')
NEXT = ('resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d')


def by_torchvision(name, stride_in='3x3'):
  network = torchvision.models.get_model(name)
  for block in network.modules():
    if stride_in == '1x1' and hasattr(block, 'conv3'):
      block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
  return randomise(network)


def by_timm(name, stride_in):
  assert stride_in == '3x3'
  return randomise(timm.create_model(name))


def by_transformers(name, stride_in):
  assert stride_in == '3x3'
  bottleneck = name == 'resnet50'
  widths = [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512]
  return randomise(
    transformers.ResNetForImageClassification(
      transformers.ResNetConfig(
        depths=[3, 4, 6, 3] if bottleneck else [2, 2, 2, 2],
        layer_type='bottleneck' if bottleneck else 'basic',
        hidden_sizes=widths,
        num_labels=1000,
      )
    )
  )


def node_values(network, x):
  """By the names of `get_graph_node_names`, in its own feature extractor."""
  features = torchvision.models.feature_extraction
  nodes = features.get_graph_node_names(network)[1]
  return features.create_feature_extractor(network, nodes)(x)


def module_values(network, x):
  """By the names of `named_modules`, of those whose value is one tensor."""
  values = {}

  def keep(name):
    def hook(module, inputs, output):
      if isinstance(output, torch.Tensor):
        # A module of several values has no place in these tables.
        assert name not in values
        # The sum of a block is added to its branch's value in place.
        values[name] = output.clone()

    return hook

  for name, module in network.named_modules():
    if name:
      module.register_forward_hook(keep(name))
  network(x)
  return values


def load(folder, **variant):
  options = assemble.Options(variant=variant)
  loaded = reader.load(folder / 'model.pth', options)
  return options.applied(loaded.module), loaded.parameters


def assert_agree(got, expected, name):
  expected = expected.numpy()
  got = np.asarray(got).reshape(expected.shape)
  rms = np.sqrt(np.mean(expected**2))
  assert 1e-4 < rms < 1e5, name
  assert np.abs(got - expected).max() / rms < TOLERANCE, name


@pytest.mark.parametrize(
  ('program', 'name', 'stride_in', 'count'),
  [
    ('torchvision', 'resnet18', '3x3', 70),
    ('torchvision', 'resnet50', '3x3', 176),
    ('torchvision', 'resnet50', '1x1', 176),
    ('torchvision', WIDE[0], '3x3', 176),
    ('torchvision', NEXT[0], '3x3', 176),
    ('timm', 'resnet18', '3x3', 93),
    ('timm', 'resnet50', '3x3', 216),
    ('transformers', 'resnet18', '3x3', 116),
    ('transformers', 'resnet50', '3x3', 278),
  ],
)
def test_every_name_is_the_frameworks_value(
  tmp_path, program, name, stride_in, count
):
  make, values = {
    'torchvision': (by_torchvision, node_values),
    'timm': (by_timm, module_values),
    'transformers': (by_transformers, module_values),
  }[program]
  depth = 18 if name == 'resnet18' else 50
  network = make(name, stride_in)
  torch.manual_seed(1)
  x = torch.randn(2, 3, 64, 64)
  with torch.no_grad():
    expected = values(network, x)
  assert len(expected) == count
  meant = {name: aliases.select(name, depth) for name in expected}
  torch.save(network.state_dict(), tmp_path / 'model.pth')
  module, parameters = load(tmp_path, stride_in=stride_in)
  got = resnet.capture(
    module,
    parameters,
    x.numpy().transpose(0, 2, 3, 1),
    tuple(dict.fromkeys(value for (value,) in meant.values())),
  )
  for theirs, (value,) in meant.items():
    assert_agree(
      np.asarray(got[value]).transpose(0, 3, 1, 2), expected[theirs], theirs
    )


@pytest.mark.parametrize('name', [*WIDE, *NEXT])
def test_every_stage_of_a_wide_network_is_torchvisions(tmp_path, name):
  network = by_torchvision(name)
  images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
  preprocess = Preprocess(
    mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0), channels='RGB'
  )
  x = torch.from_numpy((images - preprocess.mean) / preprocess.std).float()
  stages = {'maxpool': 'pool1', 'layer1': '', 'layer2': '', 'layer3': ''}
  stages |= {'layer4': '', 'avgpool': '', 'fc': 'logits'}
  extractor = torchvision.models.feature_extraction.create_feature_extractor
  with torch.no_grad():
    expected = extractor(network, list(stages))(x.permute(0, 3, 1, 2))
  torch.save(network.state_dict(), tmp_path / 'model.pth')
  # One copy less of up to 355 MB.
  del network
  memory.give_back()
  module, parameters = load(tmp_path)
  wanted = [
    ours for theirs in stages for ours in aliases.select(theirs, module.depth)
  ]
  # Winograd's kernels of the wide ones would take another gigabyte.
  execution = runner.Execution(
    arithmetic='direct' if name in WIDE else 'float32'
  )
  run = runner.Runner(
    module, parameters, wanted, preprocess, execution=execution
  )
  got = run.fetch(run(images[:, None]))
  for theirs, ours in zip(stages, wanted, strict=True):
    assert_agree(got[ours], expected[theirs], theirs)
  count = resnet.learned_count(resnet.parameter_shapes(module))
  weights = torchvision.models.get_model_weights(name).DEFAULT
  assert count == weights.meta['num_params']
