# SPDX-License-Identifier: Apache-2.0
"""What layers cost, against published figures and against the network."""

import jax
import numpy as np
import pytest

from resnet_jax.models import costs, known, names, resnet
from resnet_jax.models.variant import STEM_POOLS, Variant
from resnet_jax.weights import random


def _total(depth, stride_in):
  model = resnet.ResNet(depth, variant=Variant(stride_in=stride_in))
  return sum(cost.multiply_adds for cost in costs.costs(model, 224, 224))


@pytest.mark.parametrize(
  ('depth', 'published'),
  # torchvision 0.29.2, models/resnet.py, `_ops`.
  [(18, 1.814), (34, 3.664), (50, 4.089), (101, 7.801), (152, 11.514)],
)
def test_multiply_adds_are_torchvisions(depth, published):
  assert round(_total(depth, '3x3') / 1e9, 3) == published


@pytest.mark.parametrize(
  ('network', 'published', 'parameters'),
  # The same of torchvision 0.28.0, and `num_params`.
  [
    ('wide_resnet50_2', 11.398, 68_883_240),
    ('wide_resnet101_2', 22.753, 126_886_696),
    ('resnext50_32x4d', 4.230, 25_028_904),
    ('resnext101_32x8d', 16.414, 88_791_336),
    ('resnext101_64x4d', 15.460, 83_455_272),
  ],
)
def test_multiply_adds_of_groups_are_torchvisions(
  network, published, parameters
):
  model = resnet.published(*known.asked(network, {}))
  found = costs.costs(model, 224, 224)
  assert round(sum(c.multiply_adds for c in found) / 1e9, 3) == published
  assert sum(c.parameters for c in found) == parameters


@pytest.mark.parametrize('depth', costs.PAPER)
def test_multiply_adds_are_the_papers_to_its_last_digit(depth):
  # The paper prints one decimal; 3.86 became 3.8 there, and 7.57 became 7.6.
  assert abs(_total(depth, '1x1') - costs.PAPER[depth]) < 0.07e9


@pytest.mark.parametrize(
  ('depth', 'field'),
  # Araujo et al., "Computing Receptive Fields of Convolutional Neural
  # Networks", Distill 2019, table 1: ResNet v1.
  [(50, 483), (101, 1027), (152, 1507)],
)
def test_receptive_fields_are_the_published_ones(depth, field):
  found = {c.layer: c for c in costs.costs(resnet.ResNet(depth), 224, 224)}
  assert found['res5_3_addto'].receptive_field == field
  assert found['res5_3_addto'].stride == 32


@pytest.mark.parametrize('stem_pool', STEM_POOLS)
@pytest.mark.parametrize(
  ('layer', 'stride_in'),
  [
    ('pool1', '1x1'),
    ('res2_1_addto', '1x1'),
    ('res3_1_branch2b_conv', '1x1'),
    ('res3_1_branch2b_conv', '3x3'),
    ('res3_1_branch1_conv', '3x3'),
  ],
)
def test_a_receptive_field_is_what_a_value_depends_on(
  layer, stride_in, stem_pool
):
  """The columns in which a value in the middle has a gradient."""
  model = resnet.ResNet(
    50, variant=Variant(stride_in=stride_in, stem_pool=stem_pool)
  )
  cost = {c.layer: c for c in costs.costs(model, 32, 160)}[layer]
  parameters = random.initialise(model, 0)

  def value(images):
    found = resnet.capture(model, parameters, images, [layer])[layer]
    return found[:, :, found.shape[2] // 2].sum()

  # Several, as a maximum depends on one of its values only.
  images = np.random.default_rng(0).normal(0, 50, (8, 32, 160, 3))
  gradient = jax.jit(jax.grad(value))(images.astype(np.float32))
  columns = np.flatnonzero(np.any(np.asarray(gradient) != 0, axis=(0, 1, 3)))
  assert np.ptp(columns) + 1 == cost.receptive_field


def test_bytes_parameters_and_shapes_add_up():
  model = resnet.ResNet(50, classes=7)
  found = costs.costs(model, 96, 160)
  assert [c.layer for c in found] == list(names.layer_names(50))
  by_name = {c.layer: c for c in found}
  assert by_name['res3_1_branch2a_conv'].shape == (128, 12, 20)
  assert by_name['res3_1_branch2a_conv'].bytes == 4 * 128 * 12 * 20
  assert by_name['res3_1_branch2a_conv'].parameters == 256 * 128
  assert by_name['res3_1_branch2a_conv'].multiply_adds == 256 * 128 * 12 * 20
  assert by_name['res3_1_branch2a_bn'].parameters == 2 * 128
  assert by_name['logits'].parameters == 2048 * 7 + 7
  assert by_name['logits'].multiply_adds == 2048 * 7
  total = resnet.learned_count(resnet.parameter_shapes(model))
  assert sum(c.parameters for c in found) == total
