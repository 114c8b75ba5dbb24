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

# Pixels, as in page.css: the height of a row and of a box, the width of a box
# and of a column with only a line in it, the space above the first row.
_ROW = 34
_BOX_HEIGHT = 24
_BOX = 126
_LANE = 22
_TOP = 14


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
  blocks = [
    (block, tuple(own))
    for block, own in itertools.groupby(nodes, key=lambda node: node.block)
  ]
  title = html.escape(name)
  facts = [f'ends with {size(nodes[-1].shape)}']
  if blocks[0][0]:
    facts.insert(0, counted(len(blocks), 'block'))
  cards = ''.join(
    f'<li>{_card(network, block, own, shown)}</li>' for block, own in blocks
  )
  return (
    f'<section class="stage"><h3>{title} <small>{", ".join(facts)}</small></h3>'
    f'<ol class="blocks">{cards}</ol></section>\n'
  )


@dataclasses.dataclass(frozen=True)
class _Box:
  """A layer, or a convolution and its batch norm.

  Attributes:
    nodes: one or two.
    row: from 0, the topmost.
    aside: whether it stands in the column of the shortcut.
  """

  nodes: tuple[graph.Node, ...]
  row: int
  aside: bool


def _boxes(nodes: Iterable[graph.Node]) -> list[_Box]:
  found: list[_Box] = []
  rows = {False: 0, True: 0}
  for node in nodes:
    aside = node.in_shortcut
    if node.kind == Kind.BATCH_NORM:
      box = found.pop()
      found.append(dataclasses.replace(box, nodes=(*box.nodes, node)))
    else:
      found.append(_Box((node,), rows[aside], aside))
      rows[aside] += 1
  return found


def _card(
  network: graph.Graph,
  block: str,
  nodes: Sequence[graph.Node],
  shown: Container[str],
) -> str:
  boxes = _boxes(nodes)
  wide = any(box.aside for box in boxes)
  heading = f'<h4>{html.escape(block)}</h4>' if block else ''
  inside = ''.join(_box(box, block, shown) for box in boxes)
  shape = 'wide' if wide else 'narrow' if block else 'single'
  return (
    f'<div class="card">{heading}<div class="wired {shape}">'
    f'{_wires(network, boxes, wide, bool(block))}{inside}</div></div>'
  )


def _box(box: _Box, block: str, shown: Container[str]) -> str:
  halves = []
  for index, node in enumerate(box.nodes):
    text = node.name.removeprefix(f'{block}_').replace('_', ' ')
    text = text.rsplit(' ', 1)[-1] if index else text
    hint = html.escape(f'{node.name}: {describe(node)}')
    if node.name in shown:
      halves.append(
        f'<button type="button" class="node" tabindex="-1" aria-pressed="false"'
        f' data-layer="{html.escape(node.name)}" title="{hint}"'
        f' aria-label="{html.escape(node.name)}">{html.escape(text)}</button>'
      )
    else:
      halves.append(
        f'<span class="node none" title="{hint}">{html.escape(text)}</span>'
      )
  place = 'aside' if box.aside else 'main'
  return f'<div class="box {place} row-{box.row}">{"".join(halves)}</div>'


def _wires(
  network: graph.Graph, boxes: Sequence[_Box], wide: bool, is_block: bool
) -> str:
  """The connections, as decoration behind the boxes."""
  rows = 1 + max(box.row for box in boxes)
  lane = (_BOX + 14 if wide else _LANE) if is_block else 0
  centre = lane + _BOX // 2
  height = _TOP + rows * _ROW
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
      top = _TOP + box.row * _ROW
      begin = _bottom(start) if start else 0
      lines.append(('flow', f'M{centre} {begin}V{top}'))
  last = max((box for box in boxes if not box.aside), key=lambda box: box.row)
  lines.append(('flow', f'M{centre} {_bottom(last)}V{height}'))
  paths = ''.join(f'<path class="{kind}" d="{d}"/>' for kind, d in lines)
  return (
    f'<svg aria-hidden="true" width="{lane + _BOX}" height="{height}">'
    f'{paths}</svg>'
  )


def _bottom(box: _Box) -> int:
  return _TOP + box.row * _ROW + _BOX_HEIGHT


def _around(start: _Box | None, box: _Box, lane: int) -> str:
  """The path of a part of the shortcut, from a box or from where it forks."""
  fork = lane + _BOX // 2
  top = _TOP + box.row * _ROW
  if box.aside:
    begin = _bottom(start) if start else None
    x = _BOX // 2
    return f'M{fork} 5H{x}V{top}' if begin is None else f'M{x} {begin}V{top}'
  middle = top + _BOX_HEIGHT // 2
  if start:
    return f'M{_BOX // 2} {_bottom(start)}V{middle}H{lane}'
  return f'M{fork} 5H{_LANE // 2}V{middle}H{lane}'


def size(shape: Sequence[int]) -> str:
  """`64x112x112`, with multiplication signs."""
  return '\N{MULTIPLICATION SIGN}'.join(map(str, shape))


def describe(node: graph.Node) -> str:
  """A layer in a few words, for a person."""
  parts = [node.title]
  if node.activation:
    parts.append(f'then {node.activation}')
  parts.append(f'gives {size(node.shape)} (channels, height, width)')
  if node.learned:
    parts.append(counted(node.learned, 'parameter'))
  return ', '.join(parts)
