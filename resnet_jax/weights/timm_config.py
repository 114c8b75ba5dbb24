# SPDX-License-Identifier: Apache-2.0
"""What the `config.json` of a timm folder states about the network.

Source: timm 1.0.31, `models/resnet.py` (arguments) and `models/_hub.py`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from resnet_jax.models import resnet, structure
from resnet_jax.system import errors
from resnet_jax.weights import statements

# Arguments of timm's that the tensors tell, or that only training and exporting
# need.
_TOLD = {
  *('num_classes', 'in_chans', 'layers', 'block', 'channels', 'stem_width'),
  *('stem_type', 'cardinality', 'base_width'),
  *('drop_rate', 'drop_path_rate', 'drop_block_rate'),
  *('zero_init_last', 'pretrained', 'features_only', 'out_indices'),
  *('scriptable', 'exportable', 'checkpoint_path', 'pretrained_strict'),
  *('bn_momentum', 'img_size', 'no_jit', 'cache_dir'),
}
_FILE = (
  ' If the weights are those of a plain ResNet, give their file instead of the'
  ' folder.'
)


def check(
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
  for holder in (config, cfg):
    name = holder.get('architecture')
    if name is not None and statements.depth_of(str(name)) is None:
      raise statements.another(path, 'architecture', name, _FILE)
  arguments = config.get('model_args') or {}
  if not isinstance(arguments, dict):
    raise statements.another(path, 'model_args', arguments, _FILE)
  for stated in (config, arguments):
    statements.check_arguments(path, stated, _FILE)
  for key in arguments.keys() - statements.ARGUMENTS.keys() - _TOLD:
    raise statements.another(path, key, arguments[key], _FILE)


def check_fits(
  path: pathlib.Path,
  config: Mapping[str, Any],
  cfg: Mapping[str, Any],
  module: resnet.ResNet,
) -> None:
  """Refuses a configuration of other weights than those beside it.

  Args:
    path: of the configuration.
    config: its contents.
    cfg: `pretrained_cfg` in it.
    module: the network by its tensors.

  Raises:
    UserError: names what differs.
  """
  arguments = config.get('model_args') or {}
  for holder in (config, cfg):
    name = holder.get('architecture')
    if (statements.depth_of(str(name)) or module.depth) != module.depth:
      raise differs(path, 'architecture', name, module)
  own = structure.ARCHITECTURES[module.depth]
  widths = structure.widths(module.depth, module.variant)
  inner = widths.outputs // (4 if own.bottleneck else 1)
  fits: dict[str, tuple[Any, ...]] = {
    'num_classes': (module.classes,),
    'in_chans': (3,),
    'layers': (list(own.blocks),),
    'block': ('bottleneck' if own.bottleneck else 'basicblock',),
    'channels': ([inner * 2**n for n in range(len(own.blocks))],),
    'stem_type': ('',),
    'stem_width': (widths.stem,),
    'base_width': (64 * widths.inner // (inner * module.variant.groups),),
    'cardinality': (module.variant.groups,),
  }
  # A file without a classifier fits any number of classes.
  classes = config.get('num_classes', cfg.get('num_classes'))
  if module.classes and classes not in (None, module.classes):
    raise differs(path, 'num_classes', classes, module)
  for key, ours in fits.items():
    value = statements.named(arguments.get(key))
    value = list(value) if isinstance(value, tuple) else value
    told = key != 'num_classes' or module.classes
    if told and value is not None and value not in ours:
      raise differs(path, key, value, module)


def differs(
  path: pathlib.Path, key: str, value: object, module: resnet.ResNet
) -> errors.UserError:
  """The error for a configuration of other weights."""
  return errors.UserError(
    f'{path} states {key}={statements.shown(value)}, and the weights beside it'
    f' are those of a ResNet-{module.depth} of {module.classes} classes. Get'
    ' both again, or give the file with the weights instead of the folder.'
  )
