# SPDX-License-Identifier: Apache-2.0
"""Which channels of a layer are shown, and on which scale; arrays only."""

import dataclasses
import math

import numpy as np
from PIL import Image

from resnet_jax.system import errors

MAX_MAPS = 64

# Percentile of the absolute values at which the scale ends: a single peak would
# leave everything else without colour.
_SCALE_PERCENTILE = 99.5


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
  """A layer's strongest channels.

  Attributes:
    channels: their numbers, from 0, the strongest first.
    strengths: their root mean squares over all positions.
    values: (channels, H, W).
    limit: the scale's ends are plus and minus this.
    low: the smallest value.
    high: the largest value.
    total: channels of the layer.
  """

  channels: tuple[int, ...]
  strengths: tuple[float, ...]
  values: np.ndarray
  limit: float
  low: float
  high: float
  total: int

  @property
  def clipped(self) -> str:
    """Where values lie outside the scale: 'neither', 'min', 'max', 'both'."""
    below, above = self.low < -self.limit, self.high > self.limit
    return ('neither', 'min', 'max', 'both')[below + 2 * above]

  @property
  def columns(self) -> int:
    """Columns of the grid."""
    return math.ceil(math.sqrt(len(self.channels)))

  def describe(self) -> str:
    """A sentence that says which channels are drawn."""
    count = len(self.channels)
    which = f'The {count} strongest' if count < self.total else 'All'
    text = f'{which} of {self.total} channels'
    if not self.low and not self.high:
      return f'{text}; all values are 0'
    text += (
      f', by root mean square; values {self.low:.3g} to {self.high:.3g}, white'
      ' is 0'
    )
    if self.clipped != 'neither':
      text += f'; the colours end at ±{self.limit:.3g}'
    return text


def strongest(values: np.ndarray, count: int = 16) -> Maps:
  """The channels with the largest root mean square; ties by number.

  Args:
    values: (C, H, W).
    count: channels at most.

  Raises:
    UserError: a value is not finite, or the count is out of range.
  """
  if not 1 <= count <= MAX_MAPS:
    raise errors.UserError(f'{count} maps: 1 to {MAX_MAPS} can be shown.')
  if not np.isfinite(values).all():
    raise errors.UserError(
      'some values of a layer are not finite, so they have no scale. Check the'
      ' weights with --job=inspect.'
    )
  exact = np.asarray(values, np.float64)
  power = np.sqrt((exact**2).mean(axis=(1, 2)))
  order = np.argsort(-power, kind='stable')[:count]
  shown = np.asarray(values[order], np.float32)
  size = np.abs(shown)
  limit = (
    float(np.percentile(size, _SCALE_PERCENTILE)) or float(size.max()) or 1.0
  )
  return Maps(
    tuple(int(channel) for channel in order),
    tuple(float(power[channel]) for channel in order),
    shown,
    limit,
    float(shown.min()),
    float(shown.max()),
    len(values),
  )


def resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
  """(H, W) floats to another size: averaged when smaller, else bilinear."""
  image = Image.fromarray(np.asarray(values, np.float32))
  smaller = height <= values.shape[0] and width <= values.shape[1]
  filter_ = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
  return np.asarray(image.resize((width, height), filter_))


def tiled(cells: np.ndarray, columns: int) -> np.ndarray:
  """(K, H, W, ...) side by side, row by row; empty cells are 0."""
  count, height, width, *rest = cells.shape
  rows = -(-count // columns)
  free = [(0, rows * columns - count)] + [(0, 0)] * (cells.ndim - 1)
  grid = np.pad(cells, free).reshape(rows, columns, height, width, *rest)
  return grid.swapaxes(1, 2).reshape(rows * height, columns * width, *rest)


def true_colours(kernel: np.ndarray, channels: str) -> np.ndarray:
  """First-layer filters as images.

  Args:
    kernel: (ky, kx, 3, Co).
    channels: 'BGR' or 'RGB', the order of its inputs.

  Returns:
    (Co, ky, kx, 3) uint8, RGB; 128 is 0, and the largest absolute weight of
    each filter is 1 or 255.

  Raises:
    UserError: the filters do not have three input channels.
  """
  if kernel.ndim != 4 or kernel.shape[2] != 3:
    raise errors.UserError(
      f'shape {kernel.shape} is not the kernel of a first layer, which is (ky,'
      ' kx, 3, Co).'
    )
  rgb = kernel[:, :, ::-1] if channels == 'BGR' else kernel
  cells = rgb.transpose(3, 0, 1, 2)
  peak = np.abs(cells).max(axis=(1, 2, 3), keepdims=True)
  scaled = cells / np.where(peak > 0, peak, 1)
  return np.rint(128 + 127 * scaled).astype(np.uint8)


def nearest(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """For each row the other rows with the largest cosine, the nearest first.

  Args:
    features: (N, ...), a row an image.
    count: neighbours a row at most.

  Returns:
    Their numbers and their cosines, both (N, min(count, N - 1)); ties by
    number.

  Raises:
    UserError: there is nothing to compare.
  """
  rows = np.asarray(features, np.float64).reshape(len(features), -1)
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  if len(rows) < 2 or count < 1:
    raise errors.UserError(
      f'{len(rows)} images, {count} neighbours: images must be 2 or'
      ' more, neighbours 1 or more.'
    )
  if not np.isfinite(lengths).all() or not lengths.all():
    raise errors.UserError(
      'the features of an image are all 0 or not finite, so they have no'
      ' direction to compare. Leave the image out, or take another layer.'
    )
  cosines = rows @ rows.T / (lengths * lengths.T)
  np.fill_diagonal(cosines, -np.inf)
  order = np.argsort(-cosines, axis=1, kind='stable')[:, :-1][:, :count]
  return order, np.take_along_axis(cosines, order, axis=1)
