# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM: where in an image a layer's values support a class."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from resnet_jax.models import aliases, names, resnet
from resnet_jax.system import errors

# Its name beside the layers in what a runner returns.
GRAD_CAM = 'grad_cam'


@dataclasses.dataclass(frozen=True)
class GradCam:
  """A map of where in an image a layer's values support a class.

  The weighted sum of the layer's channels, negative values set to 0.  A
  channel's weight is the gradient of the class's logit with respect to it,
  averaged over all positions.  Source: Selvaraju et al., "Grad-CAM", 2017,
  equations 1 and 2.

  Attributes:
    layer: its canonical name.
    label: the class; None: each image's most probable one.
  """

  layer: str
  label: int | None = None


def checked_grad_cam(
  module: resnet.ResNet, layer: str = '', label: int | None = None
) -> GradCam:
  """A `GradCam` that the network can compute.

  Args:
    module: the network.
    layer: a name, also another program's; '': the last block's output.
    label: the class; None: each image's most probable one.

  Raises:
    UserError: the network lacks the layer or the class.
  """
  if not module.classes:
    raise errors.UserError(
      'these weights have no head (no classifier), so there is no class for'
      ' Grad-CAM. Features work.'
    )
  if label is not None and not 0 <= label < module.classes:
    raise errors.UserError(
      f'there is no class {label}. Allowed: 0 to {module.classes - 1}.'
    )
  last = names.map_layers(module.depth)[-1]
  chosen = aliases.select(layer or last, module.depth)
  if len(chosen) != 1 or not names.has_positions(chosen[0]):
    stands = f'{chosen[0]} has none'
    if len(chosen) > 1:
      stands = f"'{layer}' stands for {len(chosen)} layers"
    raise errors.UserError(
      f'Grad-CAM needs a layer with positions; {stands}. Choose for example'
      f' {last} (the last block).'
    )
  return GradCam(chosen[0], label)


def maps(
  parameters: dict[str, jax.Array],
  x: jax.Array,
  module: resnet.ResNet,
  layers: Sequence[str],
  target: GradCam,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """The values of layers, (N, H, W, C), and the map, (N, H, W, 1)."""

  def logits(delta: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    wanted = (*layers, target.layer, *names.HEAD)
    captured = resnet.capture(
      module, parameters, x, tuple(dict.fromkeys(wanted)), {target.layer: delta}
    )
    # The best by the probabilities, as `predict` reports it.
    label = (
      captured['output'].argmax(axis=-1, keepdims=True)
      if target.label is None
      else jnp.full((len(x), 1, 1, 1), target.label)
    )
    # Images are independent, so the gradient of the sum holds each image's own.
    own = jnp.take_along_axis(captured['logits'], label, axis=-1)
    return own.sum(), captured

  channels, *size = resnet.value_shapes(module, *x.shape[1:3])[target.layer]
  zero = jnp.zeros((len(x), *size, channels))
  gradient, captured = jax.grad(logits, has_aux=True)(zero)
  factor = gradient.mean(axis=(1, 2), keepdims=True)
  weighted = (factor * captured[target.layer]).sum(axis=-1, keepdims=True)
  return {name: captured[name] for name in layers}, jax.nn.relu(weighted)
