# SPDX-License-Identifier: Apache-2.0
"""What is subtracted from images, and what they are divided by.

Three values, or one a pixel from a file: the original's `mean.meta` (npz or
pickle) or Caffe's `.binaryproto`.
"""

import dataclasses
import hashlib
import io
import math
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.codecs import blob, pickles
from resnet_jax.system import errors

MEAN_BGR = (103.939, 116.779, 123.68)

_MAX_MEAN_BYTES = 1 << 26
_META = 'mean.meta'


@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
  """What is subtracted from an image.

  Attributes:
    values: float32, (3, 1, 1), or (3, H, W) for one value a pixel.
    description: for the run's record.
  """

  values: np.ndarray
  description: str


def check_mean(mean: Mean, height: int, width: int) -> None:
  """Raises a UserError unless the mean fits crops of a size."""
  shape = mean.values.shape
  if shape not in ((3, 1, 1), (3, height, width)):
    raise errors.UserError(
      f'{mean.description} has the shape {shape}; crops of {height}x{width}'
      f' need (3, {height}, {width}), or three values: mean='
      + ','.join(map(str, MEAN_BGR))
    )


def parse_std(text: str) -> tuple[float, float, float]:
  """Three values, on the scale 0 to 255, from `58.395,57.12,57.375`.

  Raises:
    UserError: they are not three finite values above 0.
  """
  try:
    values = tuple(float(part) for part in text.split(','))
  except ValueError:
    values = ()
  if len(values) != 3 or not all(0 < v < math.inf for v in values):
    raise errors.UserError(
      f"std='{text}' is not three values above 0, in the order of channels and"
      ' on the scale 0 to 255, such as 58.395,57.12,57.375 (or 1,1,1).'
    )
  if max(values) < 1:
    raise errors.UserError(_wrong_scale('std', values))
  return values


def check_source(text: str) -> None:
  """Raises a UserError unless a text is three values or names a file."""
  if _three_values(text) is None:
    _file(text)


def parse_mean(text: str, crop_size: int) -> Mean:
  """The mean from three values or from a file.

  Args:
    text: `103.939,116.779,123.68`, in the order of the channels; or the path
      of an `.npz` or a pickle (Python 2's, too) whose `data_mean` holds
      3 * size * size values, BGR, (C, H, W); or of Caffe's `.binaryproto`,
      BGR, of that size or larger: then its centre is taken.
    crop_size: the size that a file must have.

  Raises:
    UserError: neither of the two, or in another shape.
  """
  array = _three_values(text)
  if array is None:
    return _mean_file(_file(text), crop_size)
  parts = text.split(',')
  return Mean(
    array.reshape(3, 1, 1), f'({", ".join(p.strip() for p in parts)})'
  )


def _three_values(text: str) -> np.ndarray | None:
  """The values; None: the text is no list of numbers."""
  try:
    values = [float(part) for part in text.split(',')]
  except ValueError:
    return None
  array = _float32(values)
  if len(values) != 3 or not np.isfinite(array).all():
    raise errors.UserError(
      f"mean='{text}' is neither three finite values, BGR, such as"
      f' {",".join(map(str, MEAN_BGR))}, nor a file.'
    )
  if array.min() > 0 and array.max() < 1:
    raise errors.UserError(_wrong_scale('mean', values))
  return array


def _file(text: str) -> pathlib.Path:
  path = pathlib.Path(os.path.expanduser(text))
  if not os.path.isfile(path):
    raise errors.UserError(
      f"mean='{path}': there is no such file. Give a file (npz or pickle with"
      ' data_mean, or binaryproto) or three values in BGR order:'
      f' {",".join(map(str, MEAN_BGR))}.'
    )
  return path


def _wrong_scale(what: str, values: Sequence[float]) -> str:
  given = ','.join(f'{value:g}' for value in values)
  meant = ','.join(f'{255 * value:.6g}' for value in values)
  return (
    f'{what}={given} is on the scale 0 to 1, and images here are on the scale'
    f' 0 to 255. Give {what}={meant}.'
  )


def _float32(values: Any) -> np.ndarray:
  # Values beyond its range become infinite, and are refused as such.
  with np.errstate(over='ignore'):
    return np.asarray(values, np.float32)


def _mean_file(path: pathlib.Path, crop_size: int) -> Mean:
  if path.stat().st_size > _MAX_MEAN_BYTES:
    raise errors.UserError(f'{path} is too large for a mean file.')
  array: Any
  if blob.recognise(path):
    array = _centre(blob.read_mean(path), crop_size)
  elif zipfile.is_zipfile(path):
    array = _npz_mean(path)
  elif (packed := _unpacked(path)) is not None:
    array = _data_mean(pickles.load_bytes(path, packed))
  else:
    array = _data_mean(pickles.load_arrays(path))
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


def _centre(array: np.ndarray, size: int) -> np.ndarray:
  # Caffe subtracts before it crops, from images of the mean's size.
  top, left = ((n - size) // 2 for n in array.shape[1:])
  if min(top, left) < 0:
    return array
  return array[:, top : top + size, left : left + size]


def _data_mean(contents: Any) -> Any:
  return contents.get('data_mean') if isinstance(contents, dict) else None


def _unpacked(path: pathlib.Path) -> bytes | None:
  """`mean.meta` of the published `mean_meta_224.tar.gz`; None: it is no gzip.

  Bounded: of what comes out no more is taken than a mean file may have.
  """
  with open(path, 'rb') as file:
    packed = file.read()
  if not packed.startswith(b'\x1f\x8b'):
    return None
  try:
    data = zlib.decompressobj(wbits=31).decompress(packed, _MAX_MEAN_BYTES)
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as archive:
      for member in archive:
        if member.isfile() and member.name.rsplit('/', 1)[-1] == _META:
          found = archive.extractfile(member)
          assert found is not None
          return found.read()
  except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
    raise errors.UserError(
      f'{path} is a damaged archive of a mean file: {error}. Get it again.'
    ) from error
  raise errors.UserError(
    f'{path} is an archive without {_META}. Give the published'
    ' mean_meta_224.tar.gz, or the file itself.'
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
