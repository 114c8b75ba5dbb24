# SPDX-License-Identifier: Apache-2.0
"""The names that Caffe, Keras and torchvision have for the layers.

Sources: the authors' deploy prototxts (`res4b12_branch2c`), Keras'
`applications/resnet.py` (`conv4_block13_3_conv`), torchvision's and timm's
`models/resnet.py` (`layer3.12.conv3`), and for the CIFAR networks, which these
do not have, akamaster/pytorch_resnet_cifar10, `resnet.py`; its names are
torchvision's but for the classifier (`linear`).  Caffe and Keras have only
ResNet-50, -101 and -152.  Plain Python, so that a command line can be checked
without JAX.
"""

import dataclasses
import fnmatch
import string
from collections.abc import Iterator, Mapping, Sequence

from resnet_jax.models import names
from resnet_jax.system import errors


class AmbiguousError(errors.UserError):
  """A name that stands for different things."""


CANONICAL = 'paddle'
SCHEMES = (CANONICAL, 'caffe', 'keras', 'torchvision')


@dataclasses.dataclass(frozen=True)
class Alias:
  """Another program's name of a layer.

  Attributes:
    scheme: one of SCHEMES.
    name: the name there.
    layer: the canonical name.
    before_relu: whether the value there is the one before the ReLU that the
      canonical layer includes.
  """

  scheme: str
  name: str
  layer: str
  before_relu: bool = False


@dataclasses.dataclass(frozen=True)
class Selection:
  """What names and globs stand for.

  Attributes:
    layers: canonical names.
    notes: what the user should know, a sentence each.
  """

  layers: tuple[str, ...]
  notes: tuple[str, ...]


def caffe_block(depth: int, stage: int, block: int) -> str:
  """The authors' name of res{stage}_{block}: `2a`, `4f`, `4b35`."""
  if block == 1:
    return f'{stage}a'
  # ResNet-50's blocks have letters, also res4's six.
  if depth == 50 or stage in (2, 5):
    return f'{stage}{string.ascii_lowercase[block - 1]}'
  return f'{stage}b{block - 1}'


def owners(depth: int, scheme: str) -> dict[str, str]:
  """The layer of another program that holds a canonical layer's parameters.

  Canonical `_conv`, `_bn` and `logits` layers as keys; for Caffe's `_bn` it
  is the common end of `bn...` and `scale...` ('2a_branch1', '_conv1').  Empty
  if the program has no network of that depth.
  """
  if scheme in ('caffe', 'keras') and depth not in (50, 101, 152):
    return {}
  stem, head = {
    CANONICAL: (('conv1_conv', 'conv1_bn'), 'output'),
    'caffe': (('conv1', '_conv1'), 'fc1000'),
    'keras': (('conv1_conv', 'conv1_bn'), 'predictions'),
    'torchvision': (
      ('conv1', 'bn1'),
      'linear' if depth in names.CIFAR else 'fc',
    ),
  }[scheme]
  result = dict(zip(('conv1_conv', 'conv1_bn'), stem, strict=True))
  for stage, block, branch in _branches(depth):
    ours = f'{names.block_name(stage, block)}_{branch}'
    number = 0 if branch == 'branch1' else 1 + 'abc'.index(branch[-1])
    caffe = f'{caffe_block(depth, stage, block)}_{branch}'
    keras = f'conv{stage}_block{block}_{number}'
    torch = f'layer{stage - 1}.{block - 1}'
    torch_pair = (
      (f'{torch}.conv{number}', f'{torch}.bn{number}')
      if number
      else (f'{torch}.downsample.0', f'{torch}.downsample.1')
    )
    pair = {
      CANONICAL: (f'{ours}_conv', f'{ours}_bn'),
      'caffe': (f'res{caffe}', caffe),
      'keras': (f'{keras}_conv', f'{keras}_bn'),
      'torchvision': torch_pair,
    }[scheme]
    result[f'{ours}_conv'], result[f'{ours}_bn'] = pair
  return result | {'logits': head}


def aliases(depth: int, head: bool = True) -> tuple[Alias, ...]:
  """All names of all layers; a layer's first one of a scheme is the usual."""
  layers = set(names.layer_names(depth, head))
  found = [
    *(Alias(CANONICAL, layer, layer) for layer in layers),
    *_torchvision(depth),
  ]
  if depth in (50, 101, 152):
    found += [*_caffe(depth), *_keras(depth)]
  return tuple(alias for alias in found if alias.layer in layers)


def _branches(depth: int) -> Iterator[tuple[int, int, str]]:
  architecture = names.ARCHITECTURES[names.check_depth(depth)]
  for stage, count in enumerate(architecture.blocks, start=2):
    for block in range(1, count + 1):
      if architecture.has_projection(stage, block):
        yield stage, block, 'branch1'
      for branch in architecture.branches:
        yield stage, block, branch


def _has_relu(depth: int, branch: str) -> bool:
  last = names.ARCHITECTURES[depth].branches[-1]
  return branch not in ('branch1', last)


def _caffe(depth: int) -> Iterator[Alias]:
  # The original works in place: what its layers bn... and scale... hold in the
  # end is what follows the ReLU.
  owner = owners(depth, 'caffe')

  def alias(name: str, layer: str) -> Alias:
    return Alias('caffe', name, layer)

  yield alias('conv1', 'conv1_conv')
  for name in ('conv1_relu', 'scale_conv1', 'bn_conv1'):
    yield alias(name, 'conv1_bn')
  yield alias('pool1', 'pool1')
  for stage, block, branch in _branches(depth):
    prefix = names.block_name(stage, block)
    ours = f'{prefix}_{branch}'
    conv, end = owner[f'{ours}_conv'], owner[f'{ours}_bn']
    yield alias(conv, f'{ours}_conv')
    if _has_relu(depth, branch):
      yield alias(f'{conv}_relu', f'{ours}_bn')
    yield alias(f'scale{end}', f'{ours}_bn')
    yield alias(f'bn{end}', f'{ours}_bn')
    if branch == 'branch2c':
      name = f'res{caffe_block(depth, stage, block)}'
      yield alias(name, f'{prefix}_addto')
      yield alias(f'{name}_relu', f'{prefix}_addto')
  yield alias('pool5', 'avgpool')
  yield alias('fc1000', 'logits')
  yield alias('prob', 'output')


def _keras(depth: int) -> Iterator[Alias]:
  owner = owners(depth, 'keras')

  def alias(name: str, layer: str, before_relu: bool = False) -> Alias:
    return Alias('keras', name, layer, before_relu)

  yield alias('conv1_conv', 'conv1_conv')
  yield alias('conv1_relu', 'conv1_bn')
  yield alias('conv1_bn', 'conv1_bn', before_relu=True)
  yield alias('pool1_pool', 'pool1')
  for stage, block, branch in _branches(depth):
    prefix = names.block_name(stage, block)
    ours = f'{prefix}_{branch}'
    relu, bn = _has_relu(depth, branch), owner[f'{ours}_bn']
    yield alias(owner[f'{ours}_conv'], f'{ours}_conv')
    if relu:
      yield alias(f'{bn.removesuffix("_bn")}_relu', f'{ours}_bn')
    yield alias(bn, f'{ours}_bn', relu)
    if branch == 'branch2c':
      name = f'conv{stage}_block{block}'
      yield alias(f'{name}_out', f'{prefix}_addto')
      yield alias(f'{name}_add', f'{prefix}_addto', before_relu=True)
  yield alias('avg_pool', 'avgpool')
  yield alias('predictions', 'output')


def _torchvision(depth: int) -> Iterator[Alias]:
  owner = owners(depth, 'torchvision')
  architecture = names.ARCHITECTURES[depth]

  def alias(name: str, layer: str, before_relu: bool = False) -> Alias:
    return Alias('torchvision', name, layer, before_relu)

  yield alias('conv1', 'conv1_conv')
  yield alias('relu', 'conv1_bn')
  yield alias('act1', 'conv1_bn')
  yield alias('bn1', 'conv1_bn', before_relu=True)
  yield alias('maxpool', 'pool1')
  for stage, block, branch in _branches(depth):
    prefix, torch = (
      names.block_name(stage, block),
      f'layer{stage - 1}.{block - 1}',
    )
    ours, relu = f'{prefix}_{branch}', _has_relu(depth, branch)
    yield alias(owner[f'{ours}_conv'], f'{ours}_conv')
    bn = owner[f'{ours}_bn']
    yield alias(bn, f'{ours}_bn', relu)
    if branch == 'branch1':
      yield alias(f'{torch}.downsample', f'{ours}_bn')
    if relu:
      # timm numbers them; torchvision calls one module several times.
      yield alias(f'{torch}.act{bn[-1]}', f'{ours}_bn')
      yield alias(f'{torch}.relu', f'{ours}_bn')
    if branch == architecture.branches[-1]:
      yield alias(torch, f'{prefix}_addto')
      yield alias(f'{torch}.act{bn[-1]}', f'{prefix}_addto')
      yield alias(f'{torch}.relu', f'{prefix}_addto')
      if block == architecture.blocks[stage - 2]:
        yield alias(f'layer{stage - 1}', f'{prefix}_addto')
  yield alias('avgpool', 'avgpool')
  yield alias('global_pool', 'avgpool')
  yield alias(owner['logits'], 'logits')


def is_several(text: str) -> bool:
  """Whether a text names layers by a glob or a list, rather than one."""
  return ',' in text or is_glob(text)


def is_glob(pattern: str) -> bool:
  """Whether a name may stand for several."""
  return any(sign in pattern for sign in '*?[')


def resolve(
  pattern: str,
  tables: Mapping[str, Mapping[str, Sequence[str]]],
  order: Sequence[str],
) -> tuple[str, ...]:
  """What a name or glob stands for, in `order`; nothing if it is unknown.

  Args:
    pattern: may begin with a scheme and a colon: `keras:conv*`.
    tables: for each scheme, which canonical names a name there stands for.
    order: all the canonical names.

  Raises:
    AmbiguousError: it stands for different things in different schemes, or a
      name for several things; says how to tell them apart.
  """
  scheme, colon, rest = pattern.partition(':')
  if colon and scheme in tables:
    tables, pattern = {scheme: tables[scheme]}, rest
  found: dict[str, set[str]] = {}
  for scheme, table in tables.items():
    if not is_glob(pattern):
      meant = set(table.get(pattern, ()))
      if len(meant) > 1:
        raise AmbiguousError(
          f"'{pattern}' is ambiguous: {scheme} gives several values that name,"
          f' {", ".join(n for n in order if n in meant)}. Name one of these.'
        )
    else:
      meant = {
        ours
        for name, several in table.items()
        if fnmatch.fnmatchcase(name, pattern)
        for ours in several
      }
    if meant:
      found[scheme] = meant
  if not found:
    return ()
  # Canonical names come first: only what would add to them makes a doubt.
  chosen = next(iter(found.values()))
  if CANONICAL not in found and any(m != chosen for m in found.values()):
    chosen = set()
  if any(not meant <= chosen for meant in found.values()):
    choices = '; '.join(
      f'{scheme}:{pattern} stands for {_brief(meant, order)}'
      for scheme, meant in found.items()
    )
    raise AmbiguousError(f"'{pattern}' is ambiguous: {choices}. Write one.")
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

  A glob gives its matches in the order of computing; a layer asked for twice
  comes once.

  Args:
    asked: `res5_*_addto,layer1.0.conv1`, or a sequence of names.
    depth: of the network.
    head: whether it has a classifier.

  Raises:
    UserError: a name or glob matches nothing, or is ambiguous; says the
      nearest name.
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
    if (note := _note(pattern, matches, everything)) is not None:
      notes.append(note)
  if not chosen:
    raise errors.UserError(
      'no layer was asked for. Give output_layer one or several names or'
      f' globs, for example {known[-4]},avgpool.'
    )
  return Selection(tuple(chosen), tuple(notes))


def _note(
  pattern: str, matches: Sequence[str], everything: Sequence[Alias]
) -> str | None:
  bare = pattern.partition(':')[2] if ':' in pattern else pattern
  # A canonical name means what it says.
  own = {alias.name for alias in everything if alias.scheme == CANONICAL}
  if pattern == bare and fnmatch.filter(own, bare):
    return None
  early = [
    alias
    for alias in everything
    if alias.before_relu
    and alias.layer in matches
    and fnmatch.fnmatchcase(alias.name, bare)
  ]
  if not early:
    return None
  first = early[0]
  more = f' (and so for {len(early) - 1} more)' if len(early) > 1 else ''
  return (
    f"{first.scheme}'s {first.name} is the value before the ReLU;"
    f' {first.layer}, which is taken for it, is the one after it{more}.'
  )


def _unknown(
  pattern: str, depth: int, head: bool, everything: Sequence[Alias]
) -> errors.UserError:
  if not head and (
    pattern in names.HEAD
    or pattern in ('fc', 'linear', 'fc1000', 'prob', 'predictions')
  ):
    return errors.UserError(
      f"layer '{pattern}': these weights have no head (no classifier), so the"
      ' network ends with avgpool. Ask for layers up to there, or give weights'
      ' with a classifier.'
    )
  nearest = [alias.name for alias in everything]
  return errors.unknown(
    f'layer of ResNet-{depth}', pattern, nearest, described=names.grammar(depth)
  )
