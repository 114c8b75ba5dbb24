# SPDX-License-Identifier: Apache-2.0
"""What the networks consist of, as a table.

`resnet.ResNet` is built from it.  Names, shapes, costs and diagrams read it,
too: tracing the network instead takes a fifth of a second each time.  Plain
Python, so that a command line can be checked without importing JAX.
Depths and block counts: He et al., "Deep Residual Learning for Image
Recognition", 2015, table 1 (ImageNet) and section 4.2 (CIFAR).
"""

import dataclasses
import enum
import functools
from collections.abc import Iterator
from typing import Any

from resnet_jax.models.variant import Variant
from resnet_jax.system import errors

# The images, as an input of the first layer.
INPUT = 'input'

# The stages before and after the residual ones.
STEM = 'stem'
HEAD = 'head'


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The architecture of a depth; the defaults are the ImageNet networks'.

  Attributes:
    bottleneck: whether a block is 1x1, 3x3, 1x1 (else two 3x3).
    blocks: the number of blocks of each stage, from res2 on.
    width: output channels of the stem and of res2's 3x3 convolutions; they
      double with each further stage.
    kernel: height and width of the stem's convolution.
    stride: of the stem's convolution.
    pool: whether the stem ends with `pool1`.
    projections: whether a shortcut that changes the shape is a 1x1
      convolution (the paper's option B); else it takes every second pixel and
      pads the channels with zeros (option A).
    classes: of the data set of the paper.
  """

  bottleneck: bool
  blocks: tuple[int, ...]
  width: int = 64
  kernel: int = 7
  stride: int = 2
  pool: bool = True
  projections: bool = True
  classes: int = 1000


IMAGENET = {
  18: Architecture(bottleneck=False, blocks=(2, 2, 2, 2)),
  34: Architecture(bottleneck=False, blocks=(3, 4, 6, 3)),
  50: Architecture(bottleneck=True, blocks=(3, 4, 6, 3)),
  101: Architecture(bottleneck=True, blocks=(3, 4, 23, 3)),
  152: Architecture(bottleneck=True, blocks=(3, 8, 36, 3)),
}
# 6n + 2 layers, for images of 32x32.
CIFAR = {
  6 * n + 2: Architecture(
    bottleneck=False,
    blocks=(n, n, n),
    width=16,
    kernel=3,
    stride=1,
    pool=False,
    projections=False,
    classes=10,
  )
  for n in (3, 5, 7, 9)
}
ARCHITECTURES = IMAGENET | CIFAR
# Where nothing tells it.
DEFAULT_DEPTH = 50
# For messages.
DEPTHS = (
  f'{", ".join(map(str, IMAGENET))} (ImageNet),'
  f' {", ".join(map(str, CIFAR))} (CIFAR)'
)


def check_depth(depth: int) -> int:
  """Returns `depth`; raises a UserError if no ResNet has that many layers."""
  if depth not in ARCHITECTURES:
    raise errors.UserError(f'no ResNet has {depth} layers. Allowed: {DEPTHS}.')
  return depth


class Kind(enum.StrEnum):
  """What a layer computes, besides its activation; or the images."""

  IMAGE = 'image'
  CONVOLUTION = 'convolution'
  BATCH_NORM = 'batch norm'
  MAX_POOL = 'max pool'
  SUM = 'sum'
  MEAN = 'mean'
  FULLY_CONNECTED = 'fully connected'
  SOFTMAX = 'softmax'


@dataclasses.dataclass(frozen=True)
class Unit:
  """A convolution and its batch norm.

  Attributes:
    kernel: height and width, an odd number.
    stride: in both directions.
    inputs: input channels.
    outputs: output channels.
    name: of both, without `_conv` and `_bn`.
    groups: of the convolution.
    relu: whether a ReLU follows before any sum.
    pool: the name of the max pool that follows, 3x3 of stride 2; '': none does.
    stage: 2 for res2; 1 is the stem.
    after_sum: whether it takes the sum of another block of its stage.
  """

  kernel: int
  stride: int
  inputs: int
  outputs: int
  name: str = ''
  groups: int = 1
  relu: bool = False
  pool: str = ''
  stage: int = 1
  after_sum: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
  """A residual block.

  Attributes:
    name: the prefix of its layers, `res2_1`.
    stage: its number, 2 for res2.
    number: in its stage, from 1.
    stride: of the whole block.
    outputs: output channels.
    shortcut: the projection of the shortcut; None: it has none.
    branch: the residual branch, first to last.
  """

  name: str
  stage: int
  number: int
  stride: int
  outputs: int
  shortcut: Unit | None
  branch: tuple[Unit, ...]

  @property
  def units(self) -> tuple[Unit, ...]:
    """The projection and the branch, in the order of computing."""
    return (*((self.shortcut,) if self.shortcut else ()), *self.branch)


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer, and where its inputs come from.

  Attributes:
    name: canonical.
    kind: what it computes.
    inputs: layers, or INPUT; of a sum the branch, then the shortcut.
    activation: 'ReLU', 'softmax', or '' where it is linear.
    stage: STEM, `res2` and so on, HEAD.
    block: `res2_1`, or '' outside of the blocks.
    in_shortcut: whether it belongs to the projection of a shortcut.
    kernel: height and width of the window that a convolution or pool slides
      over its input.
    stride: of that window.
    outputs: channels of a convolution's value; 0 for other layers.
    groups: of a convolution.
  """

  name: str
  kind: Kind
  inputs: tuple[str, ...]
  activation: str = ''
  stage: str = STEM
  block: str = ''
  in_shortcut: bool = False
  kernel: int = 1
  stride: int = 1
  outputs: int = 0
  groups: int = 1


@dataclasses.dataclass(frozen=True)
class Widths:
  """The channels of a network.

  Attributes:
    stem: of the stem.
    outputs: of res2's blocks; they double with each further stage.
    inner: between the convolutions of res2's blocks; they double, too.
  """

  stem: int
  outputs: int
  inner: int


def widths(depth: int, variant: Variant) -> Widths:
  """The channels of a network.

  Raises:
    UserError: no network of the depth has the variant's widths.
  """
  own = ARCHITECTURES[check_depth(depth)]
  stem, width = variant.stem_width or own.width, variant.width or own.width
  inner = variant.inner_width or width
  outputs = width * (4 if own.bottleneck else 1)
  why = ''
  if not own.bottleneck and (inner != width or variant.groups > 1):
    why = (
      f'inner_width={inner} and groups={variant.groups} are of bottleneck'
      f' blocks, which ResNet-{depth} lacks'
    )
  elif inner % variant.groups:
    why = f'inner_width={inner} is no multiple of groups={variant.groups}'
  elif (stem == outputs) == own.bottleneck:
    # Whether res2_1 has a projection is the same in all networks of a depth.
    must = 'differ from' if own.bottleneck else 'be'
    why = (
      f'stem_width={stem} must {must} {outputs}, the channels of'
      f" res2's blocks (width={width})"
    )
  if why:
    raise errors.UserError(f'{why}. Change them, or leave them out.')
  return Widths(stem, outputs, inner)


def stem(depth: int, variant: Variant) -> Unit:
  """The first convolution."""
  own = ARCHITECTURES[check_depth(depth)]
  pool, width = 'pool1' if own.pool else '', widths(depth, variant).stem
  return Unit(own.kernel, own.stride, 3, width, 'conv1', relu=True, pool=pool)


@functools.lru_cache(maxsize=32)
def blocks(depth: int, variant: Variant) -> tuple[Block, ...]:
  """The blocks of a network, first to last.

  Args:
    depth: one of ARCHITECTURES.
    variant: of the network.
  """
  architecture = ARCHITECTURES[check_depth(depth)]
  kernels = (1, 3, 1) if architecture.bottleneck else (3, 3)
  strided = 1 if architecture.bottleneck and variant.stride_in == '3x3' else 0
  last = len(kernels) - 1
  found = []
  own = widths(depth, variant)
  inputs = own.stem
  for stage, count in enumerate(architecture.blocks, start=2):
    inner, outputs = (n * 2 ** (stage - 2) for n in (own.inner, own.outputs))
    for number in range(1, count + 1):
      name = f'res{stage}_{number}'
      stride = 2 if stage > 2 and number == 1 else 1
      channels = (inputs, *[inner] * last, outputs)
      branch = tuple(
        Unit(
          kernel,
          stride if place == strided else 1,
          channels[place],
          channels[place + 1],
          f'{name}_branch2{"abc"[place]}',
          # Of basic blocks `widths` refuses more than one.
          groups=variant.groups if kernel == 3 else 1,
          relu=place < last,
          stage=stage,
          after_sum=place == 0 and number > 1,
        )
        for place, kernel in enumerate(kernels)
      )
      shortcut = None
      if architecture.projections and (stride, inputs) != (1, outputs):
        shortcut = Unit(
          1, stride, inputs, outputs, f'{name}_branch1', stage=stage
        )
      found.append(
        Block(name, stage, number, stride, outputs, shortcut, branch)
      )
      inputs = outputs
  return tuple(found)


def padded_shortcuts(depth: int) -> tuple[str, ...]:
  """The blocks whose shortcut is padded with zeros (option A)."""
  if ARCHITECTURES[check_depth(depth)].projections:
    return ()
  return tuple(b.name for b in blocks(depth, Variant()) if b.stride > 1)


def units(depth: int, variant: Variant) -> Iterator[Unit]:
  """All convolutions, in the order of computing."""
  yield stem(depth, variant)
  for block in blocks(depth, variant):
    yield from block.units


@functools.lru_cache(maxsize=32)
def layers(
  depth: int, variant: Variant, head: bool = True
) -> tuple[Layer, ...]:
  """All layers, in the order of computing.

  Args:
    depth: one of ARCHITECTURES.
    variant: of the network.
    head: whether there is a classifier after `avgpool`.
  """
  first = stem(depth, variant)
  found = [*_unit_layers(first, INPUT)]
  if first.pool:
    pooled = (found[-1].name,)
    found.append(Layer(first.pool, Kind.MAX_POOL, pooled, kernel=3, stride=2))
  for block in blocks(depth, variant):
    place: dict[str, Any] = {'stage': f'res{block.stage}', 'block': block.name}
    value = shortcut = found[-1].name
    for unit in block.units:
      projects = unit is block.shortcut
      pair = _unit_layers(unit, value, in_shortcut=projects, **place)
      found += pair
      if projects:
        shortcut = pair[-1].name
      else:
        value = pair[-1].name
    name = f'{block.name}_addto'
    found.append(Layer(name, Kind.SUM, (value, shortcut), 'ReLU', **place))
  found.append(Layer('avgpool', Kind.MEAN, (found[-1].name,), stage=HEAD))
  if head:
    found += [
      Layer('logits', Kind.FULLY_CONNECTED, ('avgpool',), stage=HEAD),
      Layer('output', Kind.SOFTMAX, ('logits',), 'softmax', HEAD),
    ]
  return tuple(found)


def _unit_layers(unit: Unit, value: str, **place: Any) -> tuple[Layer, Layer]:
  conv, norm = f'{unit.name}_conv', f'{unit.name}_bn'
  return (
    Layer(
      conv,
      Kind.CONVOLUTION,
      (value,),
      kernel=unit.kernel,
      stride=unit.stride,
      outputs=unit.outputs,
      groups=unit.groups,
      **place,
    ),
    Layer(norm, Kind.BATCH_NORM, (conv,), 'ReLU' * unit.relu, **place),
  )
