# SPDX-License-Identifier: Apache-2.0
"""Layer names and how they are asked for."""

import numpy as np
import pytest

from resnet_jax.models import known, names
from resnet_jax.models.variant import Variant
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


@pytest.mark.parametrize(
  ('given', 'depth', 'groups'),
  [
    (50, 50, None),
    ('50', 50, None),
    ('resnet50', 50, None),
    ('ResNet-101', 101, None),
    ('resnet_20', 20, None),
    ('resnext50_32x4d', 50, 32),
    ('ResNeXt-50 32x4d', 50, 32),
    ('resnext101_64x4d', 101, 64),
    ('Wide ResNet-101-2', 101, 1),
    ('wide_resnet50_2', 50, 1),
  ],
)
def test_a_network_by_its_name(given, depth, groups):
  found, fields = known.asked(given, {})
  assert (found, fields.get('groups')) == (depth, groups)
  if groups:
    named = known.name(depth, known.usual(depth, fields))
    assert known.settings(named) == known.settings(given)


def test_widths_have_the_names_that_they_are_known_by():
  assert known.name(50, Variant()) == 'resnet50'
  assert known.name(50, Variant(width=32)) == ''
  assert known.describe(50, Variant(width=32)) == 'ResNet-50, width 32'
  # Those that are usual may be stated.
  stated = {'stem_width': 64, 'width': 64, 'inner_width': 64, 'groups': 1}
  assert known.usual(50, stated) == Variant()
  assert known.usual(101, {'width': 64, 'inner_width': 256, 'groups': 32}) == (
    Variant('3x3', 'pad1', inner_width=256, groups=32)
  )
