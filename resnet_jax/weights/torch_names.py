# SPDX-License-Identifier: Apache-2.0
"""The tensors of PyTorch's programs by their names, in any container.

Sources: torchvision's and timm's `models/resnet.py` (`layer3.12.conv3.weight`)
and Transformers' `models/resnet/modeling_resnet.py`
(`resnet.encoder.stages.2.layers.12.layer.2.convolution.weight`); of the CIFAR
networks akamaster/pytorch_resnet_cifar10, `resnet.py` (`linear.weight`).
Kernels are (Co, Ci, ky, kx), the classifier's (out, in).
"""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import names, programs, structure
from resnet_jax.models.variant import Variant
from resnet_jax.weights import assemble

# `torch.nn`'s names of a layer's parameters.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_BLOCK = re.compile(r'res(\d)_(\d+)_(branch\w+)_(conv|bn)')
_KINDS = {'conv': 'convolution', 'bn': 'normalization'}
# The number of training steps, which batch norm does not compute with.
_COUNTER = 'num_batches_tracked'
_BACKBONE = 'resnet.'
# A network's first tensor, and others that a block's first one lacks.
_FIRST = {
  'conv1.weight': ('bn1.weight', 'layer1.0.conv1.weight'),
  'embedder.embedder.convolution.weight': (),
}
VARIANT = Variant(stride_in='3x3', stem_pool='pad1')
GUESSED = (
  'the file states neither the place of the strides nor the preprocessing:'
  ' stride_in=3x3 is assumed, and the preprocessing in the log. Set'
  ' stride_in, channels, mean, std, resize_size or interpolation if it was'
  ' trained otherwise.'
)
GUESSED_CIFAR = (
  'the file does not state its preprocessing: the usual one of its naming is'
  ' used, the input in the log. Set channels, mean, std, resize if it was'
  ' trained otherwise.'
)


def torchvision(depth: int) -> dict[str, str]:
  """The canonical `layer/leaf` of each name of torchvision and timm.

  Of a CIFAR network, of each name of pytorch_resnet_cifar10.
  """
  owner = programs.owners(depth, 'torchvision')
  return _naming(depth, lambda layer: owner[layer])


def hugging_face(depth: int, backbone: str = _BACKBONE) -> dict[str, str]:
  """The canonical `layer/leaf` of each name of ResNetForImageClassification.

  Empty for the CIFAR networks, which Transformers does not have.

  Args:
    depth: of the network.
    backbone: the prefix of all names but the head's; '' in ResNetModel.
  """

  def owner(layer: str) -> str:
    if layer == 'logits':
      return 'classifier.1'
    kind = _KINDS[layer.rsplit('_', 1)[1]]
    if (match := _BLOCK.fullmatch(layer)) is None:
      return f'{backbone}embedder.embedder.{kind}'
    stage, block, branch, _ = match.groups()
    inner = 'shortcut'
    if branch != 'branch1':
      inner = f'layer.{"abc".index(branch[-1])}'
    block = f'encoder.stages.{int(stage) - 2}.layers.{int(block) - 1}'
    return f'{backbone}{block}.{inner}.{kind}'

  return {} if depth in structure.CIFAR else _naming(depth, owner)


def _naming(depth: int, owner: Callable[[str], str]) -> dict[str, str]:
  result = {}
  for ours in names.parameter_names(depth):
    layer, leaf = ours.split('/')
    result[f'{owner(layer)}.{_LEAVES[leaf]}'] = ours
  return result


def load_tensors(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  container: str,
  options: assemble.Options,
) -> assemble.Loaded:
  """Loads tensors that have the names of a PyTorch program.

  A batch norm's `num_batches_tracked` is skipped, and nothing else.

  Args:
    path: for messages.
    tensors: all of the file.
    container: human-readable, 'PyTorch checkpoint'.
    options: the user's.

  Raises:
    UserError: as `assemble.assemble`.
  """
  notes = []
  tensors = {
    name: tensor
    for name, tensor in tensors.items()
    if name.rsplit('.', 1)[-1] != _COUNTER
  }
  if prefix := _prefix(tensors):
    tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
    notes.append(f"The prefix '{prefix}' of the names was removed.")
  if renamed := _head(tensors):
    tensors = {renamed.get(name, name): t for name, t in tensors.items()}
    notes.append(f'The classifier is {next(iter(renamed))}.')
  publisher = _publisher(tensors)
  notes += _conversions(tensors)
  return assemble.assemble(
    path,
    tensors,
    publisher.naming,
    assemble.TORCH_LAYOUT,
    format=f'{container}, {publisher.name} names',
    variant=VARIANT,
    preprocess=publisher.preprocess,
    options=options,
    notes=notes,
    guesses=(publisher.guess,),
  )


def _prefix(tensors: Mapping[str, Tensor]) -> str:
  """The prefix of a module around the network; '' without one.

  `module.` of torch.nn.DataParallel, `model.` of Lightning's modules, and so
  on; not Transformers' own.
  """
  for first, others in _FIRST.items():
    for name in tensors:
      prefix = name.removesuffix(first)
      needed = [prefix + other for other in (first, *others)]
      if prefix.endswith('.') and all(name in tensors for name in needed):
        return '' if prefix == _BACKBONE else prefix
  return ''


def _head(tensors: Mapping[str, Tensor]) -> dict[str, str]:
  """New names of the only linear layer of a head `fc` of several modules."""
  if 'fc.weight' in tensors:
    return {}
  inside = [n for n, t in tensors.items() if n.startswith('fc.')]
  matrices = [n for n in inside if len(tensors[n].shape) == 2]
  if len(matrices) != 1 or len(inside) != 2:
    return {}
  layer = matrices[0].removesuffix('.weight')
  return {f'{layer}.weight': 'fc.weight', f'{layer}.bias': 'fc.bias'}


@dataclasses.dataclass(frozen=True)
class _Publisher:
  """The program that wrote a file, judged by the names.

  Attributes:
    name: human-readable.
    naming: as `assemble.assemble` takes it.
    preprocess: its usual one.
    guess: a note on what the names do not state.
  """

  name: str
  naming: Callable[[int], Mapping[str, str]]
  preprocess: Preprocess
  guess: str = GUESSED


def _publisher(tensors: Mapping[str, Tensor]) -> _Publisher:
  if any('.convolution.' in name for name in tensors):
    naming: Callable[[int], Mapping[str, str]] = hugging_face
    if not any(name.startswith(_BACKBONE) for name in tensors):
      naming = functools.partial(hugging_face, backbone='')
    return _Publisher("Hugging Face's", naming, presets.HUGGING_FACE)
  if assemble.nearest_depth(tensors, torchvision) in structure.CIFAR:
    name = "pytorch_resnet_cifar10's"
    return _Publisher(name, torchvision, presets.CIFAR, GUESSED_CIFAR)
  name = "torchvision's and timm's"
  return _Publisher(name, torchvision, presets.TORCHVISION)


def _conversions(tensors: Mapping[str, Tensor]) -> list[str]:
  counts = collections.Counter(tensor.dtype for tensor in tensors.values())
  return [
    f'{count} of {len(tensors)} tensors are {dtype}; they become float32.'
    for dtype, count in counts.items()
    if dtype in assemble.DTYPES and dtype != 'float32'
  ]
