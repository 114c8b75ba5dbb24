# SPDX-License-Identifier: Apache-2.0
"""From numbers to colours, by Matplotlib's tables.

Diverging: blue below 0, white at 0, red above, which people who do not tell
red from green tell apart, too.
"""

import functools
from typing import Any

import numpy as np

from resnet_jax.system import errors

DIVERGING = 'RdBu_r'
HEAT = 'inferno'

# An odd number, so that 0 has a colour of its own.
STEPS = 255
MIDDLE = STEPS // 2

_MOST_COVER = 0.75


def matplotlib() -> Any:
  """The library.

  Raises:
    UserError: it is not installed.
  """
  try:
    import matplotlib as library  # noqa: PLC0415 - an extra
    import matplotlib.figure  # noqa: PLC0415
  except ImportError as error:
    raise errors.UserError(
      'plots are drawn with Matplotlib, which is not installed. It is there'
      " with: pip install 'resnet-jax-zoo[views]' (in a checkout '.[views]')"
    ) from error
  return library


@functools.cache
def palette(name: str) -> np.ndarray:
  """(STEPS, 3) uint8, RGB."""
  table = matplotlib().colormaps[name](np.linspace(0, 1, STEPS))
  return np.rint(255 * table[:, :3]).astype(np.uint8)


def diverging(values: np.ndarray, limit: float) -> np.ndarray:
  """Places in the palette DIVERGING, uint8; `limit` is at its ends."""
  share = np.clip(values / limit, -1, 1)
  return (MIDDLE + np.rint(MIDDLE * share)).astype(np.uint8)


def heat(values: np.ndarray, peak: float) -> np.ndarray:
  """Places in the palette HEAT, uint8: 0 at its start, `peak` at its end."""
  share = np.clip(values / (peak or 1.0), 0, 1)
  return np.rint((STEPS - 1) * share).astype(np.uint8)


def cover() -> np.ndarray:
  """How opaque each place of HEAT lies over an image, (STEPS,) uint8.

  The more, the hotter; but so that the image can still be seen.
  """
  share = np.linspace(0, 1, STEPS)
  return np.rint(255 * _MOST_COVER * share**0.7).astype(np.uint8)


def overlaid(image: np.ndarray, values: np.ndarray, peak: float) -> np.ndarray:
  """An image under a heat map.

  Args:
    image: (H, W, 3) uint8.
    values: (H, W), 0 or more.
    peak: the value of the hottest colour.

  Returns:
    (H, W, 3) uint8.
  """
  place = heat(values, peak)
  opaque = cover()[place][..., None] / 255
  mixed = (1 - opaque) * image + opaque * palette(HEAT)[place]
  return np.rint(mixed).astype(np.uint8)
