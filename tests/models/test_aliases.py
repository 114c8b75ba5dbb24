# SPDX-License-Identifier: Apache-2.0
"""Layers by the names of Caffe, Keras and torchvision."""

import make_reference
import pytest

from resnet_jax.models import aliases, names, structure
from resnet_jax.system import errors


def test_globs_give_the_order_of_computing_and_names_the_order_asked():
  chosen = aliases.select_layers(
    'avgpool, res5_*_addto,avgpool,pool1', 50
  ).layers
  assert chosen == (
    'avgpool',
    'res5_1_addto',
    'res5_2_addto',
    'res5_3_addto',
    'pool1',
  )
  assert aliases.select_layers(['*'], 18).layers == names.layer_names(18)


def test_an_unknown_layer_names_the_nearest_and_what_is_allowed():
  with pytest.raises(errors.UserError) as caught:
    aliases.select_layers('avgpool,res5_3_branch2c_bm', 50)
  message = str(caught.value)
  assert "ResNet-50 has no layer 'res5_3_branch2c_bm'" in message
  assert "Did you mean 'res5_3_branch2c_bn'?" in message
  assert 'res5_1 to res5_3' in message
  assert 'branch1 in res2_1, res3_1, res4_1, res5_1' in message


def test_a_glob_without_a_match_and_no_layer_are_errors():
  with pytest.raises(errors.UserError, match=r"'res6_\*'"):
    aliases.select_layers('res6_*', 50)
  with pytest.raises(errors.UserError, match='no layer was asked for'):
    aliases.select_layers(' , ', 50)


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_caffes_names_are_those_of_the_reference(depth):
  """`make_reference` names them without this project's code."""
  for ours, caffe in make_reference.caffe_names(depth).items():
    assert aliases.select_layers(caffe, depth).layers == (ours,)
    assert aliases.select_layers(f'caffe:{caffe}', depth).layers == (ours,)


@pytest.mark.parametrize(
  ('depth', 'name', 'layer'),
  [
    (101, 'res4b12_branch2c', 'res4_13_branch2c_conv'),
    (50, 'res4f_branch2a', 'res4_6_branch2a_conv'),
    (152, 'res3b7', 'res3_8_addto'),
    (50, 'res2a', 'res2_1_addto'),
    (50, 'bn_conv1', 'conv1_bn'),
    (50, 'scale2a_branch1', 'res2_1_branch1_bn'),
    (50, 'pool5', 'avgpool'),
    (50, 'fc1000', 'logits'),
    (50, 'prob', 'output'),
    (101, 'conv4_block13_3_conv', 'res4_13_branch2c_conv'),
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
    (50, 'fc', 'logits'),
    (18, 'layer2.0.conv2', 'res3_1_branch2b_conv'),
    (34, 'layer3.5', 'res4_6_addto'),
    (34, 'layer3.5.act1', 'res4_6_branch2a_bn'),
    (34, 'layer3.5.act2', 'res4_6_addto'),
    (50, 'layer3.5.act3', 'res4_6_addto'),
  ],
)
def test_other_programs_names(depth, name, layer):
  assert aliases.select_layers(name, depth) == aliases.Selection((layer,), ())


@pytest.mark.parametrize('depth', structure.IMAGENET)
def test_every_layer_has_a_name_in_every_program_that_has_the_layer(depth):
  found = aliases.aliases(depth)
  # Keras and torchvision have no layer with the one's logits, the other's
  # probabilities.
  absent = {'caffe': set(), 'keras': {'logits'}, 'torchvision': {'output'}}
  for scheme, without in absent.items():
    named = {alias.layer for alias in found if alias.scheme == scheme}
    if depth < 50 and scheme != 'torchvision':
      assert not named
    else:
      assert named == set(names.layer_names(depth)) - without


@pytest.mark.parametrize('scheme', ['caffe', 'keras', 'torchvision'])
@pytest.mark.parametrize('depth', structure.IMAGENET)
def test_no_two_layers_share_an_owner(depth, scheme):
  owned = aliases.owners(depth, scheme)
  assert len(set(owned.values())) == len(owned)


def test_globs_over_other_programs_names():
  def chosen(pattern):
    return aliases.select_layers(pattern, 50).layers

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
    (
      'layer1.0.relu',
      'torchvision gives several values that name, res2_1_branch2a_bn,'
      ' res2_1_branch2b_bn, res2_1_addto. Name one of these',
    ),
    ('conv*', 'paddle:conv* stands for conv1_conv, conv1_bn;'),
    ('conv*', 'keras:conv* stands for 122 names'),
    ('pool*', 'caffe:pool* stands for pool1, avgpool'),
  ],
)
def test_ambiguity_is_an_error_that_names_the_choices(pattern, message):
  with pytest.raises(aliases.AmbiguousNameError) as caught:
    aliases.select_layers(pattern, 50)
  assert 'is ambiguous' in str(caught.value)
  assert message in str(caught.value)


def test_a_scheme_in_front_settles_it():
  paddle = aliases.select_layers('paddle:conv*', 50).layers
  assert paddle == ('conv1_conv', 'conv1_bn')
  assert len(aliases.select_layers('keras:conv*', 50).layers) > 100


@pytest.mark.parametrize(
  ('name', 'layer'),
  [
    ('bn1', 'conv1_bn'),
    ('layer1.0.bn2', 'res2_1_branch2b_bn'),
    ('conv2_block1_1_bn', 'res2_1_branch2a_bn'),
    ('conv2_block1_add', 'res2_1_addto'),
    ('keras:conv1_bn', 'conv1_bn'),
  ],
)
def test_a_value_before_the_relu_gives_a_note(name, layer):
  chosen = aliases.select_layers(name, 50)
  assert chosen.layers == (layer,)
  assert 'is the value before the ReLU' in chosen.notes[0]
  assert layer in chosen.notes[0]


def test_a_canonical_name_is_no_alias():
  assert aliases.select_layers('conv1_bn', 50).notes == ()


def test_without_a_head_its_layers_are_not_there():
  layers = aliases.select_layers('*', 50, head=False).layers
  assert layers[-1] == 'avgpool'
  for name in ('output', 'logits', 'fc', 'prob'):
    with pytest.raises(errors.UserError, match='have no head'):
      aliases.select_layers(name, 50, head=False)
