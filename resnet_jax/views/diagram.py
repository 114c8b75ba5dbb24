# SPDX-License-Identifier: Apache-2.0
"""A network's diagram in graphviz's language.

Long networks are folded: the stages stand side by side, and a long stage takes
several columns.  The box that a column continues from is drawn again, dashed,
at its top, as lines across the columns could not be followed.
"""

import dataclasses
import functools
import html
import itertools
from collections.abc import Iterable, Sequence

from resnet_jax.models.structure import Kind
from resnet_jax.views import boxes, graph

# Suffixes of names: of boxes that are drawn again, and of the signs at the foot
# of a column.
AGAIN = ' (continued)'
ONWARD = ' (onward)'

# The most boxes in a column.
_COLUMN = {'layers': 30, 'blocks': 20, 'stages': 100}

# Fill and border.  Black is readable on the fills, and the words in the boxes
# say the same as the colours.
_BLUE = ('#d3e5f6', '#2f6fae')
_GREY = ('#f1f4f7', '#7b8a99')
_GREEN = ('#d8f0e2', '#2e8b57')
_COLOURS = {
  Kind.IMAGE: ('#ffffff', '#1c2733'),
  Kind.CONVOLUTION: _BLUE,
  Kind.BATCH_NORM: _GREY,
  Kind.MAX_POOL: _GREEN,
  Kind.MEAN: _GREEN,
  Kind.SUM: ('#fdf0c4', '#a67c00'),
  Kind.FULLY_CONNECTED: ('#e8def4', '#7a53ab'),
  Kind.SOFTMAX: ('#f5f0fb', '#a58ac6'),
  boxes.BRANCH: _BLUE,
  boxes.PROJECTION: ('#ffe3d0', '#c8500a'),
  boxes.STAGE: _BLUE,
}
_INK = '#1c2733'
_LINE = '#5a6875'
_SHORTCUT = '#c8500a'
_PALE_INK, _PALE_LINE, _PALE_FILL = '#8b949e', '#d3d8dd', '#fcfcfd'
_FONT = 'Helvetica,Arial,sans-serif'
_GRAPH = (
  f'labelloc="t", labeljust="l", bgcolor="white", fontname="{_FONT}",'
  ' nodesep="0.3", ranksep="0.28", pad="0.25"'
)
_NODE = (
  f'shape="box", style="filled,rounded", fontname="{_FONT}", fontsize="12",'
  f' fontcolor="{_INK}", margin="0.1,0.04", height="0.3"'
)
_EDGE = (
  f'fontname="{_FONT}", fontsize="9", fontcolor="{_LINE}", color="{_LINE}",'
  ' arrowsize="0.7"'
)


def dot(
  network: graph.Graph, title: str, level: str = 'blocks', highlight: str = ''
) -> str:
  """The diagram as text, for graphviz's program `dot`.

  Args:
    network: to draw.
    title: a line above it.
    level: one of `boxes.LEVELS`.
    highlight: a layer; layers that are not computed for it are drawn pale.
  """
  found, lines = boxes.boxes(network, level)
  everything = frozenset(node.name for node in network.nodes)
  needed = network.needed(highlight) if highlight else everything
  learned = sum(node.learned for node in network.nodes)
  facts = [title, f'{learned:,} learned parameters']
  if highlight:
    facts.append(
      f'In colour: {highlight}, and the {len(needed) - 2} layers that are'
      f' computed for it, of {len(everything) - 1}'
    )
  columns = _columns(found, _COLUMN[level])
  drawing = _Drawing(columns, lines, level, needed, highlight)
  body = [
    *itertools.chain(*map(drawing.column, range(len(columns)))),
    *map(drawing.line, lines),
  ]
  kinds = {box.kind: None for box in found if box.kind != Kind.IMAGE}
  head = _head(facts, list(kinds), any(x.shortcut for x in lines))
  return '\n'.join([*head, *(f'  {part}' for part in body), '}']) + '\n'


def _quoted(text: str) -> str:
  escaped = text.replace('\\', '\\\\').replace('"', '\\"')
  # `\\l` ends a line of a label and aligns it to the left.
  return '"' + escaped.replace('\n', '\\l') + '"'


def _attributes(**values: str | float) -> str:
  def written(value: str) -> str:
    return value if value.startswith('<') else _quoted(value)

  return ', '.join(f'{key}={written(str(v))}' for key, v in values.items())


def _cell(text: str, size: int, colour: str = _INK) -> str:
  return f'<font point-size="{size}" color="{colour}">{text}</font>'


def _head(
  facts: Sequence[str], kinds: Iterable[str], shortcuts: bool
) -> list[str]:
  title, *others = map(html.escape, facts)
  legend = [f'{_cell("&#9632;", 15, _COLOURS[k][1])} {k}' for k in kinds]
  if shortcuts:
    legend.append(f'{_cell("<b>&#10230;</b>", 15, _SHORTCUT)} shortcut')
  rows = [
    _cell(f'<b>{title}</b>', 18),
    *(_cell(other, 13) for other in others),
    _cell(' &#160; '.join(legend), 12),
  ]
  label = ''.join(f'<tr><td align="left">{row}</td></tr>' for row in rows)
  return [
    f'digraph {_quoted(facts[0])} {{',
    f'  graph [label=<<table border="0" cellspacing="3">{label}</table>>,'
    f' {_GRAPH}];',
    f'  node [{_NODE}];',
    f'  edge [{_EDGE}];',
  ]


@dataclasses.dataclass(frozen=True)
class _Drawing:
  """Writes boxes and lines as statements, pale where they are not needed."""

  columns: Sequence[Sequence[boxes.Box]]
  lines: Sequence[boxes.Line]
  level: str
  needed: frozenset[str]
  highlight: str

  @functools.cached_property
  def _home(self) -> dict[str, tuple[boxes.Box, int]]:
    """Every box and its column, by the box's name."""
    columns = enumerate(self.columns)
    return {box.name: (box, i) for i, column in columns for box in column}

  def _column(self, name: str) -> int:
    return self._home[name][1]

  def _is_needed(self, box: boxes.Box) -> bool:
    return not self.needed.isdisjoint(box.layers)

  def column(self, index: int) -> list[str]:
    """A column's boxes, in clusters, and the signs above and below them."""
    entering: dict[str, None] = {}
    leaving: dict[str, dict[str, None]] = {}
    for line in self.lines:
      start, end = self._column(line.start), self._column(line.end)
      if start != index == end:
        entering[line.start] = None
      elif start == index != end:
        box, _ = self._home[line.end]
        leaving.setdefault(line.start, {})[box.block or box.name] = None
    result = []
    for name in entering:
      box, _ = self._home[name]
      again = dataclasses.replace(box, lines=('continued',))
      result.append(self._box(again, again_in=index))
    clusters: dict[str, list[boxes.Box]] = {}
    for box in self.columns[index]:
      cluster = box.block if self.level == 'layers' else box.stage
      clusters.setdefault(cluster if box.block else '', []).append(box)
    for name, members in clusters.items():
      loose = [self._box(box) for box in members]
      result += self._cluster(members) if name else loose
    for name, ends in leaving.items():
      result += self._onward(name, ends)
    return result

  def _onward(self, name: str, ends: Iterable[str]) -> list[str]:
    """A sign at the foot of a column: where it continues."""
    box, column = self._home[name]
    colour = _LINE if self._is_needed(box) else _PALE_INK
    facts = _attributes(
      label=f'continues at {", ".join(ends)}',
      shape='plaintext',
      style='',
      fontsize=11,
      fontcolor=colour,
      group=f'column {column}',
    )
    sign = _quoted(name + ONWARD)
    look = _attributes(color=colour, weight=20)
    return [f'{sign} [{facts}];', f'{_quoted(name)} -> {sign} [{look}];']

  def _box(self, box: boxes.Box, again_in: int | None = None) -> str:
    """A box, or its second drawing in another column."""
    column, suffix = self._column(box.name), ''
    if again_in is not None:
      column, suffix = again_in, AGAIN
    needed = self._is_needed(box)
    lines = list(box.lines)
    inside = sum(layer in self.needed for layer in box.layers)
    if needed and inside < len(box.layers):
      lines.append(f'{inside} of {len(box.layers)} layers are computed')
    ink = _INK if needed else _PALE_INK
    rows = ''.join(
      f'<tr><td>{_cell(html.escape(line), 10, ink)}</td></tr>' for line in lines
    )
    label = (
      '<<table border="0" cellborder="0" cellspacing="0" cellpadding="1">'
      f'<tr><td>{_cell(f"<b>{html.escape(box.name)}</b>", 12, ink)}</td></tr>'
      f'{rows}</table>>'
    )
    fill, border = _COLOURS[box.kind] if needed else (_PALE_FILL, _PALE_LINE)
    look: dict[str, str | float] = {'fillcolor': fill, 'color': border}
    if suffix:
      look['style'] = 'filled,rounded,dashed'
    elif self.highlight in box.layers:
      look |= {'color': _INK, 'penwidth': 4}
    if not box.in_shortcut:
      # Aligned vertically.
      look['group'] = f'column {column}'
    tooltip = ', '.join((box.name, *box.lines))
    facts = _attributes(label=label, tooltip=tooltip, **look)
    return f'{_quoted(box.name + suffix)} [{facts}];'

  def _cluster(self, members: Sequence[boxes.Box]) -> list[str]:
    needed = any(map(self._is_needed, members))
    first, last = members[0].block, members[-1].block
    # Short, as the column's line passes through the middle of the frame.
    label = first if first == last else f'{first}-{last.rpartition("_")[2]}'
    facts = _attributes(
      label=label,
      labeljust='l',
      style='rounded,filled',
      fillcolor='#fafbfd' if needed else 'white',
      color='#b8c4d0' if needed else _PALE_LINE,
      fontcolor=_INK if needed else _PALE_INK,
      fontsize=13,
      margin=9,
    )
    return [
      f'subgraph {_quoted(f"cluster_{first}")} {{',
      f'  graph [{facts}];',
      *(f'  {self._box(box)}' for box in members),
      '}',
    ]

  def line(self, line: boxes.Line) -> str:
    """A connection; from the second drawing of a box in another column."""
    start = line.start
    if self._column(start) != self._column(line.end):
      start += AGAIN
    look: dict[str, str | float] = {'weight': 1 if line.shortcut else 20}
    if line.shortcut:
      look |= {'color': _SHORTCUT, 'penwidth': 2.6, 'fontcolor': _SHORTCUT}
    if not any({e.start, e.end} <= self.needed for e in line.edges):
      look |= {'color': _PALE_LINE, 'fontcolor': _PALE_INK}
    if line.label:
      look['label'] = '\n'.join(f'  {t}' for t in (*line.label.split('\n'), ''))
    return f'{_quoted(start)} -> {_quoted(line.end)} [{_attributes(**look)}];'


def _columns(found: Sequence[boxes.Box], most: int) -> list[list[boxes.Box]]:
  """The boxes in columns, none much longer than `most`, blocks kept whole.

  If one column is too few, every stage begins a new one.
  """
  if _length(found) <= most:
    return [list(found)]
  columns: list[list[boxes.Box]] = []
  for stage in _stages(found):
    parts = -(-_length(stage) // most)
    blocks: dict[str, list[boxes.Box]] = {}
    for box in stage:
      blocks.setdefault(box.block or box.name, []).append(box)
    done, share = 0, _length(stage) / parts
    for number, members in enumerate(blocks.values()):
      # A new column where the middle of a block lies after the end of a share.
      if not number or int((done + _length(members) / 2) / share) > int(
        (done - _length(members) / 2) / share
      ):
        columns.append([])
      columns[-1] += members
      done += _length(members)
  return columns


def _stages(found: Sequence[boxes.Box]) -> list[list[boxes.Box]]:
  """The boxes by stage, with the stem in the first and the head in the last."""
  stages: dict[str, list[boxes.Box]] = {}
  for box in found:
    stages.setdefault(box.stage, []).append(box)
  stem, *middle, head = stages.values()
  middle[0] = stem + middle[0]
  middle[-1] = middle[-1] + head
  return middle


def _length(column: Iterable[boxes.Box]) -> int:
  """Boxes in a vertical line: projections stand beside their branch."""
  return sum(not box.in_shortcut for box in column)
