# SPDX-License-Identifier: Apache-2.0
"""The network's graph, against the program that JAX traces for features."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from resnet_jax.models import names, resnet
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.views import graph

VARIANTS = [
  *(pytest.param(resnet.published(d), id=str(d)) for d in names.ARCHITECTURES),
  pytest.param(resnet.ResNet(18, classes=0), id='18, headless'),
  pytest.param(
    resnet.ResNet(50, variant=Variant(stride_in='3x3', stem_pool='pad1')),
    id='v1.5',
  ),
  pytest.param(
    resnet.ResNet(34, classes=7, variant=Variant(stem_pool='pad1')),
    id='34, pad1',
  ),
  pytest.param(resnet.published(20).clone(classes=0), id='20, headless'),
]


class Traced:
  """What `resnet.capture` does, read from its program.

  JAX writes down in which scope each equation was made, and Flax opens one of
  the layer's name for every module: neither the marks nor the names of files
  that `graph` goes by.
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
    self.edges, self.shapes = set(), {}
    self.parameters = {name: set() for name in wanted}
    self.primitives = {name: [] for name in wanted}
    origins = {}
    for variable, name in zip(
      program.invars, [*sorted(shapes), 'input'], strict=True
    ):
      origins[variable] = {name}
    for equation in program.eqns:
      path = str(equation.source_info.name_stack).split('/')
      layer = next((part for part in path if part in self.parameters), None)
      coming = set().union(
        *(origins.get(v, ()) for v in equation.invars if _is_variable(v))
      )
      if layer:
        for origin in coming - {layer}:
          if origin in shapes:
            self.parameters[layer].add(origin)
          else:
            self.edges.add((origin, layer))
        # An equation of several values is none of ours.
        (value,) = equation.outvars
        _, rows, columns, channels = (1, 1, 1, 1, *value.aval.shape)[-4:]
        self.shapes[layer] = (channels, rows, columns)
        self.primitives[layer].append(_called(equation))
        coming = {layer}
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
  found = graph.trace(model, *size)
  traced = Traced(model, size)

  first, *nodes = found.nodes
  assert (first.name, first.shape) == (graph.INPUT, (3, *size))
  assert [node.name for node in nodes] == list(resnet.layer_names(model))
  assert {node.name: node.shape for node in nodes} == traced.shapes
  for node in nodes:
    assert node.activation == traced.activation(node.name), node.name
  learned = resnet.learned_count(resnet.parameter_shapes(model))
  assert sum(node.parameters for node in nodes) == learned

  assert len(found.edges) == len(traced.edges)
  assert {(edge.start, edge.end) for edge in found.edges} == traced.edges
  for edge in found.edges:
    files = {_file(parameter) for parameter in traced.parameters[edge.end]}
    assert set(edge.parameters) == files
    assert list(edge.parameters) == sorted(edge.parameters)


@pytest.mark.parametrize('depth', [34, 50, 20])
def test_every_block_has_a_way_around_its_branch(depth):
  found = graph.trace(resnet.published(depth), 32, 32)
  blocks = {node.block: node.stage for node in found.nodes if node.block}
  counts = names.ARCHITECTURES[depth].blocks
  assert list(blocks) == [
    names.block_name(stage, block)
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
  nodes = {node.name: node for node in found.nodes}
  padded = [e.end for e in shortcuts if e.shape != nodes[e.start].shape]
  assert padded == (['res3_1_addto', 'res4_1_addto'] if depth == 20 else [])


def test_what_is_needed_for_a_layer_lies_before_it():
  found = graph.trace(
    resnet.ResNet(18, variant=Variant(stem_pool='pad1')), 32, 32
  )
  assert found.needed('pool1') == {'input', 'conv1_conv', 'conv1_bn', 'pool1'}
  needed = found.needed('res3_1_branch1_bn')
  assert 'res2_2_addto' in needed
  assert not any('res3_1_branch2' in name for name in needed)
  assert found.needed('output') == {node.name for node in found.nodes}
  with pytest.raises(KeyError):
    found.needed('pool2')


def test_details_are_the_modules():
  found = graph.trace(resnet.ResNet(50, 7, Variant('3x3', 'pad1')), 64, 64)
  nodes = {node.name: node for node in found.nodes}
  detail = {name: f'{n.kind}: {n.detail}' for name, n in nodes.items()}
  assert detail['conv1_conv'] == 'convolution: 7x7, stride 2'
  assert detail['res3_1_branch2a_conv'] == 'convolution: 1x1'
  assert detail['res3_1_branch2b_conv'] == 'convolution: 3x3, stride 2'
  assert detail['pool1'] == 'max pool: 3x3, stride 2, pad1'
  assert nodes['logits'].parameters == 2048 * 7 + 7
  assert [n.name for n in found.nodes if n.stage == graph.STEM] == [
    *('input', 'conv1_conv', 'conv1_bn', 'pool1')
  ]
  assert [n.name for n in found.nodes if n.stage == graph.HEAD] == [
    *('avgpool', 'logits', 'output')
  ]


def test_images_that_are_too_small_are_refused():
  with pytest.raises(errors.UserError, match='31x32: a ResNet takes 32x32'):
    graph.trace(resnet.ResNet(18), 31, 32)
