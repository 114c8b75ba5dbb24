# SPDX-License-Identifier: Apache-2.0
"""The mean and standard deviation that images are normalised by.

A mean is three values, or an image from a file: the original's `mean.meta`
(npz or pickle) or Caffe's `.binaryproto`.
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
from typing import Any, TypeAlias

import numpy as np

from resnet_jax.codecs import blob, pickles
from resnet_jax.system import errors

Three: TypeAlias = tuple[float, float, float]

MEAN_BGR = (103.939, 116.779, 123.68)

_MAX_MEAN_BYTES = 1 << 26
_META = 'mean.meta'


@dataclasses.dataclass(frozen=True, eq=False)
class MeanImage:
  """A mean with one value a pixel.

  Attributes:
    values: float32, (3, H, W), BGR.
    description: the file, for the run's record.
  """

  values: np.ndarray
  description: str


Mean: TypeAlias = Three | MeanImage
# What a user may give: text, a path, or three numbers.
Given: TypeAlias = str | os.PathLike[str] | Sequence[float]


def as_array(mean: Mean) -> np.ndarray:
  """The values as float32, (3, 1, 1) or (3, H, W)."""
  if isinstance(mean, MeanImage):
    return mean.values
  return np.array(mean, np.float32).reshape(3, 1, 1)


def describe(mean: Mean) -> str:
  """The three values, or the file."""
  if isinstance(mean, MeanImage):
    return mean.description
  return f'({", ".join(repr(value).removesuffix(".0") for value in mean)})'


def check_mean(mean: Mean, height: int, width: int) -> None:
  """Raises a UserError unless the mean fits crops of a size."""
  if isinstance(mean, MeanImage):
    shape = mean.values.shape
    if shape != (3, height, width):
      raise errors.UserError(
        f'{mean.description} has the shape {shape}; crops of {height}x{width}'
        f' need (3, {height}, {width}), or three values: mean='
        + ','.join(map(str, MEAN_BGR))
      )
  elif len(mean) != 3 or not np.isfinite(_float32(mean)).all():
    raise errors.UserError(f'mean={mean} is not three finite values.')


def check_std(std: Sequence[float], given: str = '') -> None:
  """Raises a UserError unless a std is three finite values above 0."""
  if len(std) != 3 or not all(0 < value < math.inf for value in std):
    raise errors.UserError(
      f"std='{given or _text(std)}' is not three values above 0, in the order"
      ' of channels and on the scale 0 to 255, such as 58.395,57.12,57.375 (or'
      ' 1,1,1).'
    )


def parse_std(given: Given) -> Three:
  """Three values, on the scale 0 to 255, from `58.395,57.12,57.375`.

  Raises:
    UserError: they are not three finite values above 0.
  """
  values = _numbers(_text(given)) or ()
  check_std(values, _text(given))
  if max(values) < 1:
    raise errors.UserError(_wrong_scale('std', values))
  return _three(values)


def check_source(given: Given) -> None:
  """Raises a UserError unless a mean is three values or names a file."""
  if _three_values(_text(given)) is None:
    _file(_text(given))


def parse_mean(given: Given, crop_size: int) -> Mean:
  """The mean from three values or from a file.

  Args:
    given: `103.939,116.779,123.68`, in the order of the channels; or the path
      of an `.npz` or a pickle (also of Python 2) whose `data_mean` holds
      3 * size * size values, BGR, (C, H, W); or of Caffe's `.binaryproto`,
      BGR, of that size or larger: then its centre is taken.
    crop_size: the size that a file must have.

  Raises:
    UserError: it is neither of the two, or of another shape.
  """
  text = _text(given)
  return _three_values(text) or _mean_file(_file(text), crop_size)


def _text(given: Given) -> str:
  if isinstance(given, str | os.PathLike):
    return os.fspath(given)
  return ','.join(str(number) for number in given)


def _numbers(text: str) -> tuple[float, ...] | None:
  """The values; None: the text is no list of numbers."""
  try:
    return tuple(float(part) for part in text.split(','))
  except ValueError:
    return None


def _three(values: Sequence[float]) -> Three:
  first, second, third = values
  return first, second, third


def _three_values(text: str) -> Three | None:
  """The values; None: the text is no list of numbers."""
  values = _numbers(text)
  if values is None:
    return None
  if len(values) != 3 or not np.isfinite(_float32(values)).all():
    raise errors.UserError(
      f"mean='{text}' is neither three finite values, BGR, such as"
      f' {",".join(map(str, MEAN_BGR))}, nor a file.'
    )
  if min(values) > 0 and max(values) < 1:
    raise errors.UserError(_wrong_scale('mean', values))
  return _three(values)


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
  # Values beyond its range become infinite, which the callers refuse.
  with np.errstate(over='ignore'):
    return np.asarray(values, np.float32)


def _mean_file(path: pathlib.Path, crop_size: int) -> MeanImage:
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
  return MeanImage(
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

  Unpacks no more bytes than a mean file may have.
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
      # The archive states the size; reading stops there.
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
