# SPDX-License-Identifier: Apache-2.0
"""A network's graph for the views: layers with shapes, and connections."""

import dataclasses

from resnet_jax.models import aliases, costs, names, resnet, structure
from resnet_jax.models.structure import Kind

INPUT = structure.INPUT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node(structure.Layer):
  """A layer, or the images.

  Attributes:
    detail: what is particular to it, such as '3x3, stride 2'; or ''.
    shape: (C, H, W) of its value for one image.
    learned: how many learned numbers it has.
    parameters: names of its parameters in the original, sorted, such as
      `_res2_1_branch2a_conv.w0`.
  """

  detail: str = ''
  shape: tuple[int, int, int]
  learned: int = 0
  parameters: tuple[str, ...] = ()

  @property
  def title(self) -> str:
    """`convolution 3x3, stride 2`."""
    return f'{self.kind} {self.detail}'.strip()


@dataclasses.dataclass(frozen=True)
class Edge:
  """A connection between two layers.

  Attributes:
    start: the layer whose output it carries.
    end: the layer whose input it is.
    shortcut: whether it is part of a shortcut around a block's branch.
    padded: whether the value is subsampled and padded with zeros on the way.
  """

  start: str
  end: str
  shortcut: bool
  padded: bool


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
    """The nodes that lead to one, itself included."""
    found = {name}
    # Backwards: all edges into a layer come after those that lead to its
    # inputs.
    for edge in reversed(self.edges):
      if edge.end in found:
        found.add(edge.start)
    return frozenset(found)


def build(module: resnet.ResNet, height: int, width: int) -> Graph:
  """The graph of a network for images of a size.

  Raises:
    ValueError: the images are too small.
  """
  head = module.classes > 0
  parameters: dict[str, list[str]] = {}
  for name in names.parameter_names(module.depth, head):
    original = aliases.paddle_parameter(name)
    parameters.setdefault(name.split('/')[0], []).append(original)
  image = Node(INPUT, Kind.IMAGE, (), shape=(3, height, width))
  nodes, edges = {INPUT: image}, []
  for layer, cost in zip(
    structure.layers(module.depth, module.variant, head),
    costs.costs(module, height, width),
    strict=True,
  ):
    nodes[layer.name] = Node(
      **vars(layer),
      detail=_detail(layer, module),
      shape=cost.shape,
      learned=cost.parameters,
      parameters=tuple(sorted(parameters.get(layer.name, ()))),
    )
    for index, start in enumerate(layer.inputs):
      padded = layer.kind == Kind.SUM and nodes[start].shape != cost.shape
      shortcut = layer.in_shortcut or index > 0
      edges.append(Edge(start, layer.name, shortcut, padded))
  return Graph(tuple(nodes.values()), tuple(edges))


def _detail(layer: structure.Layer, module: resnet.ResNet) -> str:
  if layer.kind == Kind.MEAN:
    return 'of all positions'
  if layer.kind not in (Kind.CONVOLUTION, Kind.MAX_POOL):
    return ''
  parts = [f'{layer.kernel}x{layer.kernel}']
  if layer.stride > 1:
    parts.append(f'stride {layer.stride}')
  if layer.groups > 1:
    parts.append(f'{layer.groups} groups')
  if layer.kind == Kind.MAX_POOL:
    parts.append(module.variant.stem_pool)
  return ', '.join(parts)
