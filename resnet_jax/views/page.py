# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that needs nothing else and loads nothing.

What comes from files (names of images and of classes) is either escaped HTML
or JSON without any character that HTML knows, and page.js puts it into the
page as text only.  Were that wrong, the page's policy would still refuse every
script but its own, by a hash.
"""

import base64
import dataclasses
import hashlib
import html
import importlib.resources
import io
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.system import errors
from resnet_jax.views import colours, graph, maps, page_network

# A page is never larger.
MAX_BYTES = 32_000_000

# Of that, for all but the images, and for each image without its maps.
_FIXED_BYTES = 1_500_000
_IMAGE_BYTES = 64_000
# Of a layer's maps: what a PNG needs beside its pixels, and the numbers of a
# map.
_SPRITE_BYTES = 1_500
_MAP_BYTES = 30
# Pixels of a map's side, the first that fits.
_SIDES = (112, 56, 28, 14, 7)

_IMAGE_SIDE, _IMAGE_JPEG = 224, 30_000
_THUMBNAIL_SIDE, _THUMBNAIL_JPEG = 56, 3_000
_HEAT_SIDE = 56
_QUALITIES = (85, 70, 50, 30, 10)
_MOST_TEXT = 300


@dataclasses.dataclass(frozen=True)
class ShownClass:
  """A class of the five best.

  Attributes:
    label: its index.
    name: its name.
    probability: 0 to 1.
    is_stated: whether the data states it.
  """

  label: int
  name: str
  probability: float
  is_stated: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ShownImage:
  """What the page says of an image.

  Attributes:
    key: its name.
    folder: where its PNG files are, beside the page.
    reason: why it could not be read; then there is nothing else.
    crop: (S, S, 3) uint8, as the network saw it.
    stated: the class that the data states, for a person; or ''.
    best: the five best classes; none: there is no classifier.
    cam: (h, w), 0 or more; None: there is none.
    cam_class: the class that it is for.
    layers: the maps of each layer.
  """

  key: str
  folder: str
  reason: str = ''
  crop: np.ndarray | None = None
  stated: str = ''
  best: tuple[ShownClass, ...] = ()
  cam: np.ndarray | None = None
  cam_class: str = ''
  layers: Mapping[str, maps.Maps] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class About:
  """What the page says of the run.

  Attributes:
    title: above all.
    warnings: below it, a sentence each.
    network: for the diagram.
    layers: those with maps.
    filters: (Co, ky, kx, 3) uint8.
    cam_layer: what Grad-CAM is of; '': there is none.
    no_head: why there are no predictions; '': there are.
    facts: how it was made: name, value.
    settings: of the run, by name.
  """

  title: str
  warnings: Sequence[str]
  network: graph.Graph
  layers: Sequence[str]
  filters: np.ndarray
  cam_layer: str
  no_head: str
  facts: Sequence[tuple[str, str]]
  settings: Mapping[str, Any]


def map_side(
  shapes: Sequence[tuple[int, int, int]], count: int, images: int
) -> int:
  """How large maps may be in a page, pixels a side.

  Args:
    shapes: (C, H, W) of each layer.
    count: maps of a layer.
    images: how many.

  Raises:
    UserError: they are too many for one page.
  """
  for side in _SIDES:
    each = _IMAGE_BYTES + sum(
      _encoded(
        min(count, channels) * min(side, height) * min(side, width)
        + _SPRITE_BYTES
      )
      + min(count, channels) * _MAP_BYTES
      for channels, height, width in shapes
    )
    if _FIXED_BYTES + images * each <= MAX_BYTES:
      return side
  fit = (MAX_BYTES - _FIXED_BYTES) // each
  raise errors.UserError(
    f'{images} images with {count} maps of each of {len(shapes)} layers do'
    f' not fit into one page of {MAX_BYTES // 10**6} MB, {fit} do. Give fewer'
    ' images, layers (map_layers) or maps (map_count).'
  )


def _encoded(count: int) -> int:
  """Bytes of base64."""
  return -(-count // 3) * 4


def entry(image: ShownImage, side: int) -> dict[str, Any]:
  """An image's part of the page, its images encoded.

  Args:
    image: what is said of it.
    side: what `map_side` gave.
  """
  said: dict[str, Any] = {
    'key': _short(image.key),
    'folder': image.folder,
    'reason': _short(image.reason),
    'stated': _short(image.stated),
    'best': [
      {
        'label': guess.label,
        'name': _short(guess.name),
        'probability': guess.probability,
        'stated': guess.is_stated,
      }
      for guess in image.best
    ],
  }
  if image.crop is not None:
    said['image'] = _jpeg(image.crop, _IMAGE_SIDE, _IMAGE_JPEG)
    said['thumbnail'] = _jpeg(image.crop, _THUMBNAIL_SIDE, _THUMBNAIL_JPEG)
  if image.cam is not None:
    said['cam'] = _cam(image.cam, _short(image.cam_class))
  said['layers'] = {
    name: _sprite(shown, side) for name, shown in image.layers.items()
  }
  return said


def document(about: About, entries: Sequence[Mapping[str, Any]]) -> str:
  """The page.

  Args:
    about: the run.
    entries: what `entry` gave for each image.
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
  return string.Template(_asset('page.html')).substitute(
    policy=_policy(style, script),
    style=style,
    script=script,
    title=html.escape(about.title),
    warnings=''.join(
      f'<p class="warning" role="note">{html.escape(text)}</p>'
      for text in about.warnings
    ),
    diagram=page_network.diagram(about.network, set(about.layers)),
    facts=''.join(_row(name, value) for name, value in about.facts),
    settings=''.join(
      _row(name, str(value)) for name, value in about.settings.items()
    ),
    diverging=_scale(colours.DIVERGING),
    heat=_scale(colours.HEAT),
    about=_json(_page_facts(about)),
    index=_json(index),
    entries='\n'.join(
      f'<script type="application/json" class="entry">{_json(part)}</script>'
      for part in entries
    ),
  )


def _page_facts(about: About) -> dict[str, Any]:
  count, height, width, _ = about.filters.shape
  columns = min(count, 8)
  return {
    'camLayer': about.cam_layer,
    'noHead': about.no_head,
    'layers': {
      node.name: page_network.describe(node)
      for node in about.network.nodes
      if node.name in about.layers
    },
    'filters': {
      'png': _png(Image.fromarray(maps.tiled(about.filters, columns))),
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
  """Nothing from elsewhere; of scripts and styles, only the page's own."""

  def source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

  return (
    f"default-src 'none'; img-src data:; style-src {source(style)}; script-src"
    f" {source(script)}; base-uri 'none'; form-action 'none'"
  )


def _json(value: Any) -> str:
  """JSON that can stand in a script element: ASCII, without <, > and &."""
  text = json.dumps(value)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _row(name: str, value: str) -> str:
  return (
    f'<tr><th scope="row">{html.escape(name)}</th>'
    f'<td>{html.escape(value)}</td></tr>'
  )


def _short(text: str) -> str:
  return text if len(text) <= _MOST_TEXT else f'{text[: _MOST_TEXT - 1]}…'


# -------------------------------------------------------------- images


def _uri(kind: str, data: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def _png(image: Image.Image, **how: Any) -> str:
  file = io.BytesIO()
  image.save(file, 'PNG', optimize=True, **how)
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
  """A heat map that lies over the image, the more opaque the hotter."""
  peak = float(cam.max())
  height, width = (max(_HEAT_SIDE, side) for side in cam.shape)
  heat = colours.heat(maps.resized(cam, height, width), peak)
  return {
    'png': _png(
      _coloured(heat, colours.HEAT), transparency=bytes(colours.cover())
    ),
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
