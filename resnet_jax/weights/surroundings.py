# SPDX-License-Identifier: Apache-2.0
"""What the tensors beside a network's body say about it.

A classifier is taken only if nothing that was trained lies before it.  A pool
with parameters, and modules of networks whose later stages are dilated, make
another network, though the body's tensors are a plain ResNet's.
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.system import errors

# A classifier is the only linear layer of one of these modules, beside the body
# or beside what wraps it; the numbers are of children of torch.nn.Sequential.
_HEADS = (
  *('fc', 'head.fc', 'last_linear', 'linear', 'classifier.1', 'classifier'),
  *('head', 'logits', 'cls_head.fc', 'cls_head', 'heads.head', 'heads'),
  *('linear_classifier', 'linear_head', 'online_classifier', 'output', 'out'),
  *map(str, range(1, 13)),
)
# Of contrastive training: networks whose last layer gives an embedding, and
# embeddings of earlier images.
_EMBEDDING = {'encoder_q', 'encoder_k'}
_QUEUE = re.compile(r'(queue|memory|bank|memory_bank)\w*')
# A pool with parameters, between the body and what follows it.
_POOL = re.compile(
  r'(\w+_)?(avg|attn|attention)?pool(ing|er|2d)?\d*|gem(_?pool\w*)?'
  r'|aggregat(or|ion)|net_?vlad'
)
# Convolutions in these label each pixel, mostly from a body whose later stages
# are dilated instead of strided, which the body's tensors do not tell.
_MAPPING = re.compile(
  r'\w*aspp\w*|psp\w*|ppm\w*|psa|fpa|jpu|ocr\w*|dsn\w*|da_?head|enc_?head'
  r'|atrous\w*|dilat\w*|classifier|aux_?(classifier|head|layer)'
  r'|auxiliary_?(head|net)|auxlayer|decode_?head|seg_?head|conv5[a-d]?\d?'
  r'|conv_?last|segmentation_?head'
)
# Decoders that enlarge the maps of all strides, as U-Net's and FPN's do: their
# encoder is plain.
_DECODER = 'decoder'
_ENLARGING = re.compile(
  r'blocks?\w*|seg_blocks|center|p\d|fpn\w*|lateral\w*|up\w*|de(c|conv)?_?\d*'
  r'|(de)?conv_?trans\w*|layers?\w*|stages?\w*|\d+'
)
_OF_ENLARGING = re.compile(r'segmentation_?head')


@dataclasses.dataclass(frozen=True)
class Head:
  """The classifier.

  Attributes:
    layer: its module; '': there is none.
    notes: why one that fits is not taken.
  """

  layer: str = ''
  notes: tuple[str, ...] = ()


def check(
  path: pathlib.Path,
  beside: Mapping[str, Tensor],
  above: Sequence[str],
) -> None:
  """Refuses a body that is part of another network.

  Args:
    path: for messages.
    beside: the tensors that are not of the body, by name.
    above: the prefix and those of the modules around it.

  Raises:
    UserError: names the tensor that says so.
  """
  modules = {name: name.lower().split('.')[:-1] for name in beside}
  enlarging = any(_enlarges(parts) for parts in modules.values())
  for name, tensor in beside.items():
    if found := _pool(name, above):
      raise _another(
        path,
        f'{name[:99]} is a parameter of the pool {found[:99]}, which is not the'
        ' average that a plain ResNet has before its classifier',
      )
    if len(tensor.shape) == 4 and _maps(modules[name], enlarging):
      raise _another(
        path,
        f'{name[:99]} is a convolution of a network that labels each pixel, and'
        ' in most of these the later stages are dilated, which the tensors do'
        ' not tell',
      )


def _another(path: pathlib.Path, what: str) -> errors.UserError:
  return errors.UserError(
    f'{path} does not hold a plain ResNet: {what}. If the layers before it are'
    ' those of a plain ResNet, and these are what you need, save their tensors'
    ' alone.'
  )


def _pool(name: str, above: Sequence[str]) -> str:
  """The pool beside the network that has the tensor; '': none."""
  for base in above:
    if name.startswith(base):
      module, dot, _ = name.removeprefix(base).partition('.')
      if dot and _POOL.fullmatch(module.lower()):
        return base + module
  return ''


def _enlarges(modules: Sequence[str]) -> bool:
  if _DECODER not in modules:
    return False
  below = modules[modules.index(_DECODER) + 1 :]
  return bool(
    below
    and _ENLARGING.fullmatch(below[0])
    and not any(map(_MAPPING.fullmatch, below))
  )


def _maps(modules: Sequence[str], enlarging: bool) -> bool:
  if _DECODER in modules:
    return not _enlarges(modules)
  return any(
    _MAPPING.fullmatch(module)
    and not (enlarging and _OF_ENLARGING.fullmatch(module))
    for module in modules
  )


def classifier(
  tensors: Mapping[str, Tensor],
  beside: Collection[str],
  above: Sequence[str],
  foreign: Collection[str],
  features: int,
) -> Head:
  """The classifier of a body.

  Args:
    tensors: all.
    beside: names of those that are not of the body.
    above: the prefix and those of the modules around it, the nearest first.
    foreign: prefixes of other networks and what surrounds them.
    features: the number that the body computes.
  """
  for base in above:
    by_module: dict[str, list[str]] = {}
    for name in beside:
      if name.startswith(base):
        parts = name.removeprefix(base).split('.')
        for count in (1, 2):
          by_module.setdefault('.'.join(parts[:count]), []).append(name)
    for module in _HEADS:
      inside = set(by_module.get(module, ()))
      layer = _linear(tensors, inside, base + module, features)
      if not layer:
        continue
      classes = tensors[f'{layer}.weight'].shape[0]
      if _EMBEDDING.intersection(layer.split('.')) or any(
        _queues(name, tensors[name].shape, classes) for name in beside
      ):
        why = f'its {classes} outputs are an embedding, compared with a queue'
        return Head('', _not_taken(layer, why))
      for name in beside:
        if (
          name.startswith(base)
          and name not in inside
          and not name.startswith(tuple(foreign))
          and _computes(tensors[name].shape, features)
        ):
          why = f'{name[:99]} is trained, too, and may lie before it'
          return Head('', _not_taken(layer, why))
      return Head(layer)
  return Head()


def _linear(
  tensors: Mapping[str, Tensor],
  inside: Collection[str],
  module: str,
  features: int,
) -> str:
  """The linear layer that is all of a module and fits the features, or ''."""
  matrices = [n for n in inside if n.endswith('.weight')]
  if len(inside) != 2 or len(matrices) != 1:
    return ''
  layer = matrices[0].removesuffix('.weight')
  weight, bias = tensors[matrices[0]].shape, tensors.get(f'{layer}.bias')
  # A square one in a chain of layers is a projection's.
  is_projection = layer != module and weight == (features, features)
  fits = (
    bias is not None
    and len(weight) == 2
    and weight[1] == features
    and bias.shape == weight[:1]
  )
  return layer if fits and not is_projection else ''


def _not_taken(layer: str, why: str) -> tuple[str, ...]:
  return (f'{layer[:99]} is not taken for the classifier: {why}.',)


def _queues(name: str, shape: Sequence[int], classes: int) -> bool:
  return (
    len(shape) > 1
    and classes in shape
    and any(_QUEUE.fullmatch(part) for part in name.lower().split('.'))
  )


def _computes(shape: Sequence[int], features: int) -> bool:
  """Whether a layer with such a parameter may give as many features."""
  return bool(shape) and features in (
    shape[0],
    shape[-1] if shape[0] == 1 else 0,
  )
