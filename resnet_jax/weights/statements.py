# SPDX-License-Identifier: Apache-2.0
"""What is stated beside tensors that look like a plain ResNet's.

A blur pool, an activation, a pool and dilation have no tensors: only names and
settings beside the tensors tell them.  Sources: timm 1.0.31, `models/resnet.py`
(its networks and their arguments); torchvision 0.29.2, `models/resnet.py`.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_jax.codecs import pickles
from resnet_jax.models import structure
from resnet_jax.system import errors

# The networks that this program has, by the programs' names of them: the depth;
# 0: not stated.
ARCHITECTURES = {
  'resnet': 0,
  **{f'resnet{depth}': depth for depth in structure.ARCHITECTURES},
}
# The same with other widths and groups, which the tensors tell.
_WIDER = re.compile(r'wide_resnet(\d+)_\d+|resnext(\d+)_\d+x\d+d')
# Words beside such a name that say where the weights are from.
_ORIGINS = {
  *(
    'tv',
    'torchvision',
    'timm',
    'ig',
    'fb',
    'gluon',
    'v1b',
    'ssl',
    'swsl',
    'hub',
    'model',
  ),
  *('models', 'imagenet', 'imagenet1k', 'in1k', 'in12k', 'in21k', 'in22k'),
  *('imagenet21k', 'places365', 'cifar', 'cifar10', 'cifar100'),
  *('pretrained', 'finetuned', 'supervised', 'backbone', 'encoder'),
  *('moco', 'mocov2', 'mocov3', 'simclr', 'byol', 'simsiam', 'swav', 'dino'),
}
# A path of weights, which is no name of a network.
_WEIGHTS = re.compile(r'\.(pth|pt|tar|bin|ckpt|safetensors)$')
_RESNET = re.compile(r'res\w?-?_?ne')

_NONE = (None, '', False, 0)
_POOLS = (None, '', 'avg', 'fast', 'fastavg')
# Arguments of networks and the values of a plain ResNet: names in small
# letters, without the modules before them.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
  'global_pool': _POOLS,
  'gp': _POOLS,
  'act_layer': (None, '', 'relu'),
  'hidden_act': (None, '', 'relu'),
  'norm_layer': (None, '', 'batchnorm2d', 'batchnorm', 'bn'),
  'aa_layer': _NONE,
  'attn_layer': _NONE,
  'block_args': (None, {}),
  'output_stride': (None, 32),
  'dilation': (*_NONE, 1),
  'replace_stride_with_dilation': (None, [False] * 3, (False,) * 3),
  'replace_stem_pool': _NONE,
  'avg_down': _NONE,
}
# Arguments of timm's that the tensors tell, or that only training needs.
_TOLD = {
  *('num_classes', 'in_chans', 'layers', 'block', 'channels', 'stem_width'),
  *('stem_type', 'cardinality', 'base_width', 'block_reduce_first'),
  *('down_kernel_size', 'drop_rate', 'drop_path_rate', 'drop_block_rate'),
  *('zero_init_last', 'pretrained', 'features_only', 'out_indices'),
}
# Keys of a checkpoint under which training programs name the network, and those
# of their settings.
_NAMES = (
  *('arch', 'architecture', 'model_name', 'model', 'backbone', 'network'),
  *('encoder', 'base_encoder', 'net'),
)
_SETTINGS = (
  *('args', 'hyper_parameters', 'hparams', 'config', 'cfg', 'opt', 'params'),
  *('model_args', 'model_kwargs'),
)
_ALONE = (
  ' If it is a plain ResNet all the same, save its tensors alone:'
  " torch.save(torch.load(FILE)['state_dict'], 'clean.pth')."
)
_FILE = (
  ' If the weights are those of a plain ResNet, give their file instead of the'
  ' folder.'
)


def depth_of(name: str) -> int | None:
  """The depth of a plain ResNet by a program's name of it.

  'resnet50.a1_in1k', 'tv_resnet50', 'torchvision.models.resnet50', 'ResNet-50'.

  Returns:
    0: the name states none; None: it is not the name of a plain ResNet.
  """
  text = name.lower().rsplit('/', 1)[-1].replace('v1.5', 'v1b')
  text = re.sub(r'resnet[-_ ](?=\d)', 'resnet', text)
  text = _WIDER.sub(r'resnet\1\2', text)
  # What follows the name after a dot says which weights these are.
  for part in text.split('.'):
    if words := set(re.split(r'[-_ ]+', part)) - _ORIGINS:
      return ARCHITECTURES.get(words.pop()) if len(words) == 1 else None
  return None


def check_folder(
  path: pathlib.Path, config: Mapping[str, Any], cfg: Mapping[str, Any]
) -> None:
  """Refuses a network of timm's that is not plain.

  Args:
    path: of the configuration.
    config: its contents.
    cfg: `pretrained_cfg` in it.

  Raises:
    UserError: names what is stated.
  """
  name = config.get('architecture', cfg.get('architecture'))
  if name is not None and depth_of(str(name)) is None:
    raise _another(path, 'architecture', name, _FILE)
  arguments = config.get('model_args') or {}
  if not isinstance(arguments, dict):
    raise _another(path, 'model_args', arguments, _FILE)
  for stated in (config, arguments):
    _check_arguments(path, stated, _FILE)
  for key in arguments.keys() - _ARGUMENTS.keys() - _TOLD:
    raise _another(path, key, arguments[key], _FILE)


def check_folder_fits(
  path: pathlib.Path,
  config: Mapping[str, Any],
  cfg: Mapping[str, Any],
  depth: int,
  classes: int,
) -> None:
  """Refuses a configuration of other weights than those beside it.

  Raises:
    UserError: the depth, or the number of classes of a classifier, differs.
  """
  name = config.get('architecture', cfg.get('architecture'))
  stated = depth_of(str(name)) or depth
  count = config.get('num_classes', cfg.get('num_classes'))
  if stated != depth or (classes and count not in (None, classes)):
    raise errors.UserError(
      f'{path} states architecture={name!s:.99}, num_classes={count!s:.99}, and'
      f' the weights beside it are those of a ResNet-{depth} of {classes}'
      ' classes. Get both again, or give the file with the weights instead of'
      ' the folder.'
    )


def check_checkpoint(
  path: pathlib.Path, contents: Mapping[Any, Any]
) -> list[str]:
  """Refuses a network that a checkpoint's other contents say is not plain.

  Returns:
    Notes on names that say nothing.

  Raises:
    UserError: names what is stated.
  """
  notes = []
  for stated in _settings(contents):
    _check_arguments(path, stated, _ALONE)
    for key in _NAMES:
      name = stated.get(key)
      if not isinstance(name, str) or depth_of(name) is not None:
        continue
      if _WEIGHTS.search(name):
        continue
      if _RESNET.search(name.lower()):
        raise _another(path, key, name, _ALONE)
      if stated is contents:
        notes.append(
          f"The file states {key}='{name[:99]}', which is no name of a network"
          ' that is known; its tensors are those of a plain ResNet.'
        )
  return notes


def _settings(
  contents: Mapping[Any, Any], depth: int = 2
) -> Iterator[Mapping[Any, Any]]:
  """The contents and the settings in them, also as objects' attributes."""
  yield contents
  for key in _SETTINGS if depth else ():
    held = contents.get(key)
    held = held.state if isinstance(held, pickles.Inert) else held
    if isinstance(held, dict):
      yield from _settings(held, depth - 1)


def _check_arguments(
  path: pathlib.Path, stated: Mapping[Any, Any], advice: str
) -> None:
  for key, plain in _ARGUMENTS.items():
    value = stated.get(key)
    value = value.name if isinstance(value, pickles.Inert) else value
    if isinstance(value, str):
      value = value.lower().rsplit('.', 1)[-1]
    # True equals 1, which is another thing here.
    if not any(type(value) is type(v) and value == v for v in plain):
      raise _another(path, key, value, advice)


def _another(
  path: pathlib.Path, key: str, value: object, advice: str
) -> errors.UserError:
  return errors.UserError(
    f'{path} holds another network: it states {key[:99]}={_shown(value)}, which'
    ' is not that of a plain ResNet, though the tensors may look like its.'
    f'{advice}'
  )


def _shown(value: object) -> str:
  """A value of a file, which may be nested in itself or be a huge number."""
  if isinstance(value, list | tuple) and len(value) <= 4:
    simple = all(isinstance(v, bool | float | str) for v in value)
  else:
    simple = isinstance(value, bool | float | str) or (
      isinstance(value, int) and abs(value) < 1 << 64
    )
  return f'{value}'[:99] if simple else f'({type(value).__name__})'
