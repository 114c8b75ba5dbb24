# SPDX-License-Identifier: Apache-2.0
"""A folder that Transformers' `save_pretrained` wrote of a ResNet.

`config.json` tells the stride and the class names, `preprocessor_config.json`,
if it is there, the preprocessing.  Folders of timm
from the hub have both in `config.json`.  Sources: Transformers 5.23,
`models/resnet/configuration_resnet.py` and
`models/convnext/image_processing_convnext.py`.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.system import errors
from resnet_jax.weights import assemble, safetensors, torch

_CONFIG, _PREPROCESSOR = 'config.json', 'preprocessor_config.json'
_LOADERS = {
  'model.safetensors': safetensors.load,
  'pytorch_model.bin': torch.load,
}
# id2label of many classes.
_MAX_BYTES = 1 << 24
# Pillow's numbers of its filters.
_FILTERS = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}
# Images from this size on are squashed, not cut.
_SQUASHED = 384
_CROP_PCT = 0.875
# What else a preprocessor may state, and still be the one that is known here.
_PROCESSORS = ('ConvNextFeatureExtractor', 'ConvNextImageProcessor')
_USUAL = {
  'do_normalize': True,
  'do_rescale': True,
  'do_resize': True,
  'do_center_crop': True,
}
# What a field of the wrong kind or value raises.
_WRONG = (
  *(LookupError, TypeError, ValueError, ArithmeticError),
  errors.UserError,
)
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
  if isinstance(config.get('pretrained_cfg'), dict):
    return _timm(path, config['pretrained_cfg'], options)
  if config.get('model_type') != _PLAIN['model_type']:
    raise errors.UserError(
      f'{path} is no folder of a ResNet: its {_CONFIG} says model_type='
      f'{str(config.get("model_type"))[:99]}, not {_PLAIN["model_type"]}. Name'
      ' the file with the weights, if they are those of one.'
    )
  for key, value in _PLAIN.items():
    if config.get(key, value) != value:
      raise errors.UserError(
        f'{path} holds another network: its {_CONFIG} says {key}='
        f'{str(config[key])[:99]}, and a plain ResNet has {value}.'
      )
  name, loaded = _weights(path, options)
  stride_in = '1x1' if config.get('downsample_in_bottleneck') else '3x3'
  preprocess, notes = presets.HUGGING_FACE, list(loaded.notes)
  if (path / _PREPROCESSOR).is_file():
    preprocess = _preprocess(path / _PREPROCESSOR)
  else:
    notes.append(
      f'{path} has no {_PREPROCESSOR}: the input of microsoft/resnet-* is'
      ' taken.'
    )
  return dataclasses.replace(
    loaded,
    format=f'Hugging Face folder, {name}',
    model=loaded.model.clone(
      variant=loaded.model.variant.overridden(stride_in=stride_in)
    ),
    preprocess=preprocess,
    notes=tuple(notes),
    guesses=(),
    class_names=_class_names(path, config, loaded.model.classes),
  )


def _weights(
  path: pathlib.Path, options: assemble.Options
) -> tuple[str, assemble.Loaded]:
  name = next(n for n in _LOADERS if (path / n).is_file())
  return name, _LOADERS[name](path / name, options)


def _timm(
  path: pathlib.Path, stated: dict[str, Any], options: assemble.Options
) -> assemble.Loaded:
  """A folder of timm's, whose configuration has the preprocessing in it."""
  name, loaded = _weights(path, options)
  try:
    size = int(stated['input_size'][-1])
    preprocess = Preprocess(
      channels='RGB',
      mean=_scaled(stated['mean']),
      std=_scaled(stated['std']),
      resize_size=int(size / float(stated['crop_pct'])),
      crop_size=size,
      interpolation=str(stated['interpolation']),
      rounding='torchvision',
    )
  except _WRONG as error:
    raise _unknown(path / _CONFIG, error) from error
  return dataclasses.replace(
    loaded,
    format=f'timm folder, {name}',
    preprocess=preprocess,
    guesses=(),
  )


def _scaled(values: Any) -> tuple[float, float, float]:
  """Three values of the scale 0 to 1 on the scale 0 to 255."""
  first, second, third = (round(255 * float(value), 6) for value in values)
  return first, second, third


def _unknown(path: pathlib.Path, error: Exception) -> errors.UserError:
  return errors.UserError(
    f'{path} tells of a preprocessing that is not known here'
    f' ({type(error).__name__}: {str(error)[:200]}). Name the file with the'
    ' weights instead of the folder, and set resize_size, crop_size,'
    ' interpolation, mean and std.'
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


def _preprocess(path: pathlib.Path) -> Preprocess:
  stated = _read(path)
  try:
    kind = stated.get(
      'image_processor_type', stated.get('feature_extractor_type')
    )
    if kind is not None and not str(kind).startswith(_PROCESSORS):
      raise ValueError(f'{kind}')
    for key, value in _USUAL.items():
      if stated.get(key, value) != value:
        raise ValueError(f'{key}={stated[key]}')
    if not math.isclose(float(stated.get('rescale_factor', 1 / 255)), 1 / 255):
      raise ValueError(f'rescale_factor={stated["rescale_factor"]}')
    size = stated['size']
    size = int(size['shortest_edge'] if isinstance(size, dict) else size)
    resample = int(stated['resample'])
    if size >= _SQUASHED or resample not in _FILTERS:
      raise ValueError(f'size {size}, resample {resample}')
    share = stated.get('crop_pct')
    return Preprocess(
      channels='RGB',
      mean=_scaled(stated['image_mean']),
      std=_scaled(stated['image_std']),
      resize_size=int(size / (_CROP_PCT if share is None else float(share))),
      crop_size=size,
      interpolation=_FILTERS[resample],
      rounding='torchvision',
    )
  except _WRONG as error:
    raise _unknown(path, error) from error
