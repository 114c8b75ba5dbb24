# SPDX-License-Identifier: Apache-2.0
"""Caffe's BlobProto: an array in a file of weights, or a mean image.

Source: BVLC Caffe, src/caffe/proto/caffe.proto, and `Blob::FromProto`.  A
`.binaryproto` file is one BlobProto.
"""

import dataclasses
import math
import pathlib

import numpy as np

from resnet_jax.codecs import faults, protobuf
from resnet_jax.codecs.tensor import map_file
from resnet_jax.system import errors, files

# Field numbers.  The first four are the shape of older files.
_LEGACY = (1, 2, 3, 4)  # num, channels, height, width
_DATA = {5: (protobuf.FIXED32, '<f4'), 8: (protobuf.FIXED64, '<f8')}
_SHAPE, _DIM = 7, 1

# Keys of `num` or `channels` as an integer, of `data` or `shape` as bytes.
_FIRST_BYTES = (b'\x08', b'\x10', b'\x2a', b'\x3a')
# Caffe's own limit.
_MAX_AXES = 32


@dataclasses.dataclass(frozen=True)
class Blob:
  """An array, not read yet; its shape matches its number of values.

  Attributes:
    shape: in older files always four sizes, the first ones 1 if unused.
    dtype: NumPy's name, 'float32' or 'float64'.
    data: little-endian.
  """

  shape: tuple[int, ...]
  dtype: str
  data: memoryview

  def values(self) -> np.ndarray:
    """The array, copied, so that the file can be unmapped."""
    stored = np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder('<'))
    return stored.astype(self.dtype).reshape(self.shape)


def parse_blob(message: memoryview) -> Blob:
  """A BlobProto.

  Raises:
    ValueError: it is damaged, or its values do not match its shape.
  """
  legacy: dict[int, int] = {}
  shapes: list[list[int]] = []
  held: dict[int, memoryview | bytearray] = {}
  for field in protobuf.fields(message):
    if field.number in _LEGACY:
      legacy[field.number] = field.integer()
    elif field.number == _SHAPE:
      shapes.append(_dims(field.message()))
    elif field.number in _DATA:
      more = field.fixed(_DATA[field.number][0])
      held[field.number] = _joined(held.get(field.number), more)
  if legacy:
    shapes.append([legacy.get(number, 0) for number in _LEGACY])
  if len(shapes) > 1:
    raise ValueError('an array states its shape twice')
  if len(held) > 1:
    raise ValueError('an array has both float32 and float64 values')
  shape = tuple(shapes[0]) if shapes else ()
  number, data = next(iter(held.items()), (5, b''))
  dtype = np.dtype(_DATA[number][1])
  if math.prod(shape) != (count := len(data) // dtype.itemsize):
    sizes = ', '.join(map(str, shape))
    raise ValueError(f'an array of shape ({sizes}) holds {count} values')
  return Blob(shape, dtype.name, memoryview(data))


def _dims(message: memoryview) -> list[int]:
  found: list[int] = []
  for field in protobuf.fields(message):
    if field.number == _DIM:
      found += field.integers(_MAX_AXES)
    if len(found) > _MAX_AXES:
      raise ValueError(f'an array has more than {_MAX_AXES} dimensions')
  return found


def _joined(
  held: memoryview | bytearray | None, more: memoryview
) -> memoryview | bytearray:
  # Unpacked values come one per field: millions of views would take far more
  # memory than the file.
  if held is None:
    return more
  joined = held if isinstance(held, bytearray) else bytearray(held)
  joined += more
  return joined


def squeezed(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """A shape without the leading 1s that pad it to four sizes."""
  while len(shape) > rank and shape[0] == 1:
    shape = shape[1:]
  return shape


def recognise(path: pathlib.Path) -> bool:
  """Whether a file begins as a BlobProto does, unlike a pickle or .npz."""
  try:
    with files.opened(path) as file:
      return file.read(1) in _FIRST_BYTES
  except OSError:
    return False


def read_mean(path: pathlib.Path) -> np.ndarray:
  """A mean image: float32 (3, H, W), 0 to 255, BGR as in Caffe.

  Raises:
    UserError: the file is damaged, or is not an image of three channels.
  """
  with faults.reported(
    path,
    '{path} is not a mean image of Caffe (.binaryproto), or is damaged:'
    ' {error}. Get it again.',
  ):
    blob = parse_blob(map_file(path))
  shape = squeezed(blob.shape, 3)
  if len(shape) != 3 or shape[0] != 3 or not blob.data:
    raise errors.UserError(
      f'{path} holds an array of shape {blob.shape}; a mean image is'
      ' (1, 3, H, W), BGR. Get another, or give three values:'
      ' mean=103.939,116.779,123.68'
    )
  # Values too large for float32 become infinite, and are refused as such.
  with np.errstate(over='ignore'):
    mean = blob.values().reshape(shape).astype(np.float32)
  if not np.isfinite(mean).all():
    raise errors.UserError(
      f'{path} is damaged: it holds non-finite values. Get it again.'
    )
  return mean
