# SPDX-License-Identifier: Apache-2.0
"""An image file's bytes to an RGB image, by Pillow."""

import contextlib
import dataclasses
import importlib.util
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin, features

from resnet_jax.codecs import faults

# Pillow has it from 11.3 on, if it was built with it.
_HAS_AVIF = bool(
  importlib.util.find_spec('PIL.AvifImagePlugin') and features.check('avif')
)
# The formats that are decoded, with the suffixes of images in folders.  Other
# formats of Pillow start programs (EPS), or do not hold photographs.
_SUFFIXES_OF = {
  'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif', '.pjpeg', '.pjp', '.mpo'),
  'PNG': ('.png', '.apng'),
  'GIF': ('.gif',),
  'BMP': ('.bmp',),
  'DIB': ('.dib',),
  'TIFF': ('.tif', '.tiff'),
  'WEBP': ('.webp',),
  'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
  **({'AVIF': ('.avif', '.avifs')} if _HAS_AVIF else {}),
}
FORMATS = tuple(_SUFFIXES_OF)
SUFFIXES = tuple(s for suffixes in _SUFFIXES_OF.values() for s in suffixes)


_PNG = b'\x89PNG\r\n\x1a\n'
# Texts and the colour profile, which Pillow unpacks, and refuses above 1 MB.
_UNUSED_CHUNKS = (b'tEXt', b'zTXt', b'iTXt', b'iCCP')
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_UNSIGNED = 1
_SEPARATE = 2
_UNCOMPRESSED = 1
_STORE = 'store it as grey or RGB of 8 bits'


class ImageError(Exception):
  """An image that cannot be read; the message is the reason."""


class _Silence:
  """No warnings while any thread is inside.

  `warnings.catch_warnings` changes the whole process: when several threads
  overlap in it, every warning may stay silenced for good.
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


def decode(image: bytes | Image.Image) -> Image.Image:
  """Decodes a file's bytes, or converts a Pillow image, to RGB.

  Grey and palette images become RGB; alpha is dropped, without blending; CMYK
  is converted by Pillow's formula, without colour profiles; images of 9 to 16
  bits keep their upper 8 bits; EXIF orientation is ignored (Pillow itself
  applies that of a TIFF); an animation gives its first frame.

  Raises:
    ImageError: the image cannot be read; says why.
  """
  unread = opened(image)
  with reading():
    return to_rgb(unread)


def opened(image: bytes | Image.Image) -> Image.Image:
  """Opens the image in a file's bytes without reading its pixels.

  Raises:
    ImageError: the image is in none of the FORMATS, or damaged; says why.
  """
  if isinstance(image, Image.Image):
    return image
  with reading():
    if not image:
      raise ImageError('the file is empty')
    if faults.is_git_lfs(image):
      raise ImageError(f'it is {faults.GIT_LFS_SAYS}')
    if image.startswith(_PNG):
      image = _without_texts(image)
    try:
      return Image.open(io.BytesIO(image), formats=FORMATS)
    except Image.UnidentifiedImageError:
      if image.startswith(_TIFF):
        raise ImageError(_unread_tiff(image)) from None
      raise


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """Turns every exception of Pillow into an ImageError."""
  try:
    # Warnings about damaged EXIF do not concern pixels; an image over Pillow's
    # size limit raises an error anyway.
    with _SILENCE:
      yield
  except ImageError:
    raise
  except Image.UnidentifiedImageError as error:
    raise ImageError(
      f'it is in none of the formats {", ".join(FORMATS)}'
    ) from error
  except Exception as error:
    # Decoders raise almost any exception on damaged files.
    raise ImageError(str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts an opened image as `decode` does; Pillow may raise anything."""
  _check_planes(image)
  image.load()
  if 0 in image.size:
    raise ImageError('it has no pixels')
  if image.mode == 'F':
    raise ImageError(f'floating-point values have no agreed white; {_STORE}')
  if image.mode.startswith('I') and image.format not in FORMATS:
    # A copy of a TIFF may have 12 bits, or a white of zero.
    raise ImageError(
      f'values of mode {image.mode} without a file have no agreed white;'
      ' give the file, or scale them to 8 bits (uint8, mode L)'
    )
  layout = _layout(image)
  if layout.bits > 16:
    raise ImageError(
      f'values of {layout.bits} bits have no agreed white; {_STORE}'
    )
  if layout.is_signed:
    raise ImageError(f'signed values have no agreed black and white; {_STORE}')
  if image.mode.startswith('I'):
    # Pillow's own conversion clips values at 255.
    values = np.asarray(image).astype(np.int64) >> (layout.bits - 8)
    if layout.white_is_zero:
      values = 255 - values
    return Image.fromarray(values.astype(np.uint8)).convert('RGB')
  # `convert` would copy it.
  return image if image.mode == 'RGB' else image.convert('RGB')


@dataclasses.dataclass(frozen=True)
class _Layout:
  """What the values of a grey image mean.

  Attributes:
    bits: of a value.
    is_signed: whether values may be negative.
    white_is_zero: whether Pillow has left them inverted.
  """

  bits: int
  is_signed: bool = False
  white_is_zero: bool = False


def _layout(image: Image.Image) -> _Layout:
  """The layout by a TIFF's tags, else by Pillow's mode.

  Mode 'I' holds 16 bits of a PNG or PGM.
  """
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    tags = image.tag_v2
    return _Layout(
      max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))),
      set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) != {_UNSIGNED},
      # Pillow inverts what has up to 8 bits.
      image.mode.startswith('I')
      and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0,
    )
  return _Layout(16 if image.mode.startswith('I') else 8)


def _check_planes(image: Image.Image) -> None:
  """Refuses a TIFF whose planes Pillow reads as of 8 bits, though they are not.

  It reads compressed planes by libtiff, and well.
  """
  if not isinstance(image, TiffImagePlugin.TiffImageFile):
    return
  tags = image.tag_v2
  bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
  if (
    max(bits) > 8
    and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == _SEPARATE
    and tags.get(TiffImagePlugin.COMPRESSION, 1) == _UNCOMPRESSED
  ):
    raise ImageError(
      f'a TIFF of BitsPerSample {bits}, uncompressed with PlanarConfiguration 2'
      f' (a plane for each colour), cannot be decoded; {_STORE}, or with the'
      ' colours of a pixel together (PlanarConfiguration 1)'
    )


def _unread_tiff(data: bytes) -> str:
  """Why Pillow does not read a TIFF: the tags that say how it is stored."""
  names = ('BitsPerSample', 'SampleFormat', 'PhotometricInterpretation')
  file = io.BytesIO(data)
  with contextlib.suppress(Exception):
    # A BigTIFF has a longer header.
    head = file.read(16 if b'+' in data[2:4] else 8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    stated = [
      f'{name} {value!r:.40}'
      for name, value in tags.named().items()
      if name in names
    ]
    if stated:
      return f'a TIFF of {", ".join(stated)} cannot be decoded; {_STORE}'
  return 'its TIFF header is damaged'


def _without_texts(data: bytes) -> bytes:
  """A PNG without the chunks that do not concern its pixels."""
  kept, start, at = [], 0, len(_PNG)
  while at + 8 <= len(data):
    end = at + 12 + int.from_bytes(data[at : at + 4], 'big')
    if data[at + 4 : at + 8] in _UNUSED_CHUNKS:
      kept.append(data[start:at])
      start = end
    at = end
  return b''.join([*kept, data[start:]]) if kept else data
