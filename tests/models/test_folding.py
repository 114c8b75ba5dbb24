# SPDX-License-Identifier: Apache-2.0
"""Joined layers, and a network in pieces, against the network as defined."""

import re

import jax
import numpy as np
import pytest

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import piecewise, runner
from resnet_jax.models import folding, layers, resnet
from resnet_jax.models.variant import Variant
from resnet_jax.weights import random


def parameters_of(model):
  """Drawn ones, with batch norms that do something, some of them negative."""
  drawn = random.initialise(model, 0)
  generator = np.random.default_rng(1)
  for name, array in drawn.items():
    layer, leaf = name.split('/')
    if not layer.endswith('_bn'):
      continue
    factor = generator.uniform(0.5, 1.5, array.shape)
    if leaf == 'scale':
      factor *= generator.choice([-1, 1], array.shape)
    shift = generator.normal(0, 0.3, array.shape)
    changed = array * factor if leaf in ('scale', 'var') else array + shift
    drawn[name] = changed.astype(np.float32)
  # So that the probabilities are not those of one class only, with all the
  # error of its logit multiplied.
  drawn['logits/kernel'] *= 0.05
  return drawn


def pixels(count, height, width):
  generator = np.random.default_rng(2)
  shape = (count, height, width, 3)
  return generator.normal(0, 50, shape).astype(np.float32)


def as_defined(model, parameters, x, wanted):
  run = jax.jit(lambda p, x: resnet.capture(model, p, x, wanted))
  return run(parameters, x)


def joined(model, parameters, x, wanted, arithmetic='float32'):
  """Values, and the names of the parameters that were used."""
  inference = layers.Inference(arithmetic, 'cpu', frozenset(wanted))
  model = model.clone(inference=inference)
  needed = resnet.needed_parameters(model, wanted)
  folded = dict(folding.folded(model, parameters, needed))
  return as_defined(model, folded, x, wanted), set(folded)


def assert_close(found, expected, tolerance):
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name].shape == value.shape
    scale = np.sqrt(np.mean(np.square(value)))
    error = np.abs(found[name] - value).max() / scale
    assert error < tolerance, name


@pytest.mark.parametrize(
  ('depth', 'settings', 'size'),
  [
    (18, {}, (32, 45)),
    (50, {'variant': Variant('3x3', 'pad1')}, (37, 32)),
    (20, {'classes': 10}, (32, 32)),
  ],
)
@pytest.mark.parametrize('arithmetic', ['float32', 'direct'])
def test_joined_layers_give_the_values_of_single_ones(
  depth, settings, size, arithmetic
):
  model = resnet.ResNet(depth, **settings)
  parameters, x = parameters_of(model), pixels(2, *size)
  wanted = [
    name
    for name in resnet.layer_names(model)
    if not name.endswith(('_conv', 'conv1_bn'))
  ]
  found, used = joined(model, parameters, x, wanted, arithmetic)
  # No batch norm is left, and of the convolutions none is without one.
  assert not any(name.endswith(('/scale', '/var')) for name in used)
  assert not any('_conv/' in name for name in used)
  expected = as_defined(model, parameters, x, wanted)
  assert_close(found, expected, 1e-4)


def test_layers_that_are_asked_for_are_not_joined_to_what_follows():
  model = resnet.ResNet(18)
  parameters, x = parameters_of(model), pixels(1, 40, 33)
  wanted = ['conv1_bn', 'res2_1_branch2a_conv', 'res3_1_branch1_conv', 'logits']
  found, used = joined(model, parameters, x, wanted)
  expected = as_defined(model, parameters, x, wanted)
  assert_close(found, expected, 1e-4)
  assert (expected['res2_1_branch2a_conv'] < 0).any()
  apart = ('res2_1_branch2a', 'res3_1_branch1')
  for name in apart:
    assert {f'{name}_conv/kernel', f'{name}_bn/scale'} <= used
    assert f'{name}_bn/kernel' not in used
  # Its batch norm is joined, the pool behind that is not.
  assert 'conv1_bn/kernel' in used
  assert 'pool1/kernel' not in used
  scales = {name for name in used if name.endswith('/scale')}
  assert scales == {f'{name}_bn/scale' for name in apart}


def test_what_is_joined_and_what_is_not_are_kept_apart():
  """The parameters are on the device once, whatever layers are asked for."""
  model = resnet.ResNet(18)
  parameters = parameters_of(model)
  preprocess = Preprocess((100.0, 110.0, 120.0))
  images = np.random.default_rng(0).integers(
    0, 256, (1, 1, 32, 32, 3), np.uint8
  )

  def values(layer, shared):
    run = runner.Runner(model, parameters, [layer], preprocess, shared=shared)
    return run.fetch(run(images))[layer]

  # The batch norm alone, behind its convolution, and with the pool behind it.
  chosen = ('conv1_bn', 'conv1_conv', 'res2_1_branch2a_conv', 'pool1')
  alone = {layer: values(layer, {}) for layer in chosen}
  shared = {}
  for layer in (*chosen, *chosen[::-1]):
    np.testing.assert_array_equal(values(layer, shared), alone[layer], layer)
  both = runner.Runner(
    model, parameters, ['conv1_conv', 'conv1_bn'], preprocess, shared=shared
  )
  found = both.fetch(both(images))
  alone = {layer: alone[layer] for layer in found}
  assert_close(found, alone, 1e-4)


def in_pieces(depth, count, pieces, wanted):
  """The network in pieces, the whole one, and what both take."""
  inference = layers.Inference('float32', 'cpu', frozenset(wanted))
  model = resnet.ResNet(depth, classes=10, inference=inference)
  parameters = dict(
    folding.folded(
      model,
      parameters_of(model.clone(inference=layers.DEFINITION)),
      resnet.needed_parameters(model, wanted),
    )
  )

  def cut(parameters, x):
    return piecewise.capture(model, parameters, x, wanted, pieces)

  def whole(parameters, x):
    return resnet.capture(model, parameters, x, wanted)

  return cut, whole, (parameters, pixels(count, 32, 37))


@pytest.mark.parametrize(
  ('depth', 'count', 'pieces', 'wanted'),
  [
    (18, 6, 4, ('logits', 'pool1', 'res5_1_branch1_bn', 'res4_2_addto')),
    (20, 4, 2, ('conv1_conv', 'res3_1_branch2a_bn')),
    (20, 4, 4, ('res3_3_addto',)),
    (20, 3, 3, ('output', 'res4_1_branch2a_conv')),
  ],
)
def test_a_network_in_pieces_is_the_network(depth, count, pieces, wanted):
  """With layers in front of the last stage, in it, and on both sides."""
  cut, whole, given = in_pieces(depth, count, pieces, wanted)
  found = jax.jit(cut)(*given)
  assert_close(found, jax.jit(whole)(*given), 2e-5)


@pytest.mark.parametrize(
  ('count', 'pieces', 'lengths'),
  [
    (6, 2, [2]),
    (6, 4, [3]),
    (9, 4, [3]),
    (4, 4, [4]),
    (5, 4, []),
    (5, 1, []),
    (1, 1, []),
  ],
)
def test_as_many_pieces_as_the_images_can_be_cut_into(count, pieces, lengths):
  cut, _, given = in_pieces(20, count, pieces, ('res2_1_addto',))
  program = str(jax.make_jaxpr(cut)(*given))
  assert [int(n) for n in re.findall(r'length=(\d+)', program)] == lengths
