# SPDX-License-Identifier: Apache-2.0
"""What a network costs, layer by layer, from shapes alone."""

import dataclasses
import math

from resnet_jax.models import names, resnet, structure

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


@dataclasses.dataclass(frozen=True)
class _View:
  """The receptive field of a value: its side, and the step between two."""

  field: int = 1
  step: int = 1

  def through(self, kernel: int, stride: int) -> '_View':
    return _View(self.field + (kernel - 1) * self.step, self.step * stride)


def costs(model: resnet.ResNet, height: int, width: int) -> tuple[Cost, ...]:
  """The cost of every layer, in the order of computing."""
  shapes = resnet.layer_shapes(model, height, width)
  parameters = resnet.parameter_shapes(model)
  views = _views(model, shapes)
  result = []
  for layer, shape in shapes.items():
    own = {
      name: size
      for name, size in parameters.items()
      if name.split('/')[0] == layer
    }
    # A kernel is applied at every position of the value.
    kernel = own.get(f'{layer}/kernel', (0,))
    result.append(
      Cost(
        layer,
        shape,
        resnet.learned_count(own),
        math.prod(kernel) * shape[1] * shape[2],
        4 * math.prod(shape),
        views[layer].field,
        views[layer].step,
      )
    )
  return tuple(result)


def _views(
  model: resnet.ResNet, shapes: dict[str, tuple[int, int, int]]
) -> dict[str, _View]:
  views = structure.through(
    model.depth,
    model.variant,
    _View(),
    lambda view, unit: view.through(unit.kernel, unit.stride),
    lambda view: view.through(3, 2),
  )
  last, view = [*views.items()][-1]
  _, rows, columns = shapes[last]
  whole = view.through(max(rows, columns), 1)
  for layer in ('avgpool', *names.HEAD):
    views[layer] = whole
  return views
