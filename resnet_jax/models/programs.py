# SPDX-License-Identifier: Apache-2.0
"""What other programs call the values and the layers of a network.

A name means what that program computes under it, before or after a ReLU.
Sources: the authors' deploy prototxts (`res4b12_branch2c`), Keras'
`applications/resnet.py` (`conv4_block13_3_conv`), the modules of torchvision's
and timm's `models/resnet.py` (`layer3.12.conv3`) and the nodes that
torchvision's `get_graph_node_names` lists (`layer3.12.relu_1`), Transformers'
`modeling_resnet.py`.  The CIFAR networks have the names of
akamaster/pytorch_resnet_cifar10, `resnet.py`: torchvision's but for the
classifier (`linear`) and the shortcuts.  Caffe and Keras have only ResNet-50,
-101 and -152.  Plain Python, so that a command line can be checked without JAX.
"""

import dataclasses
import functools
import string
import types
from collections.abc import Iterator, Mapping

from resnet_jax.models import names, structure
from resnet_jax.models.variant import Variant

# 'torchvision' has timm's names, too: no name stands for other values there.
SCHEMES = ('caffe', 'keras', 'torchvision', 'hugging_face')

# A value and its names in another program, the usual one first.
_Row = tuple[str, tuple[str, ...]]

# Keras counts the inputs of a process.
_KERAS_INPUTS = (
  'input_layer',
  *(f'input_layer_{number}' for number in range(1, 20)),
  *(f'input_{number}' for number in range(1, 20)),
)
# By scheme, outside of the blocks.  A name of Caffe is a layer's, and means
# what the layer puts out; its BatchNorm, without the Scale, is no value here.
_STEM: dict[str, tuple[_Row, ...]] = {
  'caffe': (
    ('input', ('data',)),
    ('conv1_conv', ('conv1',)),
    ('conv1_bn_linear', ('scale_conv1',)),
    ('conv1_bn', ('conv1_relu',)),
    ('pool1', ('pool1',)),
  ),
  'keras': (
    ('input', _KERAS_INPUTS),
    ('conv1_pad', ('conv1_pad',)),
    ('conv1_conv', ('conv1_conv',)),
    ('conv1_bn_linear', ('conv1_bn',)),
    ('conv1_bn', ('conv1_relu',)),
    ('pool1_pad', ('pool1_pad',)),
    ('pool1', ('pool1_pool',)),
  ),
  'torchvision': (
    ('input', ('x',)),
    ('conv1_conv', ('conv1',)),
    ('conv1_bn_linear', ('bn1',)),
    ('conv1_bn', ('relu', 'act1')),
    ('pool1', ('maxpool',)),
  ),
  'hugging_face': (
    ('input', ('pixel_values',)),
    ('conv1_conv', ('embedder.embedder.convolution',)),
    ('conv1_bn_linear', ('embedder.embedder.normalization',)),
    ('conv1_bn', ('embedder.embedder', 'embedder.embedder.activation')),
    ('pool1', ('embedder.pooler', 'embedder')),
  ),
}
# Keras' classifier gives the probabilities.
_HEAD: dict[str, tuple[_Row, ...]] = {
  'caffe': (
    ('avgpool', ('pool5',)),
    ('logits', ('fc1000',)),
    ('output', ('prob',)),
  ),
  'keras': (('avgpool', ('avg_pool',)), ('output', ('predictions',))),
  'torchvision': (
    (
      'avgpool',
      (
        'avgpool',
        'flatten',
        'global_pool',
        'global_pool.pool',
        'global_pool.flatten',
      ),
    ),
    ('logits', ('fc',)),
  ),
  'hugging_face': (
    # The backbone gives its last maps and their mean.
    ('avgpool', ('pooler', 'classifier.0', 'resnet')),
    ('logits', ('classifier', 'classifier.1')),
  ),
}
_CIFAR_HEAD = (('avgpool', ('avg_pool2d', 'view')), ('logits', ('linear',)))


@dataclasses.dataclass(frozen=True)
class _UnitNames:
  """A program's names of a convolution's values; templates.

  Attributes:
    conv: of the convolution.
    norm: of the batch norm.
    relu: of the ReLU, where one follows.
    no_relu: of the batch norm, too, where none follows.
    inner: of the norm and of the ReLU before a branch's last convolution.
  """

  conv: tuple[str, ...]
  norm: tuple[str, ...]
  relu: tuple[str, ...] = ()
  no_relu: tuple[str, ...] = ()
  inner: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


_UNITS = {
  'caffe': _UnitNames(
    ('res{block}_{branch}',),
    ('scale{block}_{branch}',),
    ('res{block}_{branch}_relu',),
  ),
  'keras': _UnitNames(
    ('{block}_{number}_conv',),
    ('{block}_{number}_bn',),
    ('{block}_{number}_relu',),
  ),
  'torchvision': _UnitNames(
    ('{block}.conv{number}',),
    ('{block}.bn{number}',),
    ('{block}.relu{call}', '{block}.act{number}'),
    # timm's, which are the identity at inference.
    inner=(('{block}.drop_block',), ('{block}.aa',)),
  ),
  'hugging_face': _UnitNames(
    ('{block}.layer.{index}.convolution',),
    ('{block}.layer.{index}.normalization',),
    ('{block}.layer.{index}', '{block}.layer.{index}.activation'),
    (
      '{block}.layer.{index}',
      '{block}.layer.{index}.activation',
      '{block}.layer',
    ),
  ),
}
_PROJECTIONS = _UNITS | {
  'torchvision': _UnitNames(
    ('{block}.downsample.0',), ('{block}.downsample.1', '{block}.downsample')
  ),
  'hugging_face': _UnitNames(
    ('{block}.shortcut.convolution',),
    ('{block}.shortcut.normalization', '{block}.shortcut'),
  ),
}
# Of a block's sum, and of the ReLU after it.  Caffe's ReLU overwrites the sum:
# pycaffe has the one under the name, OpenCV the other.
_SUMS = {
  'caffe': (('res{block}',), ('res{block}_relu', 'res{block}')),
  'keras': (('{block}_add',), ('{block}_out',)),
  'torchvision': (
    ('{block}.add',),
    ('{block}', '{block}.relu{call}', '{block}.act{number}'),
  ),
  'hugging_face': ((), ('{block}', '{block}.activation')),
}
# Where a shortcut is a module, also without a convolution.
_WITH_IDENTITIES = ('hugging_face',)
_STAGES = {
  'torchvision': 'layer{}',
  'hugging_face': 'encoder.stages.{}',
}


@functools.lru_cache(maxsize=64)
def owners(depth: int, scheme: str) -> Mapping[str, str]:
  """The layer of another program that holds a canonical layer's parameters.

  Canonical `_conv`, `_bn` and `logits` layers as keys; for Caffe's `_bn` it
  is the common end of `bn...` and `scale...` ('2a_branch1', '_conv1').  Empty
  if the program has no network of that depth.
  """
  if scheme not in schemes(depth):
    return types.MappingProxyType({})
  found: dict[str, str] = {}
  for value, several in rows(depth, scheme):
    layer = value.removesuffix(names.LINEAR)
    if layer.endswith(('_conv', '_bn')) or value == 'logits':
      found.setdefault(layer, several[0])
  if scheme == 'keras':
    found['logits'] = 'predictions'
  if scheme == 'caffe':
    found = {n: theirs.removeprefix('scale') for n, theirs in found.items()}
  return types.MappingProxyType(found)


def schemes(depth: int) -> tuple[str, ...]:
  """The other programs that have a network of a depth."""
  if depth in structure.CIFAR:
    return ('torchvision',)
  return SCHEMES if depth in (50, 101, 152) else SCHEMES[2:]


def rows(depth: int, scheme: str) -> Iterator[_Row]:
  """The values that a program names, in the order of computing."""
  backbone = scheme == 'hugging_face'
  for value, several in _own_rows(depth, scheme):
    # The backbone alone lacks the prefix.
    prefixed = map(_with_backbone, several) if backbone else ()
    yield value, tuple(dict.fromkeys((*prefixed, *several)))


def _with_backbone(name: str) -> str:
  inside = name.startswith(('embedder', 'encoder', 'pooler'))
  return f'resnet.{name}' if inside else name


def _own_rows(depth: int, scheme: str) -> Iterator[_Row]:
  cifar = depth in structure.CIFAR
  for value, several in _STEM[scheme]:
    if value in names.value_names(depth):
      yield value, several
  entry = 'conv1_bn' if cifar else 'pool1'
  counts = structure.ARCHITECTURES[depth].blocks
  for block in structure.blocks(depth, Variant()):
    name = _block_name(depth, scheme, block)
    for unit in block.units:
      yield from _unit_rows(scheme, name, block, unit)
    shortcut = f'{block.name}{names.SHORTCUT}'
    if block.name in structure.padded_shortcuts(depth):
      yield shortcut, (f'{name}.shortcut',)
    elif not block.shortcut and (cifar or scheme in _WITH_IDENTITIES):
      yield entry, (f'{name}.shortcut',)
    last = len(block.branch)
    linear, relu = (
      tuple(t.format(block=name, number=last, call=_call(last)) for t in given)
      for given in _SUMS[scheme]
    )
    entry = f'{block.name}_addto'
    yield f'{entry}{names.LINEAR}', linear
    stage: tuple[str, ...] = ()
    if scheme in _STAGES and block.number == counts[block.stage - 2]:
      stage = (_block_stage(scheme, block),)
    yield entry, (*relu, *stage)
  if scheme == 'hugging_face':
    yield entry, ('encoder', 'resnet')
  yield from _CIFAR_HEAD if cifar else _HEAD[scheme]


def _unit_rows(
  scheme: str, name: str, block: structure.Block, unit: structure.Unit
) -> Iterator[_Row]:
  table = _UNITS[scheme]
  number = 0
  if unit is block.shortcut:
    table = _PROJECTIONS[scheme]
  else:
    number = 1 + block.branch.index(unit)
  inner = table.inner if number == len(block.branch) - 1 else ((), ())

  def filled(*templates: str) -> tuple[str, ...]:
    return tuple(
      text.format(
        block=name,
        branch=unit.name.removeprefix(f'{block.name}_'),
        number=number,
        index=number - 1,
        call=_call(number),
      )
      for text in templates
    )

  yield f'{unit.name}_conv', filled(*table.conv)
  if unit.relu:
    yield f'{unit.name}_bn{names.LINEAR}', filled(*table.norm, *inner[0])
    yield f'{unit.name}_bn', filled(*table.relu, *inner[1])
  else:
    yield f'{unit.name}_bn', filled(*table.norm, *table.no_relu)


def batch_norms(depth: int) -> dict[str, str]:
  """Caffe's BatchNorms, which lack the Scale after them: the value after both.

  Empty if Caffe has no network of that depth.
  """
  return {
    f'bn{theirs}': f'{ours}{names.LINEAR}'
    if f'{ours}{names.LINEAR}' in names.value_names(depth)
    else ours
    for ours, theirs in owners(depth, 'caffe').items()
    if ours.endswith('_bn')
  }


def _call(number: int) -> str:
  """What torch.fx adds to the name of a module's call, from 1 on."""
  return f'_{number - 1}' if number > 1 else ''


def _block_stage(scheme: str, block: structure.Block) -> str:
  first = 2 if scheme == 'hugging_face' else 1
  return _STAGES[scheme].format(block.stage - first)


def _block_name(depth: int, scheme: str, block: structure.Block) -> str:
  """What a block is called; in Caffe without `res`: `2a`, `4f`, `4b35`."""
  stage, number = block.stage, block.number
  if scheme == 'keras':
    return f'conv{stage}_block{number}'
  if scheme == 'torchvision':
    return f'layer{stage - 1}.{number - 1}'
  if scheme == 'hugging_face':
    return f'encoder.stages.{stage - 2}.layers.{number - 1}'
  # ResNet-50's blocks have letters, also the six of res4.
  if number == 1 or depth == 50 or stage in (2, 5):
    return f'{stage}{string.ascii_lowercase[number - 1]}'
  return f'{stage}b{number - 1}'
