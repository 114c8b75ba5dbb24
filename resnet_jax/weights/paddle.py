# SPDX-License-Identifier: Apache-2.0
"""PaddlePaddle's legacy model directory: one file a parameter.

A file is named `_` + layer + suffix: `_res2_1_branch1_conv.w0`; batch norm has
`.w0` (scale), `.w1` (mean), `.w2` (variance), `.wbias` (bias); the classifier
`_output.w0`, `_output.wbias`.  It holds a 16-byte header, little-endian (int32
format version 0, uint32 bytes a value 4, uint64 number of values), and that
many float32.  Source: the model zoo's page and programs, PaddlePaddle
0.8 to 0.10, `demo/model_zoo/resnet`.

A convolution is (Co, ky, kx, Ci), says the page: order 'OHWI'.  The original
runtime handed the same bytes to cuDNN as (Co, Ci, ky, kx): order 'OIHW'.
Which of the two a file holds cannot be read from it.
"""

import math
import os
import pathlib
import struct
from collections.abc import Iterable

import numpy as np

from resnet_jax import errors, files
from resnet_jax.models import names

CONV_ORDERS = ('OHWI', 'OIHW')

_HEADER = struct.Struct('<iIQ')
_VALUE = np.dtype('<f4')
_SUFFIXES = {
  'kernel': 'w0',
  'scale': 'w0',
  'mean': 'w1',
  'var': 'w2',
}


def file_name(parameter: str) -> str:
  """The file of a `layer/leaf` parameter."""
  layer, leaf = parameter.split('/')
  if layer == 'logits':
    return f'_output.{"w0" if leaf == "kernel" else "wbias"}'
  return f'_{layer}.{_SUFFIXES.get(leaf, "wbias")}'


def read(
  directory: pathlib.Path,
  shapes: dict[str, tuple[int, ...]],
  order: str = 'OHWI',
) -> dict[str, np.ndarray]:
  """Reads float32 arrays of the given `layer/leaf` shapes.

  Kernels come back as (ky, kx, Ci, Co).

  Raises:
    UserError: files are missing, surplus, or not of the form or shape they
      must have; names them.
  """
  errors.check_choice('conv_order', order, CONV_ORDERS)
  _check_names(directory, shapes)
  arrays, faults = {}, []
  for name, shape in shapes.items():
    path = directory / file_name(name)
    stored = _stored_shape(shape, order)
    try:
      flat = _read_file(path, math.prod(shape))
    except ValueError as error:
      faults.append(f'{path.name}: {error}')
      continue
    arrays[name] = _from_stored(flat.reshape(stored), order)
  if faults:
    raise errors.UserError(
      f'{directory} is damaged: {"; ".join(faults)}. Please get it again.'
    )
  return arrays


def write(
  parameters: dict[str, np.ndarray],
  directory: pathlib.Path,
  order: str = 'OHWI',
) -> None:
  """Writes `layer/leaf` arrays as a new directory, whole or not at all.

  Raises:
    UserError: the directory exists already, or cannot be written.
  """
  errors.check_choice('conv_order', order, CONV_ORDERS)
  part = directory.with_name(directory.name + files.PART)
  for path in (directory, part):
    if path.exists():
      raise errors.UserError(
        f'{path} exists already; remove it, or name another directory.'
      )
  with files.writing('the parameters', directory):
    part.mkdir(parents=True)
    for name, array in parameters.items():
      data = np.ascontiguousarray(_to_stored(array, order), _VALUE)
      header = _HEADER.pack(0, _VALUE.itemsize, data.size)
      (part / file_name(name)).write_bytes(header + data.tobytes())
    os.replace(part, directory)


def suspect_order(
  parameters: dict[str, np.ndarray], order: str = 'OHWI'
) -> str | None:
  """The other order, if the filters look as if the file holds that one.

  Neighbouring taps of a trained filter are alike.  Read in the wrong order
  they are not, and untrained ones never are.  So the correlation of
  neighbours is compared under both orders.

  Args:
    parameters: `layer/leaf` arrays as `read` returned them.
    order: the order in which they were read.
  """
  other = CONV_ORDERS[1 - CONV_ORDERS.index(order)]
  kernels = [a for a in parameters.values() if a.ndim == 4 and a.shape[0] > 1]
  swapped = []
  for kernel in kernels:
    stored = np.ascontiguousarray(_to_stored(kernel, order))
    shape = _stored_shape(kernel.shape, other)
    swapped.append(_from_stored(stored.reshape(shape), other))
  gain = np.mean([_smoothness(k) for k in swapped]) - np.mean(
    [_smoothness(k) for k in kernels]
  )
  return other if gain > _SMOOTHER else None


# Of the correlation of neighbours, which is about 0 for noise and above 0.2
# for smooth filters; its noise is under 0.01 for a whole network.
_SMOOTHER = 0.05


def _smoothness(kernel: np.ndarray) -> float:
  def alike(taps: np.ndarray, neighbours: np.ndarray) -> float:
    # A layer of zeros is as alike as noise.
    energy = float((taps**2).sum()) or 1.0
    return float((taps * neighbours).sum()) / energy

  down = alike(kernel[1:], kernel[:-1])
  right = alike(kernel[:, 1:], kernel[:, :-1])
  return (down + right) / 2


def _stored_shape(shape: tuple[int, ...], order: str) -> tuple[int, ...]:
  if len(shape) != 4:
    return shape
  rows, columns, c_in, c_out = shape
  return {
    'OHWI': (c_out, rows, columns, c_in),
    'OIHW': (c_out, c_in, rows, columns),
  }[order]


def _from_stored(array: np.ndarray, order: str) -> np.ndarray:
  if array.ndim != 4:
    return array
  axes = {'OHWI': (1, 2, 3, 0), 'OIHW': (2, 3, 1, 0)}[order]
  return np.ascontiguousarray(array.transpose(axes))


def _to_stored(array: np.ndarray, order: str) -> np.ndarray:
  if array.ndim != 4:
    return array
  return array.transpose({'OHWI': (3, 0, 1, 2), 'OIHW': (3, 2, 0, 1)}[order])


def _read_file(path: pathlib.Path, count: int) -> np.ndarray:
  """The values; a ValueError says what is wrong with the file."""
  try:
    size = path.stat().st_size
    if size != (expected := _HEADER.size + count * _VALUE.itemsize):
      raise ValueError(f'{size} bytes, where {expected} are expected')
    with open(path, 'rb') as file:
      header = file.read(_HEADER.size)
      data = file.read(count * _VALUE.itemsize)
  except OSError as error:
    raise ValueError(f'cannot be read: {error.strerror}') from error
  version, width, stated = _HEADER.unpack(header)
  if version != 0:
    raise ValueError(f'format version {version}, where 0 is known')
  if width != _VALUE.itemsize:
    raise ValueError(f'{width} bytes a value, where 4 (float32) are known')
  if stated != count:
    raise ValueError(f'its header says {stated} values, the file has {count}')
  array = np.frombuffer(data, _VALUE).astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError('values that are not finite')
  if path.name.endswith('_bn.w2') and (array < 0).any():
    raise ValueError('negative variances')
  return array


def _check_names(directory: pathlib.Path, shapes: Iterable[str]) -> None:
  expected = {file_name(name) for name in shapes}
  try:
    found = {entry.name for entry in os.scandir(directory)}
  except OSError as error:
    raise errors.UserError(
      f'cannot list the weights in {directory}: {error.strerror}.'
    ) from error
  missing, surplus = sorted(expected - found), sorted(found - expected)
  if missing or surplus:
    fits = [
      depth
      for depth in names.ARCHITECTURES
      if found == set(map(file_name, names.parameter_names(depth)))
    ]
    advice = (
      f'Its files are those of ResNet-{fits[0]}: set layer_num={fits[0]}.'
      if fits
      else 'Get the directory again, and keep other files out of it.'
    )
    raise errors.UserError(
      f'{directory} does not hold this network. {advice}'
      f' {len(missing)} files are missing ({", ".join(missing) or "none"}),'
      f' {len(surplus)} are surplus ({", ".join(surplus) or "none"}).'
    )
