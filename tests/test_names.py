# SPDX-License-Identifier: Apache-2.0
"""Layer names and how they are asked for."""

import numpy as np
import pytest

from resnet_jax import errors
from resnet_jax.models import names


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_names_are_those_of_the_reference(depth):
  path = f'tests/reference/reference_resnet{depth}_seed0.npz'
  with np.load(path) as reference:
    assert names.layer_names(depth) == tuple(map(str, reference['names']))


@pytest.mark.parametrize('depth', [18, 34])
def test_basic_blocks_have_two_convolutions_and_three_projections(depth):
  layers = names.layer_names(depth)
  assert not any('branch2c' in layer for layer in layers)
  projections = [layer for layer in layers if layer.endswith('branch1_conv')]
  assert projections == [f'res{s}_1_branch1_conv' for s in (3, 4, 5)]
  # The paper counts the layers with weights on the way: these, and the last.
  on_the_way = [
    layer
    for layer in layers
    if layer.endswith('_conv') and 'branch1' not in layer
  ]
  assert len(on_the_way) + 1 == depth


def test_globs_give_the_order_of_computing_and_names_the_order_asked():
  chosen = names.select_layers('avgpool, res5_*_addto,avgpool,pool1', 50)
  assert chosen == (
    'avgpool',
    'res5_1_addto',
    'res5_2_addto',
    'res5_3_addto',
    'pool1',
  )
  assert names.select_layers(['*'], 18) == names.layer_names(18)


def test_an_unknown_layer_names_the_nearest_and_what_is_allowed():
  with pytest.raises(errors.UserError) as caught:
    names.select_layers('avgpool,res5_3_branch2c_bm', 50)
  message = str(caught.value)
  assert "unknown layer of ResNet-50 'res5_3_branch2c_bm'" in message
  assert "Did you mean 'res5_3_branch2c_bn'?" in message
  assert 'res5_1 to res5_3' in message
  assert 'branch1 in res2_1, res3_1, res4_1, res5_1' in message


def test_a_glob_without_a_match_and_no_layer_are_errors():
  with pytest.raises(errors.UserError, match=r"'res6_\*'"):
    names.select_layers('res6_*', 50)
  with pytest.raises(errors.UserError, match='no layer was asked for'):
    names.select_layers(' , ', 50)


def test_an_unpublished_depth_lists_the_published():
  with pytest.raises(errors.UserError, match='18, 34, 50, 101, 152'):
    names.layer_names(42)
