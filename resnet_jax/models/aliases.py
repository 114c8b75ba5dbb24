# SPDX-License-Identifier: Apache-2.0
"""Layers by the names of Caffe, Keras and torchvision; Paddle's parameters.

Sources: the authors' deploy prototxts (`res4b12_branch2c`), Keras'
`applications/resnet.py` (`conv4_block13_3_conv`), torchvision's and timm's
`models/resnet.py` (`layer3.12.conv3`).  The CIFAR networks have the names of
akamaster/pytorch_resnet_cifar10, `resnet.py`: torchvision's but for the
classifier (`linear`).  Caffe and Keras have only ResNet-50, -101 and -152.
Plain Python, so that a command line can be checked without JAX.
"""

import dataclasses
import fnmatch
import functools
import re
import string
from collections.abc import Iterator, Mapping, Sequence

from resnet_jax.models import names, structure
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors

CANONICAL = 'paddle'
OTHERS = ('caffe', 'keras', 'torchvision')
SCHEMES = (CANONICAL, *OTHERS)

# A layer, the layer of another program that holds its parameters (or ''), and
# its names there, the usual one first.
_Row = tuple[str, str, tuple[str, ...]]

# By scheme, outside of the blocks.  Keras' classifier gives the probabilities.
_STEM_AND_HEAD: dict[str, tuple[_Row, ...]] = {
  'caffe': (
    ('conv1_conv', 'conv1', ('conv1',)),
    ('conv1_bn', '_conv1', ('conv1_relu', 'scale_conv1', 'bn_conv1')),
    ('pool1', '', ('pool1',)),
    ('avgpool', '', ('pool5',)),
    ('logits', 'fc1000', ('fc1000',)),
    ('output', '', ('prob',)),
  ),
  'keras': (
    ('conv1_conv', 'conv1_conv', ('conv1_conv',)),
    ('conv1_bn', 'conv1_bn', ('conv1_relu', 'conv1_bn')),
    ('pool1', '', ('pool1_pool',)),
    ('avgpool', '', ('avg_pool',)),
    ('logits', 'predictions', ()),
    ('output', '', ('predictions',)),
  ),
  'torchvision': (
    ('conv1_conv', 'conv1', ('conv1',)),
    ('conv1_bn', 'bn1', ('relu', 'act1', 'bn1')),
    ('pool1', '', ('maxpool',)),
    ('avgpool', '', ('avgpool', 'global_pool')),
    ('logits', 'fc', ('fc',)),
    ('output', '', ()),
  ),
}
_CIFAR_CLASSIFIER: _Row = ('logits', 'linear', ('linear',))

# By scheme, of a convolution in a block: its name, its batch norm's owner, and
# the batch norm's names, those of a ReLU only where one follows.  timm numbers
# the ReLUs; torchvision calls one module several times.
_UNITS = {
  'caffe': (
    *('res{block}_{branch}', '{block}_{branch}', 'res{block}_{branch}_relu'),
    *('scale{block}_{branch}', 'bn{block}_{branch}'),
  ),
  'keras': (
    *('{block}_{number}_conv', '{block}_{number}_bn'),
    *('{block}_{number}_relu', '{block}_{number}_bn'),
  ),
  'torchvision': (
    *('{block}.conv{number}', '{block}.bn{number}', '{block}.bn{number}'),
    *('{block}.act{number}', '{block}.relu'),
  ),
}
_PROJECTIONS = _UNITS | {
  'torchvision': (
    *('{block}.downsample.0', '{block}.downsample.1'),
    *('{block}.downsample.1', '{block}.downsample'),
  ),
}
_SUMS = {
  'caffe': ('res{block}', 'res{block}_relu'),
  'keras': ('{block}_out', '{block}_add'),
  'torchvision': ('{block}', '{block}.act{number}', '{block}.relu'),
}
_RELU = re.compile(r'(relu|act\d)$')

# What a parameter's file ends with in Paddle; `bias` is 'wbias'.
_PADDLE_SUFFIXES = {'kernel': 'w0', 'scale': 'w0', 'mean': 'w1', 'var': 'w2'}


@dataclasses.dataclass(frozen=True)
class Alias:
  """Another program's name of a layer.

  Attributes:
    scheme: one of SCHEMES.
    name: the name there.
    layer: the canonical name.
    before_relu: whether the value there lacks the ReLU that the canonical
      layer includes.
  """

  scheme: str
  name: str
  layer: str
  before_relu: bool = False


@dataclasses.dataclass(frozen=True)
class Selection:
  """The layers that names and globs stand for.

  Attributes:
    layers: canonical names.
    notes: what the user should know, one per entry.
  """

  layers: tuple[str, ...]
  notes: tuple[str, ...]


class AmbiguousNameError(errors.UserError):
  """A name that stands for several things; the message tells them apart."""


def paddle_parameter(parameter: str) -> str:
  """Paddle's name of a `layer/leaf` parameter: `_res2_1_branch1_bn.w1`."""
  layer, leaf = parameter.split('/')
  owner = 'output' if layer == 'logits' else layer
  return f'_{owner}.{_PADDLE_SUFFIXES.get(leaf, "wbias")}'


def owners(depth: int, scheme: str) -> dict[str, str]:
  """The layer of another program that holds a canonical layer's parameters.

  Canonical `_conv`, `_bn` and `logits` layers as keys; for Caffe's `_bn` it
  is the common end of `bn...` and `scale...` ('2a_branch1', '_conv1').  Empty
  if the program has no network of that depth.
  """
  rows = _rows(depth, scheme) if scheme in _programs(depth) else ()
  return {layer: owner for layer, owner, _ in rows if owner}


def _programs(depth: int) -> tuple[str, ...]:
  """The other programs that have a network of a depth."""
  return OTHERS if depth in (50, 101, 152) else ('torchvision',)


@functools.lru_cache(maxsize=32)
def aliases(depth: int, head: bool = True) -> tuple[Alias, ...]:
  """All names of all layers; a layer's first one of a scheme is the usual."""
  layers = dict.fromkeys(names.layer_names(depth, head))
  found = [Alias(CANONICAL, layer, layer) for layer in layers]
  with_relu = {
    f'{u.name}_bn' for u in structure.units(depth, Variant()) if u.relu
  }
  for scheme in _programs(depth):
    for layer, owner, several in _rows(depth, scheme):
      # Caffe computes in place: its batch norms hold what follows the ReLU.
      is_norm = layer in with_relu and scheme != 'caffe'
      found += [
        Alias(
          scheme,
          name,
          layer,
          before_relu=(is_norm and name == owner) or name.endswith('_add'),
        )
        for name in several
        if layer in layers
      ]
  return tuple(found)


def _rows(depth: int, scheme: str) -> Iterator[_Row]:
  """All layers that a program has, in the order of computing."""
  *stem, average, classifier, output = _STEM_AND_HEAD[scheme]
  yield from stem
  for block in structure.blocks(depth, Variant()):
    name = _block_name(depth, scheme, block)
    for number, unit in enumerate(
      block.units, start=0 if block.shortcut else 1
    ):
      table = _PROJECTIONS if unit is block.shortcut else _UNITS
      branch = unit.name.removeprefix(f'{block.name}_')
      conv, norm, *several = (
        text.format(block=name, branch=branch, number=number)
        for text in table[scheme]
      )
      if not unit.relu:
        several = [text for text in several if not _RELU.search(text)]
      yield f'{unit.name}_conv', conv, (conv,)
      yield f'{unit.name}_bn', norm, tuple(several)
    sums = [text.format(block=name, number=number) for text in _SUMS[scheme]]
    count = structure.ARCHITECTURES[depth].blocks[block.stage - 2]
    if scheme == 'torchvision' and block.number == count:
      sums.append(name.partition('.')[0])
    yield f'{block.name}_addto', '', tuple(sums)
  yield average
  yield _CIFAR_CLASSIFIER if depth in structure.CIFAR else classifier
  yield output


def _block_name(depth: int, scheme: str, block: structure.Block) -> str:
  """What a block is called; in Caffe without `res`: `2a`, `4f`, `4b35`."""
  stage, number = block.stage, block.number
  if scheme == 'keras':
    return f'conv{stage}_block{number}'
  if scheme == 'torchvision':
    return f'layer{stage - 1}.{number - 1}'
  # ResNet-50's blocks have letters, also the six of res4.
  if number == 1 or depth == 50 or stage in (2, 5):
    return f'{stage}{string.ascii_lowercase[number - 1]}'
  return f'{stage}b{number - 1}'


def is_several(text: str) -> bool:
  """Whether a text names layers by a glob or a list, rather than one."""
  return ',' in text or _is_glob(text)


def _is_glob(pattern: str) -> bool:
  return any(sign in pattern for sign in '*?[')


def resolve(
  pattern: str,
  tables: Mapping[str, Mapping[str, Sequence[str]]],
  order: Sequence[str],
) -> tuple[str, ...]:
  """What a name or glob stands for, in `order`; () if it is unknown.

  Args:
    pattern: may begin with a scheme and a colon: `keras:conv*`.
    tables: for each scheme, the canonical names that a name stands for.
    order: all the canonical names.

  Raises:
    AmbiguousNameError: schemes differ, or a name stands for several things.
  """
  scheme, colon, rest = pattern.partition(':')
  if colon and scheme in tables:
    tables, pattern = {scheme: tables[scheme]}, rest
  found: dict[str, set[str]] = {}
  for scheme, table in tables.items():
    if _is_glob(pattern):
      hits = [name for name in table if fnmatch.fnmatchcase(name, pattern)]
      meant = {ours for name in hits for ours in table[name]}
    else:
      meant = set(table.get(pattern, ()))
      if len(meant) > 1:
        raise AmbiguousNameError(
          f"'{pattern}' is ambiguous: {scheme} gives several values that name,"
          f' {", ".join(n for n in order if n in meant)}. Name one of these.'
        )
    if meant:
      found[scheme] = meant
  if not found:
    return ()
  # Canonical names win; other schemes may then only repeat them.
  chosen = next(iter(found.values()))
  if CANONICAL not in found and any(m != chosen for m in found.values()):
    chosen = set()
  if any(not meant <= chosen for meant in found.values()):
    choices = '; '.join(
      f'{scheme}:{pattern} stands for {_brief(meant, order)}'
      for scheme, meant in found.items()
    )
    raise AmbiguousNameError(
      f"'{pattern}' is ambiguous: {choices}. Write one of these."
    )
  return tuple(name for name in order if name in chosen)


def _brief(meant: set[str], order: Sequence[str]) -> str:
  listed = [name for name in order if name in meant]
  if len(listed) <= 3:
    return ', '.join(listed)
  return f'{len(listed)} names from {listed[0]} to {listed[-1]}'


def select_layers(
  asked: str | Sequence[str], depth: int, head: bool = True
) -> Selection:
  """Layers for names and globs, of any scheme, in the order asked for.

  A glob gives its matches in the order of computing; duplicates are dropped.

  Args:
    asked: `res5_*_addto,layer1.0.conv1`, or a sequence of names.
    depth: of the network.
    head: whether it has a classifier.

  Raises:
    UserError: nothing is asked for, or a name matches nothing or is ambiguous.
  """
  known = names.layer_names(depth, head)
  everything = aliases(depth, head)
  tables: dict[str, dict[str, list[str]]] = {scheme: {} for scheme in SCHEMES}
  for alias in everything:
    tables[alias.scheme].setdefault(alias.name, []).append(alias.layer)
  chosen: dict[str, None] = {}
  notes = []
  for pattern in names.split_list(asked):
    matches = resolve(pattern, tables, known)
    if not matches:
      raise _unknown(pattern, depth, head, everything)
    chosen.update(dict.fromkeys(matches))
    notes += _notes(pattern, matches, everything)
  if not chosen:
    raise errors.UserError(
      'no layer was asked for. Give output_layer one or several names or'
      f' globs, for example {known[-4]},avgpool.'
    )
  return Selection(tuple(chosen), tuple(notes))


def _notes(
  pattern: str, matches: Sequence[str], everything: Sequence[Alias]
) -> list[str]:
  """Says if another program's value lacks the ReLU of ours."""
  scheme, _, bare = pattern.rpartition(':')
  named = [a for a in everything if fnmatch.fnmatchcase(a.name, bare)]
  # A canonical name means what it says.
  if not scheme and any(alias.scheme == CANONICAL for alias in named):
    return []
  early = [a for a in named if a.before_relu and a.layer in matches]
  if not early:
    return []
  first = early[0]
  more = f' (so are {len(early) - 1} more)' if len(early) > 1 else ''
  return [
    f"{first.scheme}'s {first.name} is the value before the ReLU;"
    f' {first.layer}, used in its place, is the one after it{more}.'
  ]


def _unknown(
  pattern: str, depth: int, head: bool, everything: Sequence[Alias]
) -> errors.UserError:
  heads = (*names.HEAD, 'fc', 'linear', 'fc1000', 'prob', 'predictions')
  if not head and pattern in heads:
    return errors.UserError(
      f"layer '{pattern}': these weights have no head (no classifier), so the"
      ' network ends with avgpool. Ask for layers up to there, or give weights'
      ' with a classifier.'
    )
  hint = errors.hint(pattern, [alias.name for alias in everything])
  return errors.UserError(
    f"ResNet-{depth} has no layer '{pattern}'.{hint} Allowed:"
    f' {names.grammar(depth)}.'
  )
