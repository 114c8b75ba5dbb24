# SPDX-License-Identifier: Apache-2.0
"""Caffe's `.caffemodel`: layers by the authors' names, each with its blobs.

A blob's name is its layer and number: `res2a_branch2a.0`.  Sources: the
authors' and Yahoo's (open_nsfw) deploy prototxts (names) and BVLC Caffe,
src/caffe/layers/batch_norm_layer.cpp (a batch norm's blobs: mean and variance,
both multiplied by the third one, a factor).
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from resnet_jax.codecs import blob
from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data import presets
from resnet_jax.models import programs, structure
from resnet_jax.models.variant import STRIDES, Variant
from resnet_jax.system import errors
from resnet_jax.system.text import some
from resnet_jax.weights import assemble, caffe_net

_Layers = Mapping[str, caffe_net.CaffeLayer]
# From a depth to names in the form of `programs.owners`.
_Owners = Callable[[int], Mapping[str, str]]


def _authors(depth: int) -> Mapping[str, str]:
  return programs.owners(depth, 'caffe')


def _open_nsfw(depth: int) -> dict[str, str]:
  """The names of Yahoo's open_nsfw, a ResNet-50 of half the width."""
  if depth != 50:
    return {}
  found = {'conv1_conv': 'conv_1', 'conv1_bn': '_1'}
  for block in structure.blocks(depth, Variant()):
    place = f'_stage{block.stage - 2}_block{block.number - 1}_'
    for unit in block.units:
      branch = unit.name.removeprefix(f'{block.name}_')
      end = place + ('proj_shortcut' if unit is block.shortcut else branch)
      found |= {f'{unit.name}_conv': f'conv{end}', f'{unit.name}_bn': end}
  return found | {'logits': 'fc_nsfw'}


def _owners(layers: _Layers) -> _Owners:
  """Whose names a file has."""

  def likeness(owners: _Owners) -> int:
    return len(layers.keys() & set(owners(50).values()))

  return max((_authors, _open_nsfw), key=likeness)


def naming(
  depth: int, head: str = 'fc1000', owners: _Owners = _authors
) -> dict[str, str]:
  """The canonical `layer/leaf` of Caffe's blobs; empty for 18 and 34.

  Args:
    depth: of the network.
    head: the name of the classifier's layer.
    owners: whose names.
  """
  result: dict[str, str] = {}
  for ours, theirs in owners(depth).items():
    if ours.endswith('_bn'):
      result |= {
        f'bn{theirs}.0': f'{ours}/mean',
        f'bn{theirs}.1': f'{ours}/var',
        f'scale{theirs}.0': f'{ours}/scale',
        f'scale{theirs}.1': f'{ours}/bias',
      }
    else:
      name = head if ours == 'logits' else theirs
      result |= {f'{name}.0': f'{ours}/kernel', f'{name}.1': f'{ours}/bias'}
  return result


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file begins as a NetParameter or a SolverState does."""
  del path
  return caffe_net.recognise(head)


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads a `.caffemodel`.

  Raises:
    UserError: the file is damaged, or does not hold a ResNet.
  """
  text, layers = caffe_net.read(path)
  _check_geometry(path, layers)
  head, owners = _head(layers), _owners(layers)
  own_naming = functools.partial(naming, head=head, owners=owners)
  loaded = assemble.assemble(
    path,
    _tensors(path, layers, own_naming, options),
    own_naming,
    assemble.TORCH_LAYOUT,
    format=f'Caffe model ({text})',
    variant=Variant(
      stride_in=_stride_in(path, layers, owners),
      epsilon=_epsilon(path, layers),
    ),
    preprocess=presets.CAFFE,
    options=options,
    guesses=(presets.GUESSED_INPUT,),
  )
  module = loaded.module
  _check_groups(path, layers, module.depth, module.variant, owners)
  return loaded


def _head(layers: _Layers) -> str:
  """The only fully connected layer, whatever its name."""
  found = [
    layer.name
    for layer in layers.values()
    if layer.blobs and layer.kind == caffe_net.INNER_PRODUCT
  ]
  return found[0] if len(found) == 1 else 'fc1000'


def _roles(own_naming: Callable[[int], dict[str, str]]) -> dict[str, str]:
  """The canonical names of all blobs of all depths."""
  return {
    blob: ours
    for depth in structure.ARCHITECTURES
    for blob, ours in own_naming(depth).items()
  }


def _tensors(
  path: pathlib.Path,
  layers: _Layers,
  own_naming: Callable[[int], dict[str, str]],
  options: assemble.Options,
) -> dict[str, Tensor]:
  roles, tensors = _roles(own_naming), {}
  for layer in layers.values():
    statistics = roles.get(f'{layer.name}.0', '').endswith('_bn/mean')
    factor = None
    if layer.blobs and statistics:
      factor = _factor(path, layer, options)
    for number, stored in enumerate(layer.blobs):
      name = f'{layer.name}.{number}'
      if not statistics or number != 2:
        tensors[name] = Tensor(
          blob.squeezed(stored.shape, _rank(roles.get(name, ''))),
          stored.dtype,
          functools.partial(_values, stored, factor),
        )
  return tensors


def _rank(ours: str) -> int:
  # Older files pad all shapes to four sizes.
  if not ours.endswith('/kernel'):
    return 1
  return 2 if ours == 'logits/kernel' else 4


def _values(stored: blob.Blob, factor: float | None) -> np.ndarray:
  values = stored.values()
  return values if factor is None else values.astype(np.float64) / factor


def _factor(
  path: pathlib.Path, layer: caffe_net.CaffeLayer, options: assemble.Options
) -> float:
  """The factor of the stored mean and variance of a BatchNorm layer."""
  shapes = [blob.shape for blob in layer.blobs]
  if len(shapes) < 3 or math.prod(shapes[2]) != 1:
    raise errors.UserError(
      f'{path}: the BatchNorm layer {layer.name} has blobs of shapes'
      f' {some([*map(str, shapes)])}; it must have mean, variance and one'
      ' factor. Get a file that Caffe itself wrote.'
    )
  factor = float(layer.blobs[2].values().reshape(()))
  if factor == 0:
    raise errors.UserError(
      f'{path} is untrained: the factor {layer.name}.2 is 0, so there are no'
      ' statistics. Give a trained network.'
    )
  if options.finite and not 0 < factor < math.inf:
    raise errors.UserError(
      f'{path} is damaged: the factor {layer.name}.2 is {factor}, and must be a'
      ' finite number above 0. Get it again.'
    )
  return factor


def _check_geometry(path: pathlib.Path, layers: _Layers) -> None:
  wrong = [
    f'{name} is dilated'
    for name, layer in layers.items()
    if layer.settings.get('dilation', {1}) != {1}
  ]
  if 'pool1' in layers and layers['pool1'].settings.get('pad', {0}) != {0}:
    wrong.append('pool1 is padded')
  if wrong:
    raise assemble.not_plain(path, some(wrong))


def _check_groups(
  path: pathlib.Path,
  layers: _Layers,
  depth: int,
  variant: Variant,
  owners: _Owners,
) -> None:
  """Compares the groups that convolutions state with their kernels'."""
  wrong = []
  for unit in structure.units(depth, variant):
    name = owners(depth)[f'{unit.name}_conv']
    # A layer without settings states nothing.
    stated = layers[name].settings.get('group', {unit.groups})
    if stated != {unit.groups}:
      wrong.append(
        f'{name} states group {", ".join(map(str, sorted(stated)))}, and its'
        f' kernel has the shape of {unit.groups}'
      )
  if wrong:
    raise assemble.not_plain(path, some(wrong))


def _stride_in(path: pathlib.Path, layers: _Layers, owners: _Owners) -> str:
  """The position of the stages' strides, as far as the file states it."""
  for choice in STRIDES:
    expected = _strides(choice, owners)
    others = [
      name
      for name in expected.keys() & layers.keys()
      if layers[name].settings.get('stride', expected[name]) != expected[name]
    ]
    if not others:
      return choice
  raise assemble.not_plain(
    path,
    'the strides of its convolutions are not those of one'
    f' ({some(sorted(others))})',
  )


def _strides(stride_in: str, owners: _Owners) -> dict[str, set[int]]:
  """The stride of each convolution, by Caffe's names, of all depths."""
  return {
    named[f'{unit.name}_conv']: {unit.stride}
    for depth in (50, 101, 152)
    if (named := owners(depth))
    for unit in structure.units(depth, Variant(stride_in))
  }


def _epsilon(path: pathlib.Path, layers: _Layers) -> float:
  """The epsilon of the batch norms, which must be one."""
  stated = [layer.settings.get('epsilon', set()) for layer in layers.values()]
  found = set().union(*stated) or {Variant().epsilon}
  if len(found) > 1 or not all(0 < value < 1 for value in found):
    raise assemble.not_plain(
      path,
      f'its BatchNorm layers have the eps {some([*map(str, sorted(found))])},'
      ' where one between 0 and 1 is needed',
    )
  return found.pop()
