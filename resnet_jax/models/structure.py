# SPDX-License-Identifier: Apache-2.0
"""Which convolutions a network consists of.

The network is built from this table; what only needs shapes reads it, too,
since tracing the network for them takes a fifth of a second each time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

from resnet_jax.models import names
from resnet_jax.models.variant import Variant

Value = TypeVar('Value')


@dataclasses.dataclass(frozen=True)
class Unit:
  """A convolution and its batch norm.

  Attributes:
    name: of both, without `_conv` and `_bn`.
    kernel: height and width.
    stride: in both directions.
    inputs: channels that it takes.
    outputs: channels that it gives.
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
    stride: from what it takes to what it gives.
    outputs: channels that it gives.
    shortcut: the convolution over which the shortcut goes; None: it has none.
    branch: the residual branch's, first to last.
  """

  name: str
  stage: int
  stride: int
  outputs: int
  shortcut: Unit | None
  branch: tuple[Unit, ...]

  @property
  def units(self) -> tuple[Unit, ...]:
    """All of them, in the order of computing."""
    return (*((self.shortcut,) if self.shortcut else ()), *self.branch)


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
      found.append(Block(name, stage, stride, outputs, shortcut, branch))
      inputs = outputs
  return tuple(found)


def units(depth: int, variant: Variant) -> Iterator[Unit]:
  """All convolutions, in the order of computing."""
  yield stem(depth)
  for block in blocks(depth, variant):
    yield from block.units


def through(
  depth: int,
  variant: Variant,
  start: Value,
  convolved: Callable[[Value, Unit], Value],
  pooled: Callable[[Value], Value],
) -> dict[str, Value]:
  """What becomes of a value, such as a shape, on its way through the network.

  Args:
    depth: of the network.
    variant: of the network.
    start: of an image.
    convolved: of what a unit gives, from that of what it takes.
    pooled: of what the stem's pool gives, from that of what it takes.

  Returns:
    That of every layer in front of the head, in the order of computing; of a
    sum that of the branch, which has all that the shortcut has.
  """
  found: dict[str, Value] = {}

  def after(unit: Unit, value: Value) -> Value:
    value = convolved(value, unit)
    found[f'{unit.name}_conv'] = found[f'{unit.name}_bn'] = value
    return value

  first = stem(depth)
  value = after(first, start)
  if first.pool:
    value = found[first.pool] = pooled(value)
  for block in blocks(depth, variant):
    if block.shortcut:
      after(block.shortcut, value)
    for unit in block.branch:
      value = after(unit, value)
    found[f'{block.name}_addto'] = value
  return found
