# SPDX-License-Identifier: Apache-2.0
"""Layer names and how they are asked for."""

import numpy as np
import pytest

from resnet_jax.models import names
from resnet_jax.system import errors


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


def test_an_unpublished_depth_lists_the_published():
  with pytest.raises(errors.UserError, match='18, 34, 50, 101, 152'):
    names.layer_names(42)
