# SPDX-License-Identifier: Apache-2.0
"""The network on the devices, compiled for some layers and no deeper."""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data import crops
from resnet_jax.data import mean as mean_lib
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import (
  compilation,
  gradcam,
  piecewise,
  placement,
  programs,
  reductions,
  transposes,
)
from resnet_jax.engine import devices as device_lib
from resnet_jax.models import convolution, names, resnet
from resnet_jax.models import layers as layers_lib
from resnet_jax.system import errors, memory, timing

NOT_PICKLED = (
  'a model cannot be pickled or copied, because its devices belong to this'
  " process. In workers (multiprocessing.get_context('spawn')) load it in each."
)


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
    shared: placement.Placed | None = None,
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
    shapes = resnet.parameter_shapes(module)
    held = 4 * sum(math.prod(shapes[name]) for name in self._needed)
    memory.check(memory.COMPILER + 2 * held, 'the compiled network')
    self._module = module
    self._parameters = parameters
    # A gradient would cross the devices; a padded map has rows of its own.
    self._may_share = not (grad_cam or set(layers) & set(names.PADDED.values()))
    # One copy for all the runners.
    self._placed = {} if shared is None else shared
    self._mean = mean_lib.as_array(preprocess.mean)
    self._programs: dict[tuple[int, ...], programs.Program] = {}
    self._apply = functools.partial(
      _apply,
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
      values, overflows = program(program.put(images))
      return Result(values, overflows, len(images))
    with clock.measure('transfer', len(images)):
      on_device = program.put(images).block_until_ready()
    with clock.measure('compute', len(images)):
      values, overflows = jax.block_until_ready(program(on_device))
      return Result(values, overflows, len(images))

  def repeated(self, images: np.ndarray) -> Callable[[], None]:
    """A function that computes the same images again, without a transfer.

    Benchmarks call it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
    """
    program = self._program(images.shape)
    on_device = program.put(images)

    def work() -> None:
      jax.block_until_ready(program(on_device))

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

  def _program(self, shape: tuple[int, ...]) -> programs.Program:
    if shape not in self._programs:
      how = programs.plan(
        self._module,
        self._devices,
        self._crops,
        shape,
        may_share=self._may_share,
      )
      where = placement.Placement(
        how.module, self._needed, how.mesh, self._devices
      )
      apply = functools.partial(
        self._apply, module=how.module, pieces=how.deal.pieces
      )
      with concurrent.futures.ThreadPoolExecutor(1, 'place') as pool:
        with memory.starting_threads():
          placed = pool.submit(where.place, self._parameters, self._placed)
        compiled = programs.compiled(apply, how, where, self._mean)
        self._programs[shape] = compiled.with_parameters(placed.result())
    return self._programs[shape]


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
