# SPDX-License-Identifier: Apache-2.0
"""From numbers to colours, by Matplotlib's colour maps.

Diverging: blue below 0, white at 0, red above, safe for red-green blindness.
"""

import functools
from typing import Any

import numpy as np

from resnet_jax.system import errors

DIVERGING = 'RdBu_r'
HEAT = 'inferno'

# Odd, so that 0 has its own colour.
STEPS = 255
MIDDLE = STEPS // 2

_MAX_OPACITY = 0.75


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
      "plots need Matplotlib: pip install 'resnet-jax-zoo[views]' (in a"
      " checkout '.[views]')."
    ) from error
  return library


@functools.cache
def palette(name: str) -> np.ndarray:
  """(STEPS, 3) uint8, RGB."""
  table = matplotlib().colormaps[name](np.linspace(0, 1, STEPS))
  return np.rint(255 * table[:, :3]).astype(np.uint8)


def diverging(values: np.ndarray, limit: float) -> np.ndarray:
  """Indices into the palette DIVERGING, uint8; its ends are +-`limit`."""
  share = np.clip(values / limit, -1, 1)
  return (MIDDLE + np.rint(MIDDLE * share)).astype(np.uint8)


def heat(values: np.ndarray, peak: float) -> np.ndarray:
  """Indices into the palette HEAT, uint8: from 0 to `peak`."""
  share = np.clip(values / (peak or 1.0), 0, 1)
  return np.rint((STEPS - 1) * share).astype(np.uint8)


def opacity() -> np.ndarray:
  """Opacity of each colour of HEAT over an image, (STEPS,) uint8.

  It grows with the heat, but leaves the image visible.
  """
  share = np.linspace(0, 1, STEPS)
  return np.rint(255 * _MAX_OPACITY * share**0.7).astype(np.uint8)


def overlaid(image: np.ndarray, values: np.ndarray, peak: float) -> np.ndarray:
  """An image with a heat map over it.

  Args:
    image: (H, W, 3) uint8.
    values: (H, W), 0 or more.
    peak: the value of the hottest colour.

  Returns:
    (H, W, 3) uint8.
  """
  index = heat(values, peak)
  opaque = opacity()[index][..., None] / 255
  mixed = (1 - opaque) * image + opaque * palette(HEAT)[index]
  return np.rint(mixed).astype(np.uint8)
