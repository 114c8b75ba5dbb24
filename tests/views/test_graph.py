# SPDX-License-Identifier: Apache-2.0
"""The graph of the table of layers, against the program that JAX traces."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from resnet_jax.models import resnet, structure
from resnet_jax.models.structure import Kind
from resnet_jax.models.variant import Variant
from resnet_jax.views import graph

VARIANTS = [
  *(
    pytest.param(resnet.published(d), id=str(d))
    for d in structure.ARCHITECTURES
  ),
  pytest.param(resnet.ResNet(18, classes=0), id='18, headless'),
  pytest.param(
    resnet.ResNet(50, variant=Variant(stride_in='3x3', stem_pool='pad1')),
    id='v1.5',
  ),
  pytest.param(resnet.ResNet(152, 7, Variant('3x3', 'pad1')), id='152, v1.5'),
  pytest.param(resnet.ResNet(34, 7, Variant('3x3', 'pad1')), id='34, v1.5'),
  pytest.param(resnet.published(20).clone(classes=0), id='20, headless'),
]

# A primitive by which each kind of layer is known in a program.
PRIMITIVES = {
  Kind.CONVOLUTION: 'conv_general_dilated',
  Kind.BATCH_NORM: 'rsqrt',
  Kind.MAX_POOL: 'reduce_window_max',
  Kind.SUM: 'add',
  Kind.MEAN: 'reduce_sum',
  Kind.FULLY_CONNECTED: 'dot_general',
  Kind.SOFTMAX: 'exp',
}


class Traced:
  """The graph of `resnet.capture`, read from its program.

  JAX records the scope of each equation, and Flax opens a scope of the layer's
  name for every module.

  Attributes:
    edges: (start, end).
    padded: those edges on which a value is padded outside of any layer.
    shapes: (C, H, W) of each layer's value.
    parameters: `layer/leaf`, of each layer.
    primitives: of each layer, in order.
  """

  def __init__(self, model, size):
    shapes = {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in resnet.parameter_shapes(model).items()
    }
    wanted = resnet.layer_names(model)
    program = jax.make_jaxpr(
      lambda parameters, x: resnet.capture(model, parameters, x, wanted)
    )(shapes, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)).jaxpr
    self.edges, self.padded, self.shapes = set(), set(), {}
    self.parameters = {name: set() for name in wanted}
    self.primitives = {name: [] for name in wanted}
    origins = {}
    for variable, name in zip(
      program.invars, [*sorted(shapes), structure.INPUT], strict=True
    ):
      origins[variable] = {name}
    padded = set()
    for equation in program.eqns:
      path = str(equation.source_info.name_stack).split('/')
      layer = next((part for part in path if part in self.parameters), None)
      inputs = [v for v in equation.invars if _is_variable(v)]
      coming = set().union(*(origins.get(v, ()) for v in inputs))
      if layer:
        for variable in inputs:
          for origin in origins.get(variable, set()) - {layer}:
            if origin in shapes:
              self.parameters[layer].add(origin)
              continue
            self.edges.add((origin, layer))
            if variable in padded:
              self.padded.add((origin, layer))
        # An equation of several values is none of ours.
        (value,) = equation.outvars
        _, rows, columns, channels = (1, 1, 1, 1, *value.aval.shape)[-4:]
        self.shapes[layer] = (channels, rows, columns)
        self.primitives[layer].append(_called(equation))
        coming = {layer}
      elif any(
        'pad' in _called(equation) and v.aval.shape != value.aval.shape
        for v in inputs
        for value in equation.outvars
      ):
        padded.update(equation.outvars)
      for variable in equation.outvars:
        origins[variable] = coming

  def activation(self, layer):
    """What the layer's last equations do."""
    *_, last = self.primitives[layer]
    if last == 'relu':
      return 'ReLU'
    return 'softmax' if 'exp' in self.primitives[layer] else ''


def _is_variable(variable):
  return not isinstance(variable, core.Literal)


def _called(equation):
  """The primitive, or the function that a call of a function is of."""
  inner = equation.params.get('jaxpr') or equation.params.get('call_jaxpr')
  if inner is None:
    return equation.primitive.name
  return str(equation.params.get('name') or inner.jaxpr.debug_info.func_name)


def _file(parameter):
  """As the original's page has it: `_res2_1_branch1_bn.w0` is gamma."""
  layer, leaf = parameter.split('/')
  owner = 'output' if layer == 'logits' else layer
  suffix = {'kernel': 'w0', 'scale': 'w0', 'mean': 'w1', 'var': 'w2'}
  return f'_{owner}.{suffix.get(leaf, "wbias")}'


@pytest.mark.parametrize('model', VARIANTS)
def test_nodes_and_edges_are_those_of_the_traced_program(model):
  size = (48, 70)
  found = graph.build(model, *size)
  traced = Traced(model, size)

  first, *nodes = found.nodes
  assert (first.name, first.shape) == (graph.INPUT, (3, *size))
  assert [node.name for node in nodes] == list(resnet.layer_names(model))
  assert {node.name: node.shape for node in nodes} == traced.shapes
  for node in nodes:
    assert node.activation == traced.activation(node.name), node.name
    assert PRIMITIVES[node.kind] in traced.primitives[node.name], node.name
    assert list(node.parameters) == sorted(
      _file(parameter) for parameter in traced.parameters[node.name]
    )
  learned = resnet.learned_count(resnet.parameter_shapes(model))
  assert sum(node.learned for node in nodes) == learned

  assert len(found.edges) == len(traced.edges)
  assert {(edge.start, edge.end) for edge in found.edges} == traced.edges
  assert {(e.start, e.end) for e in found.edges if e.padded} == traced.padded


@pytest.mark.parametrize('depth', [34, 50, 20])
def test_every_block_has_a_shortcut(depth):
  found = graph.build(resnet.published(depth), 32, 32)
  blocks = {node.block: node.stage for node in found.nodes if node.block}
  counts = structure.ARCHITECTURES[depth].blocks
  assert list(blocks) == [
    f'res{stage}_{block}'
    for stage, count in enumerate(counts, start=2)
    for block in range(1, count + 1)
  ]
  shortcuts = [edge for edge in found.edges if edge.shortcut]
  for block, stage in blocks.items():
    assert block.startswith(f'{stage}_')
    into = [e for e in found.edges if e.end == f'{block}_addto']
    assert [edge.shortcut for edge in into] == [False, True]
    branch, shortcut = into
    assert '_branch2' in branch.start
    assert '_branch1' in shortcut.start or shortcut.start.endswith(
      ('_addto', 'pool1', 'conv1_bn')
    )
  # A projection takes two edges more, to the convolution and to batch norm.
  projected = sum('branch1_conv' in node.name for node in found.nodes)
  assert len(shortcuts) == sum(counts) + 2 * projected
  padded = [e.end for e in shortcuts if e.padded]
  assert padded == (['res3_1_addto', 'res4_1_addto'] if depth == 20 else [])


def test_what_is_needed_for_a_layer_lies_before_it():
  variant = Variant(stem_pool='pad1')
  found = graph.build(resnet.ResNet(18, variant=variant), 32, 32)
  assert found.needed('pool1') == {'input', 'conv1_conv', 'conv1_bn', 'pool1'}
  needed = found.needed('res3_1_branch1_bn')
  assert 'res2_2_addto' in needed
  assert not any('res3_1_branch2' in name for name in needed)
  assert found.needed('output') == {node.name for node in found.nodes}


def test_details_follow_the_variant():
  found = graph.build(resnet.ResNet(50, 7, Variant('3x3', 'pad1')), 64, 64)
  nodes = {node.name: node for node in found.nodes}
  detail = {name: f'{n.kind}: {n.detail}' for name, n in nodes.items()}
  assert detail['conv1_conv'] == 'convolution: 7x7, stride 2'
  assert detail['res3_1_branch2a_conv'] == 'convolution: 1x1'
  assert detail['res3_1_branch2b_conv'] == 'convolution: 3x3, stride 2'
  assert detail['pool1'] == 'max pool: 3x3, stride 2, pad1'
  assert nodes['logits'].learned == 2048 * 7 + 7
  assert [n.name for n in found.nodes if n.stage == structure.STEM] == [
    *('input', 'conv1_conv', 'conv1_bn', 'pool1')
  ]
  assert [n.name for n in found.nodes if n.stage == structure.HEAD] == [
    *('avgpool', 'logits', 'output')
  ]


def test_images_that_are_too_small_are_refused():
  with pytest.raises(ValueError, match='31x32: a ResNet takes 32x32'):
    graph.build(resnet.ResNet(18), 31, 32)
