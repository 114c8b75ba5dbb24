# SPDX-License-Identifier: Apache-2.0
"""The names of the layers and parameters; PaddlePaddle's are canonical."""

import functools
from collections.abc import Sequence

from resnet_jax.models import structure
from resnet_jax.models.variant import Variant

HEAD = ('logits', 'output')
# The ends of names of values between the layers.
LINEAR, SHORTCUT = '_linear', '_shortcut'
# The padded input of a layer.
PADDED = {'conv1_conv': 'conv1_pad', 'pool1': 'pool1_pad'}
# Parameters of a batch norm.
NORM_LEAVES = ('scale', 'mean', 'var', 'bias')
# By the end of a layer's name.
_LEAVES = {
  'conv': ('kernel', 'bias'),
  'bn': NORM_LEAVES,
  'logits': ('kernel', 'bias'),
}


@functools.lru_cache(maxsize=64)
def layer_names(depth: int, head: bool = True) -> tuple[str, ...]:
  """Every addressable layer of ResNet-`depth`, in the order of computing.

  `_conv` is before batch norm.  `_bn` includes the ReLU after it, except
  directly before the sum; `_addto` is the sum after ReLU.  `logits` is the
  input of the softmax `output` (the original has no such layer); a network
  without a head has neither.
  """
  # No variant has layers of its own.
  table = structure.layers(depth, Variant(), head)
  return tuple(layer.name for layer in table)


@functools.lru_cache(maxsize=64)
def value_names(depth: int, head: bool = True) -> tuple[str, ...]:
  """Every addressable value of ResNet-`depth`, in the order of computing.

  Between the layers lie `input`, the normalised images; `conv1_pad` and
  `pool1_pad`, the array that a window slides over, padded with zeros;
  `LAYER_linear`, what the ReLU of a layer takes; and `BLOCK_shortcut`, where a
  CIFAR network pads a shortcut.
  """
  found = [structure.INPUT]
  shortcuts = structure.padded_shortcuts(depth)
  for layer in structure.layers(depth, Variant(), head):
    if layer.name in PADDED:
      found.append(PADDED[layer.name])
    if layer.kind == structure.Kind.SUM and layer.block in shortcuts:
      found.append(f'{layer.block}{SHORTCUT}')
    if layer.activation == 'ReLU':
      found.append(layer.name + LINEAR)
    found.append(layer.name)
  return tuple(found)


def is_between(value: str) -> bool:
  """Whether a value is no layer, but lies between two."""
  others = (structure.INPUT, *PADDED.values())
  return value in others or value.endswith((LINEAR, SHORTCUT))


def has_positions(value: str) -> bool:
  """Whether a value is a map: all but the average pool and the head's."""
  return value not in ('avgpool', *HEAD)


def map_layers(depth: int) -> tuple[str, ...]:
  """The layers with spatial maps: all but the average pool and the head."""
  return layer_names(depth, head=False)[:-1]


def parameter_names(
  depth: int, head: bool = True, biases: bool = False
) -> tuple[str, ...]:
  """Every parameter, `layer/leaf`, in the order of computing.

  Leaves: a convolution's `kernel` and, with `biases`, the `bias` that it may
  have; a batch norm's `scale`, `mean`, `var` and `bias`; the classifier's
  `kernel` and `bias`, in `logits`.
  """
  return tuple(
    f'{layer}/{leaf}'
    for layer in layer_names(depth, head)
    for leaf in _LEAVES.get(layer.rsplit('_', 1)[-1], ())
    if biases or not (leaf == 'bias' and layer.endswith('_conv'))
  )


def grammar(depth: int) -> str:
  """All layer names of a depth in a few lines."""
  table = structure.blocks(depth, Variant())
  counts = enumerate(structure.ARCHITECTURES[depth].blocks, start=2)
  blocks = ', '.join(f'res{s}_1 to res{s}_{count}' for s, count in counts)
  branches = ', '.join(unit.name.split('_')[-1] for unit in table[0].branch)
  pool = 'pool1, ' if structure.stem(depth, Variant()).pool else ''
  projected = ', '.join(block.name for block in table if block.shortcut)
  branch1 = f' (and branch1 in {projected})' if projected else ''
  return (
    f'conv1_conv, conv1_bn, {pool}avgpool, logits, output, and BLOCK_addto,'
    f' BLOCK_BRANCH_conv, BLOCK_BRANCH_bn where BLOCK is {blocks} and BRANCH'
    f' is {branches}{branch1}; globs such as res{table[-1].stage}_*_addto'
    ' choose several; LAYER_linear is the value before the ReLU of a layer; the'
    ' names of other programs are known, too (--job=summary lists them)'
  )


def split_list(text: str | Sequence[str]) -> list[str]:
  """Names from `a,b` or from a sequence of names."""
  parts = text.split(',') if isinstance(text, str) else text or ()
  return [part.strip() for part in parts if part.strip()]
