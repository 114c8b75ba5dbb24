# SPDX-License-Identifier: Apache-2.0
"""The names of a Keras file's arrays, `layer/leaf` in all of its layouts.

`conv1_conv/kernel`, `conv1_bn/gamma`.  Sources: see `keras`.
"""

import collections
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import h5py

from resnet_jax.codecs import hdf5
from resnet_jax.models import programs
from resnet_jax.system import errors
from resnet_jax.weights import keras_config

Named = list[tuple[str, h5py.Dataset]]

_BN_LEAVES = ('gamma', 'beta', 'moving_mean', 'moving_variance')
# Of other layers, and of batch norms.
_LEAVES = (
  {'kernel': 'kernel', 'bias': 'bias'},
  dict(zip(_BN_LEAVES, ('scale', 'bias', 'mean', 'var'), strict=True)),
)
# Keras 1 prefixed weights with the layer's name.  Its standard deviation is the
# variance.
_OLD_LEAF = re.compile(
  r'.+_(W|b|gamma|beta|(?:running|moving)_(?:mean|std|variance))(?:_\d+)?'
)
_OLD_LEAVES = {
  'W': 'kernel',
  'b': 'bias',
  'running_mean': 'moving_mean',
  'running_std': 'moving_variance',
}
# Keras 3's numbering of layers of a class.
_NUMBERED = re.compile(r'(conv2d|batch_normalization|dense)(?:_(\d+))?')
_CLASSES = {
  'conv2d': 'Conv2D',
  'batch_normalization': 'BatchNormalization',
  'dense': 'Dense',
}
_ENDS = {'conv2d': '_conv', 'batch_normalization': '_bn'}


def naming(depth: int, old: bool = False) -> dict[str, str]:
  """The `layer/leaf` of each of the file's names: `conv1_conv/kernel`.

  Args:
    depth: of the network.
    old: whether in the names until 2018; ResNet-50 only.
  """
  return {
    f'{theirs}/{leaf}': f'{ours}/{canonical}'
    for ours, theirs in _owners(depth, old).items()
    for leaf, canonical in _LEAVES[ours.endswith('_bn')].items()
  }


def canonical(old: bool) -> dict[str, str]:
  """The canonical layer of each of Keras' layers; ResNet-152 has all."""
  owners = _owners(50 if old else 152, old)
  return {theirs: ours for ours, theirs in owners.items()}


def _owners(depth: int, old: bool) -> Mapping[str, str]:
  if not old:
    return programs.owners(depth, 'keras')
  # A batch norm's owner is the common part of Caffe's `bn...` and `scale...`.
  return {
    ours: f'bn{theirs}' if ours.endswith('_bn') else theirs
    for ours, theirs in programs.owners(depth, 'caffe').items()
    if depth == 50
  }


def by_layer(found: hdf5.Tree) -> tuple[Named, list[str]]:
  """Arrays of a file with one group per layer; layers without arrays."""
  inner = collections.defaultdict(set)
  for name in found.datasets:
    parts = name.split('/')
    inner[parts[0]].add(parts[-2] if len(parts) > 1 else '')
  named = []
  for name, dataset in found.datasets.items():
    parts = name.split('/')
    # The group has the layer's name, unless it is a model in the model.
    layer = parts[0] if len(inner[parts[0]]) == 1 else parts[-2]
    leaf = parts[-1].partition(':')[0]
    if match := _OLD_LEAF.fullmatch(leaf):
      leaf = _OLD_LEAVES.get(match[1], match[1])
    if leaf != 'seed_generator_state':
      named.append((f'{layer}/{leaf}', dataset))
  empty = [n for n in found.groups if '/' not in n and n not in inner]
  return named, empty


def by_class(
  path: pathlib.Path,
  stream: BinaryIO,
  found: hdf5.Tree,
  layers: Sequence[keras_config.KerasLayer],
) -> tuple[Named, list[str]]:
  """Arrays of Keras 3's files; groups without arrays.

  Raises:
    UserError: layers have neither names nor the order of a ResNet.
  """
  members: dict[str, list[str]] = collections.defaultdict(list)
  for name in found.datasets:
    parts = name.split('/')
    if 'seed_generator' not in parts:
      members['/'.join(parts[:-2])].append(name)
  layer_of = {
    group: hdf5.text_attribute(stream, variables, 'name')
    for group in members
    if (variables := found.groups.get(f'{group}/vars'.lstrip('/'))) is not None
  }
  nameless = [group for group in members if not layer_of.get(group)]
  derived = _derived_names(path, nameless, layers)
  named = []
  for group, datasets in members.items():
    layer = layer_of.get(group) or derived.get(group) or group or 'model'
    leaves = {2: ('kernel', 'bias'), 4: _BN_LEAVES}.get(len(datasets), ())
    of_number = dict(zip('0123', leaves, strict=False))
    for name in datasets:
      number = name.rpartition('/')[2]
      leaf = of_number.get(number, number)
      named.append((f'{layer}/{leaf}', found.datasets[name]))
  empty = [
    name.split('/')[-2]
    for name, group in found.groups.items()
    if name.endswith('/vars') and not len(group)
  ]
  return named, [name for name in empty if name != 'seed_generator']


def _derived_names(
  path: pathlib.Path,
  groups: Iterable[str],
  layers: Sequence[keras_config.KerasLayer],
) -> dict[str, str]:
  """The layer of each numbered group, by the order of computing.

  Older versions wrote no names, except in the configuration, if there is one.
  """
  numbered: dict[str, dict[int, str]] = {kind: {} for kind in _CLASSES}
  result = {}
  for group in groups:
    last = group.rpartition('/')[2]
    match = _NUMBERED.fullmatch(last)
    # Some versions name the group after the layer.
    result[group] = last
    if match:
      number = int(match[2] or 0)
      if number in numbered[match[1]]:
        raise errors.UserError(
          f'{path} holds two networks, {numbered[match[1]][number][:99]} and'
          f' {group[:99]}, and no names of layers. Save the ResNet alone.'
        )
      numbered[match[1]][number] = group
  for kind, members in numbered.items():
    stated = [layer.name for layer in layers if layer.kind == _CLASSES[kind]]
    order = stated or _order(kind, len(members))
    if members and sorted(members) == list(range(len(order))):
      result |= {members[i]: name for i, name in enumerate(order)}
    elif members and kind != 'dense':
      raise errors.UserError(
        f'{path} has no names of layers, and its {len(members)} layers of the'
        f' class {kind} are not the 53, 104 or 155 of ResNet-50, 101 and 152 (a'
        ' ResNet v2 has fewer batch norms). Save it as .keras, or give another'
        ' file.'
      )
  return result


def _order(kind: str, count: int) -> list[str]:
  """Keras' order of a class's layers in a network with `count` of them."""
  if kind == 'dense':
    return ['predictions']
  for depth in (50, 101, 152):
    owners = programs.owners(depth, 'keras').values()
    order = [name for name in owners if name.endswith(_ENDS[kind])]
    if len(order) == count:
      return sorted(order, key=_position)
  return []


def _position(layer: str) -> tuple[int, ...]:
  # A shortcut's layers come just before the third ones: layers are sorted by
  # their distance from the output, then by the order of the sum's inputs.
  match = re.match(r'conv(\d+)_block(\d+)_(\d)_', layer)
  if not match:
    return (0, 0, 0)
  stage, block, number = map(int, match.groups())
  return stage, block, (1, 2, 0, 3).index(number)


def unique(path: pathlib.Path, named: Named) -> dict[str, h5py.Dataset]:
  """Arrays by name; raises a UserError if a name occurs twice."""
  result: dict[str, h5py.Dataset] = {}
  for name, dataset in named:
    if name in result:
      raise errors.UserError(
        f'{path} holds {name[:99]} twice, in {result[name].name[:99]} and'
        f' {dataset.name[:99]}. Save the ResNet alone.'
      )
    result[name] = dataset
  return result
