# SPDX-License-Identifier: Apache-2.0
"""From a picture file to what the network takes.

The host decodes, resizes and crops to uint8; the device mirrors, orders the
channels and subtracts the mean (`normalise`, written once for NumPy and JAX).
Source: the original program's loader, PaddlePaddle 0.8 to 0.10,
`demo/model_zoo/resnet/classify.py` and `paddle.utils.image_util`.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
import threading
import warnings
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax import errors, pickles

INTERPOLATIONS = {
  'lanczos': Image.Resampling.LANCZOS,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}
RESIZES = ('short_side', 'squash')
MEAN_BGR = (103.939, 116.779, 123.68)

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
_MAX_MEAN_BYTES = 1 << 26


class PictureError(Exception):
  """A picture that cannot be read; the message is the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
  """What is subtracted from a BGR picture.

  Attributes:
    values: float32, (3, 1, 1), or (3, H, W) for one value a pixel.
    description: for the run's record.
  """

  values: np.ndarray
  description: str


@dataclasses.dataclass(frozen=True, eq=False)
class Preprocess:
  """How a picture becomes the network's input.

  Attributes:
    mean: what is subtracted.
    resize: 'short_side', the shorter side to `resize_size`, or 'squash', the
      whole picture to a square of `crop_size` (the original demo's).
    resize_size: the shorter side, pixels.
    crop_size: height and width of a crop, pixels.
    multi_crop: ten crops: top left, top right, bottom left, bottom right,
      centre, and the mirror images of these five, in this order.
    interpolation: a key of INTERPOLATIONS.
  """

  mean: Mean
  resize: str = 'short_side'
  resize_size: int = 256
  crop_size: int = 224
  multi_crop: bool = False
  interpolation: str = 'lanczos'

  def __post_init__(self) -> None:
    errors.check_choice('resize', self.resize, RESIZES)
    errors.check_choice('interpolation', self.interpolation, INTERPOLATIONS)
    if not 32 <= self.crop_size <= 4096:
      raise errors.UserError(
        f'crop_size={self.crop_size} is not between 32 and 4096.'
      )
    if self.multi_crop and self.resize == 'squash':
      raise errors.UserError(
        'multi_crop=true needs resize=short_side: a squashed picture is no'
        ' larger than one crop.'
      )
    if self.resize == 'short_side' and not (
      self.crop_size <= self.resize_size <= 8192
    ):
      raise errors.UserError(
        f'resize_size={self.resize_size} is not between'
        f' crop_size={self.crop_size} and 8192.'
      )
    check_mean(self.mean, self.crop_size, self.crop_size)

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
    if self.resize == 'squash':
      cut = f'whole picture resized to {size} ({self.interpolation})'
    else:
      cut = f'shorter side to {self.resize_size} ({self.interpolation}), '
      cut += (
        f'ten crops of {size} averaged'
        if self.multi_crop
        else f'centre crop {size}'
      )
    return f'{cut}, BGR, minus {self.mean.description}'


def check_mean(mean: Mean, height: int, width: int) -> None:
  """Raises a UserError unless the mean fits crops of a size."""
  shape = mean.values.shape
  if shape not in ((3, 1, 1), (3, height, width)):
    raise errors.UserError(
      f'{mean.description} has the shape {shape}; crops of {height}x{width}'
      f' need (3, {height}, {width}), or three values: mean='
      + ','.join(map(str, MEAN_BGR))
    )


# ---------------------------------------------------------------- the mean


def parse_mean(text: str, crop_size: int) -> Mean:
  """The mean from three values or from a file.

  Args:
    text: `103.939,116.779,123.68`, in BGR order; or the path of an `.npz` or
      a pickle (Python 2's, too) whose `data_mean` holds 3 * size * size
      values, BGR, (C, H, W).
    crop_size: the size that a file must have.

  Raises:
    UserError: neither of the two, or in another shape.
  """
  parts = text.split(',')
  try:
    values = [float(part) for part in parts]
  except ValueError:
    return _mean_file(pathlib.Path(os.path.expanduser(text)), crop_size)
  array = _float32(values)
  if len(values) != 3 or not np.isfinite(array).all():
    raise errors.UserError(
      f"mean='{text}' is neither three finite values, BGR, such as"
      f' {",".join(map(str, MEAN_BGR))}, nor a file.'
    )
  return Mean(
    array.reshape(3, 1, 1), f'({", ".join(p.strip() for p in parts)})'
  )


def _float32(values: Any) -> np.ndarray:
  # Values beyond its range become infinite, and are refused as such.
  with np.errstate(over='ignore'):
    return np.asarray(values, np.float32)


def _mean_file(path: pathlib.Path, crop_size: int) -> Mean:
  if not os.path.isfile(path):
    raise errors.UserError(
      f"mean='{path}': there is no such file. Give a file (npz or pickle with"
      ' data_mean) or three values in BGR order:'
      f' {",".join(map(str, MEAN_BGR))}.'
    )
  if path.stat().st_size > _MAX_MEAN_BYTES:
    raise errors.UserError(f'{path} is too large for a mean file.')
  if zipfile.is_zipfile(path):
    array = _npz_mean(path)
  else:
    contents = pickles.load_arrays(path)
    array = contents.get('data_mean') if isinstance(contents, dict) else None
  if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiu':
    raise errors.UserError(f"{path} holds no array of numbers 'data_mean'.")
  array = _float32(array)
  # (H, W, 3) has as many values, and would be read as noise.
  shape = tuple(size for size in array.shape if size != 1)
  fits = shape in ((3 * crop_size**2,), (3, crop_size, crop_size))
  if not fits or not np.isfinite(array).all():
    raise errors.UserError(
      f'{path}: data_mean holds {array.size} values of shape {array.shape};'
      f' {3 * crop_size**2} finite ones are needed, (3, {crop_size},'
      f' {crop_size}) in BGR order, or set crop_size to the size they are for.'
    )
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return Mean(
    array.reshape(3, crop_size, crop_size),
    f'mean file {path.name} (3x{crop_size}x{crop_size}, sha256 {digest[:16]})',
  )


def _npz_mean(path: pathlib.Path) -> np.ndarray | None:
  try:
    with zipfile.ZipFile(path) as archive:
      if 'data_mean.npy' not in archive.namelist():
        return None
      # The size is the archive's word; reading stops there whatever follows.
      size = archive.getinfo('data_mean.npy').file_size
      if size > _MAX_MEAN_BYTES:
        raise errors.UserError(f'{path}: data_mean is too large for a mean.')
      with archive.open('data_mean.npy') as member:
        return _npy(member.read(size))
  except errors.UserError:
    raise
  except Exception as error:
    # Damaged archives raise nearly anything, zlib's own error among them.
    raise errors.UserError(f'{path} is a damaged npz file: {error}.') from error


def _npy(data: bytes) -> np.ndarray:
  """An array of a `.npy`, its stated size checked before memory is taken."""
  file = io.BytesIO(data)
  version = np.lib.format.read_magic(file)
  read_header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if read_header is None:
    raise ValueError(f'npy format version {version}')
  shape, fortran, dtype = read_header(file)
  if dtype.hasobject:
    raise ValueError(f'an array of dtype {dtype}')
  values = np.frombuffer(data[file.tell() :], dtype)
  return values.reshape(shape, order='F' if fortran else 'C')


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
    PictureError: resized, it would be unreasonably large.
  """
  filter_ = INTERPOLATIONS[how.interpolation]
  size = how.crop_size
  if how.resize == 'squash':
    resized = picture.resize((size, size), filter_)
    return np.asarray(resized)[None]
  width, height = picture.size
  short = min(width, height)
  # The original rounds; in integers, so that no machine rounds otherwise.
  width, height = (
    (2 * side * how.resize_size + short) // (2 * short)
    for side in (width, height)
  )
  if width * height > _MAX_PIXELS:
    raise PictureError(
      f'of {picture.width}x{picture.height} pixels it would be resized to'
      f' {width}x{height}, which is more than {_MAX_PIXELS} pixels; crop it, or'
      ' use resize=squash'
    )
  pixels = np.asarray(picture.resize((width, height), filter_))
  middle = ((height - size) // 2, (width - size) // 2)
  corners = [(y, x) for y in (0, height - size) for x in (0, width - size)]
  return np.stack(
    [
      pixels[y : y + size, x : x + size]
      for y, x in ([*corners, middle] if how.multi_crop else [middle])
    ]
  )


def normalise(cuts: Any, mean: Any, multi_crop: bool, numpy: Any) -> Any:
  """Cut-out uint8 crops to the network's input, by NumPy or JAX.

  Args:
    cuts: (N, cuts, H, W, 3) uint8, RGB.
    mean: float32, (3, 1, 1) or (3, H, W), BGR.
    multi_crop: whether mirror images are added behind the crops of each
      picture.  The mean of a file is not mirrored with them, as it was not in
      the original.
    numpy: the module to compute with, numpy or jax.numpy.

  Returns:
    (N * crops, H, W, 3) float32, BGR, minus the mean.
  """
  if multi_crop:
    cuts = numpy.concatenate([cuts, cuts[:, :, :, ::-1]], axis=1)
  x = cuts.reshape(-1, *cuts.shape[2:])[..., ::-1].astype(numpy.float32)
  return x - numpy.transpose(mean, (1, 2, 0))[None]
