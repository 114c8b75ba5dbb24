# SPDX-License-Identifier: Apache-2.0
"""The table of layers, against the network that Flax builds from it."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.models import layers, names, resnet, structure
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors

ALL = frozenset(
  name for depth in structure.ARCHITECTURES for name in names.value_names(depth)
)
INFERENCES = [
  layers.Inference(platform='gpu'),
  layers.Inference(platform='cpu', apart=frozenset({'conv1_bn', 'avgpool'})),
  layers.Inference('direct', 'cpu', frozenset({'res2_1_branch2b_conv'})),
  layers.Inference(platform='cpu', apart=ALL),
]
VARIANTS = list(
  itertools.product(structure.ARCHITECTURES, [('1x1', 'ceil'), ('3x3', 'pad1')])
)


def _traced(model, height, width):
  """The parameters and the (C, H, W) of layers, as Flax traces them."""
  _, traced = jax.eval_shape(
    lambda x: model.init_with_output(
      jax.random.key(0),
      x,
      capture_intermediates=lambda module, method: module.name is not None,
    ),
    jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
  )
  shapes = {}
  for name, value in traced.pop('intermediates').items():
    if name != '__call__':
      for method, (array,) in value.items():
        _, rows, columns, channels = array.shape
        end = '' if method == '__call__' else f'_{method}'
        shapes[name + end] = channels, rows, columns
  parameters = {
    f'{layer}/{leaf}': array.shape
    for collection in traced.values()
    for layer, leaves in collection.items()
    for leaf, array in leaves.items()
  }
  return parameters, shapes


@pytest.mark.parametrize(('depth', 'variant'), VARIANTS)
def test_shapes_are_those_that_flax_traces(depth, variant):
  model = resnet.ResNet(depth, 7, Variant(*variant))
  # Odd and even at each of the halvings, and not square.
  height, width = 45, 62
  parameters, shapes = _traced(model, height, width)
  assert resnet.parameter_shapes(model) == parameters
  assert resnet.value_shapes(model, height, width) == shapes
  assert list(resnet.value_shapes(model, height, width)) == list(
    resnet.value_names(model)
  )
  headless = model.clone(classes=0)
  assert 'logits' not in resnet.value_shapes(headless, height, width)
  assert 'logits/bias' not in resnet.parameter_shapes(headless)


@pytest.mark.parametrize('inference', INFERENCES)
@pytest.mark.parametrize('depth', [18, 20, 50])
def test_parameters_of_joined_layers_are_those_that_flax_traces(
  depth, inference
):
  model = resnet.ResNet(depth, inference=inference)
  parameters, _ = _traced(model, 64, 64)
  assert resnet.parameter_shapes(model) == parameters
  # In the order of computing.
  order = resnet.layer_names(model)
  places = [
    order.index(name.split('/')[0]) for name in resnet.parameter_shapes(model)
  ]
  assert places == sorted(places)


@pytest.mark.parametrize('size', [(31, 224), (224, 31)])
def test_images_that_are_too_small_are_refused(size):
  with pytest.raises(ValueError, match='a ResNet takes 32x32 or more'):
    resnet.value_shapes(resnet.ResNet(18), *size)


def test_a_depth_that_no_resnet_has_is_refused():
  model = resnet.ResNet(17)
  with pytest.raises(errors.UserError, match='no ResNet has 17 layers'):
    resnet.parameter_shapes(model)
  with pytest.raises(errors.UserError, match='no ResNet has 17 layers'):
    resnet.value_shapes(model, 224, 224)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'stride_in': '2x2'}, "unknown stride_in '2x2'"),
    ({'stem_pool': 'same'}, "unknown stem_pool 'same'"),
    ({'epsilon': -1e-5}, 'epsilon=-1e-05 is not between 0 and 1'),
    ({'epsilon': float('nan')}, 'epsilon=nan is not between 0 and 1'),
  ],
)
def test_variants_that_no_resnet_has_are_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    Variant(**fields)
  with pytest.raises(errors.UserError, match=message):
    Variant().overridden(**fields)


def test_auto_and_zero_keep_a_variant():
  own = Variant('3x3', 'pad1', 2e-5)
  assert own.overridden(stride_in='auto', stem_pool=None, epsilon=0.0) == own
  assert own.overridden(epsilon=1e-3) == Variant('3x3', 'pad1', 1e-3)
