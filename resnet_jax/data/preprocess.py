# SPDX-License-Identifier: Apache-2.0
"""From a picture file to what the network takes.

The host decodes, resizes and crops to uint8; the device mirrors, orders the
channels and subtracts the mean (`normalise`, written once for NumPy and JAX).
Source: the original program's loader, PaddlePaddle 0.8 to 0.10,
`demo/model_zoo/resnet/classify.py` and `paddle.utils.image_util`.
"""

import dataclasses
import io
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax import errors
from resnet_jax.data import mean as means

INTERPOLATIONS = {
  'lanczos': Image.Resampling.LANCZOS,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}
RESIZES = ('short_side', 'squash', 'none')
CHANNELS = ('BGR', 'RGB')
ROUNDINGS = ('nearest', 'torchvision')

# What is decoded, and by which suffixes a folder's pictures are known.  Other
# formats of Pillow start programs (EPS), or no photographs come in them.
_SUFFIXES_OF = {
  'JPEG': ('.jpg', '.jpeg'),
  'PNG': ('.png',),
  'GIF': ('.gif',),
  'BMP': ('.bmp',),
  'TIFF': ('.tif', '.tiff'),
  'WEBP': ('.webp',),
  'PPM': ('.ppm', '.pgm'),
}
FORMATS = tuple(_SUFFIXES_OF)
SUFFIXES = tuple(s for suffixes in _SUFFIXES_OF.values() for s in suffixes)

# Of a resized picture: four hundred times 256x256.
_MAX_PIXELS = 400 * 256 * 256


class PictureError(Exception):
  """A picture that cannot be read; the message is the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Preprocess:
  """How a picture becomes the network's input.

  Attributes:
    mean: what is subtracted.
    resize: 'short_side', the shorter side to `resize_size`; 'squash', the
      whole picture to a square of `crop_size` (the original demo's); or 'none':
      pictures are of that size, and taken as they are.
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

  def __post_init__(self) -> None:
    errors.check_choice('resize', self.resize, RESIZES)
    errors.check_choice('interpolation', self.interpolation, INTERPOLATIONS)
    errors.check_choice('channels', self.channels, CHANNELS)
    errors.check_choice('rounding', self.rounding, ROUNDINGS)
    if not 32 <= self.crop_size <= 4096:
      raise errors.UserError(
        f'crop_size={self.crop_size} is not between 32 and 4096.'
      )
    if self.multi_crop and self.resize != 'short_side':
      which = {
        'squash': 'a squashed picture',
        'none': 'with resize=none a picture',
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
    """Crops that a picture's values are averaged over."""
    return 10 if self.multi_crop else 1

  def describe(self) -> str:
    """One line for the run's record."""
    size = f'{self.crop_size}x{self.crop_size}'
    over = f', over {_tuple(self.std)}' if self.std != (1.0, 1.0, 1.0) else ''
    colours = f'{self.channels}, minus {self.mean.description}{over}'
    if self.resize == 'none':
      return f'pictures of {size} as they are, {colours}'
    if self.resize == 'squash':
      cut = f'whole picture resized to {size} ({self.interpolation})'
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


# -------------------------------------------------------------- a picture


class _Silence:
  """No warnings while any thread is inside.

  `warnings.catch_warnings` is one for the process: entered by several threads
  by turns, it may leave every warning silenced for good.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._inside = 0
    self._caught = warnings.catch_warnings()

  def __enter__(self) -> None:
    with self._lock:
      if not self._inside:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter('ignore')
      self._inside += 1

  def __exit__(self, *error: object) -> None:
    with self._lock:
      self._inside -= 1
      if not self._inside:
        self._caught.__exit__(None, None, None)


_SILENCE = _Silence()


def decode(picture: bytes | Image.Image) -> Image.Image:
  """An RGB picture, of a file's bytes or of a Pillow image.

  Grey and palette pictures become RGB; alpha is dropped, the colours below it
  kept; CMYK is converted by Pillow's formula, without colour profiles; of 16
  bits the upper 8 are taken; EXIF's orientation is ignored (that of a TIFF
  Pillow applies itself); an animated picture gives its first frame.

  Raises:
    PictureError: it cannot be read; says why.
  """
  try:
    # Warnings of damaged EXIF say nothing about pixels.  A picture over
    # Pillow's limit is an error, below it none.
    with _SILENCE:
      if not isinstance(picture, Image.Image):
        if not picture:
          raise PictureError('the file is empty')
        picture = Image.open(io.BytesIO(picture), formats=FORMATS)
      return _to_rgb(picture)
  except PictureError:
    raise
  except Image.UnidentifiedImageError as error:
    raise PictureError(
      f'it is in none of the formats {", ".join(FORMATS)}'
    ) from error
  except Exception as error:
    # Decoders raise nearly anything on damaged files.
    raise PictureError(str(error) or type(error).__name__) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
  picture.load()
  if 0 in picture.size:
    raise PictureError('it has no pixels')
  if picture.mode.startswith('I'):
    # Pillow itself would cut such values off at 255.
    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 1 << 16:
      raise PictureError('its values are outside 16 bits; store it as 8 or 16')
    return Image.fromarray((values >> 8).astype(np.uint8)).convert('RGB')
  if picture.mode == 'F':
    raise PictureError(
      'floating-point values have no agreed white; store it as 8 or 16 bits'
    )
  return picture.convert('RGB')


def cut(picture: Image.Image, how: Preprocess) -> np.ndarray:
  """Resizes and crops an RGB picture to (how.cuts, S, S, 3) uint8.

  Raises:
    PictureError: resized, it would be unreasonably large; or it may not be
      resized, and has not the size of a crop.
  """
  filter_ = INTERPOLATIONS[how.interpolation]
  size = how.crop_size
  if how.resize == 'none':
    if picture.size != (size, size):
      raise PictureError(
        f'it has {picture.width}x{picture.height} pixels, and resize=none takes'
        f' {size}x{size} only; set crop_size, or resize=short_side'
      )
    return np.asarray(picture)[None]
  if how.resize == 'squash':
    resized = picture.resize((size, size), filter_)
    return np.asarray(resized)[None]
  width, height = picture.size
  short = min(width, height)
  # In integers, so that no machine rounds otherwise.
  half = short if how.rounding == 'nearest' else 0
  width, height = (
    (2 * side * how.resize_size + half) // (2 * short)
    for side in (width, height)
  )
  if width * height > _MAX_PIXELS:
    raise PictureError(
      f'of {picture.width}x{picture.height} pixels it would be resized to'
      f' {width}x{height}, which is more than {_MAX_PIXELS} pixels; crop it, or'
      ' use resize=squash'
    )
  pixels = np.asarray(picture.resize((width, height), filter_))
  middle = tuple(_middle(n - size, how.rounding) for n in (height, width))
  corners = [(y, x) for y in (0, height - size) for x in (0, width - size)]
  return np.stack(
    [
      pixels[y : y + size, x : x + size]
      for y, x in ([*corners, middle] if how.multi_crop else [middle])
    ]
  )


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
      picture.  The mean of a file is not mirrored with them, as it was not in
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
