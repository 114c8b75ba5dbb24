# SPDX-License-Identifier: Apache-2.0
"""A folder that Transformers' `save_pretrained` wrote of a ResNet.

`config.json` tells the stride and the class names, `preprocessor_config.json`,
if it is there, the preprocessing.  Sources: Transformers 5.23,
`models/resnet/configuration_resnet.py` and
`models/convnext/image_processing_convnext.py`.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from resnet_jax import errors
from resnet_jax.weights import assemble, recipe, safetensors, torch

_CONFIG, _PREPROCESSOR = 'config.json', 'preprocessor_config.json'
_LOADERS = {
  'model.safetensors': safetensors.load,
  'pytorch_model.bin': torch.load,
}
# id2label of many classes.
_MAX_BYTES = 1 << 24
# Pillow's numbers of its filters.
_FILTERS = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}
# Pictures from this size on are squashed, not cut.
_SQUASHED = 384
# Fields of the configuration whose other values are other networks.
_PLAIN = {
  'model_type': 'resnet',
  'embedding_size': 64,
  'hidden_act': 'relu',
  'downsample_in_first_stage': False,
}


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a path is a folder with a configuration and weights."""
  if head or not (path / _CONFIG).is_file():
    return False
  return any((path / name).is_file() for name in _LOADERS)


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads the weights, and what the files beside them say.

  Raises:
    UserError: as the loaders of the weights; or a file beside them is damaged,
      or tells of another network.
  """
  config = _read(path / _CONFIG)
  for key, value in _PLAIN.items():
    if config.get(key, value) != value:
      raise errors.UserError(
        f'{path} holds another network: its {_CONFIG} says {key}='
        f'{str(config[key])[:99]}, and a plain ResNet has {value}.'
      )
  name = next(n for n in _LOADERS if (path / n).is_file())
  loaded = _LOADERS[name](path / name, options)
  stride_in = '1x1' if config.get('downsample_in_bottleneck') else '3x3'
  how, notes = loaded.recipe, [n for n in loaded.notes if n != recipe.GUESSED]
  if (path / _PREPROCESSOR).is_file():
    how = _recipe(path / _PREPROCESSOR)
  else:
    notes.append(
      f'{path} has no {_PREPROCESSOR}: the input of microsoft/resnet-* is'
      ' taken.'
    )
  return dataclasses.replace(
    loaded,
    format=f'Hugging Face folder, {name}',
    model=loaded.model.clone(stride_in=stride_in),
    recipe=how,
    notes=tuple(notes),
    class_names=_class_names(path, config, loaded.model.classes),
  )


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f'it has more than {_MAX_BYTES} bytes')
    found = json.loads(path.read_text('utf-8'))
    if not isinstance(found, dict):
      raise ValueError('it holds no object')
    return found
  except (OSError, ValueError, RecursionError) as error:
    raise errors.UserError(
      f'{path} is damaged: {error}. Save the model again, or name the file with'
      ' the weights instead of the folder.'
    ) from error


def _class_names(
  path: pathlib.Path, config: dict[str, Any], classes: int
) -> tuple[str, ...]:
  """Of other classes than ImageNet's, if somebody named them."""
  names = config.get('id2label')
  # Transformers' own stand-ins are no names.
  if classes == 1000 or not isinstance(names, dict):
    return ()
  found = [str(names.get(str(index), '')) for index in range(classes)]
  if len(names) != classes or not all(found):
    raise errors.UserError(
      f'{path / _CONFIG} names {len(names)} classes in id2label, and the'
      f' classifier has {classes}. Mend it, or name the file with the weights'
      ' instead of the folder.'
    )
  stand_ins = [f'LABEL_{index}' for index in range(classes)]
  return () if found == stand_ins else tuple(found)


def _recipe(path: pathlib.Path) -> recipe.Recipe:
  stated = _read(path)
  try:
    size = stated.get('size', 224)
    if isinstance(size, dict):
      size = size.get('shortest_edge') or size['height']
    size, resample = int(size), int(stated.get('resample', 3))
    if not 32 <= size < _SQUASHED or resample not in _FILTERS:
      raise ValueError(f'size {size}, resample {resample}')
    mean, std = (
      tuple(round(255 * float(value), 6) for value in stated[key])
      for key in ('image_mean', 'image_std')
    )
    if (
      len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std))
    ):
      raise ValueError('mean and std must have three values')
    share = float(stated.get('crop_pct') or 0.875)
    if not 0.1 <= share <= 1:
      raise ValueError(f'crop_pct {share}')
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise errors.UserError(
      f'{path} tells of a preprocessing that is not known here'
      f' ({type(error).__name__}: {error}). Name the file with the weights'
      ' instead of the folder, and set resize_size, crop_size, interpolation,'
      ' mean and std.'
    ) from error
  return recipe.Recipe(
    channels='RGB',
    mean=mean,
    std=std,
    resize_size=int(size / share),
    crop_size=size,
    interpolation=_FILTERS[resample],
    rounding='torchvision',
  )
