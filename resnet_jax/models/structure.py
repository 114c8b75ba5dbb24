# SPDX-License-Identifier: Apache-2.0
"""What a network consists of, as a table.

`resnet.ResNet` is built from it.  Shapes, costs and diagrams read it, too:
tracing the network instead takes a fifth of a second each time.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from resnet_jax.models import names
from resnet_jax.models.variant import Variant

Value = TypeVar('Value')

# The images, as an input of the first layer.
INPUT = 'input'

# The stages before and after the residual ones.
STEM = 'stem'
HEAD = 'head'


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
    name: of both, without `_conv` and `_bn`.
    kernel: height and width.
    stride: in both directions.
    inputs: input channels.
    outputs: output channels.
    relu: whether a ReLU follows before any sum.
    pool: the name of the max pool that follows, 3x3 of stride 2; '': none does.
  """

  name: str
  kernel: int
  stride: int
  inputs: int
  outputs: int
  relu: bool
  pool: str = ''


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
    unit: that a convolution or a batch norm belongs to; else None.
  """

  name: str
  kind: Kind
  inputs: tuple[str, ...]
  activation: str = ''
  stage: str = STEM
  block: str = ''
  in_shortcut: bool = False
  unit: Unit | None = None


def stem(depth: int) -> Unit:
  """The first convolution."""
  architecture = names.ARCHITECTURES[names.check_depth(depth)]
  return Unit(
    'conv1',
    architecture.kernel,
    architecture.stride,
    3,
    architecture.width,
    relu=True,
    pool='pool1' if architecture.pool else '',
  )


@functools.lru_cache(maxsize=32)
def blocks(depth: int, variant: Variant) -> tuple[Block, ...]:
  """The blocks of a network, first to last.

  Args:
    depth: one of `names.ARCHITECTURES`.
    variant: of the network.
  """
  architecture = names.ARCHITECTURES[depth]
  kernels = (1, 3, 1) if architecture.bottleneck else (3, 3)
  strided = 1 if architecture.bottleneck and variant.stride_in == '3x3' else 0
  last = len(kernels) - 1
  found = []
  inputs = architecture.width
  for stage, count in enumerate(architecture.blocks, start=2):
    width = architecture.width * 2 ** (stage - 2)
    outputs = width * architecture.expansion
    for number in range(1, count + 1):
      name = names.block_name(stage, number)
      stride = 2 if stage > 2 and number == 1 else 1
      channels = (inputs, *[width] * last, outputs)
      branch = tuple(
        Unit(
          f'{name}_{branch}',
          kernels[place],
          stride if place == strided else 1,
          channels[place],
          channels[place + 1],
          relu=place < last,
        )
        for place, branch in enumerate(architecture.branches)
      )
      shortcut = (
        Unit(f'{name}_branch1', 1, stride, inputs, outputs, relu=False)
        if architecture.has_projection(stage, number)
        else None
      )
      found.append(
        Block(name, stage, number, stride, outputs, shortcut, branch)
      )
      inputs = outputs
  return tuple(found)


def units(depth: int, variant: Variant) -> Iterator[Unit]:
  """All convolutions, in the order of computing."""
  yield stem(depth)
  for block in blocks(depth, variant):
    yield from block.units


@functools.lru_cache(maxsize=32)
def layers(
  depth: int, variant: Variant, head: bool = True
) -> tuple[Layer, ...]:
  """All layers, in the order of computing.

  Args:
    depth: one of `names.ARCHITECTURES`.
    variant: of the network.
    head: whether there is a classifier after `avgpool`.
  """
  first = stem(depth)
  found = [*_unit_layers(first, INPUT)]
  if first.pool:
    found.append(Layer(first.pool, Kind.MAX_POOL, (found[-1].name,)))
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
  relu = 'ReLU' if unit.relu else ''
  return (
    Layer(conv, Kind.CONVOLUTION, (value,), unit=unit, **place),
    Layer(norm, Kind.BATCH_NORM, (conv,), relu, unit=unit, **place),
  )


def through(
  depth: int,
  variant: Variant,
  start: Value,
  convolved: Callable[[Value, Unit], Value],
  pooled: Callable[[Value], Value],
) -> dict[str, Value]:
  """Follows a value, such as a shape, through the network.

  Args:
    depth: of the network.
    variant: of the network.
    start: the value of an image.
    convolved: a convolution's value, of its input's.
    pooled: the stem pool's value, of its input's.

  Returns:
    The value of every layer before the head, in the order of computing; of a
    sum the branch's, which covers the shortcut's.
  """
  found = {INPUT: start}
  for layer in layers(depth, variant):
    if layer.stage == HEAD:
      break
    value = found[layer.inputs[0]]
    if layer.kind == Kind.CONVOLUTION and layer.unit:
      value = convolved(value, layer.unit)
    elif layer.kind == Kind.MAX_POOL:
      value = pooled(value)
    found[layer.name] = value
  del found[INPUT]
  return found
