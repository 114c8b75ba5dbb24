# SPDX-License-Identifier: Apache-2.0
"""An image file's bytes to an RGB image, by Pillow."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

# The formats that are decoded, with the suffixes of images in folders.  Other
# formats of Pillow start programs (EPS), or do not hold photographs.
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
  is converted by Pillow's formula, without colour profiles; 16-bit images keep
  their upper 8 bits; EXIF orientation is ignored (Pillow itself applies that
  of a TIFF); an animation gives its first frame.

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
    return Image.open(io.BytesIO(image), formats=FORMATS)


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
  image.load()
  if 0 in image.size:
    raise ImageError('it has no pixels')
  if image.mode.startswith('I'):
    # Pillow's own conversion clips values at 255.
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 1 << 16:
      raise ImageError('its values are outside 16 bits; store it as 8 or 16')
    return Image.fromarray((values >> 8).astype(np.uint8)).convert('RGB')
  if image.mode == 'F':
    raise ImageError(
      'floating-point values have no agreed white; store it as 8 or 16 bits'
    )
  # `convert` would copy it.
  return image if image.mode == 'RGB' else image.convert('RGB')
