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
    w, h = self._size
    place = x / w, 1 - (y + height) / h, width / w, height / h
    return self.figure.add_axes(place)

  def text(self, x: float, y: float, text: str, **options: Any) -> None:
    """Text from its upper left corner; `$` has no meaning."""
    w, h = self._size
    self.figure.text(
      x / w, 1 - y / h, text, va='top', parse_math=False, **options
    )

  def heading(self, title: str, note: str) -> None:
    self.text(_MARGIN, 10, title, size=11, color=_INK, weight='bold')
    self.text(_MARGIN, _TITLE, note, size=8, color=_QUIET)


def _show(axes: Axes, image: np.ndarray) -> None:
  axes.imshow(image, interpolation='nearest', aspect='auto')
  axes.axis('off')


def _zoomed(cells: np.ndarray, least: int) -> np.ndarray:
  """(K, H, W, 3), every pixel repeated, to a side of `least` or more."""
  zoom = -(-least // min(cells.shape[1:3]))
  return cells.repeat(zoom, axis=1).repeat(zoom, axis=2) if zoom > 1 else cells


def _grid(
  cells: np.ndarray,
  labels: Sequence[str],
  columns: int,
  title: str,
  note: str,
  *,
  top: int = _TITLE + _NOTE + 4,
  beside: int = 0,
) -> tuple[_Sheet, int, int]:
  """Images (K, H, W, 3) in rows, a label above each.

  Returns:
    The sheet, with `beside` pixels free on the right; the width and the height
    of the grid.
  """
  _, height, width, _ = cells.shape
  edges = [(0, -len(cells) % columns), (_LABEL, _GAP), (0, _GAP), (0, 0)]
  image = maps.tiled(np.pad(cells, edges, constant_values=255), columns)
  full = image.shape[1] - _GAP, image.shape[0] - _GAP
  sheet = _Sheet(
    max(full[0] + 2 * _MARGIN + beside, 480), top + full[1] + _MARGIN
  )
  sheet.heading(title, textwrap.fill(note, max(64, full[0] // 6)))
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
  return sheet, *full


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
  if np.ndim(values) != 3:
    raise errors.UserError(
      f"{np.shape(values)} is not the shape of maps. Give one image's (C, H, W)"
      ' maps, such as features[0].'
    )
  chosen = maps.strongest(values, count)
  limit, top = chosen.limit, _TITLE + 2 * _NOTE
  table = colours.palette(colours.DIVERGING)
  sheet, width, height = _grid(
    _zoomed(table[colours.diverging(chosen.values, limit)], _CELL),
    [
      f'#{channel}  rms {strength:.3g}'
      for channel, strength in zip(
        chosen.channels, chosen.strengths, strict=True
      )
    ],
    chosen.columns,
    title or 'feature maps',
    chosen.describe(),
    top=top,
    beside=80,
  )
  axes = sheet.axes(_MARGIN + width + 14, top + _LABEL, 14, height - _LABEL)
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
  if (np.ndim(image), np.ndim(cam)) != (3, 2):
    raise errors.UserError(
      f'{np.shape(image)} and {np.shape(cam)} are not the shapes of an image'
      ' and its map. Give (H, W, 3) and (h, w), such as crops[0] and cam[0].'
    )
  peak = float(cam.max())
  over = colours.overlaid(image, maps.resized(cam, *image.shape[:2]), peak)
  panels = _zoomed(np.stack([image, over]), 2 * _CELL)
  _, height, width, _ = panels.shape
  top, gap = _TITLE + _NOTE, 12
  sheet = _Sheet(2 * (_MARGIN + width) + gap + 66, top + height + _MARGIN)
  rows, columns = cam.shape
  note = f'Grad-CAM of {columns}x{rows} positions, enlarged'
  if not peak:
    note += '; 0 everywhere: nothing supports this class'
  sheet.heading(title or 'Grad-CAM', note)
  x = _MARGIN
  for panel in panels:
    _show(sheet.axes(x, top, width, height), panel)
    x += width + gap
  _scale(sheet.axes(x, top, 12, height), colours.HEAT, 0, peak or 1)
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
  top, step, width = _TITLE + 12, 40, 560
  sheet = _Sheet(width, top + step * len(names) + 36)
  sheet.heading(title or 'predictions', '')
  axes = sheet.axes(_MARGIN, top, width - 2 * _MARGIN - 56, step * len(names))
  true = list(marked) or [False] * len(names)
  axes.barh(
    np.arange(len(names)) + 0.22,
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
  look: dict[str, Any] = {'size': 8, 'color': _INK, 'parse_math': False}
  for place, name in enumerate(names):
    share = probabilities[place]
    text = textwrap.shorten(name, 72, placeholder=' …')
    text += '  (true class)' if true[place] else ''
    percent = f'{share:.2%}' if share >= 0.00005 else '< 0.01%'
    axes.text(0, place - 0.12, text, va='bottom', **look)
    axes.text(share + 0.008, place + 0.22, percent, va='center', **look)
  return sheet.figure


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
    pairs = zip(others, cosines[row], strict=True)
    labels += [
      short[row],
      *(f'{short[i]}  {cosine:.3f}' for i, cosine in pairs),
    ]
  sheet, *_ = _grid(
    small[cells],
    labels,
    order.shape[1] + 1,
    title or 'nearest neighbours',
    'left each image, then its nearest by the cosine of features',
  )
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
  peaks = np.abs(kernel).max(axis=(0, 1, 2))
  sheet, *_ = _grid(
    _zoomed(cells, _FILTER_CELL),
    [f'#{index}  ±{peak:.2g}' for index, peak in enumerate(peaks)],
    min(count, 8),
    title or f'{count} first-layer filters, {width}x{height}',
    'grey is 0; each filter has its own scale, ± the number above it',
  )
  return sheet.figure
