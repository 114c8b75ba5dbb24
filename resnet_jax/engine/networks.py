# SPDX-License-Identifier: Apache-2.0
"""The networks of one set of parameters: one for each selection of layers."""

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
    shapes = reductions.output_shapes(
      self._module, layers, reduction, *shape[1:3]
    )
    itemsize = np.dtype(reduction.dtype).itemsize
    network = self._network(tuple(layers), reduction, grad_cam)
    rows = loop.batch_rows(
      network,
      len(images),
      shape,
      crops=self._preprocess.crops,
      row_bytes=itemsize * sum(map(math.prod, shapes.values())),
      batch_size=self._batch_size,
      resumed=resumed,
    )
    return loop.Run(
      images,
      self._preprocess,
      network,
      rows,
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
