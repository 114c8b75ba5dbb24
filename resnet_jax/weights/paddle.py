# SPDX-License-Identifier: Apache-2.0
"""PaddlePaddle's legacy model directory: one file a parameter.

A file is named `_` + layer + suffix: `_res2_1_branch1_conv.w0`; batch norm has
`.w0` (scale), `.w1` (mean), `.w2` (variance), `.wbias` (bias); the classifier
`_output.w0`, `_output.wbias`.  It has a 16-byte header, little-endian (int32
format version 0, uint32 bytes per value 4, uint64 number of values), and that
many float32.  Source: the model zoo's page and programs, PaddlePaddle
0.8 to 0.10, `demo/model_zoo/resnet`.

The page says that a convolution is (Co, ky, kx, Ci): order 'OHWI'.  The
original runtime passed the same bytes to cuDNN as (Co, Ci, ky, kx): order
'OIHW'.  A file does not state which of the two it holds.
"""

import dataclasses
import functools
import math
import os
import pathlib
import struct
from collections.abc import Callable, Mapping

import numpy as np

from resnet_jax.codecs import faults
from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data import presets
from resnet_jax.models import aliases, names, resnet, structure, widths
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors, files
from resnet_jax.weights import assemble, metadata

_HEADER = struct.Struct('<iIQ')
_VALUE = np.dtype('<f4')
# Files of up to so many bytes may be Git LFS pointers.
_SMALL = 1024
_AXES = {'OHWI': '(Co, ky, kx, Ci)', 'OIHW': '(Co, Ci, ky, kx)'}
_LAYOUTS = {
  order: assemble.KernelLayout(f'{_AXES[order]}, (in, out)', kernel, (0, 1))
  for order, kernel in {'OHWI': (1, 2, 3, 0), 'OIHW': (2, 3, 1, 0)}.items()
}


@dataclasses.dataclass(frozen=True)
class ParameterFile:
  """A parameter's file, in a directory or in an archive.

  Attributes:
    size: bytes.
    read: returns that many, or fewer if the file shrank; raises a UserError.
  """

  size: int
  read: Callable[[], bytes]

  def values(self) -> np.ndarray:
    """The values, flat; raises a ValueError if the file is damaged."""
    data = self.read()
    if len(data) != self.size:
      raise ValueError('it changed while it was read')
    values = np.frombuffer(data, _VALUE, offset=_HEADER.size)
    header = _HEADER.unpack_from(data)
    if header != (0, _VALUE.itemsize, values.size):
      raise ValueError(
        f'its header (version, bytes per value, values) is {header}, where'
        f' {(0, _VALUE.itemsize, values.size)} is expected'
      )
    return values.astype(np.float32)


def naming(depth: int) -> dict[str, str]:
  """The canonical `layer/leaf` of each file."""
  return {
    aliases.paddle_parameter(ours): ours
    for ours in names.parameter_names(depth)
  }


@functools.cache
def known_files() -> frozenset[str]:
  """The names of the files of all depths."""
  return frozenset({metadata.FILE}.union(*map(naming, structure.ARCHITECTURES)))


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a path is a directory that contains a file of a ResNet."""
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
    UserError: files are missing or unknown, or have the wrong format or size.
  """
  try:
    listed = sorted(os.listdir(path))
  except OSError as error:
    raise errors.UserError(
      f'cannot list the weights in {path}: {error.strerror}.'
    ) from error
  found = {name: _file(path / name) for name in listed}
  return load_files(path, found, 'Paddle directory', options)


def _file(path: pathlib.Path) -> ParameterFile:
  with faults.reported(path):
    size = path.stat().st_size
  # A pointer's size is none of a parameter's.
  if 0 < size <= _SMALL and path.is_file():
    faults.check_pointer(path)

  def read() -> bytes:
    # A pipe has no size, and to open it could wait forever.
    if not size:
      return b''
    with faults.opened(path) as file:
      return file.read(size)

  return ParameterFile(size, read)


def load_files(
  path: pathlib.Path,
  found: Mapping[str, ParameterFile],
  format: str,
  options: assemble.Options,
) -> assemble.Loaded:
  """Reads the files of a directory or of an archive, given by name.

  Raises:
    UserError: as `load` does.
  """
  order = options.conv_order
  text = _text(path, found[metadata.FILE]) if metadata.FILE in found else None
  if text and (stated := metadata.conv_order(text)) in assemble.CONV_ORDERS:
    order = stated
  layout = _LAYOUTS[order]
  found = {name: f for name, f in found.items() if name != metadata.FILE}
  depth = assemble.nearest_depth(found, naming)
  sizes = {
    ours: _count(found[name])
    for name, ours in naming(depth).items()
    if name in found
  }
  variant = Variant(**widths.told(depth, sizes))
  module = resnet.ResNet(depth, _classes(found), variant)
  shapes = {
    aliases.paddle_parameter(ours): layout.stored(shape)
    for ours, shape in resnet.parameter_shapes(module).items()
  }
  # Before any is read: an archive is read whole, or not at all.
  wrong = [
    f'{name}: {found[name].size} bytes, where {_size(shape)} are expected'
    for name, shape in shapes.items()
    if name in found and found[name].size != _size(shape)
  ]
  if wrong:
    raise errors.UserError(
      f'{path} is damaged: {"; ".join(wrong)}. Get it again.'
    )
  tensors = {
    name: Tensor(shapes.get(name, ()), 'float32', file.values)
    for name, file in found.items()
  }
  loaded = assemble.assemble(
    path,
    tensors,
    naming,
    layout,
    format=format,
    variant=Variant(),
    preprocess=presets.usual(depth),
    options=options,
  )
  # With `finite=False` there may be non-finite values.
  with np.errstate(invalid='ignore', over='ignore'):
    other = suspect_order(loaded.parameters, order)
  if other:
    warning = (
      f'the filters in {path} are smooth, as trained ones are, if read as'
      f' {_AXES[other]}, but not as {_AXES[order]}, the order in use. Set'
      f' conv_order={other}, or the features are probably wrong.'
    )
    loaded = dataclasses.replace(loaded, warnings=(warning,))
  return loaded if text is None else metadata.applied(path, loaded, text)


def _text(path: pathlib.Path, file: ParameterFile) -> bytes:
  if file.size <= metadata.MAX_BYTES:
    return file.read()
  raise errors.UserError(
    f'{path} is damaged: {metadata.FILE} has {file.size} bytes, more than'
    f' {metadata.MAX_BYTES}. Convert the original again.'
  )


def _classes(found: Mapping[str, ParameterFile]) -> int:
  """The size of the classifier's bias; 0 without a classifier."""
  bias = found.get(aliases.paddle_parameter('logits/bias'))
  if bias is None:
    return 0
  return max(1, _count(bias))


def _count(file: ParameterFile) -> int:
  """The values that a file has room for."""
  return (file.size - _HEADER.size) // _VALUE.itemsize


def _size(shape: tuple[int, ...]) -> int:
  return _HEADER.size + _VALUE.itemsize * math.prod(shape)


def write(
  parameters: dict[str, np.ndarray],
  directory: pathlib.Path,
  order: str = 'OHWI',
  text: str = '',
) -> None:
  """Writes a new directory, whole or not at all.

  Args:
    parameters: `layer/leaf` arrays, `without_biases`.
    directory: the new one.
    order: of convolutions.
    text: of `metadata.written`; '': no such file is written.

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


def without_biases(
  parameters: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """The parameters of the same network without biases of convolutions.

  The format has none: they go into the means of the batch norms after them.

  Args:
    parameters: `layer/leaf` arrays.
  """
  found = dict(parameters)
  for name in [n for n in found if n.endswith(assemble.CONV_BIAS)]:
    unit = name.removesuffix(assemble.CONV_BIAS)
    bias = found.pop(name).astype(np.float64)
    mean = f'{unit}_bn/mean'
    found[mean] = (found[mean].astype(np.float64) - bias).astype(np.float32)
  return found


def suspect_order(
  parameters: dict[str, np.ndarray], order: str = 'OHWI'
) -> str | None:
  """The other order, if the filters look as if the file used it.

  Neighbouring taps of a trained filter are similar, but not in the wrong order,
  nor in an untrained filter: their correlation is compared under both orders.

  Args:
    parameters: `layer/leaf` arrays.
    order: the order in which they were read.
  """
  other = assemble.CONV_ORDERS[1 - assemble.CONV_ORDERS.index(order)]
  kernels = [a for a in parameters.values() if a.ndim == 4 and a.shape[0] > 1]
  layout = _LAYOUTS[other]
  swapped = [
    np.ascontiguousarray(stored(kernel, order))
    .reshape(layout.stored(kernel.shape))
    .transpose(layout.kernel)
    for kernel in kernels
  ]
  gain = np.mean(list(map(_smoothness, swapped))) - np.mean(
    list(map(_smoothness, kernels))
  )
  return other if gain > _SMOOTHER else None


# Of the correlation of neighbours, which is about 0 for noise and above 0.2
# for smooth filters; its noise is under 0.01 for a whole network.
_SMOOTHER = 0.05


def _smoothness(kernel: np.ndarray) -> float:
  def correlation(taps: np.ndarray, neighbours: np.ndarray) -> float:
    # A layer of zeros counts as noise.
    energy = float((taps**2).sum()) or 1.0
    return float((taps * neighbours).sum()) / energy

  down = correlation(kernel[1:], kernel[:-1])
  right = correlation(kernel[:, 1:], kernel[:, :-1])
  return (down + right) / 2


def stored(array: np.ndarray, order: str) -> np.ndarray:
  """A `layer/leaf` array with the axes that it has in its file."""
  return array.transpose(np.argsort(_LAYOUTS[order].axes(array.ndim)))
