# SPDX-License-Identifier: Apache-2.0
"""The network on a device: compiled for the layers asked for, and no deeper."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import errors, stages
from resnet_jax.data import preprocess
from resnet_jax.models import aliases, names, resnet

POOLS = ('none', 'avg', 'max')
DTYPES = ('float32', 'float16')

Shapes = dict[str, tuple[int, int, int]]
# Values on the device, and for each layer in which pictures one became infinite
# because the dtype is too small.
Result = tuple[dict[str, jax.Array], dict[str, jax.Array]]


def select_device(use_gpu: bool) -> jax.Device:
  """The device to run on: a GPU if asked for, else JAX's default.

  Raises:
    UserError: a GPU was asked for and there is none.
  """
  try:
    return jax.devices('gpu' if use_gpu else None)[0]
  except RuntimeError as error:
    if not use_gpu:
      raise errors.UserError(f'JAX finds no device: {error}.') from error
    there = ', '.join(str(device) for device in jax.devices())
    raise errors.UserError(
      f'use_gpu is set, and JAX {jax.__version__} finds no GPU, only {there}.'
      " Install the extra for the machine's CUDA (pip install"
      " 'resnet-jax-zoo[cuda12]' or [cuda13]; in a checkout '.[cuda12]'), or"
      ' leave use_gpu out to run on the CPU.'
    ) from error


@dataclasses.dataclass(frozen=True)
class Reduction:
  """What is kept of a layer's values.

  Attributes:
    pool: 'none', or 'avg' or 'max' over all positions.
    dtype: 'float32' or 'float16'.
  """

  pool: str = 'none'
  dtype: str = 'float32'

  def __post_init__(self) -> None:
    errors.check_choice('pool', self.pool, POOLS)
    errors.check_choice('dtype', self.dtype, DTYPES)

  def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The (C, H, W) that is kept of a layer's."""
    return shape if self.pool == 'none' else (shape[0], 1, 1)


# Under which name a runner gives it, beside the layers.
GRAD_CAM = 'grad_cam'


@dataclasses.dataclass(frozen=True)
class GradCam:
  """Where in a picture a layer's values speak for a class.

  The layer's channels are summed, each times the mean over all positions of
  the gradient of the class's logit with respect to it; what is negative
  becomes 0.  Source: Selvaraju et al., "Grad-CAM", 2017, equations 1 and 2.

  Attributes:
    layer: whose values.
    label: the class; None: the most probable one of each picture.
  """

  layer: str
  label: int | None = None


def checked_grad_cam(
  model: resnet.ResNet, layer: str = '', label: int | None = None
) -> GradCam:
  """What is asked for, if the network can answer it.

  Args:
    model: the network.
    layer: a name, also another program's; '': the last block's output.
    label: the class; None: each picture's most probable one.

  Raises:
    UserError: says what the network lacks.
  """
  if not model.classes:
    raise errors.UserError(
      'these weights have no head (no classifier), so no class that Grad-CAM'
      ' could ask for. Features work.'
    )
  if label is not None and not 0 <= label < model.classes:
    raise errors.UserError(
      f'there is no class {label}: 0 to {model.classes - 1} are.'
    )
  maps = names.map_layers(model.depth)
  chosen = aliases.select_layers(layer or maps[-1], model.depth).layers
  if len(chosen) != 1 or chosen[0] not in maps:
    stands = chosen[0] if len(chosen) == 1 else f'{len(chosen)} layers'
    raise errors.UserError(
      f"Grad-CAM needs one layer with positions, and '{layer}' stands for"
      f' {stands}. Such as {maps[-1]}, the last block, or an earlier'
      f' one, from {maps[0]} on.'
    )
  return GradCam(chosen[0], label)


def output_shapes(
  model: resnet.ResNet,
  layers: Sequence[str],
  reduction: Reduction,
  height: int,
  width: int,
) -> Shapes:
  """The (C, H, W) that is kept of each layer, for pictures of a size."""
  shapes = resnet.layer_shapes(model, height, width)
  return {name: reduction.shape(shapes[name]) for name in layers}


def place(
  parameters: Mapping[str, np.ndarray], device: jax.Device | None
) -> dict[str, jax.Array]:
  """Parameters on a device, for several runners to share."""
  return jax.device_put(dict(parameters), device)


class Runner:
  """Computes layers of pictures, a fixed number of them at a time.

  Only the parameters in front of the deepest layer are put on the device, and
  only what leads to the layers is computed.
  """

  def __init__(
    self,
    model: resnet.ResNet,
    parameters: Mapping[str, np.ndarray | jax.Array],
    layers: Sequence[str],
    mean: np.ndarray,
    *,
    multi_crop: bool = False,
    channels: str = 'BGR',
    std: Sequence[float] = (1.0, 1.0, 1.0),
    reduction: Reduction | None = None,
    grad_cam: GradCam | None = None,
    device: jax.Device | None = None,
  ) -> None:
    if grad_cam and multi_crop:
      raise errors.UserError(
        'Grad-CAM looks at one crop; it has no meaning for the average over'
        ' ten. Leave multi_crop out.'
      )
    self.layers = tuple(layers)
    self._given = (*self.layers, *((GRAD_CAM,) if grad_cam else ()))
    head = ('output',) if grad_cam else ()
    needed = resnet.needed_parameters(model, (*layers, *head))
    self._parameters = jax.device_put(
      {name: parameters[name] for name in needed}, device
    )
    self._mean = jax.device_put(mean, device)
    self._device = device
    self._programs: dict[tuple[int, ...], jax.stages.Compiled] = {}
    self._jitted = jax.jit(
      functools.partial(
        _apply,
        model=model,
        layers=self.layers,
        multi_crop=multi_crop,
        channels=channels,
        std=tuple(std),
        reduction=reduction or Reduction(),
        grad_cam=grad_cam,
      )
    )

  @classmethod
  def prepared(
    cls,
    how: preprocess.Preprocess,
    model: resnet.ResNet,
    parameters: Mapping[str, np.ndarray | jax.Array],
    layers: Sequence[str],
    *,
    reduction: Reduction | None = None,
    grad_cam: GradCam | None = None,
    device: jax.Device | None = None,
  ) -> 'Runner':
    """A runner for pictures that were cut out by a preprocessing."""
    return cls(
      model,
      parameters,
      layers,
      how.mean.values,
      multi_crop=how.multi_crop,
      channels=how.channels,
      std=how.std,
      reduction=reduction,
      grad_cam=grad_cam,
      device=device,
    )

  def __call__(self, images: np.ndarray) -> Result:
    """Starts the computation; `fetch` waits for it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
    """
    program = self.compile(images.shape)
    on_device = jax.device_put(images, self._device)
    return program(self._parameters, self._mean, on_device)

  def measured(self, images: np.ndarray, clock: stages.Clock) -> Result:
    """As a call, but waits for the transfer and the result, to time them.

    The times are those of the stages alone if the device has nothing else to
    do, so earlier results should have been fetched.
    """
    program = self.compile(images.shape)
    with clock.measure('transfer', len(images)):
      on_device = jax.device_put(images, self._device).block_until_ready()
    with clock.measure('compute', len(images)):
      result = program(self._parameters, self._mean, on_device)
      return jax.block_until_ready(result)

  def fetch(
    self, result: Result, real: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """(N, C, H, W) of each layer, in the order asked for.

    A picture's values are averaged over its crops.  Behind the layers comes
    GRAD_CAM, (N, 1, H, W) float32, if it was asked for.

    Args:
      result: what the call returned.
      real: places, or a mask, of the pictures that are not padding.

    Raises:
      UserError: a value of a real picture does not fit into float16.
    """
    values, overflows = jax.device_get(result)
    real = np.arange(len(values[self._given[0]])) if real is None else real
    too_large = [name for name, over in overflows.items() if over[real].any()]
    if too_large:
      raise errors.UserError(
        f'values of {", ".join(too_large)} are beyond 65504, the largest'
        ' float16. Use dtype=float32.'
      )
    # JAX gives a dict back with its keys sorted.
    return {name: values[name] for name in self._given}

  def compile(self, shape: tuple[int, ...]) -> jax.stages.Compiled:
    """The program for images of a shape, compiled the first time only."""
    if shape not in self._programs:
      images = jax.ShapeDtypeStruct(shape, jnp.uint8)
      lowered = self._jitted.lower(self._parameters, self._mean, images)
      self._programs[shape] = lowered.compile()
    return self._programs[shape]


def _apply(
  parameters: dict[str, jax.Array],
  mean: jax.Array,
  images: jax.Array,
  *,
  model: resnet.ResNet,
  layers: Sequence[str],
  multi_crop: bool,
  channels: str,
  std: Sequence[float],
  reduction: Reduction,
  grad_cam: GradCam | None,
) -> Result:
  x = preprocess.normalise(
    images, mean, multi_crop, jnp, channels=channels, std=std
  )
  values: dict[str, jax.Array] = {}
  overflows: dict[str, jax.Array] = {}
  if grad_cam:
    captured, cam = _grad_cam(parameters, x, model, layers, grad_cam)
    values[GRAD_CAM] = cam
  else:
    captured = resnet.capture(model, parameters, x, layers)
  for name, captured_value in captured.items():
    exact = _reduce(captured_value, len(images), reduction.pool)
    values[name] = exact.astype(reduction.dtype)
    if reduction.dtype == 'float16':
      fits = jnp.isfinite(values[name]) | ~jnp.isfinite(exact)
      overflows[name] = ~fits.all(axis=(1, 2, 3))
  return values, overflows


def _grad_cam(
  parameters: dict[str, jax.Array],
  x: jax.Array,
  model: resnet.ResNet,
  layers: Sequence[str],
  what: GradCam,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """The values of layers, (N, H, W, C), and the map, (N, 1, H, W)."""

  def logits(delta: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    wanted = (*layers, what.layer, *names.HEAD)
    captured = resnet.capture(
      model, parameters, x, tuple(dict.fromkeys(wanted)), {what.layer: delta}
    )
    # The best one by the probabilities, as it is said to be.
    label = (
      captured['output'].argmax(axis=-1, keepdims=True)
      if what.label is None
      else jnp.full((len(x), 1, 1, 1), what.label)
    )
    # Pictures do not know of one another, so the gradient of the sum holds
    # each one's own.
    own = jnp.take_along_axis(captured['logits'], label, axis=-1)
    return own.sum(), captured

  channels, *size = resnet.layer_shapes(model, *x.shape[1:3])[what.layer]
  zero = jnp.zeros((len(x), *size, channels))
  gradient, captured = jax.grad(logits, has_aux=True)(zero)
  factor = gradient.mean(axis=(1, 2), keepdims=True)
  cam = jax.nn.relu((factor * captured[what.layer]).sum(axis=-1))
  return {name: captured[name] for name in layers}, cam[:, None]


def _reduce(value: jax.Array, pictures: int, pool: str) -> jax.Array:
  """(N * crops, H, W, C) to (N, C, H, W), averaged over a picture's crops."""
  if pool == 'avg':
    value = value.mean(axis=(1, 2), keepdims=True)
  elif pool == 'max':
    value = value.max(axis=(1, 2), keepdims=True)
  value = value.reshape(pictures, -1, *value.shape[1:]).mean(axis=1)
  return value.transpose(0, 3, 1, 2)
