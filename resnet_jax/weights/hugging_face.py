# SPDX-License-Identifier: Apache-2.0
"""A folder of a ResNet from the Hugging Face hub, of Transformers or timm.

In Transformers' (`save_pretrained`), `config.json` has the stride and the class
names, and `preprocessor_config.json`, if there is one, the preprocessing; timm
has all in `config.json`.  Sources: Transformers 5.23,
`models/resnet/configuration_resnet.py` and
`models/convnext/image_processing_convnext.py`; timm 1.0.31, `models/_hub.py`,
`data/config.py` and `data/transforms_factory.py`.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from resnet_jax.codecs import faults
from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import resnet, structure
from resnet_jax.system import errors, files
from resnet_jax.weights import (
  assemble,
  class_names,
  safetensors,
  timm_config,
  torch,
)

_CONFIG, _PREPROCESSOR = 'config.json', 'preprocessor_config.json'
_LOADERS = {
  'model.safetensors': safetensors.load,
  'pytorch_model.bin': torch.load,
}
_MAX_BYTES = 1 << 24  # of a JSON file; most of it is id2label
# Pillow's numbers of its filters.
_FILTERS = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}
# Images from this size on are squashed, not cropped.
_SQUASHED = 384
_CROP_PCT = 0.875
# timm's defaults.
_TIMM: dict[str, Any] = {
  'mean': [0.485, 0.456, 0.406],
  'std': [0.229, 0.224, 0.225],
  'input_size': [3, 224, 224],
  'crop_pct': _CROP_PCT,
  'crop_mode': 'center',
  'interpolation': 'bicubic',
  'label_offset': 0,
}
_LABELS = ('label_names', 'labels', 'id2label')
_PROCESSORS = ('ConvNextFeatureExtractor', 'ConvNextImageProcessor')
# Steps of a preprocessor that must not be turned off.
_STEPS = ('do_normalize', 'do_rescale', 'do_resize', 'do_center_crop')
# Fields of the configuration whose other values are other networks.
_PLAIN = {
  'model_type': 'resnet',
  'embedding_size': 64,
  'hidden_act': 'relu',
  'downsample_in_first_stage': False,
  'num_channels': 3,
}


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a path is a folder with a configuration and weights."""
  if head or not (path / _CONFIG).is_file():
    return False
  return any((path / name).is_file() for name in _LOADERS)


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads the weights and the files beside them.

  Raises:
    UserError: as the loaders of the weights; or a file beside them is damaged,
      or describes another network.
  """
  config = _read(path / _CONFIG)
  name = next(n for n in _LOADERS if (path / n).is_file())
  # timm wrote the fields of pretrained_cfg beside the others once.
  timms = config.get('pretrained_cfg')
  if timms is None and 'architecture' in config and 'model_type' not in config:
    timms = config
  if isinstance(timms, dict):
    timm_config.check(path / _CONFIG, config, timms)
    preprocess = _timm(path / _CONFIG, timms)
    loaded = _LOADERS[name](path / name, options)
    loaded = dataclasses.replace(loaded, format=f'timm folder, {name}')
    return _with_timms(path / _CONFIG, config, timms, loaded, preprocess)
  _check_network(path, config)
  loaded = _LOADERS[name](path / name, options)
  _check_fits(path / _CONFIG, config, loaded.module)
  stride_in = '1x1' if config.get('downsample_in_bottleneck') else '3x3'
  preprocess, notes = presets.HUGGING_FACE, loaded.notes
  if (path / _PREPROCESSOR).is_file():
    preprocess = _transformers(path / _PREPROCESSOR)
  else:
    notes += (
      f'{path} has no {_PREPROCESSOR}: that of microsoft/resnet-* is used.',
    )
  variant = loaded.module.variant.overridden(stride_in=stride_in)
  return dataclasses.replace(
    loaded,
    format=f'Hugging Face folder, {name}',
    module=loaded.module.clone(variant=variant),
    preprocess=preprocess,
    notes=notes,
    guesses=(),
    class_names=class_names.stated(
      path / _CONFIG,
      'id2label',
      config.get('id2label'),
      loaded.module.classes,
    ),
  )


def beside(path: pathlib.Path) -> tuple[str, ...]:
  """A note on the configuration beside a file that is given instead of both."""
  config = path.with_name(_CONFIG)
  if path.name not in _LOADERS or not config.is_file():
    return ()
  return (
    f'{config} is not read: give the folder, {path.parent}, for the'
    ' preprocessing and the class names that it states.',
  )


def _check_network(path: pathlib.Path, config: dict[str, Any]) -> None:
  # Without a model type it is not Transformers'.
  stated = _PLAIN | {'model_type': None} | config
  for key, value in _PLAIN.items():
    if stated[key] != value:
      raise errors.UserError(
        f'{path} holds another network: its {_CONFIG} says {key}='
        f'{str(stated[key])[:99]}, not {value}. If the weights are those of a'
        ' plain ResNet, give their file instead of the folder.'
      )
  classes = config.get('architectures') or []
  stride = config.get('downsample_in_bottleneck')
  for key, value, right in (
    ('architectures', classes, _are_resnets(classes)),
    ('downsample_in_bottleneck', stride, stride in (None, True, False)),
  ):
    if not right:
      raise errors.UserError(
        f'{path} holds another network: its {_CONFIG} says {key}='
        f'{str(value)[:99]}. If the weights are those of a plain ResNet, give'
        ' their file instead of the folder.'
      )


def _are_resnets(classes: object) -> bool:
  return isinstance(classes, list) and all(
    isinstance(name, str) and name.startswith('ResNet') for name in classes
  )


def _check_fits(
  path: pathlib.Path, config: dict[str, Any], module: resnet.ResNet
) -> None:
  """Refuses a configuration of other weights than those beside it."""
  own = structure.ARCHITECTURES[module.depth]
  outputs = structure.widths(module.depth, module.variant).outputs
  for key, ours in {
    'depths': list(own.blocks),
    'hidden_sizes': [outputs * 2**n for n in range(len(own.blocks))],
    'layer_type': 'bottleneck' if own.bottleneck else 'basic',
  }.items():
    if config.get(key, ours) != ours:
      raise timm_config.differs(path, key, config[key], module)


def _with_timms(
  path: pathlib.Path,
  config: dict[str, Any],
  cfg: dict[str, Any],
  loaded: assemble.Loaded,
  preprocess: Preprocess,
) -> assemble.Loaded:
  """The weights with what timm's configuration states."""
  module = loaded.module
  timm_config.check_fits(path, config, cfg, module)
  both = cfg | config
  key = next((key for key in _LABELS if both.get(key)), _LABELS[0])
  return dataclasses.replace(
    loaded,
    preprocess=preprocess,
    guesses=(),
    class_names=class_names.stated(
      path,
      key,
      both.get(key),
      module.classes,
      both.get('label_descriptions'),
    ),
  )


def _timm(path: pathlib.Path, stated: dict[str, Any]) -> Preprocess:
  # Null is the default; crop_pct and crop_mode may be '' or 0, too.
  given = _TIMM | {k: v for k, v in stated.items() if v is not None}
  with _supported(path):
    channels, *sides = given['input_size']
    share, mode = float(given['crop_pct'] or _CROP_PCT), given['crop_mode']
    if channels != 3 or len(set(sides)) != 1:
      raise ValueError(f'input_size={given["input_size"]}')
    if given['label_offset']:
      raise ValueError(f'label_offset={given["label_offset"]}')
    # timm squashes to the size before the crop.
    if mode not in (None, '', 'center') and (mode, share) != ('squash', 1):
      raise ValueError(f'crop_mode={mode}, crop_pct={share}')
    preprocess = _preprocess(
      given['mean'],
      given['std'],
      int(sides[0]),
      share,
      str(given['interpolation']),
    )
    resize = 'squash' if mode == 'squash' else 'short_side'
    return dataclasses.replace(preprocess, resize=resize)


def _transformers(path: pathlib.Path) -> Preprocess:
  stated = _read(path)
  with _supported(path):
    kind = stated.get(
      'image_processor_type', stated.get('feature_extractor_type')
    )
    if kind is not None and not str(kind).startswith(_PROCESSORS):
      raise ValueError(kind)
    for key in _STEPS:
      if not stated.get(key, True):
        raise ValueError(f'{key}={stated[key]}')
    if stated.get('do_flip_channel_order'):
      raise ValueError(
        f'do_flip_channel_order={stated["do_flip_channel_order"]}'
      )
    if not math.isclose(float(stated.get('rescale_factor', 1 / 255)), 1 / 255):
      raise ValueError(f'rescale_factor={stated["rescale_factor"]}')
    size = stated['size']
    size = int(size['shortest_edge'] if isinstance(size, dict) else size)
    resample, share = int(stated['resample']), stated.get('crop_pct')
    if size >= _SQUASHED or resample not in _FILTERS:
      raise ValueError(f'size {size}, resample {resample}')
    return _preprocess(
      stated['image_mean'],
      stated['image_std'],
      size,
      _CROP_PCT if share is None else float(share),
      _FILTERS[resample],
    )


def _preprocess(
  mean: Any, std: Any, size: int, crop_pct: float, interpolation: str
) -> Preprocess:
  return Preprocess(
    channels='RGB',
    mean=_scaled(mean),
    std=_scaled(std),
    resize_size=int(size / crop_pct),
    crop_size=size,
    interpolation=interpolation,
    rounding='torchvision',
  )


def _scaled(values: Any) -> tuple[float, float, float]:
  """Three values of the scale 0 to 1 on the scale 0 to 255."""
  first, second, third = (round(255 * float(value), 6) for value in values)
  return first, second, third


@contextlib.contextmanager
def _supported(path: pathlib.Path) -> Iterator[None]:
  """Turns what fields of a wrong kind or value raise into a UserError."""
  try:
    yield
  except (
    *(LookupError, TypeError, ValueError, ArithmeticError),
    errors.UserError,
  ) as error:
    raise errors.UserError(
      f'{path} states a preprocessing that is not supported'
      f' ({type(error).__name__}: {str(error)[:200]}). Give the file with the'
      ' weights instead of the folder, and set resize_size, crop_size,'
      ' interpolation, mean and std.'
    ) from error


def _read(path: pathlib.Path) -> dict[str, Any]:
  faults.check_pointer(path)
  try:
    found = files.read_json(files.read_text(path, _MAX_BYTES, 'utf-8-sig'))
    if not isinstance(found, dict):
      raise ValueError('it is not a JSON object')
    return found
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} is damaged: {error}. Save the model again, or give the file with'
      ' the weights instead of the folder.'
    ) from error
