# SPDX-License-Identifier: Apache-2.0
"""What a diagram shows of a graph: its layers, or groups of them.

At the level of blocks a block is its branch, its projection if it has one, and
its sum, so that the way around the branch stays visible.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from resnet_jax.views import graph as graphs

LEVELS = ('layers', 'blocks', 'stages')

# Kinds that a group has beside those of `graph.Node`.
BRANCH = 'branch'
PROJECTION = 'projection'
STAGE = 'stage'


@dataclasses.dataclass(frozen=True)
class Box:
  """A layer, or layers that are drawn as one.

  Attributes:
    name: of the layer or the group; no two boxes share one.
    kind: of the layer, or BRANCH, PROJECTION or STAGE.
    lines: what is said of it, beside the name.
    layers: the layers that it stands for.
    block: that it belongs to, or ''.
    stage: that it belongs to.
    aside: whether it lies on the way around a branch.
  """

  name: str
  kind: str
  lines: tuple[str, ...]
  layers: tuple[str, ...]
  block: str
  stage: str
  aside: bool


@dataclasses.dataclass(frozen=True)
class Line:
  """A connection of two boxes, or of a stage with itself.

  Attributes:
    start: the box that the value comes from.
    end: the box that it goes into.
    label: what `end` does with it; or ''.
    shortcut: whether it is a way around a branch.
    edges: the graph's that it stands for.
  """

  start: str
  end: str
  label: str
  shortcut: bool
  edges: tuple[graphs.Edge, ...]


def boxes(
  graph: graphs.Graph, level: str
) -> tuple[tuple[Box, ...], tuple[Line, ...]]:
  """The boxes, in the order of computing, and what connects them.

  Args:
    graph: of a network.
    level: one of LEVELS.
  """
  around = _around(graph)
  key = _KEYS[level]
  groups: dict[str, list[graphs.Node]] = {}
  for node in graph.nodes:
    groups.setdefault(key(node, node.name in around), []).append(node)
  found = tuple(
    _layer(nodes[0], nodes[0].name in around)
    if name == nodes[0].name
    else _group(name, nodes, nodes[0].name in around)
    for name, nodes in groups.items()
  )
  return found, _lines(graph, found, around)


def _around(graph: graphs.Graph) -> frozenset[str]:
  """The layers that lie on the way around a branch: projections."""
  leaving: dict[str, bool] = {}
  for edge in graph.edges:
    leaving[edge.start] = leaving.get(edge.start, True) and edge.shortcut
  return frozenset(name for name, only in leaving.items() if only)


def _block_key(node: graphs.Node, around: bool) -> str:
  if not node.block or node.kind == 'sum':
    return node.name
  return f'{node.block} {PROJECTION if around else BRANCH}'


# The name of the box that a layer is in.
_KEYS: Mapping[str, Callable[[graphs.Node, bool], str]] = {
  'layers': lambda node, around: node.name,
  'blocks': _block_key,
  'stages': lambda node, around: (
    node.name if node.name == graphs.INPUT else node.stage
  ),
}


def size(shape: tuple[int, int, int]) -> str:
  """`256x56x56`, channels first, as `--job=summary` has it."""
  return 'x'.join(map(str, shape))


def _layer(node: graphs.Node, aside: bool) -> Box:
  parts = [f'{node.kind} {node.detail}'.strip()]
  if node.activation and node.activation != node.kind:
    parts.append(node.activation)
  elif node.parameters:
    parts.append('linear')
  end = size(node.shape)
  if node.parameters:
    end += f' · {_counted(node.parameters, "parameter")}'
  lines = (', '.join(parts), end)
  layers = (node.name,)
  return Box(node.name, node.kind, lines, layers, node.block, node.stage, aside)


def _group(name: str, nodes: Sequence[graphs.Node], aside: bool) -> Box:
  first, last = nodes[0], nodes[-1]
  stage = not first.block or last.kind == 'sum'
  parameters = sum(node.parameters for node in nodes)
  lines = (
    *(_stage_lines(nodes) if stage else _convolutions(nodes)),
    f'{size(last.shape)} · {_counted(parameters, "parameter")}',
  )
  return Box(
    name,
    STAGE if stage else PROJECTION if aside else BRANCH,
    lines,
    tuple(node.name for node in nodes),
    '' if stage else first.block,
    first.stage,
    aside,
  )


def _convolutions(nodes: Sequence[graphs.Node]) -> list[str]:
  """A line a convolution, with what follows it: `3x3, 64, ReLU`."""
  lines: list[str] = []
  for node in nodes:
    if node.kind == 'convolution':
      # As the paper's table 1 writes it: size, channels.
      kernel, _, rest = node.detail.partition(', ')
      lines.append(f'{kernel}, {node.shape[0]}' + (f', {rest}' * bool(rest)))
    elif node.activation:
      lines[-1] += f', {node.activation}'
  return lines


def _stage_lines(nodes: Sequence[graphs.Node]) -> list[str]:
  blocks: dict[str, list[graphs.Node]] = {}
  for node in nodes:
    blocks.setdefault(node.block, []).append(node)
  if '' in blocks:
    return [
      f'{node.kind} {node.detail}'.strip()
      for node in nodes
      if node.kind != 'batch norm'
    ]
  *_, last = blocks.values()
  inner = [node for node in last if node.kind == 'convolution']
  sizes = ' - '.join(
    f'{node.detail.partition(",")[0]}, {node.shape[0]}' for node in inner
  )
  return [_counted(len(blocks), 'block'), sizes]


def _counted(count: int, what: str) -> str:
  return f'{count:,} {what}{"s" * (count != 1)}'


def _lines(
  graph: graphs.Graph, found: Sequence[Box], around: frozenset[str]
) -> tuple[Line, ...]:
  home = {layer: box for box in found for layer in box.layers}
  nodes = {node.name: node for node in graph.nodes}
  merged: dict[tuple[str, str, bool], list[graphs.Edge]] = {}
  used: dict[str, set[str]] = {box.name: set() for box in found}
  for edge in graph.edges:
    start, end = home[edge.start], home[edge.end]
    used[end.name].update(edge.parameters)
    shortcut = edge.shortcut
    if STAGE in (start.kind, end.kind):
      # A stage has its blocks' shortcuts in itself, also the first block's.
      if shortcut and nodes[edge.end].kind == 'sum':
        start = end
      shortcut &= start is end
    if start is not end or (shortcut and end.kind == STAGE):
      merged.setdefault((start.name, end.name, shortcut), []).append(edge)
  lines = []
  for (start_name, end_name, shortcut), edges in merged.items():
    if start_name == end_name:
      label = _loop_label(edges, nodes, around)
    elif edges[0].shape != nodes[edges[0].start].shape:
      label = f'every second pixel,\nzeros added: {size(edges[0].shape)}'
    else:
      label = _parameters_label(sorted(used[end_name]))
    lines.append(Line(start_name, end_name, label, shortcut, tuple(edges)))
  return tuple(lines)


def _loop_label(
  edges: Sequence[graphs.Edge],
  nodes: Mapping[str, graphs.Node],
  around: frozenset[str],
) -> str:
  ends = [edge for edge in edges if nodes[edge.end].kind == 'sum']
  projected = sum(edge.start in around for edge in ends)
  padded = sum(edge.shape != nodes[edge.start].shape for edge in ends)
  return '\n'.join(
    (
      _counted(len(ends), 'shortcut'),
      *([_counted(projected, 'projection')] if projected else []),
      *([f'{padded} padded with zeros'] if padded else []),
    )
  )


def _parameters_label(parameters: Sequence[str]) -> str:
  """`_conv1_bn.w0 .w1 .w2 .wbias`; of several layers their names' glob."""
  owners = {name.rpartition('.')[0] for name in parameters}
  if len(owners) > 1:
    # Of sorted names, what the first and the last share all share.
    pairs = zip(parameters[0], parameters[-1], strict=False)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return ''.join(first for first, _ in alike) + '*'
  others = ' '.join(f'.{name.rpartition(".")[2]}' for name in parameters[1:])
  return '\n'.join([*parameters[:1], *([others] if others else [])])
