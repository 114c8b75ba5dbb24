# SPDX-License-Identifier: Apache-2.0
"""A network compiled for images of one shape: how they are dealt out."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.engine import compilation, placement
from resnet_jax.engine import devices as device_lib
from resnet_jax.models import convolution, resnet, sharing
from resnet_jax.system import console

# Where devices wait for one another, they may help one another, too.
_SHARED = {'xla_cpu_multi_thread_eigen': True}

# Devices that wait for one another take a thread each, of as many as there are
# devices.  Two such programs at a time could take all threads of one device and
# none of the other, and XLA ends the process.  So there is one at a time, and
# none behind another program that takes long.
_alone = threading.Lock()
_started: list[weakref.ref[jax.Array]] = []


@dataclasses.dataclass(frozen=True)
class Plan:
  """How images of one shape are computed.

  Attributes:
    module: the network, with the algorithms for its workload.
    deal: how a batch is dealt out.
    mesh: the devices that work.
    shape: of the images, (N, cuts, H, W, 3).
  """

  module: resnet.ResNet
  deal: device_lib.Deal
  mesh: Mesh
  shape: tuple[int, ...]


def plan(
  module: resnet.ResNet,
  devices: Sequence[jax.Device],
  crops: int,
  shape: tuple[int, ...],
  *,
  may_share: bool,
) -> Plan:
  """Chooses how images are computed.

  Args:
    module: the network, with its `inference`.
    devices: all available.
    crops: of an image.
    shape: (N, cuts, H, W, 3).
    may_share: whether several devices of a CPU may compute one image.
  """
  images, _, height, width, _ = shape
  share = sharing.ALONE
  if may_share and devices[0].platform == 'cpu':
    count = len(devices)
    share = sharing.possible(module.depth, module.variant, height, count)
  deal = device_lib.deal(devices, images, crops, share.devices)
  share = share if deal.sharing else sharing.ALONE
  own = deal.rows * crops // (1 if deal.sharing else deal.devices)
  work = convolution.workload(
    module.depth,
    module.variant,
    (height, width),
    (own // deal.pieces, own),
    share,
  )
  inference = dataclasses.replace(module.inference, work=work)
  mesh = Mesh(np.asarray(devices[: deal.devices]), (sharing.AXIS,))
  return Plan(module.clone(inference=inference), deal, mesh, shape)


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled network for images of one shape.

  Attributes:
    compiled: the program.
    mean: on the devices.
    images: what the program takes.
    shared: whether devices share an image.
    parameters: on the devices.
  """

  compiled: jax.stages.Compiled
  mean: jax.Array
  images: jax.ShapeDtypeStruct
  shared: bool
  parameters: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)

  def with_parameters(self, parameters: Mapping[str, jax.Array]) -> 'Program':
    """The same program, which can then be called."""
    return dataclasses.replace(self, parameters=parameters)

  def put(self, images: np.ndarray) -> jax.Array:
    """Images (N, cuts, H, W, 3) on the devices, padded, in rounds."""
    rounds, rows, *rest = self.images.shape
    if padding := rounds * rows - len(images):
      black = np.zeros((padding, *rest), images.dtype)
      images = np.concatenate([images, black])
    images = images.reshape(self.images.shape)
    return jax.device_put(images, self.images.sharding)

  def __call__(self, images: jax.Array) -> Any:
    """Starts the computation for what `put` gave; a shared one also ends."""
    with _alone:
      alive = (ref() for ref in _started)
      pending = [array for array in alive if array is not None]
      if self.shared:
        for array in pending:
          # Who fetches it reports its error.
          with contextlib.suppress(Exception):
            array.block_until_ready()
        pending.clear()
      result = self.compiled(self.parameters, self.mean, images)
      if self.shared:
        jax.block_until_ready(result)
      else:
        pending += jax.tree.leaves(result)[:1]
      _started[:] = map(weakref.ref, pending)
    return result


def compiled(
  apply: Callable, how: Plan, where: placement.Placement, mean: np.ndarray
) -> Program:
  """Compiles a program, without the parameters, which may not be there yet.

  Args:
    apply: a function of parameters, mean and images (N, cuts, H, W, 3), for one
      device's part.
    how: the plan.
    where: of the parameters.
    mean: of the images, on the host.
  """
  # Devices that share an image take their rows from the whole one.
  spec = PartitionSpec(*(() if how.deal.sharing else (None, sharing.AXIS)))
  images = jax.ShapeDtypeStruct(
    (how.deal.rounds, how.deal.rows, *how.shape[1:]),
    jnp.uint8,
    sharding=NamedSharding(how.mesh, spec),
  )

  def run(
    arrays: dict[str, jax.Array], mean: jax.Array, images: jax.Array
  ) -> Any:
    return _in_rounds(apply)(where.unpacked(arrays), mean, images)

  local = jax.shard_map(
    run,
    mesh=how.mesh,
    in_specs=(where.specs, PartitionSpec(), spec),
    out_specs=spec,
    check_vma=False,
  )
  there = jax.device_put(mean, NamedSharding(how.mesh, PartitionSpec()))
  lowered = jax.jit(local).lower(where.shapes, there, images)
  options = _SHARED if how.deal.sharing else {}
  program = compilation.compiled(lowered, console.say, options)
  return Program(program, there, images, how.deal.sharing)


def _in_rounds(apply: Callable) -> Callable:
  """A function of images (rounds, N, ...) from one of images (N, ...).

  The memory between the layers is that of one round.
  """

  def run(
    parameters: dict[str, jax.Array], mean: jax.Array, images: jax.Array
  ) -> Any:
    def one(images: jax.Array) -> Any:
      return apply(parameters, mean, images)

    if len(images) > 1:
      return jax.lax.map(one, images)
    return jax.tree.map(lambda value: value[None], one(images[0]))

  return run
