# SPDX-License-Identifier: Apache-2.0
"""The paper's ResNets, for ImageNet and for CIFAR (arXiv:1512.03385).

The CIFAR networks pad their shortcuts with zeros as akamaster's
pytorch_resnet_cifar10, `resnet.py`, does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models import (
  known,
  layers,
  names,
  sharing,
  structure,
  variables,
)
from resnet_jax.models.structure import Kind
from resnet_jax.models.variant import Variant

MIN_SIZE = 32

# (C, H, W).
Shape = tuple[int, int, int]


class ResNet(nn.Module):
  """A plain ResNet whose every layer carries the original's name.

  All layers are direct children of this module, so a layer's parameters, and
  its value under `capture_intermediates`, lie under its name.

  Attributes:
    depth: one of `structure.ARCHITECTURES`.
    classes: outputs of the classifier; 0: no classifier, and the network ends
      with `avgpool`.
    variant: what differs between networks of the same depth.
    biases: the names of the units whose convolutions have a bias.
    inference: how it is computed; by default every layer as defined.  Where
      layers are joined, the parameters are those that `folding.folded` returns.
    training: how it is computed in training.
  """

  depth: int
  classes: int = 1000
  variant: Variant = Variant()
  biases: frozenset[str] = frozenset()
  inference: layers.Inference = layers.DEFINITION
  training: layers.Training = layers.Training()

  def _conv_bn(
    self, x: jax.Array, unit: structure.Unit, train: bool
  ) -> jax.Array:
    inference, rule = self._computed(train), self.variant.stem_pool
    last = inference.last_joined(unit)
    folded = last != f'{unit.name}_conv'
    joined = rule if last == unit.pool else ''
    biased = unit.name in self.biases
    conv = layers.Conv(
      unit, inference, biased, folded, joined, train, name=last
    )
    x = conv(x)
    if not folded:
      norm = layers.BatchNorm(
        self.variant.epsilon,
        unit.relu,
        self.training if train else None,
        name=f'{unit.name}_bn',
      )
      x = norm(x)
    if unit.pool not in ('', last):
      sides = [layers.stem_pool_padding(rule, size) for size in x.shape[1:3]]
      self._padded(names.PADDED[unit.pool], x, sides)
      x = layers.StemPool(rule, inference, name=unit.pool)(x)
    return x

  def _block(
    self, x: jax.Array, block: structure.Block, train: bool
  ) -> jax.Array:
    shortcut = self._conv_bn(x, block.shortcut, train) if block.shortcut else x
    if block.name in structure.padded_shortcuts(self.depth):
      pad = layers.PaddedShortcut(
        block.outputs, block.stride, name=f'{block.name}{names.SHORTCUT}'
      )
      shortcut = pad(x)
    for unit in block.branch:
      x = self._conv_bn(x, unit, train)
    add = layers.AddTo(self._computed(train), name=f'{block.name}_addto')
    return add(x, shortcut)

  def _computed(self, train: bool) -> layers.Inference:
    if not train:
      return self.inference
    if self.inference.joins:
      raise ValueError(
        'layers that are joined for inference cannot be trained: train a'
        ' network with inference=layers.DEFINITION'
      )
    return layers.Inference(self.training.arithmetic, joins=False)

  def _padded(
    self, name: str, x: jax.Array, sides: Sequence[tuple[int, int]]
  ) -> None:
    # Only to be captured: what takes it pads for itself.
    if self.inference.keeps(name):
      layers.Padded((sides[0], sides[1]), name=name)(x)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    begin: int = 1,
    end: int | None = None,
    *,
    train: bool = False,
    logits: bool = False,
  ) -> jax.Array:
    """(N, H, W, 3), normalised, H and W 32 or more, to (N, 1, 1, classes).

    Probabilities, or logits.  Without a classifier, to (N, 1, 1, C).  The
    channels are in the order that the weights were trained for.

    Args:
      x: images, or the output of the stage before `begin`.
      begin: the first stage that is computed; 1 is the stem.
      end: the last stage that is computed; None: all, and the head.
      train: whether batch norms take the batch's statistics, and put them into
        the collection `batch_stats`, which then has to be mutable.
      logits: whether the last layer is `logits`, which a loss takes.

    Raises:
      ValueError: the images are too small, or layers are joined in training.
      UserError: no ResNet has this depth.
    """
    share = self.inference.work.share
    if begin == 1:
      _check_size(*x.shape[1:3])
      x = layers.Identity(name=structure.INPUT)(x)
    x = x.astype(self._computed(train).rules.dtype)
    if begin == 1:
      stem = structure.stem(self.depth, self.variant)
      sides = [(stem.kernel // 2,) * 2] * 2
      self._padded(names.PADDED[f'{stem.name}_conv'], x, sides)
      # 112 at 224, and 56 after the pool.
      x = self._conv_bn(x, stem, train)
    block_of = ResNet._block
    if train and self.training.remat:
      block_of = nn.remat(block_of, static_argnums=(2, 3))
    for block in structure.blocks(self.depth, self.variant):  # 56, 28, 14, 7
      if block.stage < begin or (end is not None and block.stage > end):
        continue
      if block.number == 1 and share.has_channels(block.stage):
        channels = share.has_channels(block.stage - 1)
        x = (sharing.whole_channels if channels else sharing.whole_rows)(x)
      x = block_of(self, x, block, train)
    if end is not None:
      return x
    if share.has_rows(block.stage):
      x = sharing.whole_rows(x)
    x = layers.GlobalAveragePool(name='avgpool')(x)
    if share.has_channels(block.stage):
      x = sharing.whole_channels(x)
    if not self.classes:
      return x
    x = layers.Classifier(self.classes, name='logits')(x)
    return x if logits else layers.Softmax(name='output')(x)


def _check_size(height: int, width: int) -> None:
  if min(height, width) < MIN_SIZE:
    raise ValueError(
      f'images of {height}x{width}: a ResNet takes {MIN_SIZE}x{MIN_SIZE} or'
      ' more'
    )


def published(depth: int, given: Mapping[str, Any] | None = None) -> ResNet:
  """The network of a depth with the paper's number of classes.

  Args:
    depth: one of `structure.ARCHITECTURES`.
    given: fields of the variant that a user gave; the others are those of the
      network that has these widths.

  Raises:
    UserError: no network has the depth, or the depth not the widths.
  """
  structure.check_depth(depth)
  classes = structure.ARCHITECTURES[depth].classes
  return ResNet(depth, classes, known.usual(depth, given or {}))


def title(module: ResNet) -> str:
  """`ResNet-50`, `ResNeXt-50 32x4d`."""
  return known.title(module.depth, module.variant)


def describe(module: ResNet) -> str:
  """One line: the network's name, classes, and the variant's used fields."""
  architecture, variant = structure.ARCHITECTURES[module.depth], module.variant
  parts = [
    known.describe(module.depth, variant),
    f'{module.classes} classes' if module.classes else 'no head',
    f'stride in {variant.stride_in}'
    if architecture.projections
    else 'shortcuts padded with zeros',
    *([f'stem pool {variant.stem_pool}'] if architecture.pool else []),
    f'epsilon {variant.epsilon:g}',
  ]
  return ', '.join(parts)


def layer_names(module: ResNet) -> tuple[str, ...]:
  """Every layer of a network, in the order of computing."""
  return names.layer_names(module.depth, head=module.classes > 0)


def value_names(module: ResNet) -> tuple[str, ...]:
  """Every addressable value of a network, in the order of computing."""
  return names.value_names(module.depth, head=module.classes > 0)


def parameter_shapes(
  module: ResNet, *, held: bool = False
) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter, `layer/leaf`, in the order of computing.

  Kernels are (ky, kx, Ci, Co), the classifier's (in, out).

  Args:
    module: the network.
    held: the part that a device has, where devices share an image.
  """
  inference = module.inference
  kernel_shape = inference.held_shape if held else inference.kernel_shape
  shapes: dict[str, tuple[int, ...]] = {}
  for unit in structure.units(module.depth, module.variant):
    last = module.inference.last_joined(unit)
    shapes[f'{last}/kernel'] = kernel_shape(unit)
    outputs = (inference.held_outputs(unit) if held else unit.outputs,)
    if last.endswith('_conv'):
      if unit.name in module.biases:
        shapes[f'{last}/bias'] = outputs
      for leaf in names.NORM_LEAVES:
        shapes[f'{unit.name}_bn/{leaf}'] = outputs
    else:
      shapes[f'{last}/offset'] = outputs
  if module.classes:
    shapes['logits/kernel'] = unit.outputs, module.classes
    shapes['logits/bias'] = (module.classes,)
  return shapes


def learned_count(shapes: dict[str, tuple[int, ...]]) -> int:
  """The number of learned parameters: without the running statistics."""
  return sum(
    math.prod(shape)
    for name, shape in shapes.items()
    if name.rsplit('/', 1)[-1] not in variables.STATISTICS
  )


def value_shapes(module: ResNet, height: int, width: int) -> dict[str, Shape]:
  """The (C, H, W) of every value for images of a size, from the table."""
  _check_size(height, width)
  shapes: dict[str, Shape] = {structure.INPUT: (3, height, width)}
  table = structure.layers(module.depth, module.variant, module.classes > 0)
  for layer in table:
    channels, *sides = shapes[layer.inputs[0]]
    if layer.kind == Kind.CONVOLUTION:
      if name := names.PADDED.get(layer.name):
        around = layer.kernel // 2 * 2
        shapes[name] = channels, sides[0] + around, sides[1] + around
      # Padded by kernel // 2 on both sides, and kernels are odd.
      channels, sides = layer.outputs, [-(-n // layer.stride) for n in sides]
    elif layer.kind == Kind.MAX_POOL:
      rule = module.variant.stem_pool
      padded = [n + sum(layers.stem_pool_padding(rule, n)) for n in sides]
      shapes[names.PADDED[layer.name]] = channels, padded[0], padded[1]
      sides = [(n - 1) // 2 for n in padded]
    elif layer.kind == Kind.MEAN:
      sides = [1, 1]
    elif layer.kind == Kind.FULLY_CONNECTED:
      channels = module.classes
    shapes[layer.name] = channels, sides[0], sides[1]
    shapes[layer.name + names.LINEAR] = shapes[layer.name]
    if layer.kind == Kind.SUM:
      shapes[layer.block + names.SHORTCUT] = shapes[layer.name]
  return {name: shapes[name] for name in value_names(module)}


def capture(
  module: ResNet,
  parameters: dict[str, jax.Array],
  x: jax.Array,
  wanted: Sequence[str],
  added: Mapping[str, jax.Array] | None = None,
  *,
  begin: int = 1,
  end: int | None = None,
) -> dict[str, jax.Array]:
  """The values in `wanted`, each (N, H, W, C).

  Under `jax.jit`, XLA drops what they do not depend on.

  Args:
    module: the network.
    parameters: `layer/leaf` arrays, at least `needed_parameters`.
    x: (N, H, W, 3), normalised.
    wanted: names of values, canonical.
    added: arrays to add to layers' values: the gradient with respect to a
      zero that is added is the gradient with respect to the value.
    begin: the first stage, see `ResNet.__call__`.
    end: the last stage.
  """
  delta = {_place(name): array for name, array in (added or {}).items()}
  # Flax requires every parameter, also of layers after the deepest one that is
  # wanted; compilation drops these zeros.
  every = {
    name: parameters[name] if name in parameters else jnp.zeros(shape)
    for name, shape in parameter_shapes(module, held=True).items()
  }
  places = {name: _place(name) for name in wanted}

  def asked(module: nn.Module, method: str) -> bool:
    return (module.name, method) in places.values()

  def plus(
    call: Callable[..., Any],
    arguments: tuple,
    keywords: dict,
    context: nn.module.InterceptorContext,
  ) -> Any:
    value = call(*arguments, **keywords)
    place = context.module.name, context.method_name
    return value + delta[place] if place in delta else value

  with nn.intercept_methods(plus):
    _, state = module.apply(
      variables.tree(every),
      x,
      begin,
      end,
      capture_intermediates=asked,
      mutable=['intermediates'],
    )
  found = state['intermediates']
  values = {
    name: found[layer][method][0] for name, (layer, method) in places.items()
  }
  if module.inference.work.share.devices == 1:
    return values
  shapes = value_shapes(module, *x.shape[1:3])
  return {
    name: sharing.whole(value, shapes[name]) for name, value in values.items()
  }


def _place(name: str) -> tuple[str, str]:
  """The submodule and the method that return a value."""
  if name.endswith(names.LINEAR):
    return name.removesuffix(names.LINEAR), 'linear'
  return name, '__call__'


def needed_parameters(module: ResNet, wanted: Sequence[str]) -> tuple[str, ...]:
  """Parameters of the layers up to the deepest value in `wanted`."""
  order = value_names(module)
  deepest = max(order.index(_place(name)[0]) for name in wanted)
  front = set(order[: 1 + deepest])
  return tuple(
    name for name in parameter_shapes(module) if name.split('/')[0] in front
  )
