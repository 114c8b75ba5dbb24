# SPDX-License-Identifier: Apache-2.0
"""Batch norms and biases folded into the convolutions before them.

At inference a batch norm is a factor and an offset for each channel; the factor
goes into the convolution's kernel, and the convolution's bias, if it has one,
into the offset.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from resnet_jax.models import convolution, names, resnet


def folded(
  module: resnet.ResNet,
  parameters: Mapping[str, np.ndarray],
  which: Iterable[str],
) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters of a network whose `inference` joins layers, one by one.

  Args:
    module: the network.
    parameters: `layer/leaf` arrays of the network as defined, at least its
      `resnet.needed_parameters`.
    which: the names to return: `resnet.needed_parameters(module, ...)`.

  Yields:
    Names and arrays for `resnet.capture`.
  """
  shapes = resnet.parameter_shapes(module)
  for name in which:
    layer, leaf = name.split('/')
    is_kernel = leaf in ('kernel', 'offset')
    if layer == 'logits' or not is_kernel:
      yield name, parameters[name]
      continue
    # The pool may have the convolution's kernel and offset, too.
    unit = 'conv1' if layer == 'pool1' else layer.rpartition('_')[0]
    factor: np.ndarray | float = 1.0
    if layer != f'{unit}_conv':
      scale, mean, var, bias = (
        np.asarray(parameters[f'{unit}_bn/{leaf}'], np.float64)
        for leaf in names.NORM_LEAVES
      )
      factor = scale / np.sqrt(var + module.variant.epsilon)
    if leaf == 'offset':
      if (own := parameters.get(f'{unit}_conv/bias')) is not None:
        mean = mean - np.asarray(own, np.float64)
      yield name, (bias - mean * factor).astype(np.float32)
    else:
      kernel = np.asarray(parameters[f'{unit}_conv/kernel'])
      kernel = kernel * np.float32(factor)
      # As the convolution takes it, so that no call converts it.
      kernel = convolution.prepared(kernel, shapes[name])
      yield name, kernel.astype(dtype(module, name), copy=False)


def dtype(module: resnet.ResNet, name: str) -> str:
  """The data type of a parameter that `folded` yields."""
  layer, leaf = name.split('/')
  is_kernel = leaf == 'kernel' and layer != 'logits'
  return module.inference.rules.dtype if is_kernel else 'float32'
