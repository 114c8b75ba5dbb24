# SPDX-License-Identifier: Apache-2.0
"""The network on the devices, compiled for some layers and no deeper."""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.data import crops
from resnet_jax.data import mean as mean_lib
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import (
  compilation,
  gradcam,
  piecewise,
  reductions,
  transposes,
)
from resnet_jax.engine import devices as device_lib
from resnet_jax.models import convolution, folding, names, resnet
from resnet_jax.models import layers as layers_lib
from resnet_jax.system import console, errors, memory, timing

NOT_PICKLED = (
  'a model cannot be pickled or copied, because its devices belong to this'
  " process. In workers (multiprocessing.get_context('spawn')) load it in each."
)

# A parameter's copies, one a device.
Placed = dict[str, list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Execution:
  """Where and how networks are computed.

  Attributes:
    devices: share a batch; none: JAX's first one.
    arithmetic: a key of `models.convolution.ARITHMETICS`.
  """

  devices: tuple[jax.Device, ...] = ()
  arithmetic: str = 'float32'

  def __post_init__(self) -> None:
    errors.check_choice('arithmetic', self.arithmetic, convolution.ARITHMETICS)


def start(
  use_gpu: bool,
  arithmetic: str,
  compilation_cache: bool,
  say: Callable[[str], None],
  *,
  application: bool,
) -> Execution:
  """Sets JAX up for the process, and chooses the devices.

  Args:
    use_gpu: fail if there is no GPU.
    arithmetic: a key of `models.convolution.ARITHMETICS`.
    compilation_cache: keep compiled programs.
    say: as for `compilation.keep_programs`.
    application: as for `compilation.keep_programs`.

  Raises:
    UserError: there is no such device or arithmetic, or JAX cannot be used.
  """
  check_usable()
  memory.check(memory.NETWORK, 'a network')
  device_lib.use_cores()
  execution = Execution(device_lib.select(use_gpu), arithmetic)
  compilation.keep_programs(compilation_cache, say, application=application)
  return execution


def check_usable() -> None:
  """Raises a UserError where JAX would hang, or fail in the middle of a run.

  Called at the start of the process, and before each use of a network.
  """
  if os.getpid() != _process():
    raise errors.UserError(
      'the model belongs to another process: this one was forked from it, lacks'
      ' the threads of JAX, and would wait for ever. Start workers with'
      " multiprocessing.get_context('spawn'), and load the model in each."
    )
  if getattr(jax.config, 'jax_disable_jit'):  # noqa: B009
    raise errors.UserError(
      'JAX_DISABLE_JIT is set, and networks are compiled. Unset it, or call'
      " jax.config.update('jax_disable_jit', False)."
    )


@functools.cache
def _process() -> int:
  """The process that uses JAX first; its forks inherit the value."""
  return os.getpid()


@dataclasses.dataclass(frozen=True)
class Result:
  """The values of a batch, on the devices.

  Attributes:
    values: of each layer, (rounds, images of a round, C, H, W), on a CPU
      (..., H, W, C).
    overflows: of each layer, the images with a value beyond the range of the
      dtype; (rounds, images of a round) bool.
    count: images of the batch; the rest is padding.
  """

  values: dict[str, jax.Array]
  overflows: dict[str, jax.Array]
  count: int


class Runner:
  """Computes layers of images, a fixed number of them at a time.

  It holds only the parameters up to the deepest layer, and computes only what
  leads to the layers.  Only this class pads a batch (`put` pads, `fetch` cuts),
  because the padded size depends on the devices.
  """

  def __init__(
    self,
    module: resnet.ResNet,
    parameters: Mapping[str, np.ndarray],
    layers: Sequence[str],
    preprocess: Preprocess,
    *,
    reduction: reductions.Reduction | None = None,
    grad_cam: gradcam.GradCam | None = None,
    execution: Execution | None = None,
    shared: Placed | None = None,
  ) -> None:
    if grad_cam and preprocess.multi_crop:
      raise errors.UserError(
        'Grad-CAM looks at one crop; it has no meaning for the average over'
        ' ten. Leave multi_crop out.'
      )
    execution = execution or Execution()
    self.layers = tuple(layers)
    self._given = (*self.layers, *((gradcam.GRAD_CAM,) if grad_cam else ()))
    self._execution = execution
    self._devices = execution.devices or tuple(jax.local_devices()[:1])
    self._on_cpu = self._devices[0].platform == 'cpu'
    self._crops = preprocess.crops
    aside = (*layers, *((grad_cam.layer, *names.HEAD) if grad_cam else ()))
    module = module.clone(
      inference=layers_lib.Inference(
        execution.arithmetic, self._devices[0].platform, frozenset(aside)
      )
    )
    self._needed = resnet.needed_parameters(module, aside)
    self._shapes = resnet.parameter_shapes(module)
    held = 4 * sum(math.prod(self._shapes[name]) for name in self._needed)
    memory.check(memory.COMPILER + 2 * held, 'the compiled network')
    self._folded = functools.partial(folding.folded, module, parameters)
    # One copy for all the runners.
    self._placed = {} if shared is None else shared
    self._mean = mean_lib.as_array(preprocess.mean)
    self._programs: dict[tuple[int, ...], _Program] = {}
    self._apply = functools.partial(
      _apply,
      module=module,
      layers=self.layers,
      preprocess=preprocess,
      reduction=reduction or reductions.Reduction(),
      grad_cam=grad_cam,
      # On a CPU they are transposed when they are fetched.
      channels_first=not self._on_cpu,
    )

  def __call__(
    self,
    images: np.ndarray,
    rows: int = 0,
    clock: timing.Clock | None = None,
  ) -> Result:
    """Starts the computation; `fetch` waits for it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
      rows: images of a whole batch, N or more; 0: N.
      clock: times the transfer and the computation.  The call waits for both;
        they are timed alone if all earlier results have been fetched.
    """
    check_usable()
    program = self._program((rows or len(images), *images.shape[1:]))
    if clock is None:
      return program(program.put(images), len(images))
    with clock.measure('transfer', len(images)):
      on_device = program.put(images).block_until_ready()
    with clock.measure('compute', len(images)):
      result = program(on_device, len(images))
      jax.block_until_ready(result.values)
      return result

  def repeated(self, images: np.ndarray) -> Callable[[], None]:
    """A function that computes the same images again, without a transfer.

    Benchmarks call it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
    """
    program = self._program(images.shape)
    on_device = program.put(images)

    def work() -> None:
      jax.block_until_ready(program(on_device, len(images)).values)

    return work

  def fetch(
    self, result: Result, real: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Waits for a result and brings it to the host.

    Args:
      result: what the call returned.
      real: a mask, or indices, of the images whose values count; None: all.

    Returns:
      (N, C, H, W) of each layer, in the order asked for, averaged over an
      image's crops; then `gradcam.GRAD_CAM`, (N, 1, H, W) float32, if it was
      asked for.

    Raises:
      UserError: a value that counts does not fit into float16.
    """
    check_usable()
    bring = transposes.fetched if self._on_cpu else jax.device_get
    values, overflows = (
      {
        name: array.reshape(-1, *array.shape[2:])[: result.count]
        for name, array in arrays.items()
      }
      for arrays in (bring(result.values), jax.device_get(result.overflows))
    )
    chosen = slice(None) if real is None else real
    too_large = [n for n, over in overflows.items() if over[chosen].any()]
    if too_large:
      raise errors.UserError(
        f'values of {", ".join(too_large)} are beyond 65504, the largest'
        ' float16. Use dtype=float32.'
      )
    # JAX gives a dict back with its keys sorted.
    return {name: values[name] for name in self._given}

  def compile(self, shape: tuple[int, ...]) -> jax.stages.Compiled:
    """The program for batches of a shape, compiled the first time only."""
    return self._program(shape).compiled

  def _program(self, shape: tuple[int, ...]) -> '_Program':
    if shape not in self._programs:
      deal = device_lib.deal(self._devices, shape[0], self._crops)
      mesh = jax.sharding.Mesh(self._devices[: deal.devices], ('batch',))
      dealt = NamedSharding(mesh, PartitionSpec(None, 'batch'))
      copied = NamedSharding(mesh, PartitionSpec())
      mean = jax.device_put(self._mean, copied)
      images = jax.ShapeDtypeStruct(
        (deal.rounds, deal.rows, *shape[1:]), jnp.uint8, sharding=dealt
      )
      # Each device sees only its own images, and needs nothing of others.
      local = jax.shard_map(
        _in_rounds(functools.partial(self._apply, pieces=deal.pieces)),
        mesh=mesh,
        in_specs=(copied.spec, copied.spec, dealt.spec),
        out_specs=dealt.spec,
        check_vma=False,
      )
      shapes = {
        name: jax.ShapeDtypeStruct(
          self._shapes[name], jnp.float32, sharding=copied
        )
        for name in self._needed
      }
      with concurrent.futures.ThreadPoolExecutor(1, 'place') as pool:
        with memory.starting_threads():
          placed = pool.submit(self._on_devices, copied)
        lowered = jax.jit(local).lower(shapes, mean, images)
        compiled = compilation.compiled(lowered, console.say)
        parameters = placed.result()
      self._programs[shape] = _Program(compiled, parameters, mean, images)
    return self._programs[shape]

  def _on_devices(self, sharding: NamedSharding) -> dict[str, jax.Array]:
    """The parameters, a copy on each device, whatever program uses it."""
    missing = [name for name in self._needed if name not in self._placed]
    for name, array in self._folded(missing):
      self._placed[name] = [jax.device_put(array, d) for d in self._devices]
    return {
      name: jax.make_array_from_single_device_arrays(
        self._shapes[name], sharding, self._placed[name][: sharding.mesh.size]
      )
      for name in self._needed
    }


@dataclasses.dataclass(frozen=True)
class _Program:
  """A compiled network for images of one shape.

  Attributes:
    compiled: the program.
    parameters: on the devices.
    mean: on the devices.
    images: what the program takes.
  """

  compiled: jax.stages.Compiled
  parameters: dict[str, jax.Array]
  mean: jax.Array
  images: jax.ShapeDtypeStruct

  def put(self, images: np.ndarray) -> jax.Array:
    """Images (N, cuts, H, W, 3) on the devices, padded, in rounds."""
    rounds, rows, *rest = self.images.shape
    if padding := rounds * rows - len(images):
      black = np.zeros((padding, *rest), images.dtype)
      images = np.concatenate([images, black])
    images = images.reshape(self.images.shape)
    return jax.device_put(images, self.images.sharding)

  def __call__(self, images: jax.Array, count: int) -> Result:
    """Starts the computation for what `put` gave, of `count` images."""
    values, overflows = self.compiled(self.parameters, self.mean, images)
    return Result(values, overflows, count)


def _in_rounds(apply: Callable) -> Callable:
  """A function of images (rounds, N, ...) from one of images (N, ...).

  The memory between the layers is that of one round.
  """

  def run(
    parameters: dict[str, jax.Array], mean: jax.Array, images: jax.Array
  ) -> Any:
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
  module: resnet.ResNet,
  layers: Sequence[str],
  preprocess: Preprocess,
  reduction: reductions.Reduction,
  grad_cam: gradcam.GradCam | None,
  channels_first: bool,
  pieces: int,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  x = crops.normalise(
    images,
    mean,
    preprocess.multi_crop,
    jnp,
    channels=preprocess.channels,
    std=preprocess.std,
  )
  values: dict[str, jax.Array] = {}
  overflows: dict[str, jax.Array] = {}
  if grad_cam:
    captured, values[gradcam.GRAD_CAM] = gradcam.maps(
      parameters, x, module, layers, grad_cam
    )
  else:
    captured = piecewise.capture(module, parameters, x, layers, pieces)
  for name, captured_value in captured.items():
    full = captured_value.astype(jnp.float32)
    exact = reductions.reduce(full, len(images), reduction.pool)
    values[name] = exact.astype(reduction.dtype)
    if reduction.dtype == 'float16':
      fits = jnp.isfinite(values[name]) | ~jnp.isfinite(exact)
      overflows[name] = ~fits.all(axis=(1, 2, 3))
  if channels_first:
    values = {k: v.transpose(0, 3, 1, 2) for k, v in values.items()}
  return values, overflows
