# SPDX-License-Identifier: Apache-2.0
"""Plots: from arrays to Matplotlib figures.

Figures are made without pyplot, so there is no global state and no window.  A
pixel of a map takes a whole number of pixels of the figure.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resnet_jax.system import errors
from resnet_jax.views import colours, maps

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_DPI = 100
_MARGIN = 14
_TITLE = 34
_NOTE = 22
_LABEL = 15
_GAP = 8
# The least width of a grid's cell, for its label.
_CELL = 112
_FILTER_CELL = 63

_INK = '#1f2933'
_QUIET = '#52606d'
_BAR = '#2b6cb0'
_MARKED = '#b7791f'


def _png(figure: Figure) -> bytes:
  file = io.BytesIO()
  figure.savefig(file, format='png')
  return file.getvalue()


class _Sheet:
  """A figure with coordinates in pixels from the upper left corner."""

  def __init__(self, width: int, height: int) -> None:
    self._size = width, height
    library = colours.matplotlib()
    inches = width / _DPI, height / _DPI
    self.figure: Figure = library.figure.Figure(inches, dpi=_DPI)
    # Notebooks show only pyplot's figures without this.
    vars(self.figure)['_repr_png_'] = functools.partial(_png, self.figure)
    self.figure.set_facecolor('white')

  def axes(self, x: float, y: float, width: float, height: float) -> Axes:
    full_width, full_height = self._size
    return self.figure.add_axes(
      (
        x / full_width,
        1 - (y + height) / full_height,
        width / full_width,
        height / full_height,
      )
    )

  def text(
    self,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 8,
    colour: str = _QUIET,
    **options: Any,
  ) -> None:
    """Text from its upper left corner; `$` has no meaning."""
    full_width, full_height = self._size
    self.figure.text(
      x / full_width,
      1 - y / full_height,
      text,
      size=size,
      color=colour,
      va='top',
      parse_math=False,
      **options,
    )

  def heading(self, title: str, note: str) -> None:
    self.text(_MARGIN, 10, title, size=11, colour=_INK, weight='bold')
    self.text(_MARGIN, _TITLE, note)


def _show(axes: Axes, image: np.ndarray) -> None:
  axes.imshow(image, interpolation='nearest', aspect='auto')
  axes.axis('off')


def _zoom(side: int, least: int) -> int:
  return max(1, -(-least // side))


def _grid(
  sheet: _Sheet,
  cells: np.ndarray,
  labels: Sequence[str],
  columns: int,
  top: int,
) -> None:
  """Images (K, H, W, 3) in rows, a label above each."""
  count, height, width, _ = cells.shape
  edges = [(0, 0), (_LABEL, _GAP), (0, _GAP), (0, 0)]
  framed = np.pad(cells, edges, constant_values=255)
  free = -count % columns
  framed = np.pad(framed, [(0, free)] + [(0, 0)] * 3, constant_values=255)
  image = maps.tiled(framed, columns)
  axes = sheet.axes(_MARGIN, top, image.shape[1], image.shape[0])
  _show(axes, image)
  for index, label in enumerate(labels):
    row, column = divmod(index, columns)
    axes.text(
      column * (width + _GAP) - 0.5,
      row * (height + _LABEL + _GAP) + _LABEL - 4,
      label,
      size=6.5,
      color=_INK,
      parse_math=False,
    )


def feature_maps(
  values: np.ndarray, *, count: int = 16, title: str = ''
) -> Figure:
  """A layer's strongest channels as a grid, all on one scale.

  Blue is below 0, white is 0, red above; a colour bar gives the scale.

  Args:
    values: (C, H, W).
    count: channels at most, 1 to 64.
    title: above the grid.

  Raises:
    UserError: values are not finite, or Matplotlib is missing.
  """
  chosen = maps.strongest(values, count)
  _, height, width = chosen.values.shape
  zoom = _zoom(min(height, width), _CELL)
  columns = chosen.columns
  rows = -(-len(chosen.channels) // columns)
  top = _TITLE + 2 * _NOTE
  grid_height = rows * (zoom * height + _LABEL + _GAP) - _GAP
  grid_width = columns * (zoom * width + _GAP) - _GAP
  sheet = _Sheet(
    max(grid_width + 2 * _MARGIN + 80, 480), top + grid_height + _MARGIN
  )
  note = textwrap.fill(chosen.describe(), max(64, grid_width // 6))
  sheet.heading(title or 'feature maps', note)
  table = colours.palette(colours.DIVERGING)
  cells = table[colours.diverging(chosen.values, chosen.limit)]
  zoomed = cells.repeat(zoom, axis=1).repeat(zoom, axis=2)
  labels = [
    f'#{channel}  rms {strength:.3g}'
    for channel, strength in zip(chosen.channels, chosen.strengths, strict=True)
  ]
  _grid(sheet, zoomed, labels, columns, top)
  axes = sheet.axes(
    _MARGIN + grid_width + 14, top + _LABEL, 14, grid_height - _LABEL
  )
  limit = chosen.limit
  _scale(axes, colours.DIVERGING, -limit, limit, chosen.clipped)
  return sheet.figure


def _scale(
  axes: Axes, table: str, low: float, high: float, extend: str = 'neither'
) -> None:
  """A colour bar; pointed where values lie outside."""
  library = colours.matplotlib()
  norm = library.colors.Normalize(low, high)
  bar = axes.figure.colorbar(
    library.cm.ScalarMappable(norm, library.colormaps[table]),
    cax=axes,
    extend=extend,
  )
  bar.ax.tick_params(labelsize=7, colors=_QUIET)
  bar.outline.set_linewidth(0.5)


def grad_cam(image: np.ndarray, cam: np.ndarray, *, title: str = '') -> Figure:
  """An image, and beside it where a layer supports a class.

  Args:
    image: (H, W, 3) uint8, RGB, as the network saw it.
    cam: (h, w), 0 or more; enlarged to the image's size (bilinear).
    title: above both.

  Raises:
    UserError: Matplotlib is missing.
  """
  height, width, _ = image.shape
  peak = float(cam.max())
  zoom = _zoom(min(height, width), 2 * _CELL)
  enlarged = maps.resized(cam, height, width)
  over = colours.overlaid(image, enlarged, peak)
  top = _TITLE + _NOTE
  gap = 12
  sheet = _Sheet(
    2 * (_MARGIN + zoom * width) + gap + 66, top + zoom * height + _MARGIN
  )
  rows, columns = cam.shape
  note = f'Grad-CAM of {columns}x{rows} positions, enlarged'
  if not peak:
    note += '; 0 everywhere: nothing supports this class'
  sheet.heading(title or 'Grad-CAM', note)
  for column, panel in enumerate((image, over)):
    x = _MARGIN + column * (zoom * width + gap)
    _show(sheet.axes(x, top, zoom * width, zoom * height), panel)
  axes = sheet.axes(
    _MARGIN + 2 * zoom * width + 2 * gap, top, 12, zoom * height
  )
  _scale(axes, colours.HEAT, 0, peak or 1)
  return sheet.figure


def bars(
  names: Sequence[str],
  probabilities: Sequence[float],
  *,
  marked: Sequence[bool] = (),
  title: str = '',
) -> Figure:
  """Probabilities of classes as horizontal bars, from 0 to 100%.

  Args:
    names: of the classes, the most probable first.
    probabilities: 0 to 1.
    marked: which of them are the true class; drawn in another colour, with a
      note.
    title: above the bars.

  Raises:
    UserError: Matplotlib is missing.
  """
  top, step = _TITLE + 12, 40
  width = 560
  sheet = _Sheet(width, top + step * len(names) + 36)
  sheet.heading(title or 'predictions', '')
  axes = sheet.axes(_MARGIN, top, width - 2 * _MARGIN - 56, step * len(names))
  places = np.arange(len(names))
  true = list(marked) or [False] * len(names)
  axes.barh(
    places + 0.22,
    probabilities,
    height=0.36,
    color=[_MARKED if is_true else _BAR for is_true in true],
  )
  axes.set_xlim(0, 1)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_yticks([])
  axes.set_xticks(np.linspace(0, 1, 6), [f'{n}%' for n in range(0, 101, 20)])
  axes.tick_params(labelsize=7, colors=_QUIET)
  axes.grid(axis='x', color='#e4e7eb', linewidth=0.7)
  axes.set_axisbelow(True)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  for place, name, share, is_true in zip(
    places, names, probabilities, true, strict=True
  ):
    text = textwrap.shorten(name, 72, placeholder=' …')
    text += '  (true class)' if is_true else ''
    axes.text(
      0, place - 0.12, text, size=8, color=_INK, va='bottom', parse_math=False
    )
    axes.text(
      share + 0.008, place + 0.22, _percent(share), size=8, color=_INK,
      va='center',
    )  # fmt: skip
  return sheet.figure


def _percent(share: float) -> str:
  return f'{share:.2%}' if share >= 0.00005 else '< 0.01%'


def neighbours(
  images: np.ndarray,
  features: np.ndarray,
  names: Sequence[str],
  *,
  count: int = 4,
  title: str = '',
) -> Figure:
  """Each image, and beside it the images with the most similar features.

  Args:
    images: (N, H, W, 3) uint8, RGB, as the network saw them.
    features: (N, ...), a row an image; compared by their cosine.
    names: of the images.
    count: neighbours an image at most.
    title: above the grid.

  Raises:
    UserError: there is nothing to compare, or Matplotlib is missing.
  """
  if not len(images) == len(features) == len(names):
    raise errors.UserError(
      f'{len(images)} images, {len(features)} rows of features and'
      f' {len(names)} names: give one of each an image.'
    )
  order, cosines = maps.nearest(features, count)
  _, height, width, _ = images.shape
  size = _CELL, max(1, round(_CELL * height / width))
  small = np.stack(
    [np.asarray(Image.fromarray(image).resize(size)) for image in images]
  )
  short = [name if len(name) <= 16 else f'{name[:15]}…' for name in names]
  cells, labels = [], []
  for row, others in enumerate(order):
    cells += [row, *others]
    labels.append(short[row])
    labels += [
      f'{short[other]}  {cosine:.3f}'
      for other, cosine in zip(others, cosines[row], strict=True)
    ]
  columns = order.shape[1] + 1
  top = _TITLE + _NOTE + 4
  sheet = _Sheet(
    max(2 * _MARGIN + columns * (size[0] + _GAP) - _GAP, 480),
    top + len(order) * (size[1] + _LABEL + _GAP) - _GAP + _MARGIN,
  )
  sheet.heading(
    title or 'nearest neighbours',
    'left each image, then its nearest by the cosine of features',
  )
  _grid(sheet, small[cells], labels, columns, top)
  return sheet.figure


def filters(
  kernel: np.ndarray, *, channels: str = 'BGR', title: str = ''
) -> Figure:
  """First-layer filters in true colours.

  Args:
    kernel: (ky, kx, 3, Co).
    channels: 'BGR' or 'RGB', the order of the network's input.
    title: above the grid.

  Raises:
    UserError: it is not the kernel of a first layer, or Matplotlib is missing.
  """
  cells = maps.true_colours(kernel, channels)
  count, height, width, _ = cells.shape
  zoom = _zoom(min(height, width), _FILTER_CELL)
  columns = min(count, 8)
  rows = -(-count // columns)
  top = _TITLE + _NOTE + 4
  sheet = _Sheet(
    max(2 * _MARGIN + columns * (zoom * width + _GAP) - _GAP, 480),
    top + rows * (zoom * height + _LABEL + _GAP) - _GAP + _MARGIN,
  )
  sheet.heading(
    title or f'{count} first-layer filters, {width}x{height}',
    'grey is 0; each filter has its own scale, ± the number above it',
  )
  peaks = np.abs(kernel).max(axis=(0, 1, 2))
  labels = [f'#{index}  ±{peak:.2g}' for index, peak in enumerate(peaks)]
  zoomed = cells.repeat(zoom, axis=1).repeat(zoom, axis=2)
  _grid(sheet, zoomed, labels, columns, top)
  return sheet.figure
