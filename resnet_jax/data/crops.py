# SPDX-License-Identifier: Apache-2.0
"""From an image to the network's input.

The host decodes, resizes and crops to uint8; the device mirrors, orders the
channels and subtracts the mean (`normalise`, written once for NumPy and JAX).
Source: the original program's loader, PaddlePaddle 0.8 to 0.10,
`demo/model_zoo/resnet/classify.py` and `paddle.utils.image_util`.
"""

import dataclasses
import fractions
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data import decoding
from resnet_jax.data import mean as mean_lib
from resnet_jax.data.preprocess import Preprocess

# Of a resized image: four hundred times 256x256.
_MAX_PIXELS = 400 * 256 * 256


def crops_of(image: bytes | Image.Image, preprocess: Preprocess) -> np.ndarray:
  """The crops of a file's bytes or of a Pillow image.

  Returns:
    (preprocess.cuts, S, S, 3) uint8, RGB.

  Raises:
    ImageError: the image cannot be read or resized; says why.
  """
  if preprocess.decode == 'exact' or preprocess.resize == 'none':
    return cut(decoding.decode(image), preprocess)
  return _cut_scaled(decoding.opened(image), preprocess)


def _resized_size(
  size: tuple[int, int], preprocess: Preprocess
) -> tuple[int, int]:
  """The (width, height) that an image of such a size is resized to.

  Raises:
    ImageError: that would be unreasonably large.
  """
  if preprocess.resize == 'squash':
    # Between the two passes, a tall and narrow image becomes large.
    width, height = preprocess.crop_size, size[1]
    if width * height > max(_MAX_PIXELS, 2 * size[0] * height):
      raise decoding.ImageError(
        f'of {size[0]}x{size[1]} pixels it would be resized to'
        f' {width}x{height} first, which is more than {_MAX_PIXELS} pixels;'
        ' crop it'
      )
    return preprocess.crop_size, preprocess.crop_size
  short = min(size)
  # In integers, so that no machine rounds otherwise.
  half = short if preprocess.rounding == 'nearest' else 0
  width, height = (
    (2 * side * preprocess.resize_size + half) // (2 * short) for side in size
  )
  if width * height > _MAX_PIXELS:
    raise decoding.ImageError(
      f'of {size[0]}x{size[1]} pixels it would be resized to {width}x{height},'
      f' which is more than {_MAX_PIXELS} pixels; crop it, or use resize=squash'
    )
  return width, height


def cut(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
  """Resizes and crops an RGB image to (preprocess.cuts, S, S, 3) uint8.

  Resizes across, then down: values are rounded between the passes, so their
  order matters, and Pillow's own depends on its version and the image's shape.

  Raises:
    ImageError: the resized image would be unreasonably large; or resize is
      'none', and the image does not have the size of a crop.
  """
  filter_ = Image.Resampling[preprocess.interpolation.upper()]
  size = preprocess.crop_size
  if preprocess.resize == 'none':
    if image.size != (size, size):
      raise decoding.ImageError(
        f'it has {image.width}x{image.height} pixels, and resize=none takes'
        f' {size}x{size} only; set crop_size, or resize=short_side'
      )
    return np.asarray(image)[None]
  width, height = _resized_size(image.size, preprocess)
  if preprocess.multi_crop or preprocess.resize == 'squash':
    across = image.resize((width, image.height), filter_)
    return _crops(
      np.asarray(across.resize((width, height), filter_)), preprocess
    )
  [(top, left)] = _offsets(height, width, preprocess)
  x = _needed(image.width, width, left, size)
  y = _needed(image.height, height, top, size)
  across = image.resize(
    (x.pixels, image.height), filter_, (x.begin, 0, x.end, image.height)
  ).crop((x.crop, 0, x.crop + size, image.height))
  resized = across.resize((size, y.pixels), filter_, (0, y.begin, size, y.end))
  return np.asarray(resized)[None, y.crop : y.crop + size]


@dataclasses.dataclass(frozen=True)
class _Needed:
  """The part of a side that is resized for a crop.

  Attributes:
    begin, end: in pixels of the image.
    pixels: the size that it is resized to.
    crop: where the crop begins in that.
  """

  begin: float
  end: float
  pixels: int
  crop: int


def _needed(side: int, resized: int, offset: int, crop: int) -> _Needed:
  """The part below the crop if that gives the same pixels, else all.

  Pillow takes the part to resize in float32 and computes the filters' centres
  in float64.  So the pixels are the same where nothing is rounded: where the
  scale is an integer over a power of two, as it always is for a side that
  becomes 256, and seldom for one that becomes 232.

  Args:
    side: pixels of the image.
    resized: pixels that the whole side becomes.
    offset: where the crop begins in these.
    crop: pixels of the crop.
  """
  scale = fractions.Fraction(side, resized)
  whole, parts = scale.as_integer_ratio()
  if parts & (parts - 1) or (offset + crop) * whole >= 1 << 24:
    return _Needed(0, side, resized, offset)
  begin, end = (float(scale * at) for at in (offset, offset + crop))
  return _Needed(begin, end, crop, 0)


def _cut_scaled(opened: Image.Image, preprocess: Preprocess) -> np.ndarray:
  """Like `cut`, but decodes and resizes only what a crop needs, nearly."""
  if 0 in opened.size:
    raise decoding.ImageError('it has no pixels')
  width, height = size = _resized_size(opened.size, preprocess)
  extent: tuple[float, float] = opened.size
  with decoding.reading():
    # No smaller than `size`; the last pixels may lie partly outside the image.
    if drafted := opened.draft('RGB', size):
      extent = drafted[1][2:]
    image = decoding.to_rgb(opened)
  filter_ = Image.Resampling[preprocess.interpolation.upper()]
  if preprocess.multi_crop or preprocess.resize == 'squash':
    resized = image.resize(size, filter_, (0, 0, *extent))
    return _crops(np.asarray(resized), preprocess)
  side = preprocess.crop_size
  [(top, left)] = _offsets(height, width, preprocess)
  across, down = extent[0] / width, extent[1] / height
  right, bottom = (left + side) * across, (top + side) * down
  box = (left * across, top * down, right, bottom)
  return np.asarray(image.resize((side, side), filter_, box))[None]


def _crops(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
  side = preprocess.crop_size
  height, width, _ = pixels.shape
  return np.stack(
    [
      pixels[top : top + side, left : left + side]
      for top, left in _offsets(height, width, preprocess)
    ]
  )


def _offsets(
  height: int, width: int, preprocess: Preprocess
) -> list[tuple[int, int]]:
  """The (top, left) of each crop."""
  down, across = height - preprocess.crop_size, width - preprocess.crop_size
  middle = (down // 2, across // 2)
  if preprocess.rounding == 'torchvision':
    middle = (round(down / 2), round(across / 2))
  corners = [(y, x) for y in (0, down) for x in (0, across)]
  return [*corners, middle] if preprocess.multi_crop else [middle]


def normalise(
  cuts: Any,
  mean: Any,
  multi_crop: bool,
  numpy: Any,
  *,
  channels: str = 'BGR',
  std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Any:
  """From uint8 crops to the network's input, by NumPy or JAX.

  Args:
    cuts: (N, cuts, H, W, 3) uint8, RGB.
    mean: float32, (3, 1, 1) or (3, H, W), as `mean.as_array` gives it.
    multi_crop: whether to append the mirror images of each image's crops.  A
      mean image is not mirrored with them, as in the original.
    numpy: the module to compute with, numpy or jax.numpy.
    channels: 'BGR' or 'RGB', of the mean, the std and the result.
    std: the divisor, after the mean.

  Returns:
    (N * crops, H, W, 3) float32, minus the mean, over the std.
  """
  if multi_crop:
    cuts = numpy.concatenate([cuts, cuts[:, :, :, ::-1]], axis=1)
  x = cuts.reshape(-1, *cuts.shape[2:]).astype(numpy.float32)
  x = x[..., ::-1] if channels == 'BGR' else x
  x = x - numpy.transpose(mean, (1, 2, 0))[None]
  if all(value == 1 for value in std):
    return x
  return x / numpy.asarray(std, numpy.float32)[None, None, None]


def network_input(pixels: Any, preprocess: Preprocess, numpy: Any) -> Any:
  """From images (N, H, W, 3), RGB, to the network's input; see `normalise`."""
  return normalise(
    pixels[:, None],
    mean_lib.as_array(preprocess.mean),
    False,
    numpy,
    channels=preprocess.channels,
    std=preprocess.std,
  )
