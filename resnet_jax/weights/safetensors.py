# SPDX-License-Identifier: Apache-2.0
"""Safetensors: our own files, and those of torchvision, timm, Hugging Face.

Our own hold canonical names and layouts, and in the metadata, under the key
`resnet_jax`, all that a run must know: variant, preprocessing, source, and the
digest of the parameters.  They are loaded with no other information.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax import errors, files
from resnet_jax.models import names
from resnet_jax.weights import assemble, recipe, torch_names

FORMAT = 'resnet_jax safetensors'

_KEY = 'resnet_jax'
_DTYPES = {
  'F16': 'float16',
  'BF16': 'bfloat16',
  'F32': 'float32',
  'F64': 'float64',
  'I64': 'int64',
}
_VARIANT = {'stride_in': str, 'stem_pool': str, 'epsilon': float}
# A header is at most this long, says the format.
_MAX_HEADER = 100_000_000


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file begins with a length and a JSON object of that length."""
  length = int.from_bytes(head[:8], 'little')
  return (
    len(head) > 8
    and head[8:9] == b'{'
    and 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8)
  )


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads our own file, or a foreign one by its names.

  Raises:
    UserError: the file is damaged, or holds something else.
  """
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      metadata = file.metadata() or {}
      tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118
      if _KEY in metadata:
        return _own(path, tensors, metadata[_KEY], options)
      return torch_names.load_tensors(path, tensors, 'safetensors', options)
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.UserError(
      f'{path} is damaged: {error}. Get it again.'
    ) from error


def _tensor(file: Any, name: str) -> assemble.Tensor:
  view = file.get_slice(name)
  dtype = _DTYPES.get(view.get_dtype(), view.get_dtype())
  return assemble.Tensor(
    tuple(view.get_shape()), dtype, lambda: file.get_tensor(name)
  )


def _own(
  path: pathlib.Path,
  tensors: dict[str, assemble.Tensor],
  text: str,
  options: assemble.Options,
) -> assemble.Loaded:
  facts = _facts(path, text)
  loaded = assemble.assemble(
    path,
    tensors,
    lambda depth: {name: name for name in names.parameter_names(depth)},
    assemble.KERAS_LAYOUT,
    format=FORMAT,
    variant=facts['variant'],
    how=facts['recipe'],
    options=options,
    notes=[f'converted from: {facts["source"]}'],
  )
  class_names = facts['class_names']
  if class_names and len(class_names) != loaded.model.classes:
    raise errors.UserError(
      f'{path} is damaged: {len(class_names)} class names for'
      f' {loaded.model.classes} classes. Convert the original again.'
    )
  return dataclasses.replace(
    loaded,
    class_names=class_names,
    trained=facts['trained'],
    digest=facts['digest'],
  )


def _facts(path: pathlib.Path, text: str) -> dict[str, Any]:
  """The metadata, every part of it checked for its type."""
  try:
    stated = json.loads(text)
    if stated.pop('checksum') != checksum(stated):
      raise ValueError('it was changed since: the checksum differs')
    variant = {key: kind(stated[key]) for key, kind in _VARIANT.items()}
    how = stated['preprocessing']
    how = recipe.Recipe(
      channels=str(how['channels']),
      mean=_three(how['mean']),
      std=_three(how['std']),
      resize_size=int(how['resize_size']),
      crop_size=int(how['crop_size']),
      interpolation=str(how['interpolation']),
      rounding=str(how['rounding']),
    )
    return {
      'variant': assemble.checked_variant(variant),
      'recipe': how,
      'source': str(stated['source']),
      'digest': str(stated['digest']),
      'trained': bool(stated['trained']),
      'class_names': tuple(str(name) for name in stated['class_names']),
    }
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise errors.UserError(
      f"{path} is damaged: its metadata '{_KEY}' is not what --job=convert"
      f' writes ({type(error).__name__}: {error}). Convert the original again.'
    ) from error


def _three(values: Any) -> tuple[float, float, float]:
  first, second, third = (float(value) for value in values)
  return first, second, third


def checksum(stated: dict[str, Any]) -> str:
  """SHA-256 of the metadata, which the digest of the parameters leaves out."""
  text = json.dumps(stated, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write(
  path: pathlib.Path,
  loaded: assemble.Loaded,
  source: str,
  digest: str,
  file_sha256: str = '',
) -> None:
  """Writes our own file, whole or not at all.

  Args:
    path: of the file.
    loaded: the network.
    source: what the weights were loaded from, for a person.
    digest: SHA-256 of the parameters.
    file_sha256: of the file that they were loaded from; '': there is none.

  Raises:
    UserError: it cannot be written.
  """
  model, how = loaded.model, loaded.recipe
  stated: dict[str, Any] = {
    'depth': model.depth,
    'classes': model.classes,
    'stride_in': model.stride_in,
    'stem_pool': model.stem_pool,
    'epsilon': model.epsilon,
    'preprocessing': dataclasses.asdict(how),
    'source': source,
    'digest': digest,
    'source_sha256': file_sha256,
    'trained': loaded.trained,
    'class_names': list(loaded.class_names),
  }
  stated['checksum'] = checksum(stated)
  arrays = {
    name: np.ascontiguousarray(array, np.float32)
    for name, array in loaded.parameters.items()
  }
  data = safetensors.numpy.save(arrays, {_KEY: json.dumps(stated)})
  with files.writing('the weights', path):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, data)
