# SPDX-License-Identifier: Apache-2.0
"""Parameters by the names of any program."""

from collections.abc import Callable, Mapping

from resnet_jax.models import aliases, names, programs, resnet
from resnet_jax.system import errors
from resnet_jax.weights import assemble, caffe, keras, torch_names

_NAMINGS: dict[str, Callable[[int], dict[str, str]]] = {
  'caffe': caffe.naming,
  'keras': keras.naming,
  'torchvision': lambda depth: torch_names.with_biases(
    torch_names.torchvision(depth)
  ),
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
  known = resnet.layer_names(module)
  layers = aliases.resolve(pattern, _layer_tables(module), known)
  if not layers:
    everything = [name for table in tables.values() for name in table]
    raise errors.unknown(
      'parameter',
      pattern,
      everything,
      described='those of --job=inspect, LAYER/LEAF with LEAF one of kernel,'
      ' scale, mean, var, bias; the names of Paddle, Caffe, Keras and'
      ' torchvision; and a layer, for all of its parameters',
    )
  found = tuple(n for n in loaded.parameters if n.split('/')[0] in layers)
  if not found:
    raise errors.UserError(
      f"'{pattern}' is a layer without parameters. Name a convolution (_conv),"
      ' a batch norm (_bn) or the classifier (logits).'
    )
  return found


def _layer_tables(
  module: resnet.ResNet,
) -> dict[str, dict[str, tuple[str, ...]]]:
  """The layers by the names of those that hold their parameters."""
  known = resnet.layer_names(module)
  tables: dict[str, dict[str, tuple[str, ...]]] = {
    aliases.CANONICAL: {name: (name,) for name in known}
  }
  for scheme in _NAMINGS:
    tables[scheme] = table = {}
    for ours, theirs in programs.owners(module.depth, scheme).items():
      # Caffe's batch norm has its parameters in two layers.
      both = scheme == 'caffe' and ours.endswith('_bn')
      for kind in ('bn', 'scale') if both else ('',):
        table[kind + theirs] = (ours,)
  return tables
