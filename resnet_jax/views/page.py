# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that loads nothing.

Text from files (names of images and of classes) is either escaped HTML or JSON
without characters that HTML interprets, and page.js inserts it as text only.
If that failed, the page's policy would still refuse every script but its own,
by its hash.
"""

import base64
import dataclasses
import hashlib
import html
import importlib.resources
import io
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.system import errors
from resnet_jax.views import colours, graph, maps, page_network

# The limit of a page, and shares of it: for everything but the images, and for
# each image without its maps.
MAX_BYTES = 32_000_000
_FIXED_BYTES = 1_500_000
_IMAGE_BYTES = 64_000
# The overhead of a layer's PNG, and the numbers of each of its maps.
_SPRITE_BYTES = 1_500
_MAP_BYTES = 30
# Pixels a side of a map; the first that fits is taken.
_SIDES = (112, 56, 28, 14, 7)

_IMAGE_SIDE, _IMAGE_JPEG = 224, 30_000
_THUMBNAIL_SIDE, _THUMBNAIL_JPEG = 56, 3_000
_HEAT_SIDE = 56
_QUALITIES = (85, 70, 50, 30, 10)
_MOST_TEXT = 300


@dataclasses.dataclass(frozen=True)
class PredictedClass:
  """One of the five best classes.

  Attributes:
    label: its index.
    name: its name.
    probability: 0 to 1.
    is_true: whether it is the image's label in the data.
  """

  label: int
  name: str
  probability: float
  is_true: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
  """An image and what the network makes of it.

  Attributes:
    key: the image's name.
    folder: of its PNG files, beside the page.
    reason: why it could not be read; then the other fields are empty.
    crop: (S, S, 3) uint8, as the network saw it.
    true_class: the image's label in the data, index and name; or ''.
    best: the five best classes; none: there is no classifier.
    cam: (h, w), 0 or more; None: there is none.
    cam_class: the class that it is for.
    layers: the maps of each layer.
  """

  key: str
  folder: str
  reason: str = ''
  crop: np.ndarray | None = None
  true_class: str = ''
  best: tuple[PredictedClass, ...] = ()
  cam: np.ndarray | None = None
  cam_class: str = ''
  layers: Mapping[str, maps.Maps] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Overview:
  """A run, as the page describes it.

  Attributes:
    title: of the page.
    warnings: below the title, one per entry.
    network: for the diagram.
    layers: with maps.
    filters: (Co, ky, kx, 3) uint8.
    cam_layer: of Grad-CAM; '': there is none.
    no_predictions: why there are none; shown only in that case.
    facts: name and value, for the table at the end.
    settings: by name.
  """

  title: str
  warnings: Sequence[str]
  network: graph.Graph
  layers: Sequence[str]
  filters: np.ndarray
  cam_layer: str
  no_predictions: str
  facts: Sequence[tuple[str, str]]
  settings: Mapping[str, Any]


def map_side(
  shapes: Sequence[tuple[int, int, int]], count: int, images: int
) -> int:
  """The largest size of maps that fits into a page, pixels a side.

  Args:
    shapes: (C, H, W) of each layer.
    count: maps a layer.
    images: number of images.

  Raises:
    UserError: no size fits.
  """
  for side in _SIDES:
    each = _IMAGE_BYTES
    for channels, height, width in shapes:
      shown = min(count, channels)
      sprite = shown * min(side, height) * min(side, width) + _SPRITE_BYTES
      # In base64.
      each += -(-sprite // 3) * 4 + shown * _MAP_BYTES
    if _FIXED_BYTES + images * each <= MAX_BYTES:
      return side
  fit = (MAX_BYTES - _FIXED_BYTES) // each
  raise errors.UserError(
    f'{images} images with {count} maps of each of {len(shapes)} layers do'
    f' not fit into one page of {MAX_BYTES // 10**6} MB, {fit} do. Give fewer'
    ' images, layers (map_layers) or maps (map_count).'
  )


def entry(image: ImageResult, side: int) -> dict[str, Any]:
  """An image's part of the page, as JSON values.

  Args:
    image: the result.
    side: see `map_side`.
  """
  best = [
    {
      'label': predicted.label,
      'name': _short(predicted.name),
      'probability': predicted.probability,
      'isTrue': predicted.is_true,
    }
    for predicted in image.best
  ]
  result: dict[str, Any] = {
    'key': _short(image.key),
    'folder': image.folder,
    'reason': _short(image.reason),
    'trueClass': _short(image.true_class),
    'best': best,
  }
  if image.crop is not None:
    result['image'] = _jpeg(image.crop, _IMAGE_SIDE, _IMAGE_JPEG)
    result['thumbnail'] = _jpeg(image.crop, _THUMBNAIL_SIDE, _THUMBNAIL_JPEG)
  if image.cam is not None:
    result['cam'] = _cam(image.cam, _short(image.cam_class))
  result['layers'] = {
    name: _sprite(shown, side) for name, shown in image.layers.items()
  }
  return result


def document(overview: Overview, entries: Sequence[Mapping[str, Any]]) -> str:
  """The page.

  Args:
    overview: what is the same for all images.
    entries: an `entry` for each image.
  """
  index = [
    {
      'key': part['key'],
      'reason': part['reason'],
      'best': part['best'][0]['name'] if part['best'] else '',
      'thumbnail': part.get('thumbnail', ''),
    }
    for part in entries
  ]
  style, script = _asset('page.css'), _asset('page.js')
  settings = ((name, str(value)) for name, value in overview.settings.items())
  return string.Template(_asset('page.html')).substitute(
    policy=_policy(style, script),
    style=style,
    script=script,
    title=html.escape(overview.title),
    warnings=''.join(
      f'<p class="warning" role="note">{html.escape(text)}</p>'
      for text in overview.warnings
    ),
    diagram=page_network.diagram(overview.network, set(overview.layers)),
    facts=_rows(overview.facts),
    settings=_rows(settings),
    diverging=_scale(colours.DIVERGING),
    heat=_scale(colours.HEAT),
    run=_json(_page_facts(overview)),
    index=_json(index),
    entries='\n'.join(
      f'<script type="application/json" class="entry">{_json(part)}</script>'
      for part in entries
    ),
  )


def _page_facts(overview: Overview) -> dict[str, Any]:
  count, height, width, _ = overview.filters.shape
  columns = min(count, 8)
  return {
    'camLayer': overview.cam_layer,
    'noPredictions': overview.no_predictions,
    'layers': {
      node.name: page_network.describe(node)
      for node in overview.network.nodes
      if node.name in overview.layers
    },
    'filters': {
      'png': _png(Image.fromarray(maps.tiled(overview.filters, columns))),
      'height': height,
      'width': width,
      'columns': columns,
      'count': count,
    },
  }


def _asset(name: str) -> str:
  file = importlib.resources.files('resnet_jax.views') / name
  return file.read_text('utf-8')


def _policy(style: str, script: str) -> str:
  """Forbids all loading, and all scripts and styles but the page's own."""
  style, script = (
    base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    for text in (style, script)
  )
  return (
    f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src"
    f" 'sha256-{script}'; base-uri 'none'; form-action 'none'"
  )


def _json(value: Any) -> str:
  """JSON for a script element: ASCII, without <, > and &."""
  text = json.dumps(value)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _rows(facts: Iterable[tuple[str, str]]) -> str:
  return ''.join(
    f'<tr><th scope="row">{html.escape(name)}</th>'
    f'<td>{html.escape(value)}</td></tr>'
    for name, value in facts
  )


def _short(text: str) -> str:
  return text if len(text) <= _MOST_TEXT else f'{text[: _MOST_TEXT - 1]}…'


# -------------------------------------------------------------- images


def _uri(kind: str, data: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def _png(image: Image.Image, **options: Any) -> str:
  file = io.BytesIO()
  image.save(file, 'PNG', optimize=True, **options)
  return _uri('png', file.getvalue())


def _jpeg(pixels: np.ndarray, side: int, most: int) -> str:
  """An image of at most `side` pixels a side and `most` bytes."""
  image = Image.fromarray(pixels)
  image.thumbnail((side, side))
  for quality in _QUALITIES:
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=quality, optimize=True)
    if len(file.getvalue()) <= most:
      break
  return _uri('jpeg', file.getvalue())


def _coloured(places: np.ndarray, table: str) -> Image.Image:
  image = Image.fromarray(places)
  image.putpalette(colours.palette(table).tobytes())
  return image


def _scale(table: str) -> str:
  """The colours of a table, side by side."""
  return _png(_coloured(np.arange(colours.STEPS, dtype=np.uint8)[None], table))


def _cam(cam: np.ndarray, name: str) -> dict[str, Any]:
  """A heat map to overlay on the image, the more opaque the hotter."""
  peak = float(cam.max())
  height, width = (max(_HEAT_SIDE, side) for side in cam.shape)
  heat = colours.heat(maps.resized(cam, height, width), peak)
  image = _coloured(heat, colours.HEAT)
  return {
    'png': _png(image, transparency=bytes(colours.opacity())),
    'peak': f'{peak:.3g}' if peak else '',
    'name': name,
    'rows': cam.shape[0],
    'columns': cam.shape[1],
  }


def _sprite(shown: maps.Maps, side: int) -> dict[str, Any]:
  """A layer's maps in one image."""
  _, height, width = shown.values.shape
  height, width = min(height, side), min(width, side)
  cells = np.stack([maps.resized(cell, height, width) for cell in shown.values])
  places = colours.diverging(cells, shown.limit)
  image = _coloured(maps.tiled(places, shown.columns), colours.DIVERGING)
  return {
    'png': _png(image),
    'height': height,
    'width': width,
    'columns': shown.columns,
    'channels': shown.channels,
    'strengths': [f'{strength:.3g}' for strength in shown.strengths],
    'limit': f'{shown.limit:.3g}',
    'text': shown.describe(),
  }
