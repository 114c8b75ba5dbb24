# SPDX-License-Identifier: Apache-2.0
"""From an image file to what the network takes.

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
from resnet_jax.data import mean as means
from resnet_jax.system import errors

INTERPOLATIONS = {
  'lanczos': Image.Resampling.LANCZOS,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}
RESIZES = ('short_side', 'squash', 'none')
CHANNELS = ('BGR', 'RGB')
ROUNDINGS = ('nearest', 'torchvision')
DECODES = ('exact', 'scaled')

# Of a resized image: four hundred times 256x256.
_MAX_PIXELS = 400 * 256 * 256


@dataclasses.dataclass(frozen=True, eq=False)
class Preprocess:
  """How an image becomes the network's input.

  Attributes:
    mean: what is subtracted.
    resize: 'short_side', the shorter side to `resize_size`; 'squash', the
      whole image to a square of `crop_size` (the original demo's); or 'none':
      images are of that size, and taken as they are.
    resize_size: the shorter side, pixels.
    crop_size: height and width of a crop, pixels.
    multi_crop: ten crops: top left, top right, bottom left, bottom right,
      centre, and the mirror images of these five, in this order.
    interpolation: a key of INTERPOLATIONS.
    channels: 'BGR' or 'RGB', the order of mean, std and the input.
    std: what is divided by, after the mean, on the scale 0 to 255.
    rounding: how the longer side and the offsets of a crop become whole:
      'nearest', halves up and offsets down, as the original; or 'torchvision',
      the side down and offsets to the nearest, halves to even.
    decode: 'exact', all pixels, resized, then cropped; or 'scaled', faster and
      other pixels: a JPEG is decoded at a half, a quarter or an eighth of its
      size where that is no smaller than it will be resized to, and of a
      single crop only its own pixels are resized.
  """

  mean: means.Mean
  resize: str = 'short_side'
  resize_size: int = 256
  crop_size: int = 224
  multi_crop: bool = False
  interpolation: str = 'lanczos'
  channels: str = 'BGR'
  std: tuple[float, float, float] = (1.0, 1.0, 1.0)
  rounding: str = 'nearest'
  decode: str = 'exact'

  def __post_init__(self) -> None:
    errors.check_choice('resize', self.resize, RESIZES)
    errors.check_choice('interpolation', self.interpolation, INTERPOLATIONS)
    errors.check_choice('channels', self.channels, CHANNELS)
    errors.check_choice('rounding', self.rounding, ROUNDINGS)
    errors.check_choice('decode', self.decode, DECODES)
    if not 32 <= self.crop_size <= 4096:
      raise errors.UserError(
        f'crop_size={self.crop_size} is not between 32 and 4096.'
      )
    if self.multi_crop and self.resize != 'short_side':
      which = {
        'squash': 'a squashed image',
        'none': 'with resize=none an image',
      }[self.resize]
      raise errors.UserError(
        f'multi_crop=true needs resize=short_side: {which} is no larger than'
        ' one crop.'
      )
    if self.resize == 'short_side' and not (
      self.crop_size <= self.resize_size <= 8192
    ):
      raise errors.UserError(
        f'resize_size={self.resize_size} is not between'
        f' crop_size={self.crop_size} and 8192.'
      )
    means.check_mean(self.mean, self.crop_size, self.crop_size)

  @property
  def cuts(self) -> int:
    """Crops that are cut out; the device makes the mirrored ones."""
    return 5 if self.multi_crop else 1

  @property
  def crops(self) -> int:
    """Crops that an image's values are averaged over."""
    return 10 if self.multi_crop else 1

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(cuts, S, S, 3), of an image's pixels."""
    return self.cuts, self.crop_size, self.crop_size, 3

  def describe(self) -> str:
    """One line for the run's record."""
    size = f'{self.crop_size}x{self.crop_size}'
    over = f', over {_tuple(self.std)}' if self.std != (1.0, 1.0, 1.0) else ''
    colours = f'{self.channels}, minus {self.mean.description}{over}'
    if self.decode != 'exact':
      colours += f', {self.decode} decoding'
    if self.resize == 'none':
      return f'images of {size} as they are, {colours}'
    if self.resize == 'squash':
      cut = f'whole image resized to {size} ({self.interpolation})'
    else:
      cut = f'shorter side to {self.resize_size} ({self.interpolation}), '
      cut += (
        f'ten crops of {size} averaged'
        if self.multi_crop
        else f'centre crop {size}'
      )
    if self.rounding != 'nearest':
      cut += f' ({self.rounding} rounding)'
    return f'{cut}, {colours}'


def _tuple(values: Sequence[float]) -> str:
  return f'({", ".join(f"{value:g}" for value in values)})'


def crops_of(image: bytes | Image.Image, how: Preprocess) -> np.ndarray:
  """The (how.cuts, S, S, 3) uint8 of a file's bytes or of a Pillow image.

  Raises:
    ImageError: it cannot be read or resized; says why.
  """
  if how.decode == 'exact' or how.resize == 'none':
    return cut(decoding.decode(image), how)
  return _cut_scaled(decoding.opened(image), how)


def _resized_size(size: tuple[int, int], how: Preprocess) -> tuple[int, int]:
  """The (width, height) that an image of such a size is resized to.

  Raises:
    ImageError: that would be unreasonably large.
  """
  if how.resize == 'squash':
    # What is between the two passes: large of a narrow, tall image.
    width, height = how.crop_size, size[1]
    if width * height > max(_MAX_PIXELS, 2 * size[0] * height):
      raise decoding.ImageError(
        f'of {size[0]}x{size[1]} pixels it would be resized to'
        f' {width}x{height} first, which is more than {_MAX_PIXELS} pixels;'
        ' crop it'
      )
    return how.crop_size, how.crop_size
  short = min(size)
  # In integers, so that no machine rounds otherwise.
  half = short if how.rounding == 'nearest' else 0
  width, height = (
    (2 * side * how.resize_size + half) // (2 * short) for side in size
  )
  if width * height > _MAX_PIXELS:
    raise decoding.ImageError(
      f'of {size[0]}x{size[1]} pixels it would be resized to {width}x{height},'
      f' which is more than {_MAX_PIXELS} pixels; crop it, or use resize=squash'
    )
  return width, height


def cut(image: Image.Image, how: Preprocess) -> np.ndarray:
  """Resizes and crops an RGB image to (how.cuts, S, S, 3) uint8.

  First across, then down: between them values are rounded, so the order
  matters, and Pillow's own depends on its version and the image's shape.

  Raises:
    ImageError: resized, it would be unreasonably large; or it may not be
      resized, and has not the size of a crop.
  """
  filter_ = INTERPOLATIONS[how.interpolation]
  size = how.crop_size
  if how.resize == 'none':
    if image.size != (size, size):
      raise decoding.ImageError(
        f'it has {image.width}x{image.height} pixels, and resize=none takes'
        f' {size}x{size} only; set crop_size, or resize=short_side'
      )
    return np.asarray(image)[None]
  width, height = _resized_size(image.size, how)
  if how.multi_crop or how.resize == 'squash':
    across = image.resize((width, image.height), filter_)
    return _crops(np.asarray(across.resize((width, height), filter_)), how)
  [(top, left)] = _offsets(height, width, how)
  x = _needed(image.width, width, left, size)
  y = _needed(image.height, height, top, size)
  across = image.resize(
    (x.pixels, image.height), filter_, (x.begin, 0, x.end, image.height)
  ).crop((x.crop, 0, x.crop + size, image.height))
  resized = across.resize((size, y.pixels), filter_, (0, y.begin, size, y.end))
  return np.asarray(resized)[None, y.crop : y.crop + size]


@dataclasses.dataclass(frozen=True)
class _Needed:
  """What is resized along one side, for a crop.

  Attributes:
    begin, end: of the image, in its pixels.
    pixels: what that becomes.
    crop: where the crop begins in it.
  """

  begin: float
  end: float
  pixels: int
  crop: int


def _needed(side: int, resized: int, offset: int, crop: int) -> _Needed:
  """The crop alone where that gives the same pixels, otherwise all.

  Pillow takes the part to resize as floats of 32 bits and finds the middles of
  the filters as floats of 64.  So the pixels are the same where nothing is
  rounded: where the scale is a whole number over a power of two, as that of a
  side that becomes 256 always is, and of one that becomes 232 seldom.

  Args:
    side: of the image, pixels.
    resized: what it becomes as a whole, pixels.
    offset: where the crop begins in that.
    crop: its pixels.
  """
  scale = fractions.Fraction(side, resized)
  whole, parts = scale.as_integer_ratio()
  if parts & (parts - 1) or (offset + crop) * whole >= 1 << 24:
    return _Needed(0, side, resized, offset)
  begin, end = (float(scale * at) for at in (offset, offset + crop))
  return _Needed(begin, end, crop, 0)


def _cut_scaled(opened: Image.Image, how: Preprocess) -> np.ndarray:
  """Decodes and cuts what an image has of pixels that are needed, nearly."""
  if 0 in opened.size:
    raise decoding.ImageError('it has no pixels')
  width, height = size = _resized_size(opened.size, how)
  extent: tuple[float, float] = opened.size
  with decoding.reading():
    # A JPEG gets no smaller than `size`; its last pixels may lie half outside.
    if drafted := opened.draft('RGB', size):
      extent = drafted[1][2:]
    image = decoding.to_rgb(opened)
  filter_ = INTERPOLATIONS[how.interpolation]
  if how.multi_crop or how.resize == 'squash':
    resized = image.resize(size, filter_, (0, 0, *extent))
    return _crops(np.asarray(resized), how)
  side = how.crop_size
  [(top, left)] = _offsets(height, width, how)
  across, down = extent[0] / width, extent[1] / height
  right, bottom = (left + side) * across, (top + side) * down
  box = (left * across, top * down, right, bottom)
  return np.asarray(image.resize((side, side), filter_, box))[None]


def _crops(pixels: np.ndarray, how: Preprocess) -> np.ndarray:
  side = how.crop_size
  height, width, _ = pixels.shape
  return np.stack(
    [
      pixels[top : top + side, left : left + side]
      for top, left in _offsets(height, width, how)
    ]
  )


def _offsets(height: int, width: int, how: Preprocess) -> list[tuple[int, int]]:
  """The (top, left) of each crop."""
  down, across = height - how.crop_size, width - how.crop_size
  middle = (_middle(down, how.rounding), _middle(across, how.rounding))
  corners = [(y, x) for y in (0, down) for x in (0, across)]
  return [*corners, middle] if how.multi_crop else [middle]


def _middle(room: int, rounding: str) -> int:
  return room // 2 if rounding == 'nearest' else round(room / 2)


def normalise(
  cuts: Any,
  mean: Any,
  multi_crop: bool,
  numpy: Any,
  *,
  channels: str = 'BGR',
  std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Any:
  """Cut-out uint8 crops to the network's input, by NumPy or JAX.

  Args:
    cuts: (N, cuts, H, W, 3) uint8, RGB.
    mean: float32, (3, 1, 1) or (3, H, W).
    multi_crop: whether mirror images are added behind the crops of each
      image.  The mean of a file is not mirrored with them, as it was not in
      the original.
    numpy: the module to compute with, numpy or jax.numpy.
    channels: 'BGR' or 'RGB', of the mean, the std and the result.
    std: what is divided by.

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
