# SPDX-License-Identifier: Apache-2.0
"""A network as nodes and edges, found by tracing its modules.

Every module's inputs and output are marked while JAX traces the network; what
leads from an output to an input, in the program that comes out, is an edge.
So nothing here knows how a ResNet of some depth is put together.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from resnet_jax.models import layers, resnet
from resnet_jax.system import errors
from resnet_jax.weights import paddle

# The node of the images, and the stages before and behind the blocks.
INPUT = 'input'
STEM = 'stem'
HEAD = 'head'

_BLOCK = re.compile(r'((res\d+)_\d+)_')


@dataclasses.dataclass(frozen=True)
class Node:
  """A layer.

  Attributes:
    name: canonical; `input` for the images.
    kind: 'image', 'convolution', 'batch norm', 'max pool', 'sum', 'mean',
      'fully connected' or 'softmax'.
    detail: what is particular to it, such as '3x3, stride 2'; or ''.
    shape: (C, H, W) of its value for one image.
    parameters: learned numbers.
    activation: 'ReLU', 'softmax', or '' where it is linear.
    block: `res2_1`, or '' outside of the blocks.
    stage: `res2`; 'stem' before the blocks and 'head' behind them.
  """

  name: str
  kind: str
  detail: str
  shape: tuple[int, int, int]
  parameters: int
  activation: str
  block: str
  stage: str


@dataclasses.dataclass(frozen=True)
class Edge:
  """A connection: a value that goes into a layer.

  Attributes:
    start: the layer that the value comes from.
    end: the layer that it goes into.
    parameters: those that `end` applies to it, by the original's names, such
      as `_res2_1_branch2a_conv.w0`.
    shape: (C, H, W) as it goes in, which is not that of `start` where a
      shortcut is padded with zeros.
    shortcut: whether it is part of the way around a block's branch.
  """

  start: str
  end: str
  parameters: tuple[str, ...]
  shape: tuple[int, int, int]
  shortcut: bool


@dataclasses.dataclass(frozen=True)
class Graph:
  """A network.

  Attributes:
    nodes: in the order of computing, the images first.
    edges: in the order of the layers that they go into.
  """

  nodes: tuple[Node, ...]
  edges: tuple[Edge, ...]

  def needed(self, name: str) -> frozenset[str]:
    """The layers that must be computed for one, itself among them.

    Raises:
      KeyError: there is no node of that name.
    """
    if name not in {node.name for node in self.nodes}:
      raise KeyError(name)
    found = {name}
    # From the last edge to the first: those into a layer come behind all that
    # lead from it.
    for edge in reversed(self.edges):
      if edge.end in found:
        found.add(edge.start)
    return frozenset(found)


def trace(model: resnet.ResNet, height: int, width: int) -> Graph:
  """The graph of a network for images of a size; nothing is computed.

  Raises:
    UserError: the images are too small.
  """
  if min(height, width) < resnet.MIN_SIZE:
    raise errors.UserError(
      f'images of {height}x{width}: a ResNet takes {resnet.MIN_SIZE}x'
      f'{resnet.MIN_SIZE} or more.'
    )
  marks = _Marks()

  def run(x: jax.Array) -> jax.Array:
    with nn.intercept_methods(marks.intercept):
      return model.init_with_output(jax.random.key(0), x)[0]

  image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  edges = marks.edges(jax.make_jaxpr(run)(image).jaxpr)
  first = Node(INPUT, 'image', '', (3, height, width), 0, '', '', STEM)
  return Graph(_staged([first, *marks.nodes]), _with_shortcuts(edges))


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What a class of modules is called, and what is read from a module."""

  kind: str
  detail: Callable[[Any], str] = lambda module: ''
  activation: Callable[[Any], str] = lambda module: ''


def _conv_detail(module: layers.Conv) -> str:
  stride = f', stride {module.stride}' if module.stride > 1 else ''
  return f'{module.kernel}x{module.kernel}{stride}'


_KINDS: dict[type[nn.Module], _Kind] = {
  layers.Conv: _Kind('convolution', _conv_detail),
  layers.BatchNorm: _Kind(
    'batch norm', activation=lambda module: 'ReLU' if module.relu else ''
  ),
  layers.StemPool: _Kind(
    'max pool', lambda module: f'3x3, stride 2, {module.rule}'
  ),
  layers.AddTo: _Kind('sum', activation=lambda module: 'ReLU'),
  layers.GlobalAveragePool: _Kind('mean', lambda module: 'of all positions'),
  layers.Classifier: _Kind('fully connected'),
  layers.Softmax: _Kind('softmax', activation=lambda module: 'softmax'),
}


def _chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
  _, rows, columns, channels = shape
  return channels, rows, columns


@dataclasses.dataclass(frozen=True)
class _Mark:
  """Where a value was marked.

  Attributes:
    layer: the module.
    index: which of its inputs the value is, from 0; None: its output.
    shape: (C, H, W).
  """

  layer: str
  index: int | None
  shape: tuple[int, int, int]


class _Marks:
  """Marks what goes into and comes out of modules, and finds the marks again.

  Attributes:
    nodes: of the modules that were called, in that order, without a stage.
  """

  def __init__(self) -> None:
    self.nodes: list[Node] = []
    self._parameters: dict[str, tuple[str, ...]] = {}
    self._meaning: dict[str, _Mark] = {}

  def intercept(
    self,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    """Runs a module's method; for `nn.intercept_methods`."""
    module = context.module
    if context.method_name != '__call__' or type(module) not in _KINDS:
      return call(*arguments, **keywords)
    name = str(module.name)
    value = call(
      *(self._mark(x, name, index) for index, x in enumerate(arguments)),
      **keywords,
    )
    own = {
      f'{name}/{leaf}': array.shape
      for collection in module.variables.values()
      for leaf, array in collection.items()
    }
    self._parameters[name] = tuple(sorted(map(paddle.file_name, own)))
    known = _KINDS[type(module)]
    block = _BLOCK.match(name)
    self.nodes.append(
      Node(
        name,
        known.kind,
        known.detail(module),
        _chw(value.shape),
        resnet.learned_count(own),
        known.activation(module),
        block[1] if block else '',
        block[2] if block else '',
      )
    )
    return self._mark(value, name, None)

  def _mark(self, x: jax.Array, layer: str, index: int | None) -> jax.Array:
    name = f'mark {len(self._meaning)}'
    self._meaning[name] = _Mark(layer, index, _chw(x.shape))
    return checkpoint_name(x, name)

  def edges(self, program: core.Jaxpr) -> list[tuple[Edge, int]]:
    """Every connection, and which of its end's inputs it is, from 0."""
    origins: dict[core.Var, set[str]] = {program.invars[0]: {INPUT}}
    found = []
    for equation in program.eqns:
      entering: set[str] = set()
      for variable in equation.invars:
        if isinstance(variable, core.Var):
          entering |= origins.get(variable, set())
      mark = self._meaning.get(str(equation.params.get('name')))
      if mark and mark.index is None:
        entering = {mark.layer}
      elif mark and mark.index is not None:
        used = self._parameters[mark.layer]
        found += [
          (Edge(start, mark.layer, used, mark.shape, False), mark.index)
          for start in sorted(entering)
        ]
      for variable in equation.outvars:
        origins[variable] = entering
    return found


def _staged(nodes: list[Node]) -> tuple[Node, ...]:
  """The nodes outside of the blocks get a stage by where they stand."""
  result, seen = [], False
  for node in nodes:
    seen |= bool(node.block)
    stage = node.stage or (HEAD if seen else STEM)
    result.append(dataclasses.replace(node, stage=stage))
  return tuple(result)


def _with_shortcuts(found: Iterable[tuple[Edge, int]]) -> tuple[Edge, ...]:
  """Marks the second input of each sum, and all that leads to nothing else."""
  numbered = list(found)
  edges = [edge for edge, _ in numbered]
  into: dict[str, list[Edge]] = {}
  out: dict[str, list[Edge]] = {}
  for edge in edges:
    into.setdefault(edge.end, []).append(edge)
    out.setdefault(edge.start, []).append(edge)
  shortcut = set()
  for last, index in numbered:
    if index == 0:
      continue
    edge = last
    shortcut.add(edge)
    while len(out[edge.start]) == 1 and len(into.get(edge.start, ())) == 1:
      (edge,) = into[edge.start]
      shortcut.add(edge)
  return tuple(
    dataclasses.replace(edge, shortcut=edge in shortcut) for edge in edges
  )
