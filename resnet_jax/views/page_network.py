# SPDX-License-Identifier: Apache-2.0
"""A network as HTML, in which layers with maps are buttons.

A block is a card: its branch from top to bottom, each convolution and its batch
norm as the two halves of a box, and beside it the shortcut, drawn heavier.  The
cards of a stage wrap like words, so that a long network stays readable on any
screen.
"""

import dataclasses
import html
import itertools
from collections.abc import Container, Iterable, Sequence

from resnet_jax.models.structure import Kind
from resnet_jax.system.text import counted
from resnet_jax.views import graph
from resnet_jax.views.boxes import size

# Pixels, as in page.css: the height of a row and of a box, the width of a box
# and of a column with only a line in it, the space above the first row.
_ROW = 34
_BOX_HEIGHT = 24
_BOX = 126
_LANE = 22
_TOP = 14

_TIMES = '\N{MULTIPLICATION SIGN}'


def diagram(network: graph.Graph, shown: Container[str]) -> str:
  """The stages, as HTML.

  Args:
    network: to draw.
    shown: layers that have maps.
  """
  stages = itertools.groupby(network.nodes, key=lambda node: node.stage)
  return ''.join(
    _stage(network, name, tuple(nodes), shown) for name, nodes in stages
  )


def _stage(
  network: graph.Graph,
  name: str,
  nodes: Sequence[graph.Node],
  shown: Container[str],
) -> str:
  blocks = itertools.groupby(nodes, key=lambda node: node.block)
  cards = [_card(network, block, own, shown) for block, own in blocks]
  facts = f'ends with {size(nodes[-1].shape, _TIMES)}'
  if nodes[0].block:
    facts = f'{counted(len(cards), "block")}, {facts}'
  return (
    f'<section class="stage"><h3>{html.escape(name)} <small>{facts}</small>'
    f'</h3><ol class="blocks">{"".join(cards)}</ol></section>\n'
  )


@dataclasses.dataclass(frozen=True)
class _LayerBox:
  """A layer, or a convolution and its batch norm.

  Attributes:
    nodes: one or two.
    row: from 0, the topmost.
    aside: whether it stands in the column of the shortcut.
  """

  nodes: tuple[graph.Node, ...]
  row: int
  aside: bool

  @property
  def top(self) -> int:
    """Pixels from the card's upper edge."""
    return _TOP + self.row * _ROW

  @property
  def bottom(self) -> int:
    """Pixels from the card's upper edge."""
    return self.top + _BOX_HEIGHT


def _boxes(nodes: Iterable[graph.Node]) -> list[_LayerBox]:
  found: list[_LayerBox] = []
  for node in nodes:
    if node.kind == Kind.BATCH_NORM:
      box = found.pop()
      found.append(dataclasses.replace(box, nodes=(*box.nodes, node)))
    else:
      row = sum(box.aside == node.in_shortcut for box in found)
      found.append(_LayerBox((node,), row, node.in_shortcut))
  return found


def _card(
  network: graph.Graph,
  block: str,
  nodes: Iterable[graph.Node],
  shown: Container[str],
) -> str:
  boxes = _boxes(nodes)
  wide = any(box.aside for box in boxes)
  heading = f'<h4>{html.escape(block)}</h4>' if block else ''
  inside = ''.join(_box(box, block, shown) for box in boxes)
  shape = 'wide' if wide else 'narrow' if block else 'single'
  lane = 0 if not block else _BOX + 14 if wide else _LANE
  return (
    f'<li><div class="card">{heading}<div class="wired {shape}">'
    f'{_wires(network, boxes, lane)}{inside}</div></div></li>'
  )


def _box(box: _LayerBox, block: str, shown: Container[str]) -> str:
  halves = []
  for index, node in enumerate(box.nodes):
    text = node.name.removeprefix(f'{block}_').replace('_', ' ')
    text = html.escape(text.rsplit(' ', 1)[-1] if index else text)
    name, hint = html.escape(node.name), html.escape(describe(node))
    if node.name in shown:
      halves.append(
        f'<button type="button" class="node" tabindex="-1" aria-pressed="false"'
        f' data-layer="{name}" title="{name}: {hint}" aria-label="{name}">'
        f'{text}</button>'
      )
    else:
      halves.append(
        f'<span class="node none" title="{name}: {hint}">{text}</span>'
      )
  place = 'aside' if box.aside else 'main'
  return f'<div class="box {place} row-{box.row}">{"".join(halves)}</div>'


def _wires(network: graph.Graph, boxes: Sequence[_LayerBox], lane: int) -> str:
  """The connections, as decoration behind the boxes.

  Args:
    network: that has them.
    boxes: of a card.
    lane: pixels to the left of the branch.
  """
  centre = lane + _BOX // 2
  height = _TOP + _ROW * (1 + max(box.row for box in boxes))
  places = {node.name: box for box in boxes for node in box.nodes}
  lines = []
  for edge in network.edges:
    box, start = places.get(edge.end), places.get(edge.start)
    if box is None or box is start:
      continue
    if edge.shortcut:
      kind = 'shortcut padded' if edge.padded else 'shortcut'
      lines.append((kind, _around(start, box, lane)))
    else:
      begin = start.bottom if start else 0
      lines.append(('flow', f'M{centre} {begin}V{box.top}'))
  last = max(box.bottom for box in boxes if not box.aside)
  lines.append(('flow', f'M{centre} {last}V{height}'))
  paths = ''.join(f'<path class="{kind}" d="{d}"/>' for kind, d in lines)
  return (
    f'<svg aria-hidden="true" width="{lane + _BOX}" height="{height}">'
    f'{paths}</svg>'
  )


def _around(start: _LayerBox | None, box: _LayerBox, lane: int) -> str:
  """The path of a part of the shortcut, from a box or from where it forks."""
  x = _BOX // 2 if start or box.aside else _LANE // 2
  begin = f'M{x} {start.bottom}' if start else f'M{lane + _BOX // 2} 5H{x}'
  if box.aside:
    return f'{begin}V{box.top}'
  return f'{begin}V{box.top + _BOX_HEIGHT // 2}H{lane}'


def describe(node: graph.Node) -> str:
  """A layer in a few words."""
  parts = [node.title]
  if node.activation:
    parts.append(f'then {node.activation}')
  parts.append(f'gives {size(node.shape, _TIMES)} (channels, height, width)')
  if node.learned:
    parts.append(counted(node.learned, 'parameter'))
  return ', '.join(parts)
