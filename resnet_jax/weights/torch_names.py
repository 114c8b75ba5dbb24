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
from collections.abc import Callable, Collection, Mapping, Sequence

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import names, programs, structure
from resnet_jax.models.variant import Variant
from resnet_jax.weights import assemble, prefixes
from resnet_jax.weights.prefixes import Program

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
_USUAL_HEADS = ('fc', 'linear', 'classifier.1')
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


def hugging_face(depth: int, backbone: str = 'resnet.') -> dict[str, str]:
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


def with_biases(naming: Mapping[str, str]) -> dict[str, str]:
  """A naming with the biases that its convolutions may have."""
  biases = {
    f'{name.removesuffix("weight")}bias': f'{ours.removesuffix("kernel")}bias'
    for name, ours in naming.items()
    if ours.endswith('_conv/kernel')
  }
  return {**naming, **biases}


_STAGES = range(1, 5)
_TORCHVISION = Program(
  "torchvision's and timm's",
  torchvision,
  ('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight'),
  # Pools that are learned, blur pools, attention between stages, ....
  re.compile(
    r'(conv|bn|layer|downsample|norm\d|maxpool|pool|avgpool|global_?pool|gem'
    r'|relu|act\d|stem|blur|bam|cbam|se\d|attn|attention|non_?local)\w*\.'
  ),
)
_HUGGING_FACE = Program(
  "Hugging Face's",
  functools.partial(hugging_face, backbone=''),
  (
    'embedder.embedder.convolution.weight',
    'embedder.embedder.normalization.weight',
  ),
  re.compile(r'(embedder|encoder|pooler)\.'),
)
_PROGRAMS = (
  _TORCHVISION,
  _HUGGING_FACE,
  # torch.nn.Sequential of the children of torchvision's network (3 is the pool)
  # or of pytorch_resnet_cifar10's; and names of a stem that is a module.
  *(
    _TORCHVISION.renamed(modules)
    for modules in (
      {'conv1': '0', 'bn1': '1'} | {f'layer{n}': f'{n + 3}' for n in _STAGES},
      {'conv1': '0', 'bn1': '1'} | {f'layer{n}': f'{n + 1}' for n in _STAGES},
      {'conv1': 'layer0.0', 'bn1': 'layer0.1'},
      {'conv1': 'stem.0', 'bn1': 'stem.1'},
    )
  ),
)


def load_tensors(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  container: str,
  options: assemble.Options,
  *,
  places: Collection[str] = (),
  beside: Callable[[Collection[str]], Sequence[str]] = lambda used: (),
) -> assemble.Loaded:
  """Loads the network among tensors that have the names of a PyTorch program.

  A batch norm's `num_batches_tracked` is skipped.  Other tensors that the
  network does not have are left out, and a note says so.

  Args:
    path: for messages.
    tensors: all of the file.
    container: human-readable, 'PyTorch checkpoint'.
    options: the user's.
    places: the beginnings of names that are the places of state dicts in the
      file (`model.`).
    beside: for the names of the tensors that are used, notes on what else is in
      the file.

  Raises:
    UserError: several networks are meant; or as `assemble.assemble`.
  """
  tensors = {
    name: tensor
    for name, tensor in tensors.items()
    if name.rsplit('.', 1)[-1] != _COUNTER
  }
  notes: list[str] = []
  networks = prefixes.find(tensors, _PROGRAMS)
  if networks:
    network = prefixes.choose(path, networks, options.weights_prefix, places)
    prefix, program = network.prefix, network.program
    place = max(
      (p for p in places if prefix.startswith(p)), key=len, default=''
    )
    chosen = prefixes.tensors_of(path, tensors, networks, network)
    notes += (*_said(network, chosen.head, place), *chosen.notes)
    notes += beside(chosen.tensors)
    notes += prefixes.described(chosen.left_out, networks, network, place)
    tensors, head = chosen.tensors, chosen.head
  else:
    # Not complete: the error lists what is missing.
    prefix, program = _nearest(tensors)
    place, head = '', f'{prefix}fc'
    tensors = {n: t for n, t in tensors.items() if n.startswith(prefix)}
  prefix, head = prefix.removeprefix(place), head.removeprefix(place)
  tensors = {n.removeprefix(place): t for n, t in tensors.items()}

  def naming(depth: int) -> dict[str, str]:
    body = {prefix + n: ours for n, ours in program.body(depth).items()}
    logits = {f'{head}.weight': 'logits/kernel', f'{head}.bias': 'logits/bias'}
    return with_biases(body) | (logits if head and body else {})

  publisher = _publisher(program, assemble.nearest_depth(tensors, naming))
  return assemble.assemble(
    path,
    tensors,
    naming,
    assemble.TORCH_LAYOUT,
    format=f'{container}, {publisher.name} names',
    variant=VARIANT,
    preprocess=publisher.preprocess,
    options=options,
    notes=(*notes, *_conversions(tensors)),
    guesses=(publisher.guess,),
  )


def _said(network: prefixes.Network, head: str, place: str) -> list[str]:
  """Notes on a prefix and a classifier that are not the usual ones."""
  notes = []
  if place:
    notes.append(f"The state dict is under '{place.removesuffix('.')}'.")
  prefix = network.prefix.removeprefix(place)
  if prefix and (network.program, prefix) != (_HUGGING_FACE, 'resnet.'):
    notes.append(f"The prefix '{prefix}' of the names was removed.")
  if head and head.removeprefix(network.prefix) not in _USUAL_HEADS:
    notes.append(f'The classifier is {head.removeprefix(place)}.')
  return notes


def _nearest(tensors: Mapping[str, Tensor]) -> tuple[str, Program]:
  """The prefix and program that tensors without a network are judged by."""
  begun = collections.Counter(
    (name.removesuffix(first), program)
    for name in tensors
    for program in _PROGRAMS
    for first in program.first
    if f'.{name}'.endswith(f'.{first}')
  )
  return max(begun, key=lambda place: begun[place], default=('', _TORCHVISION))


@dataclasses.dataclass(frozen=True)
class _Publisher:
  """The program that wrote a file, judged by the names.

  Attributes:
    name: human-readable.
    preprocess: its usual one.
    guess: a note on what the names do not state.
  """

  name: str
  preprocess: Preprocess
  guess: str = GUESSED


def _publisher(program: Program, depth: int) -> _Publisher:
  if program is _HUGGING_FACE:
    return _Publisher(program.name, presets.HUGGING_FACE)
  if depth in structure.CIFAR:
    name = "pytorch_resnet_cifar10's"
    return _Publisher(name, presets.CIFAR, GUESSED_CIFAR)
  return _Publisher(program.name, presets.TORCHVISION)


def _conversions(tensors: Mapping[str, Tensor]) -> list[str]:
  counts = collections.Counter(tensor.dtype for tensor in tensors.values())
  return [
    f'{count} of {len(tensors)} tensors are {dtype}; they become float32.'
    for dtype, count in counts.items()
    if dtype in assemble.DTYPES and dtype != 'float32'
  ]
