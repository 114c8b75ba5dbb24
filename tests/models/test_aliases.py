# SPDX-License-Identifier: Apache-2.0
"""Layers by the names of Caffe, Keras and torchvision."""

import make_reference
import pytest

from resnet_jax.models import aliases, names, programs, structure
from resnet_jax.system import errors


def test_globs_give_the_order_of_computing_and_names_the_order_asked():
  chosen = aliases.select('avgpool, res5_*_addto,avgpool,pool1', 50)
  assert chosen == (
    'avgpool',
    'res5_1_addto',
    'res5_2_addto',
    'res5_3_addto',
    'pool1',
  )
  assert aliases.select(['*'], 18) == names.layer_names(18)


def test_an_unknown_layer_names_the_nearest_and_what_is_allowed():
  with pytest.raises(errors.UserError) as caught:
    aliases.select('avgpool,res5_3_branch2c_bm', 50)
  message = str(caught.value)
  assert "ResNet-50 has no layer 'res5_3_branch2c_bm'" in message
  assert "Did you mean 'res5_3_branch2c_bn'?" in message
  assert 'res5_1 to res5_3' in message
  assert 'branch1 in res2_1, res3_1, res4_1, res5_1' in message


def test_a_glob_without_a_match_and_no_layer_are_errors():
  with pytest.raises(errors.UserError, match=r"'res6_\*'"):
    aliases.select('res6_*', 50)
  with pytest.raises(errors.UserError, match='no layer was asked for'):
    aliases.select(' , ', 50)


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_caffes_names_are_those_of_the_reference(depth):
  """`make_reference` names them without this project's code."""
  for ours, caffe in make_reference.caffe_names(depth).items():
    assert aliases.select(caffe, depth) == (ours,)
    assert aliases.select(f'caffe:{caffe}', depth) == (ours,)


@pytest.mark.parametrize(
  ('depth', 'name', 'layer'),
  [
    (101, 'res4b12_branch2c', 'res4_13_branch2c_conv'),
    (50, 'res4f_branch2a', 'res4_6_branch2a_conv'),
    (152, 'res3b7_relu', 'res3_8_addto'),
    (50, 'data', 'input'),
    (50, 'conv1_relu', 'conv1_bn'),
    (50, 'scale_conv1', 'conv1_bn_linear'),
    (50, 'res2a_branch2a', 'res2_1_branch2a_conv'),
    (50, 'scale2a_branch2a', 'res2_1_branch2a_bn_linear'),
    (50, 'res2a_branch2a_relu', 'res2_1_branch2a_bn'),
    (50, 'scale2a_branch1', 'res2_1_branch1_bn'),
    (50, 'pool5', 'avgpool'),
    (50, 'fc1000', 'logits'),
    (50, 'prob', 'output'),
    (101, 'conv4_block13_3_conv', 'res4_13_branch2c_conv'),
    (50, 'conv1_pad', 'conv1_pad'),
    (50, 'pool1_pad', 'pool1_pad'),
    (50, 'keras:conv1_bn', 'conv1_bn_linear'),
    # A canonical name means what it says.
    (50, 'conv1_bn', 'conv1_bn'),
    (50, 'conv2_block1_1_bn', 'res2_1_branch2a_bn_linear'),
    (50, 'conv2_block1_add', 'res2_1_addto_linear'),
    (50, 'conv2_block1_0_bn', 'res2_1_branch1_bn'),
    (50, 'conv2_block1_1_relu', 'res2_1_branch2a_bn'),
    (50, 'conv3_block4_out', 'res3_4_addto'),
    (50, 'pool1_pool', 'pool1'),
    (50, 'predictions', 'output'),
    (101, 'layer3.12.conv3', 'res4_13_branch2c_conv'),
    (50, 'layer1.0.downsample.1', 'res2_1_branch1_bn'),
    (50, 'layer4', 'res5_3_addto'),
    (50, 'layer1.2', 'res2_3_addto'),
    (50, 'maxpool', 'pool1'),
    (50, 'relu', 'conv1_bn'),
    (50, 'bn1', 'conv1_bn_linear'),
    (50, 'layer1.0.bn2', 'res2_1_branch2b_bn_linear'),
    # The nodes of torchvision's feature extraction.
    (50, 'layer1.0.relu', 'res2_1_branch2a_bn'),
    (50, 'layer1.0.relu_1', 'res2_1_branch2b_bn'),
    (50, 'layer1.0.relu_2', 'res2_1_addto'),
    (18, 'layer1.0.relu_1', 'res2_1_addto'),
    (50, 'layer1.0.add', 'res2_1_addto_linear'),
    (50, 'flatten', 'avgpool'),
    (50, 'fc', 'logits'),
    (18, 'layer2.0.conv2', 'res3_1_branch2b_conv'),
    (34, 'layer3.5', 'res4_6_addto'),
    (34, 'layer3.5.act1', 'res4_6_branch2a_bn'),
    (34, 'layer3.5.act2', 'res4_6_addto'),
    (50, 'layer3.5.act3', 'res4_6_addto'),
    (18, 'layer3.0.drop_block', 'res4_1_branch2a_bn_linear'),
    (50, 'layer3.5.aa', 'res4_6_branch2b_bn'),
    (50, 'act1', 'conv1_bn'),
    (50, 'global_pool', 'avgpool'),
    (18, 'resnet.embedder.embedder.normalization', 'conv1_bn_linear'),
    (18, 'embedder.pooler', 'pool1'),
    (
      50,
      'resnet.encoder.stages.0.layers.0.layer.0.convolution',
      'res2_1_branch2a_conv',
    ),
    (50, 'encoder.stages.0.layers.0.shortcut', 'res2_1_branch1_bn'),
    (50, 'encoder.stages.0.layers.1.shortcut', 'res2_1_addto'),
    (50, 'resnet.encoder.stages.3', 'res5_3_addto'),
    (50, 'classifier.1', 'logits'),
    (20, 'layer2.0.shortcut', 'res3_1_shortcut'),
    (20, 'linear', 'logits'),
  ],
)
def test_other_programs_names(depth, name, layer):
  assert aliases.select(name, depth) == (layer,)


@pytest.mark.parametrize('depth', structure.IMAGENET)
def test_every_layer_has_a_name_in_every_program_that_has_the_layer(depth):
  found = aliases.aliases(depth)
  # Keras and PyTorch's programs have no layer with the one's logits, the
  # others' probabilities.
  absent = {
    'caffe': set(),
    'keras': {'logits'},
    'torchvision': {'output'},
    'hugging_face': {'output'},
  }
  for scheme, without in absent.items():
    named = {alias.value for alias in found if alias.scheme == scheme}
    if depth < 50 and scheme in ('caffe', 'keras'):
      assert not named
    else:
      assert named >= set(names.layer_names(depth)) - without


@pytest.mark.parametrize('scheme', ['caffe', 'keras', 'torchvision'])
@pytest.mark.parametrize('depth', structure.IMAGENET)
def test_no_two_layers_share_an_owner(depth, scheme):
  owned = programs.owners(depth, scheme)
  assert len(set(owned.values())) == len(owned)


def test_globs_over_other_programs_names():
  def chosen(pattern):
    return aliases.select(pattern, 50)

  ends = tuple(n for n in names.layer_names(50) if n.endswith('branch2c_conv'))
  assert chosen('layer?.*.conv3') == ends
  assert chosen('conv?_block*_3_conv') == ends
  assert chosen('caffe:res*_branch2c') == ends
  assert chosen('res5?_branch2c') == ends[-3:]
  assert chosen('conv5_*_out') == chosen('res5_*_addto')
  # Canonical names win; the other schemes only repeat them.
  assert chosen('*_conv') == tuple(
    n for n in names.layer_names(50) if n.endswith('_conv')
  )


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    # The sum to OpenCV; to pycaffe what the ReLU wrote in its place.
    (
      'res2a',
      'in caffe it is the name of res2_1_addto_linear and of res2_1_addto. Name'
      ' one of these',
    ),
    ('conv*', 'paddle:conv* stands for conv1_conv, conv1_bn;'),
    ('conv*', 'keras:conv* stands for 172 names'),
    ('pool*', 'caffe:pool* stands for pool1, avgpool'),
  ],
)
def test_ambiguity_is_an_error_that_names_the_choices(pattern, message):
  with pytest.raises(aliases.AmbiguousNameError) as caught:
    aliases.select(pattern, 50)
  assert 'is ambiguous' in str(caught.value)
  assert message in str(caught.value)


def test_a_scheme_in_front_settles_it():
  paddle = aliases.select('paddle:conv*', 50)
  assert paddle == ('conv1_conv', 'conv1_bn')
  assert len(aliases.select('keras:conv*', 50)) > 100


def test_globs_stand_for_layers_and_else_for_what_lies_between():
  assert aliases.select('res2_1_*', 50) == tuple(
    name for name in names.layer_names(50) if name.startswith('res2_1_')
  )
  assert aliases.select('res2_1_*_linear', 50) == (
    'res2_1_branch2a_bn_linear',
    'res2_1_branch2b_bn_linear',
    'res2_1_addto_linear',
  )
  assert aliases.select('layer1.0.*', 18) == (
    'res2_1_branch2a_conv',
    'res2_1_branch2a_bn_linear',
    'res2_1_branch2a_bn',
    'res2_1_branch2b_conv',
    'res2_1_branch2b_bn',
    'res2_1_addto_linear',
    'res2_1_addto',
  )


def test_without_a_head_its_layers_are_not_there():
  layers = aliases.select('*', 50, head=False)
  assert layers[-1] == 'avgpool'
  for name in ('output', 'logits', 'fc', 'prob'):
    with pytest.raises(errors.UserError, match='have no head'):
      aliases.select(name, 50, head=False)
