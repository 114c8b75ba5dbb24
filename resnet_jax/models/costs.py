# SPDX-License-Identifier: Apache-2.0
"""What a network costs, layer by layer, from shapes alone."""

import dataclasses
import math

from resnet_jax.models import resnet, structure
from resnet_jax.models.structure import Kind

# FLOPs ("multiply-adds") of the paper's table 1, 224x224 images; it prints
# none for the CIFAR networks.
PAPER = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of a layer, for one image.

  Attributes:
    layer: canonical name.
    shape: (C, H, W) of its value.
    parameters: learned numbers.
    multiply_adds: of convolutions and the classifier; batch norms, ReLUs, sums
      and pools are not counted, as in the paper.
    bytes: of its value in float32.
    receptive_field: the side of the square of pixels that a value depends on,
      in a large enough image.
    stride: pixels of the image between two values.
  """

  layer: str
  shape: tuple[int, int, int]
  parameters: int
  multiply_adds: int
  bytes: int
  receptive_field: int
  stride: int


def costs(module: resnet.ResNet, height: int, width: int) -> tuple[Cost, ...]:
  """The cost of every layer, in the order of computing."""
  shapes = resnet.value_shapes(module, height, width)
  own: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in shapes}
  for name, size in resnet.parameter_shapes(module).items():
    own[name.split('/')[0]][name] = size
  views = {structure.INPUT: (1, 1)}
  result = []
  for layer in structure.layers(
    module.depth, module.variant, module.classes > 0
  ):
    name, shape = layer.name, shapes[layer.name]
    before = layer.inputs[0]
    field, step = views[before]
    # The mean's window is all of its input.
    kernel = (
      max(shapes[before][1:]) if layer.kind == Kind.MEAN else layer.kernel
    )
    views[name] = field + (kernel - 1) * step, step * layer.stride
    # A kernel is applied at every position of the value.
    products = math.prod(own[name].get(f'{name}/kernel', (0,)))
    result.append(
      Cost(
        name,
        shape,
        resnet.learned_count(own[name]),
        products * shape[1] * shape[2],
        4 * math.prod(shape),
        *views[name],
      )
    )
  return tuple(result)
