# SPDX-License-Identifier: Apache-2.0
"""What PyTorch's programs call a ResNet's tensors, in whatever container.

Sources: torchvision's and timm's `models/resnet.py` (`layer3.12.conv3.weight`)
and Transformers' `models/resnet/modeling_resnet.py`
(`resnet.encoder.stages.2.layers.12.layer.2.convolution.weight`); of the CIFAR
networks akamaster/pytorch_resnet_cifar10, `resnet.py` (`linear.weight`).
Kernels are (Co, Ci, ky, kx), the classifier's (out, in).
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import aliases, names, structure
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
# How many batches were seen in training; batch norm does not compute with it.
_COUNTER = 'num_batches_tracked'
_BACKBONE = 'resnet.'
# A network's first tensor, and others that tell it from a block's.
_FIRST = {
  'conv1.weight': ('bn1.weight', 'layer1.0.conv1.weight'),
  'embedder.embedder.convolution.weight': (),
}
VARIANT = Variant(stride_in='3x3', stem_pool='pad1')
# The names tell neither of the two.
GUESSED = (
  'the file states neither the place of the strides nor the preprocessing: what'
  ' is usual for its names is used (stride_in=3x3, and the input that this run'
  ' logs). Set stride_in, channels, mean, std, resize_size, interpolation if it'
  ' was trained otherwise.'
)
GUESSED_CIFAR = (
  'the file does not state its preprocessing: what is usual for its names is'
  ' used, the input that this run logs. Set channels, mean, std, resize if it'
  ' was trained otherwise.'
)


def torchvision(depth: int) -> dict[str, str]:
  """The canonical `layer/leaf` of each name of torchvision and timm.

  Of a CIFAR network, of each name of pytorch_resnet_cifar10.
  """
  owner = aliases.owners(depth, 'torchvision')
  return _naming(depth, lambda layer: owner[layer])


def hugging_face(depth: int) -> dict[str, str]:
  """The canonical `layer/leaf` of each name of ResNetForImageClassification.

  Empty for the CIFAR networks, which Transformers does not have.
  """
  return {} if depth in structure.CIFAR else _naming(depth, _hugging_face_owner)


def _naming(depth: int, owner: Callable[[str], str]) -> dict[str, str]:
  result = {}
  for ours in names.parameter_names(depth):
    layer, leaf = ours.split('/')
    result[f'{owner(layer)}.{_LEAVES[leaf]}'] = ours
  return result


def _hugging_face_owner(layer: str) -> str:
  if layer == 'logits':
    return 'classifier.1'
  kind = _KINDS[layer.rsplit('_', 1)[1]]
  if (match := _BLOCK.fullmatch(layer)) is None:
    return f'{_BACKBONE}embedder.embedder.{kind}'
  stage, block, branch, _ = match.groups()
  block = f'encoder.stages.{int(stage) - 2}.layers.{int(block) - 1}'
  inner = (
    'shortcut' if branch == 'branch1' else f'layer.{"abc".index(branch[-1])}'
  )
  return f'{_BACKBONE}{block}.{inner}.{kind}'


def _bare_hugging_face(depth: int) -> dict[str, str]:
  """As `hugging_face`, of ResNetModel, which has no head."""
  return {
    name.removeprefix(_BACKBONE): ours
    for name, ours in hugging_face(depth).items()
  }


def load_tensors(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  container: str,
  options: assemble.Options,
) -> assemble.Loaded:
  """Makes a network of tensors named as in a PyTorch program.

  A batch norm's `num_batches_tracked` is left out: nothing is computed with
  it.  Of all else, nothing is.

  Args:
    path: for messages.
    tensors: all of the file.
    container: for a person: 'PyTorch checkpoint'.
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
    notes.append(f"Names begin with '{prefix}'; they are taken without.")
  if renamed := _head(tensors):
    tensors = {renamed.get(name, name): t for name, t in tensors.items()}
    notes.append(f'The classifier is {next(iter(renamed))}.')
  program = _program(tensors)
  notes += _conversions(tensors)
  return assemble.assemble(
    path,
    tensors,
    program.naming,
    assemble.TORCH_LAYOUT,
    format=f'{container}, {program.name} names',
    variant=VARIANT,
    preprocess=program.preprocess,
    options=options,
    notes=notes,
    guesses=(program.guess,),
  )


def _prefix(tensors: Mapping[str, Tensor]) -> str:
  """What a module around the network puts before its names; '' if none does.

  `module.` of torch.nn.DataParallel, `model.` of Lightning's modules, and so
  on; not Transformers' own.
  """
  for first, others in _FIRST.items():
    for name in tensors:
      prefix = name.removesuffix(first)
      found = name == f'{prefix}{first}' and prefix.endswith('.')
      if found and all(f'{prefix}{other}' in tensors for other in others):
        return '' if prefix == _BACKBONE else prefix
  return ''


def _head(tensors: Mapping[str, Tensor]) -> dict[str, str]:
  """New names of the only linear layer in a `fc` of several layers."""
  if 'fc.weight' in tensors:
    return {}
  inside = [n for n, t in tensors.items() if n.startswith('fc.')]
  matrices = [n for n in inside if len(tensors[n].shape) == 2]
  if len(matrices) != 1 or len(inside) != 2:
    return {}
  layer = matrices[0].removesuffix('.weight')
  return {f'{layer}.weight': 'fc.weight', f'{layer}.bias': 'fc.bias'}


@dataclasses.dataclass(frozen=True)
class _Program:
  """Who wrote a file, as far as its names tell.

  Attributes:
    name: of the program, for a person.
    naming: as `assemble.assemble` takes it.
    preprocess: the usual one of the program.
    guess: a note on what the names do not tell.
  """

  name: str
  naming: Callable[[int], Mapping[str, str]]
  preprocess: Preprocess
  guess: str = GUESSED


def _program(tensors: Mapping[str, Tensor]) -> _Program:
  if any('.convolution.' in name for name in tensors):
    bare = not any(name.startswith(_BACKBONE) for name in tensors)
    naming = _bare_hugging_face if bare else hugging_face
    return _Program("Hugging Face's", naming, presets.HUGGING_FACE)
  if assemble.nearest_depth(tensors, torchvision) in structure.CIFAR:
    return _Program(
      "pytorch_resnet_cifar10's",
      torchvision,
      presets.CIFAR,
      GUESSED_CIFAR,
    )
  return _Program("torchvision's and timm's", torchvision, presets.TORCHVISION)


def _conversions(tensors: Mapping[str, Tensor]) -> list[str]:
  counts = collections.Counter(tensor.dtype for tensor in tensors.values())
  return [
    f'{count} of {len(tensors)} tensors are {dtype}; they become float32.'
    for dtype, count in counts.items()
    if dtype in assemble.DTYPES and dtype != 'float32'
  ]
