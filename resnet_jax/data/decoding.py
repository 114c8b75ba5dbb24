# SPDX-License-Identifier: Apache-2.0
"""An image file's bytes to an RGB image, by Pillow.

What cannot be read is an ImageError that says why.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

# What is decoded, and by which suffixes a folder's images are known.  Other
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


class ImageError(Exception):
  """An image that cannot be read; the message is the reason."""


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


def decode(image: bytes | Image.Image) -> Image.Image:
  """An RGB image, of a file's bytes or of a Pillow image.

  Grey and palette images become RGB; alpha is dropped, the colours below it
  kept; CMYK is converted by Pillow's formula, without colour profiles; of 16
  bits the upper 8 are taken; EXIF's orientation is ignored (that of a TIFF
  Pillow applies itself); an animated image gives its first frame.

  Raises:
    ImageError: it cannot be read; says why.
  """
  unread = opened(image)
  with reading():
    return to_rgb(unread)


def opened(image: bytes | Image.Image) -> Image.Image:
  """The image of a file's bytes, its pixels not yet read.

  Raises:
    ImageError: it is of none of the FORMATS, or damaged; says why.
  """
  if isinstance(image, Image.Image):
    return image
  with reading():
    if not image:
      raise ImageError('the file is empty')
    return Image.open(io.BytesIO(image), formats=FORMATS)


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """Makes an ImageError of whatever Pillow raises."""
  try:
    # Warnings of damaged EXIF say nothing about pixels.  An image over
    # Pillow's limit is an error, below it none.
    with _SILENCE:
      yield
  except ImageError:
    raise
  except Image.UnidentifiedImageError as error:
    raise ImageError(
      f'it is in none of the formats {", ".join(FORMATS)}'
    ) from error
  except Exception as error:
    # Decoders raise nearly anything on damaged files.
    raise ImageError(str(error) or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
  """As `decode` says, of an opened image; Pillow may raise anything."""
  image.load()
  if 0 in image.size:
    raise ImageError('it has no pixels')
  if image.mode.startswith('I'):
    # Pillow itself would cut such values off at 255.
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 1 << 16:
      raise ImageError('its values are outside 16 bits; store it as 8 or 16')
    return Image.fromarray((values >> 8).astype(np.uint8)).convert('RGB')
  if image.mode == 'F':
    raise ImageError(
      'floating-point values have no agreed white; store it as 8 or 16 bits'
    )
  # Pillow would copy it.
  return image if image.mode == 'RGB' else image.convert('RGB')
