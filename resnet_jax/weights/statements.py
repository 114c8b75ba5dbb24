# SPDX-License-Identifier: Apache-2.0
"""What is stated beside tensors that look like a plain ResNet's.

A blur pool, an activation, a pool and dilation have no tensors: only names and
settings beside the tensors tell them.  Sources: timm 1.0.31, `models/resnet.py`
(its networks and their arguments); torchvision 0.29.2, `models/resnet.py`.
"""

import ast
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_jax.codecs import pickles
from resnet_jax.codecs.tensor import Tensor
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
  *('tv', 'torchvision', 'torch', 'pytorch', 'timm', 'ig', 'fb', 'gluon'),
  *('v1b', 'ssl', 'swsl', 'hub', 'model', 'models', 'weights', 'imagenet'),
  *('imagenet1k', 'in1k', 'in12k', 'in21k', 'in22k', 'imagenet21k'),
  *('places365', 'cifar', 'cifar10', 'cifar100', 'ema', 'swa', 'best', 'last'),
  *('pretrained', 'finetuned', 'supervised', 'backbone', 'encoder'),
  *('moco', 'mocov2', 'mocov3', 'simclr', 'byol', 'simsiam', 'swav', 'dino'),
}
# The same: a fold, an input size, the hash in a file's name.
_ORIGIN = re.compile(r'fold\d*|\d{3}|(?=[a-f]*\d)[0-9a-f]{8}')
# A path of weights, which is no name of a network.
_WEIGHTS = re.compile(r'\.(pth|pt|tar|bin|ckpt|safetensors)$')
_RESNET = re.compile(r'res\w?-?_?ne')

_NONE = (None, '', False, 0)
_DENSE = (*_NONE, 1)
_POOLS = (
  *(None, '', 'avg', 'fast', 'fastavg', 'avgpool', 'average', 'mean', 'gap'),
  *('adaptiveavgpool2d', 'globalaveragepooling'),
)
_RELU = (None, '', 'relu')
# Of keys that may be the last layer's as well.
_ACTIVATIONS = (
  *_RELU,
  *('none', 'identity', 'linear', 'softmax', 'softmax2d', 'sigmoid'),
)
_NORMS = (
  *(None, '', 'batchnorm2d', 'batchnorm', 'bn', 'syncbatchnorm', 'syncbn'),
  *('frozenbatchnorm2d', 'frozenbatchnorm', 'frozenbn'),
)
_EPSILON = (None, 1e-5)
# Arguments of networks and the values of a plain ResNet: names in small
# letters, without the modules before them.  A list has such values for stages.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
  'global_pool': _POOLS,
  'gp': _POOLS,
  'act_layer': _RELU,
  'hidden_act': _RELU,
  'norm_layer': _NORMS,
  'aa_layer': _NONE,
  'attn_layer': _NONE,
  'block_args': (None, {}),
  'output_stride': (None, 32),
  'dilation': _DENSE,
  'dilations': _DENSE,
  'dilated': _NONE,
  'multi_grid': _NONE,
  'replace_stride_with_dilation': _NONE,
  'replace_stem_pool': _NONE,
  'avg_down': _NONE,
  'bn_tf': _NONE,
  'bn_eps': _EPSILON,
  'norm_eps': _EPSILON,
  'down_kernel_size': (None, 1),
  'block_reduce_first': (None, 1),
  'batch_norm_eps': _EPSILON,
}
# Keys that mean a network's argument only if a word is under them.
_WORDS: dict[str, tuple[Any, ...]] = {
  **dict.fromkeys(('pool', 'pooling', 'pool_type', 'pooling_type'), _POOLS),
  **dict.fromkeys(('activation', 'act', 'act_fn'), _ACTIVATIONS),
}
# Keys of a checkpoint under which training programs name the network.
_NAMES = (
  *('arch', 'architecture', 'model_name', 'model', 'backbone', 'network'),
  *('encoder', 'base_encoder', 'net', 'arch_name', 'backbone_name'),
  *('encoder_name', 'net_name', 'network_name', 'model_arch', 'model_type'),
  *('backbone_arch', 'base_model', 'cnn'),
)
# Those of settings, which may hold others; a name in the settings of a network
# is under one of _INNER.
_SETTINGS = (
  *('args', 'hyper_parameters', 'hparams', 'config', 'cfg', 'opt', 'params'),
  *('model_args', 'model_kwargs', 'meta', 'settings', 'options', 'kwargs'),
  *(
    'model_config',
    'model_cfg',
    'model_params',
    'init_args',
    'hyperparameters',
  ),
)
_INNER = ('name', 'type')
_MOST_SETTINGS = 6  # in one another
# In the text of a configuration of OpenMMLab's, which is Python.
_IN_TEXT: dict[str, tuple[Any, ...]] = {
  'dilations': _DENSE,
  'avg_down': _NONE,
  'deep_stem': _NONE,
}
_STRIDES = ((1, 2, 2, 2), [1, 2, 2, 2])
# Whose depth and groups the tensors tell.
_TYPES = ('ResNet', 'ResNeXt', 'ResNet_CIFAR')
_TEXT = re.compile(
  r"""\b(type|strides|dilations|avg_down|deep_stem)['"]?\s?[=:]\s?"""
  r"""('[^'\n]{1,99}'|"[^"\n]{1,99}"|[(\[][^()\[\]]{1,99}[)\]]|\w{1,99})"""
)
_HOW = " In Python: torch.save(torch.load(FILE)['state_dict'], 'clean.pth')."
_ALONE = f' If it is a plain ResNet all the same, save its tensors alone.{_HOW}'


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
    words = set(re.split(r'[-_ ]+', part)) - _ORIGINS
    if words := {word for word in words if not _ORIGIN.fullmatch(word)}:
      return ARCHITECTURES.get(words.pop()) if len(words) == 1 else None
  return None


def check_checkpoint(
  path: pathlib.Path, contents: object, depth: int
) -> list[str]:
  """Refuses a network that a checkpoint's other contents say is not this.

  Args:
    path: for messages.
    contents: of the file.
    depth: of the network by its tensors.

  Returns:
    Notes on names that say nothing.

  Raises:
    UserError: names what is stated.
  """
  notes = []
  for stated, keys in _settings(contents):
    if isinstance(stated, str):
      _check_text(path, stated)
      continue
    check_arguments(path, stated, _ALONE)
    for key in keys:
      name = _text(stated.get(key))
      if not name or _WEIGHTS.search(name):
        continue
      known = depth_of(name)
      if known is None and _RESNET.search(name.lower()):
        raise another(path, key, name, _ALONE)
      if known not in (None, 0, depth):
        raise errors.UserError(
          f'{path} contradicts itself: it states {key}={name[:99]}, and its'
          f' tensors are those of a ResNet-{depth}. If the tensors are right,'
          f' save them alone.{_HOW}'
        )
      if known is None and stated is contents:
        notes.append(
          f"The file states {key}='{name[:99]}', which is no name of a network"
          ' that is known; its tensors are those of a plain ResNet.'
        )
  return notes


def is_name(key: object, value: object) -> bool:
  """Whether `check_checkpoint` has checked all that is under a key."""
  return key in _NAMES and bool(_text(value))


def _text(value: object) -> str:
  """A name, also if it is bytes or the only one of a list."""
  if isinstance(value, list | tuple) and len(value) == 1:
    value = value[0]
  if isinstance(value, bytes):
    value = value.decode('latin1')
  return value if isinstance(value, str) else ''


def _settings(
  contents: object,
) -> Iterator[tuple[Mapping[Any, Any] | str, tuple[str, ...]]]:
  """The contents and the settings in them, also as objects' attributes.

  Yields:
    Each with the keys that name a network there; or a text.
  """
  waiting: list[tuple[object, tuple[str, ...], int]] = [
    (contents, _NAMES, _MOST_SETTINGS)
  ]
  seen: set[int] = set()
  while waiting:
    held, names, depth = waiting.pop()
    if isinstance(held, str):
      yield held, ()
    held = held.state if isinstance(held, pickles.Inert) else held
    # One that refers to itself, or is referred to often, is read once.
    if not isinstance(held, dict) or id(held) in seen:
      continue
    seen.add(id(held))
    yield held, names
    if depth:
      waiting += [
        (held[key], _NAMES, depth - 1) for key in _SETTINGS if key in held
      ]
      waiting += [
        (held[key], (*_NAMES, *_INNER), depth - 1)
        for key in _NAMES
        if key in held and not isinstance(held[key], str)
      ]


def _check_text(path: pathlib.Path, text: str) -> None:
  for key, given in _TEXT.findall(text):
    try:
      value = ast.literal_eval(given)
    except (ValueError, SyntaxError):
      continue
    if key == 'type':
      name = str(value)
      if name not in _TYPES and _RESNET.match(name.lower().removeprefix('se')):
        raise another(path, key, name, _ALONE)
    elif key == 'strides':
      if value not in _STRIDES:
        raise another(path, key, value, _ALONE)
    elif not _is_plain(value, _IN_TEXT[key]):
      raise another(path, key, value, _ALONE)


def check_arguments(
  path: pathlib.Path, stated: Mapping[Any, Any], advice: str
) -> None:
  """Refuses settings with an argument that a plain ResNet does not have.

  Args:
    path: for messages.
    stated: the settings.
    advice: what to do, for messages.

  Raises:
    UserError: names the argument.
  """
  for key, plain in ARGUMENTS.items():
    if not _is_plain(value := stated.get(key), plain):
      raise another(path, key, named(value), advice)
  for key, plain in _WORDS.items():
    value = named(stated.get(key))
    if isinstance(value, str) and not _is_plain(value, plain):
      raise another(path, key, value, advice)


def named(value: object) -> object:
  """A class by its name; settings of a layer by their type."""
  if isinstance(value, dict):
    value = next((value[k] for k in _INNER if _text(value.get(k))), value)
  value = value.name if isinstance(value, pickles.Inert) else value
  return value.lower().rsplit('.', 1)[-1] if isinstance(value, str) else value


def _is_plain(value: object, plain: tuple[Any, ...]) -> bool:
  value = named(value)
  # A parameter has such a name by chance.
  if isinstance(value, Tensor):
    return True
  if isinstance(value, list | tuple):
    return all(_is_one_of(named(one), plain) for one in value)
  return _is_one_of(value, plain)


def _is_one_of(value: object, plain: tuple[Any, ...]) -> bool:
  # True equals 1, which is another thing here.
  return any(type(value) is type(v) and value == v for v in plain)


def another(
  path: pathlib.Path, key: str, value: object, advice: str
) -> errors.UserError:
  """The error for a statement of another network."""
  return errors.UserError(
    f'{path} holds another network: it states {key[:99]}={shown(value)}, which'
    ' is not that of a plain ResNet, though the tensors may look like its.'
    f'{advice}'
  )


def shown(value: object) -> str:
  """A value of a file, which may be nested in itself or be a huge number."""
  if isinstance(value, list | tuple) and len(value) <= 8:
    simple = all(map(_is_short, value))
  else:
    simple = _is_short(value)
  return f'{value}'[:99] if simple else f'({type(value).__name__})'


def _is_short(value: object) -> bool:
  return isinstance(value, bool | float | str) or (
    isinstance(value, int) and abs(value) < 1 << 64
  )
