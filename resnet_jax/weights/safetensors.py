# SPDX-License-Identifier: Apache-2.0
"""Safetensors: our own files, and those of torchvision, timm, Hugging Face.

Our own have canonical names and layouts, and all other information in the
metadata under the key `resnet_jax`; see `metadata`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax.codecs import faults
from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data import presets
from resnet_jax.models import names
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors, files
from resnet_jax.weights import assemble, metadata, prefixes, torch_names

FORMAT = 'resnet_jax safetensors'

_KEY = 'resnet_jax'
_DTYPES = {
  'F16': 'float16',
  'BF16': 'bfloat16',
  'F32': 'float32',
  'F64': 'float64',
  'I64': 'int64',
}
# Bytes; the format allows 100 million, and ResNet-152 has 0.1 million and the
# names of its classes.
_MAX_HEADER = 1 << 24


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file begins with a length and a JSON object of that length."""
  del path
  length = int.from_bytes(head[:8], 'little')
  return head[8:9] == b'{' and 2 <= length <= _MAX_HEADER


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads our own file, or another program's by its names.

  Raises:
    UserError: the file is damaged, or does not hold a ResNet.
  """
  faults.check_pointer(path)
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      stated = file.metadata() or {}
      tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118
      if _KEY not in stated:
        return torch_names.load_tensors(path, tensors, 'safetensors', options)
      if options.weights_prefix:
        raise prefixes.needless(options.weights_prefix, f'{path}, {FORMAT},')
      loaded = assemble.assemble(
        path,
        tensors,
        _naming,
        assemble.KERAS_LAYOUT,
        format=FORMAT,
        variant=Variant(),
        preprocess=presets.CAFFE,
        options=options,
      )
      return metadata.applied(path, loaded, stated[_KEY])
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.UserError(
      f'{path} is damaged: {error}. Get it again.'
    ) from error


def _naming(depth: int) -> dict[str, str]:
  return {name: name for name in names.parameter_names(depth, biases=True)}


def _tensor(file: Any, name: str) -> Tensor:
  view = file.get_slice(name)
  dtype = _DTYPES.get(view.get_dtype(), view.get_dtype())
  return Tensor(tuple(view.get_shape()), dtype, lambda: file.get_tensor(name))


def write(
  path: pathlib.Path, parameters: Mapping[str, np.ndarray], text: str
) -> None:
  """Writes our own file, whole or not at all.

  Parameters that are all float16 numbers, as those of a file of half precision
  are, take two bytes each; all others four.

  Args:
    path: of the file.
    parameters: `layer/leaf` arrays.
    text: of `metadata.written`.

  Raises:
    UserError: it cannot be written.
  """
  halves = all(map(_is_half, parameters.values()))
  arrays = {
    name: np.ascontiguousarray(array, np.float16 if halves else np.float32)
    for name, array in parameters.items()
  }
  data = safetensors.numpy.save(arrays, {_KEY: text})
  with files.writing('the weights', path):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, data)


def _is_half(array: np.ndarray) -> bool:
  """Whether float16 holds every number of an array."""
  with np.errstate(over='ignore'):
    return np.array_equal(array.astype(np.float16), array)
