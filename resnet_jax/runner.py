# SPDX-License-Identifier: Apache-2.0
"""The network on a device: compiled for the layers asked for, and no deeper."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax import devices as device_room
from resnet_jax import errors, stages
from resnet_jax.data import preprocess
from resnet_jax.models import aliases, convolution, folding, names, resnet
from resnet_jax.models import layers as layers_room

POOLS = ('none', 'avg', 'max')
DTYPES = ('float32', 'float16')

Shapes = dict[str, tuple[int, int, int]]
Placed = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a batch gave, on the devices.

  Attributes:
    values: of each layer, (rounds, pictures of a round, C, H, W).
    overflows: of each layer, in which pictures a value became infinite because
      the dtype is too small; (rounds, pictures of a round).
    pictures: of the batch, without what `devices.deal` padded.
  """

  values: dict[str, jax.Array]
  overflows: dict[str, jax.Array]
  pictures: int


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


class Runner:
  """Computes layers of pictures, a fixed number of them at a time.

  Only the parameters in front of the deepest layer are put on the device, and
  only what leads to the layers is computed.
  """

  def __init__(
    self,
    model: resnet.ResNet,
    parameters: Mapping[str, np.ndarray],
    layers: Sequence[str],
    mean: np.ndarray,
    *,
    multi_crop: bool = False,
    channels: str = 'BGR',
    std: Sequence[float] = (1.0, 1.0, 1.0),
    reduction: Reduction | None = None,
    grad_cam: GradCam | None = None,
    arithmetic: str = 'float32',
    devices: Sequence[jax.Device] | None = None,
    shared: Placed | None = None,
  ) -> None:
    if grad_cam and multi_crop:
      raise errors.UserError(
        'Grad-CAM looks at one crop; it has no meaning for the average over'
        ' ten. Leave multi_crop out.'
      )
    errors.check_choice('arithmetic', arithmetic, convolution.ARITHMETICS)
    self.layers = tuple(layers)
    self._given = (*self.layers, *((GRAD_CAM,) if grad_cam else ()))
    self._devices = tuple(devices or jax.local_devices()[:1])
    self._crops = 10 if multi_crop else 1
    aside = (*layers, *((grad_cam.layer, *names.HEAD) if grad_cam else ()))
    model = model.clone(
      inference=layers_room.Inference(
        arithmetic, self._devices[0].platform, frozenset(aside)
      )
    )
    self._needed = resnet.needed_parameters(model, aside)
    self._folded = functools.partial(folding.folded, model, parameters)
    # One copy for all the runners.
    self._placed = {} if shared is None else shared
    self._mean = mean
    self._programs: dict[tuple[int, ...], _Program] = {}
    self._apply = functools.partial(
      _apply,
      model=model,
      layers=self.layers,
      multi_crop=multi_crop,
      channels=channels,
      std=tuple(std),
      reduction=reduction or Reduction(),
      grad_cam=grad_cam,
    )

  @classmethod
  def prepared(
    cls,
    how: preprocess.Preprocess,
    model: resnet.ResNet,
    parameters: Mapping[str, np.ndarray],
    layers: Sequence[str],
    *,
    reduction: Reduction | None = None,
    grad_cam: GradCam | None = None,
    arithmetic: str = 'float32',
    devices: Sequence[jax.Device] | None = None,
    shared: Placed | None = None,
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
      arithmetic=arithmetic,
      devices=devices,
      shared=shared,
    )

  def __call__(self, images: np.ndarray) -> Result:
    """Starts the computation; `fetch` waits for it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
    """
    program = self._program(images.shape)
    return program(program.put(images))

  def measured(self, images: np.ndarray, clock: stages.Clock) -> Result:
    """As a call, but waits for the transfer and the result, to time them.

    The times are those of the stages alone if the device has nothing else to
    do, so earlier results should have been fetched.
    """
    program = self._program(images.shape)
    with clock.measure('transfer', len(images)):
      on_device = program.put(images).block_until_ready()
    with clock.measure('compute', len(images)):
      result = program(on_device)
      jax.block_until_ready(result.values)
      return result

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
    values, overflows = (
      {
        # Without the rounds, and without what was padded.
        name: array.reshape(-1, *array.shape[2:])[: result.pictures]
        for name, array in jax.device_get(arrays).items()
      }
      for arrays in (result.values, result.overflows)
    )
    real = np.arange(result.pictures) if real is None else real
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
    return self._program(shape).compiled

  def _program(self, shape: tuple[int, ...]) -> '_Program':
    if shape not in self._programs:
      deal = device_room.deal(self._devices, shape[0], self._crops)
      mesh = jax.sharding.Mesh(self._devices[: deal.devices], ('pictures',))
      dealt = NamedSharding(mesh, PartitionSpec(None, 'pictures'))
      copied = NamedSharding(mesh, PartitionSpec())
      missing = [name for name in self._needed if name not in self._placed]
      self._placed.update(jax.device_put(self._folded(missing), copied))
      parameters = {name: self._placed[name] for name in self._needed}
      mean = jax.device_put(self._mean, copied)
      images = jax.ShapeDtypeStruct(
        (deal.rounds, deal.rows, *shape[1:]), jnp.uint8, sharding=dealt
      )
      # Each device sees its own pictures only, and needs nothing of others.
      local = jax.shard_map(
        _in_rounds(functools.partial(self._apply, pieces=deal.pieces)),
        mesh=mesh,
        in_specs=(copied.spec, copied.spec, dealt.spec),
        out_specs=dealt.spec,
        check_vma=False,
      )
      lowered = jax.jit(local).lower(parameters, mean, images)
      self._programs[shape] = _Program(
        lowered.compile(), parameters, mean, images, shape[0]
      )
    return self._programs[shape]


@dataclasses.dataclass(frozen=True)
class _Program:
  """A compiled network for images of one shape.

  Attributes:
    compiled: the program.
    parameters: on the devices.
    mean: on the devices.
    images: what the program takes.
    pictures: how many of them are asked for at once.
  """

  compiled: jax.stages.Compiled
  parameters: Placed
  mean: jax.Array
  images: jax.ShapeDtypeStruct
  pictures: int

  def put(self, images: np.ndarray) -> jax.Array:
    """Images (pictures, cuts, H, W, 3) on the devices, in rounds."""
    rounds, rows, *rest = self.images.shape
    if padding := rounds * rows - len(images):
      black = np.zeros((padding, *rest), images.dtype)
      images = np.concatenate([images, black])
    images = images.reshape(self.images.shape)
    return jax.device_put(images, self.images.sharding)

  def __call__(self, images: jax.Array) -> Result:
    """Starts the computation for what `put` gave."""
    values, overflows = self.compiled(self.parameters, self.mean, images)
    return Result(values, overflows, self.pictures)


def _in_rounds(apply: Callable) -> Callable:
  """A function of images (rounds, N, ...) from one of images (N, ...).

  What a round needs between the layers is there once, and not for all rounds.
  """

  def run(parameters: Placed, mean: jax.Array, images: jax.Array) -> Any:
    one = functools.partial(apply, parameters, mean)
    if len(images) > 1:
      return jax.lax.map(one, images)
    return jax.tree.map(lambda value: value[None], one(images[0]))

  return run


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
  pieces: int,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  x = preprocess.normalise(
    images, mean, multi_crop, jnp, channels=channels, std=std
  )
  values: dict[str, jax.Array] = {}
  overflows: dict[str, jax.Array] = {}
  if grad_cam:
    captured, cam = _grad_cam(parameters, x, model, layers, grad_cam)
    values[GRAD_CAM] = cam
  else:
    captured = _in_pieces(parameters, x, model, layers, pieces)
  for name, captured_value in captured.items():
    full = captured_value.astype(jnp.float32)
    exact = _reduce(full, len(images), reduction.pool)
    values[name] = exact.astype(reduction.dtype)
    if reduction.dtype == 'float16':
      fits = jnp.isfinite(values[name]) | ~jnp.isfinite(exact)
      overflows[name] = ~fits.all(axis=(1, 2, 3))
  return values, overflows


def _in_pieces(
  parameters: Placed,
  x: jax.Array,
  model: resnet.ResNet,
  layers: Sequence[str],
  pieces: int,
) -> dict[str, jax.Array]:
  """The values of layers, those before the last stage a piece at a time.

  There a few pictures fill a core's cache; behind, the parameters are the
  larger part, and many pictures make better use of them.
  """
  # As many as the batch can be cut into evenly.
  pieces = math.gcd(pieces, len(x))
  if pieces == 1:
    return resnet.capture(model, parameters, x, layers)
  last = names.ARCHITECTURES[model.depth].last_stage
  order = resnet.layer_names(model)
  between = names.block_name(last, 1)
  begin = next(i for i, name in enumerate(order) if name.startswith(between))
  front = [name for name in layers if order.index(name) < begin]
  rear = [name for name in layers if name not in front]
  handed = order[begin - 1]

  def run(piece: jax.Array) -> dict[str, jax.Array]:
    wanted = tuple(dict.fromkeys([*front, *([handed] if rear else [])]))
    return resnet.capture(model, parameters, piece, wanted, end=last - 1)

  cut = x.reshape(pieces, -1, *x.shape[1:])
  values = {
    name: value.reshape(-1, *value.shape[2:])
    for name, value in jax.lax.map(run, cut).items()
  }
  captured = {name: values[name] for name in front}
  if rear:
    captured |= resnet.capture(
      model, parameters, values[handed], rear, begin=last
    )
  return captured


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
