# SPDX-License-Identifier: Apache-2.0
"""Parameters by the names of any program."""

from collections.abc import Callable, Mapping

from resnet_jax.models import aliases, names
from resnet_jax.system import errors
from resnet_jax.weights import assemble, caffe, keras, torch_names

_NAMINGS: dict[str, Callable[[int], dict[str, str]]] = {
  'caffe': caffe.naming,
  'keras': keras.naming,
  'torchvision': torch_names.torchvision,
}


def select(text: str, loaded: assemble.Loaded) -> tuple[str, ...]:
  """Canonical parameters for names and globs, in the order asked for.

  A name is canonical (`res2_1_branch1_bn/mean`), a Paddle file
  (`_res2_1_branch1_bn.w1`), a name of Caffe (`bn2a_branch1.0`), Keras
  (`conv2_block1_0_bn/moving_mean`), torchvision
  (`layer1.0.downsample.1.running_mean`) or the file itself, or a layer, which
  stands for all of its parameters.

  Raises:
    UserError: a name is unknown or ambiguous.
  """
  known = tuple(loaded.parameters)
  tables = _tables(loaded)
  chosen: dict[str, None] = {}
  for pattern in names.split_list(text):
    found = aliases.resolve(pattern, tables, known)
    chosen.update(dict.fromkeys(found or _of_layers(pattern, loaded, tables)))
  return tuple(chosen)


def _tables(
  loaded: assemble.Loaded,
) -> dict[str, dict[str, tuple[str, ...]]]:
  known = loaded.parameters
  tables: dict[str, dict[str, tuple[str, ...]]] = {
    aliases.CANONICAL: {
      alias: (name,)
      for name in known
      for alias in (name, aliases.paddle_parameter(name))
    }
  }
  for scheme, naming in _NAMINGS.items():
    tables[scheme] = {
      theirs: (ours,)
      for theirs, ours in naming(loaded.module.depth).items()
      if ours in known
    }
  tables['file'] = {
    origin.name: (name,) for name, origin in loaded.origins.items()
  }
  return tables


def _of_layers(
  pattern: str,
  loaded: assemble.Loaded,
  tables: Mapping[str, Mapping[str, object]],
) -> tuple[str, ...]:
  module = loaded.module
  try:
    layers = aliases.select_layers(
      pattern, module.depth, head=module.classes > 0
    ).layers
  except aliases.AmbiguousNameError:
    raise
  except errors.UserError as error:
    everything = [name for table in tables.values() for name in table]
    raise errors.unknown(
      'parameter',
      pattern,
      everything,
      described='those of --job=inspect, LAYER/LEAF with LEAF one of kernel,'
      ' scale, mean, var, bias; the names of Paddle, Caffe, Keras and'
      ' torchvision; and a layer, for all of its parameters',
    ) from error
  found = tuple(n for n in loaded.parameters if n.split('/')[0] in layers)
  if not found:
    raise errors.UserError(
      f"'{pattern}' is a layer without parameters. Name a convolution (_conv),"
      ' a batch norm (_bn) or the classifier (logits).'
    )
  return found
