# SPDX-License-Identifier: Apache-2.0
"""What of a layer is shown, and on which scale; arrays only."""

import dataclasses
import math

import numpy as np
from PIL import Image

from resnet_jax.system import errors

MOST = 64

# Of the shown values, how many lie inside the scale: a single peak would leave
# all else without colour.
_INSIDE = 99.5


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
  """A layer's strongest channels.

  Attributes:
    channels: their numbers, from 0, the strongest first.
    strengths: the root mean square of each over its positions.
    values: (channels, H, W).
    limit: what the ends of the scale stand for, plus and minus.
    low: the smallest of the values.
    high: the largest of the values.
    of: channels that the layer has.
  """

  channels: tuple[int, ...]
  strengths: tuple[float, ...]
  values: np.ndarray
  limit: float
  low: float
  high: float
  of: int

  @property
  def is_clipped(self) -> bool:
    """Whether values lie beyond the scale."""
    return max(-self.low, self.high) > self.limit

  @property
  def columns(self) -> int:
    """Of the grid that they are shown in."""
    return math.ceil(math.sqrt(len(self.channels)))

  def describe(self) -> str:
    """A sentence for a person."""
    count = len(self.channels)
    which = f'the {count} strongest' if count < self.of else 'all'
    text = (
      f'{which} of {self.of} channels, by root mean square; values'
      f' {self.low:.3g} to {self.high:.3g}, white is 0'
    )
    if not self.low and not self.high:
      return f'{which} of {self.of} channels; all values are 0'
    if self.is_clipped:
      text += f'; beyond ±{self.limit:.3g} the colour stays the same'
    return text


def strongest(values: np.ndarray, count: int = 16) -> Maps:
  """The channels with the largest root mean square; equals by number.

  Args:
    values: (C, H, W).
    count: how many at most.

  Raises:
    UserError: a value is not finite, or the count is out of its range.
  """
  if not 1 <= count <= MOST:
    raise errors.UserError(f'{count} maps: 1 to {MOST} can be shown.')
  if not np.isfinite(values).all():
    raise errors.UserError(
      'some values of a layer are not finite, so there is no scale to show them'
      ' on. --job=inspect looks at the weights.'
    )
  exact = np.asarray(values, np.float64)
  power = np.sqrt((exact**2).mean(axis=(1, 2)))
  order = np.argsort(-power, kind='stable')[:count]
  shown = np.asarray(values[order], np.float32)
  size = np.abs(shown)
  limit = float(np.percentile(size, _INSIDE)) or float(size.max()) or 1.0
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
  """(K, H, W, ...) side by side, row by row; what stays free is 0."""
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
    UserError: they do not look at images with three colours.
  """
  if kernel.ndim != 4 or kernel.shape[2] != 3:
    raise errors.UserError(
      f'a kernel of shape {kernel.shape} is no first layer: (ky, kx, 3, Co) is.'
    )
  rgb = kernel[:, :, ::-1] if channels == 'BGR' else kernel
  cells = rgb.transpose(3, 0, 1, 2)
  peak = np.abs(cells).max(axis=(1, 2, 3), keepdims=True)
  scaled = cells / np.where(peak > 0, peak, 1)
  return np.rint(128 + 127 * scaled).astype(np.uint8)


def nearest(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """For each row the others with the largest cosine, the nearest first.

  Args:
    features: (N, ...), a row an image.
    count: others a row at most.

  Returns:
    Their numbers, and their cosines, both (N, min(count, N - 1)); equals by
    number.

  Raises:
    UserError: there is nothing to compare.
  """
  rows = np.asarray(features, np.float64).reshape(len(features), -1)
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  if len(rows) < 2 or count < 1:
    raise errors.UserError(
      f'{len(rows)} images, {count} neighbours: 2 and 1 are the least.'
    )
  if not np.isfinite(lengths).all() or not lengths.all():
    raise errors.UserError(
      'the features of an image are all 0 or not finite, so it has no'
      ' direction to compare. Leave it out, or take another layer.'
    )
  cosines = rows @ rows.T / (lengths * lengths.T)
  np.fill_diagonal(cosines, -np.inf)
  order = np.argsort(-cosines, axis=1, kind='stable')[:, :-1][:, :count]
  return order, np.take_along_axis(cosines, order, axis=1)
