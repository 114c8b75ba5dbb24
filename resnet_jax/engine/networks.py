# SPDX-License-Identifier: Apache-2.0
"""The networks of one set of parameters: one for each selection of layers."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import (
  gradcam,
  loop,
  placement,
  reductions,
  runner,
  sizing,
)
from resnet_jax.models import resnet

# Of one batch's features, on the device and again on the host.
_MAX_BATCH_BYTES = 512 << 20


@functools.lru_cache
def _row_bytes(
  module: resnet.ResNet,
  layers: tuple[str, ...],
  reduction: reductions.Reduction,
  height: int,
  width: int,
) -> int:
  """Bytes of an image's values."""
  shapes = reductions.output_shapes(module, layers, reduction, height, width)
  itemsize = np.dtype(reduction.dtype).itemsize
  return itemsize * sum(map(math.prod, shapes.values()))


class Networks:
  """Makes a network when it is needed first, and keeps it.

  All share one copy of the parameters on the devices.
  """

  def __init__(
    self,
    module: resnet.ResNet,
    parameters: Mapping[str, np.ndarray],
    preprocess: Preprocess,
    execution: runner.Execution,
    *,
    batch_size: int = 0,
    say: Callable[[str], None],
  ) -> None:
    """Puts nothing on a device yet.

    Args:
      module: the network.
      parameters: `layer/leaf` arrays.
      preprocess: how an image becomes its input.
      execution: the devices and the arithmetic.
      batch_size: crops a batch; 0: as many as are fast and fit.
      say: reports compilations, batch sizes and the error of a decoding.
    """
    self._module = module
    self._parameters = parameters
    self._preprocess = preprocess
    self._execution = execution
    self._batch_size = batch_size
    self._say = say
    self._placed: placement.Placed = {}
    self._networks: dict[tuple, sizing.Network] = {}

  def prepared(
    self,
    images: loop.Images,
    layers: Sequence[str],
    reduction: reductions.Reduction,
    *,
    grad_cam: gradcam.GradCam | None = None,
    resumed: int = 0,
    check_decoding: bool = False,
  ) -> loop.Run:
    """Images and the network for layers; see `model.Model.prepared`."""
    runner.check_usable()
    shape: tuple[int, ...] = self._preprocess.shape
    if isinstance(images, np.ndarray):
      shape = (1, *images.shape[1:])
    network = self._network(tuple(layers), reduction, grad_cam)
    crops = self._preprocess.crops
    row_bytes = _row_bytes(self._module, tuple(layers), reduction, *shape[1:3])
    most = max(1, _MAX_BATCH_BYTES // max(row_bytes, 1))
    large = (
      self._batch_size // crops
      if self._batch_size
      else sizing.first_rows(network.devices, crops, max(shape[1:3]))
    )
    large = max(1, min(large, most))
    rows = max(1, min(large, len(images)))
    again = not self._batch_size and 0 < resumed <= len(images)
    if again:
      rows = resumed
      # The only batch may be smaller than the large program.
      large = large if resumed == len(images) else resumed
    return loop.Run(
      images,
      self._preprocess,
      network,
      rows,
      large,
      fit=not self._batch_size and not again,
      check_decoding=check_decoding,
      say=self._say,
    )

  def _network(
    self,
    layers: tuple[str, ...],
    reduction: reductions.Reduction,
    grad_cam: gradcam.GradCam | None,
  ) -> sizing.Network:
    key = (layers, reduction, grad_cam)
    if key not in self._networks:
      self._networks[key] = sizing.Network(
        lambda: runner.Runner(
          self._module,
          self._parameters,
          layers,
          self._preprocess,
          reduction=reduction,
          grad_cam=grad_cam,
          execution=self._execution,
          shared=self._placed,
        ),
        self._execution.devices,
        self._say,
      )
    return self._networks[key]
