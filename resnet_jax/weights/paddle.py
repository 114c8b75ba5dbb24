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

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from resnet_jax.data import presets
from resnet_jax.models import aliases, names, resnet
from resnet_jax.system import errors, files
from resnet_jax.weights import assemble, metadata

_HEADER = struct.Struct('<iIQ')
_VALUE = np.dtype('<f4')
_HEAD = ('_output.w0', '_output.wbias')
_AXES = {'OHWI': '(Co, ky, kx, Ci)', 'OIHW': '(Co, Ci, ky, kx)'}


@dataclasses.dataclass(frozen=True)
class File:
  """A parameter's file, in a directory or in an archive.

  Attributes:
    size: gives its size, bytes; raises a UserError.
    read: gives its first bytes, at most so many; raises a UserError.
  """

  size: Callable[[], int]
  read: Callable[[int], bytes]


@functools.cache
def known_files() -> frozenset[str]:
  """The names of the files of all depths."""
  return frozenset(
    {
      metadata.FILE,
      *(
        aliases.paddle_parameter(parameter)
        for depth in names.ARCHITECTURES
        for parameter in names.parameter_names(depth)
      ),
    }
  )


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a path is a directory with a file of a ResNet in it."""
  if head:
    return False
  known = known_files()
  try:
    with os.scandir(path) as entries:
      return any(entry.name in known for entry in entries)
  except OSError:
    return False


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads a directory.

  Raises:
    UserError: files are missing, surplus, or not of the form or size they
      must have; names them.
  """
  return load_files(path, _list(path), 'Paddle directory', options)


def load_files(
  path: pathlib.Path,
  found: Mapping[str, File],
  format: str,
  options: assemble.Options,
) -> assemble.Loaded:
  """Reads the files of a directory or of an archive.

  Args:
    path: for messages.
    found: by name, all there are.
    format: for a person.
    options: the user's.

  Raises:
    UserError: as `load` does.
  """
  order = options.conv_order
  beside = found.get(metadata.FILE)
  text = b'' if beside is None else _text(path, beside)
  if (stated := metadata.conv_order(text)) in assemble.CONV_ORDERS:
    order = stated
  found = {name: f for name, f in found.items() if name != metadata.FILE}
  depth = _depth(path, found)
  model = resnet.ResNet(depth, _classes(path, found))
  shapes = resnet.parameter_shapes(model)
  parameters = _read_files(path, found, shapes, order, options.finite)
  # Values that are not finite may be there, if the user wants them.
  with np.errstate(invalid='ignore', over='ignore'):
    other = suspect_order(parameters, order)
  warning = (
    f'the filters in {path} are smooth, as trained ones are, if read as'
    f' {_AXES[other]}, but not as {_AXES[order]}, as they were read now. Set'
    f' conv_order={other}, or the features are probably wrong.'
    if other
    else ''
  )
  loaded = assemble.Loaded(
    format,
    model,
    parameters,
    {
      name: assemble.Origin(
        aliases.paddle_parameter(name), _stored_shape(shape, order), 'float32'
      )
      for name, shape in shapes.items()
    },
    f'{_AXES[order]}, (in, out)',
    presets.usual(depth),
    warnings=(warning,) if warning else (),
  )
  return loaded if beside is None else metadata.applied(path, loaded, text)


def _text(path: pathlib.Path, file: File) -> bytes:
  if file.size() <= metadata.MAX_BYTES:
    return file.read(metadata.MAX_BYTES)
  raise errors.UserError(
    f'{path} is damaged: {metadata.FILE} has {file.size()} bytes, more than'
    f' {metadata.MAX_BYTES}. Convert the original again.'
  )


def write(
  parameters: dict[str, np.ndarray],
  directory: pathlib.Path,
  order: str = 'OHWI',
  text: str = '',
) -> None:
  """Writes `layer/leaf` arrays as a new directory, whole or not at all.

  Args:
    parameters: the arrays.
    directory: the new one.
    order: of convolutions.
    text: of `metadata.written`; '': none is written.

  Raises:
    UserError: the directory exists already, or cannot be written.
  """
  errors.check_choice('conv_order', order, assemble.CONV_ORDERS)
  part = directory.with_name(directory.name + files.PART)
  for path in (directory, part):
    if path.exists():
      raise errors.UserError(
        f'{path} exists already; remove it, or name another directory.'
      )
  with files.writing('the parameters', directory):
    part.mkdir(parents=True)
    for name, array in parameters.items():
      data = np.ascontiguousarray(stored(array, order), _VALUE)
      header = _HEADER.pack(0, _VALUE.itemsize, data.size)
      (part / aliases.paddle_parameter(name)).write_bytes(
        header + data.tobytes()
      )
    if text:
      (part / metadata.FILE).write_text(text, 'utf-8')
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
  other = assemble.CONV_ORDERS[1 - assemble.CONV_ORDERS.index(order)]
  kernels = [a for a in parameters.values() if a.ndim == 4 and a.shape[0] > 1]
  swapped = []
  for kernel in kernels:
    values = np.ascontiguousarray(stored(kernel, order))
    shape = _stored_shape(kernel.shape, other)
    swapped.append(_from_stored(values.reshape(shape), other))
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


def stored(array: np.ndarray, order: str) -> np.ndarray:
  """A `layer/leaf` array of ours with the axes that it has in its file."""
  if array.ndim != 4:
    return array
  return array.transpose({'OHWI': (3, 0, 1, 2), 'OIHW': (3, 2, 0, 1)}[order])


def _list(directory: pathlib.Path) -> dict[str, File]:
  try:
    found = sorted(entry.name for entry in os.scandir(directory))
  except OSError as error:
    raise errors.UserError(
      f'cannot list the weights in {directory}: {error.strerror}.'
    ) from error
  return {name: _file(directory / name) for name in found}


def _file(path: pathlib.Path) -> File:
  def size() -> int:
    with _reading(path):
      return path.stat().st_size

  def read(count: int) -> bytes:
    with _reading(path), open(path, 'rb') as file:
      return file.read(count)

  return File(size, read)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}. Make it readable, or get'
      ' it again.'
    ) from error


def _read_files(
  path: pathlib.Path,
  found: Mapping[str, File],
  shapes: Mapping[str, tuple[int, ...]],
  order: str,
  finite: bool,
) -> dict[str, np.ndarray]:
  arrays, faults = {}, []
  sizes = {
    aliases.paddle_parameter(name): _HEADER.size
    + _VALUE.itemsize * math.prod(shape)
    for name, shape in shapes.items()
  }
  for file, size in sizes.items():
    if (here := found[file].size()) != size:
      faults.append(f'{file}: {here} bytes, where {size} are expected')
  # None is read if a size is wrong: an archive is read whole, or not at all.
  for name, shape in shapes.items() if not faults else ():
    file = aliases.paddle_parameter(name)
    try:
      flat = _read_file(found[file], sizes[file])
      if finite:
        _check_values(flat, name)
    except ValueError as error:
      faults.append(f'{file}: {error}')
      continue
    arrays[name] = _from_stored(
      flat.reshape(_stored_shape(shape, order)), order
    )
  if faults:
    raise errors.UserError(
      f'{path} is damaged: {"; ".join(faults)}. Please get it again.'
    )
  return arrays


def _read_file(file: File, size: int) -> np.ndarray:
  """The values; a ValueError says what is wrong with the file."""
  data = file.read(size)
  if len(data) != size:
    raise ValueError('it changed while it was read')
  version, width, stated = _HEADER.unpack_from(data)
  if version != 0:
    raise ValueError(f'format version {version}, where 0 is known')
  if width != _VALUE.itemsize:
    raise ValueError(f'{width} bytes a value, where 4 (float32) are known')
  count = (size - _HEADER.size) // _VALUE.itemsize
  if stated != count:
    raise ValueError(f'its header says {stated} values, the file has {count}')
  return np.frombuffer(data, _VALUE, offset=_HEADER.size).astype(np.float32)


def _check_values(array: np.ndarray, name: str) -> None:
  if not np.isfinite(array).all():
    raise ValueError('values that are not finite')
  if name.endswith('/var') and (array < 0).any():
    raise ValueError('negative variances')


def _depth(path: pathlib.Path, found: Iterable[str]) -> int:
  """The depth whose files they are."""
  there = set(found)
  head = not there.isdisjoint(_HEAD)

  def expected(depth: int) -> set[str]:
    return set(
      map(aliases.paddle_parameter, names.parameter_names(depth, head))
    )

  def likeness(depth: int) -> float:
    known = expected(depth)
    return len(known & there) / len(known | there)

  depth = max(names.ARCHITECTURES, key=likeness)
  if there != expected(depth):
    raise errors.UserError(
      f'{path} does not hold a plain ResNet; the nearest is ResNet-{depth}.'
      f' {_difference(expected(depth), there)} Get it again, and keep other'
      ' files out of it.'
    )
  return depth


def _classes(path: pathlib.Path, found: Mapping[str, File]) -> int:
  """What the classifier's bias has values for; 0: there is no classifier."""
  name = _HEAD[1]
  if name not in found:
    return 0
  size = found[name].size()
  classes, rest = divmod(size - _HEADER.size, _VALUE.itemsize)
  if rest or not 0 < classes <= assemble.MAX_CLASSES:
    raise errors.UserError(
      f'{path} is damaged: {name}: {size} bytes, where 16 and 4 for each of 1'
      f' to {assemble.MAX_CLASSES} classes are expected. Please get it again.'
    )
  return classes


def _difference(expected: set[str], there: set[str]) -> str:
  missing, surplus = sorted(expected - there), sorted(there - expected)
  return (
    f'{len(missing)} files are missing ({", ".join(missing) or "none"}),'
    f' {len(surplus)} are surplus ({", ".join(surplus) or "none"}).'
  )
