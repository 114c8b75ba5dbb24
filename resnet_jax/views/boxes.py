# SPDX-License-Identifier: Apache-2.0
"""What a diagram shows of a graph: its layers, or groups of them.

At the level of blocks, a block is its branch, its projection if it has one, and
its sum, so that the shortcut around the branch stays visible.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from resnet_jax.models.structure import Kind
from resnet_jax.system.text import counted
from resnet_jax.views import graph as graphs

LEVELS = ('layers', 'blocks', 'stages')

# Kinds of groups, besides `structure.Kind`.
BRANCH = 'branch'
PROJECTION = 'projection'
STAGE = 'stage'


@dataclasses.dataclass(frozen=True)
class Box:
  """A layer, or layers that are drawn as one.

  Attributes:
    name: of the layer or the group; unique.
    kind: of the layer, or BRANCH, PROJECTION or STAGE.
    lines: the text below the name.
    layers: the layers that it stands for.
    block: that it belongs to, or ''.
    stage: that it belongs to.
    in_shortcut: whether it belongs to the projection of a shortcut.
  """

  name: str
  kind: str
  lines: tuple[str, ...]
  layers: tuple[str, ...]
  block: str
  stage: str
  in_shortcut: bool


@dataclasses.dataclass(frozen=True)
class Line:
  """A connection of two boxes, or of a stage with itself.

  Attributes:
    start: the box whose value it carries.
    end: the box that takes the value.
    label: what `end` does with it; or ''.
    shortcut: whether it is a shortcut around a branch.
    edges: the edges of the graph that it stands for.
  """

  start: str
  end: str
  label: str
  shortcut: bool
  edges: tuple[graphs.Edge, ...]


def boxes(
  graph: graphs.Graph, level: str
) -> tuple[tuple[Box, ...], tuple[Line, ...]]:
  """The boxes, in the order of computing, and the lines between them.

  Args:
    graph: of a network.
    level: one of LEVELS.
  """
  group_name = _GROUP_NAMES[level]
  groups: dict[str, list[graphs.Node]] = {}
  for node in graph.nodes:
    groups.setdefault(group_name(node), []).append(node)
  found = tuple(
    _layer(nodes[0]) if name == nodes[0].name else _group(name, nodes)
    for name, nodes in groups.items()
  )
  return found, _lines(graph, found)


def _block_group(node: graphs.Node) -> str:
  if not node.block or node.kind == Kind.SUM:
    return node.name
  return f'{node.block} {PROJECTION if node.in_shortcut else BRANCH}'


# From a layer to the name of its box.
_GROUP_NAMES = {
  'layers': lambda node: node.name,
  'blocks': _block_group,
  'stages': lambda node: node.name if node.kind == Kind.IMAGE else node.stage,
}


def size(shape: Sequence[int], sign: str = 'x') -> str:
  """`256x56x56`, channels first, as `--job=summary` prints it."""
  return sign.join(map(str, shape))


def _layer(node: graphs.Node) -> Box:
  text = node.title
  if node.activation and node.activation != node.kind:
    text += f', {node.activation}'
  elif node.learned:
    text += ', linear'
  end = size(node.shape)
  if node.learned:
    end += f' · {counted(node.learned, "parameter")}'
  return Box(
    node.name,
    node.kind,
    (text, end),
    (node.name,),
    node.block,
    node.stage,
    node.in_shortcut,
  )


def _group(name: str, nodes: Sequence[graphs.Node]) -> Box:
  first, last = nodes[0], nodes[-1]
  is_stage = not first.block or last.kind == Kind.SUM
  lines = _stage_lines(nodes) if is_stage else _convolution_lines(nodes)
  learned = counted(sum(node.learned for node in nodes), 'parameter')
  return Box(
    name,
    STAGE if is_stage else PROJECTION if first.in_shortcut else BRANCH,
    (*lines, f'{size(last.shape)} · {learned}'),
    tuple(node.name for node in nodes),
    '' if is_stage else first.block,
    first.stage,
    first.in_shortcut,
  )


def _convolution_lines(nodes: Sequence[graphs.Node]) -> list[str]:
  """A line a convolution: `3x3, 64, stride 2, ReLU`."""
  lines: list[str] = []
  for node in nodes:
    if node.kind == Kind.CONVOLUTION:
      # Kernel, channels: as in the paper's table 1.
      kernel, *stride = node.detail.split(', ')
      lines.append(', '.join((kernel, str(node.shape[0]), *stride)))
    elif node.activation:
      lines[-1] += f', {node.activation}'
  return lines


def _stage_lines(nodes: Sequence[graphs.Node]) -> list[str]:
  if not nodes[0].block:
    return [node.title for node in nodes if node.kind != Kind.BATCH_NORM]
  # The last block, as the first one may have a projection.
  kernels = ' - '.join(
    f'{node.detail.partition(",")[0]}, {node.shape[0]}'
    + (f', {node.groups} groups' if node.groups > 1 else '')
    for node in nodes
    if node.block == nodes[-1].block and node.kind == Kind.CONVOLUTION
  )
  return [counted(len({node.block for node in nodes}), 'block'), kernels]


def _lines(graph: graphs.Graph, found: Sequence[Box]) -> tuple[Line, ...]:
  home = {layer: box for box in found for layer in box.layers}
  nodes = {node.name: node for node in graph.nodes}
  merged: dict[tuple[str, str, bool], list[graphs.Edge]] = {}
  for edge in graph.edges:
    start, end, shortcut = home[edge.start], home[edge.end], edge.shortcut
    if STAGE in (start.kind, end.kind):
      # A stage has the shortcuts of its blocks in itself, also the first one's.
      if shortcut and nodes[edge.end].kind == Kind.SUM:
        start = end
      shortcut &= start is end
    if start is not end or (shortcut and end.kind == STAGE):
      merged.setdefault((start.name, end.name, shortcut), []).append(edge)
  lines = []
  for (start_name, end_name, shortcut), edges in merged.items():
    end = home[edges[0].end]
    if start_name == end_name:
      label = _loop_label(edges, nodes)
    elif edges[0].padded:
      padded = size(nodes[edges[0].end].shape)
      label = f'every second pixel,\nzeros added: {padded}'
    else:
      parameters = (nodes[layer].parameters for layer in end.layers)
      label = _parameters_label(sorted(sum(parameters, ())))
    lines.append(Line(start_name, end_name, label, shortcut, tuple(edges)))
  return tuple(lines)


def _loop_label(
  edges: Sequence[graphs.Edge], nodes: Mapping[str, graphs.Node]
) -> str:
  ends = [edge for edge in edges if nodes[edge.end].kind == Kind.SUM]
  label = counted(len(ends), 'shortcut')
  if projections := sum(nodes[edge.start].in_shortcut for edge in ends):
    label += f'\n{counted(projections, "projection")}'
  if padded := sum(edge.padded for edge in ends):
    label += f'\n{padded} padded with zeros'
  return label


def _parameters_label(parameters: Sequence[str]) -> str:
  """`_conv1_bn.w0 .w1 .w2 .wbias`; of several layers their names' glob."""
  owners = {name.rpartition('.')[0] for name in parameters}
  if len(owners) > 1:
    prefix = os.path.commonprefix(parameters)  # noqa: RUF071 - of any strings
    return f'{prefix}*'
  others = ' '.join(f'.{name.rpartition(".")[2]}' for name in parameters[1:])
  return '\n'.join(filter(None, (*parameters[:1], others)))
