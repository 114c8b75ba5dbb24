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
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from resnet_jax.codecs import blob, faults, pickles, tar
from resnet_jax.codecs import zip as zip_lib
from resnet_jax.system import errors

Three: TypeAlias = tuple[float, float, float]

MEAN_BGR = (103.939, 116.779, 123.68)

_AS_TEXT = ','.join(map(str, MEAN_BGR))
_MAX_MEAN_BYTES = 1 << 26
_MAX_DIRECTORY_BYTES = 1 << 16
_META = 'mean.meta'
_MEMBER = 'data_mean.npy'


@dataclasses.dataclass(frozen=True, eq=False)
class MeanImage:
  """A mean with one value per pixel and channel.

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
  """Raises a UserError unless the mean fits crops of this size."""
  if isinstance(mean, MeanImage):
    shape = mean.values.shape
    if shape != (3, height, width):
      raise errors.UserError(
        f'{mean.description} has the shape {shape}; crops of {height}x{width}'
        f' need (3, {height}, {width}), or three values: mean={_AS_TEXT}'
      )
  elif not _are_three(mean):
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
  values = _numbers(_text(given))
  check_std(values, _text(given))
  if max(values) < 1:
    raise _wrong_scale('std', values)
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
  return _three_values(text) or _mean_image(_file(text), crop_size)


def _text(given: Given) -> str:
  if isinstance(given, str | os.PathLike):
    return os.fspath(given)
  return ','.join(map(str, given))


def _numbers(text: str) -> tuple[float, ...]:
  """The numbers of a list; none of another text."""
  try:
    return tuple(map(float, text.split(',')))
  except ValueError:
    return ()


def _three(values: Sequence[float]) -> Three:
  first, second, third = values
  return first, second, third


def _are_three(values: Sequence[float]) -> bool:
  return len(values) == 3 and bool(np.isfinite(_float32(values)).all())


def _three_values(text: str) -> Three | None:
  values = _numbers(text)
  if not values:
    return None
  if not _are_three(values):
    raise errors.UserError(
      f"mean='{text}' is neither three finite values, BGR, such as {_AS_TEXT},"
      ' nor a file.'
    )
  if min(values) > 0 and max(values) < 1:
    raise _wrong_scale('mean', values)
  return _three(values)


def _wrong_scale(name: str, values: Sequence[float]) -> errors.UserError:
  given = ','.join(f'{value:g}' for value in values)
  meant = ','.join(f'{255 * value:.6g}' for value in values)
  return errors.UserError(
    f'{name}={given} is on the scale 0 to 1, and images here are on the scale'
    f' 0 to 255. Give {name}={meant}.'
  )


def _float32(values: Any) -> np.ndarray:
  # Values beyond its range become infinite, which the callers refuse.
  with np.errstate(over='ignore'):
    return np.asarray(values, np.float32)


def _file(text: str) -> pathlib.Path:
  path = pathlib.Path(os.path.expanduser(text))
  if not os.path.isfile(path):
    raise errors.UserError(
      f"mean='{path}': there is no such file. Give a file (npz or pickle with"
      f' data_mean, or binaryproto) or three values in BGR order: {_AS_TEXT}.'
    )
  return path


def _mean_image(path: pathlib.Path, size: int) -> MeanImage:
  if path.stat().st_size > _MAX_MEAN_BYTES:
    raise errors.UserError(f'{path} is too large for a mean file.')
  data = path.read_bytes()
  if faults.is_git_lfs(data):
    raise errors.UserError(f'{path} is {faults.GIT_LFS_SAYS}.')
  digest = hashlib.sha256(data).hexdigest()
  if blob.recognise(path):
    array: Any = _centre(blob.read_mean(path), size)
  elif data.startswith(zip_lib.MAGIC):
    array = _from_npz(path, data)
  else:
    if data.startswith(b'\x1f\x8b'):
      data = _from_archive(path, data)
    contents = pickles.load_bytes(path, data)
    array = contents.get('data_mean') if isinstance(contents, dict) else None
  if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiu':
    raise errors.UserError(f"{path} holds no array of numbers 'data_mean'.")
  array = _float32(array)
  # (H, W, 3) has as many values, and would be read as noise.
  shape = tuple(side for side in array.shape if side != 1)
  fits = shape in ((3 * size**2,), (3, size, size))
  if not fits or not np.isfinite(array).all():
    raise errors.UserError(
      f'{path}: data_mean holds {array.size} values of shape {array.shape};'
      f' {3 * size**2} finite ones are needed, (3, {size}, {size}) in BGR'
      ' order, or set crop_size to the size they are for.'
    )
  return MeanImage(
    array.reshape(3, size, size),
    f'mean file {path.name} (3x{size}x{size}, sha256 {digest[:16]})',
  )


def _centre(array: np.ndarray, size: int) -> np.ndarray:
  # Caffe subtracts before it crops, from images of the mean's size.
  top, left = ((side - size) // 2 for side in array.shape[1:])
  if min(top, left) < 0:
    return array
  return array[:, top : top + size, left : left + size]


def _from_archive(path: pathlib.Path, packed: bytes) -> bytes:
  """`mean.meta` of the published `mean_meta_224.tar.gz`."""
  try:
    data = zlib.decompressobj(wbits=31).decompress(packed, _MAX_MEAN_BYTES)
  except zlib.error as error:
    raise errors.UserError(
      f'{path} is a damaged archive of a mean file: {error}. Get it again.'
    ) from error
  for member in tar.members(io.BytesIO(data), path, len(data)):
    if member.name.rpartition('/')[2] == _META:
      return data[member.offset : member.offset + member.size]
  raise errors.UserError(
    f'{path} is an archive without {_META}. Give the published'
    ' mean_meta_224.tar.gz, or the file itself.'
  )


def _from_npz(path: pathlib.Path, data: bytes) -> np.ndarray | None:
  try:
    archive = zip_lib.ZipArchive(io.BytesIO(data), _MAX_DIRECTORY_BYTES)
    if _MEMBER not in archive.members:
      return None
    npy = archive.inflate(_MEMBER, _MAX_MEAN_BYTES)
    # As np.load, which allocates what a header states.
    file = io.BytesIO(npy)
    version = np.lib.format.read_magic(file)
    shape, fortran, dtype = (
      np.lib.format.read_array_header_1_0(file)
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0(file)
    )
    values = np.frombuffer(npy, dtype, offset=file.tell())
    return values.reshape(shape, order='F' if fortran else 'C')
  except Exception as error:
    # NumPy raises nearly anything for damaged headers.
    raise errors.UserError(f'{path} is a damaged npz file: {error}.') from error
