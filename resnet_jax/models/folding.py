# SPDX-License-Identifier: Apache-2.0
"""Batch norms folded into the convolutions before them.

At inference a batch norm is a factor and an offset for each channel; the factor
goes into the convolution's kernel.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from resnet_jax.models import convolution, resnet


def folded(
  model: resnet.ResNet,
  parameters: Mapping[str, np.ndarray],
  which: Iterable[str],
) -> dict[str, np.ndarray]:
  """The parameters of a network with `inference` set.

  Args:
    model: the network.
    parameters: `layer/leaf` arrays of the network with `inference=None`, at
      least `resnet.needed_parameters` of it.
    which: the names to return: `resnet.needed_parameters(model, ...)`.

  Returns:
    `layer/leaf` arrays for `resnet.capture`.
  """
  shapes = resnet.parameter_shapes(model)
  result = {}
  for name in which:
    layer, leaf = name.split('/')
    if f'{layer}/kernel' not in shapes or layer == 'logits':
      result[name] = parameters[name]
    elif layer.endswith('_conv'):
      result[name] = convolution.prepared(
        np.asarray(parameters[name]), shapes[name]
      )
    else:
      # The pool may have the convolution's offset, too.
      stem = 'conv1' if layer == 'pool1' else layer.removesuffix('_bn')
      norm = {
        leaf: np.asarray(parameters[f'{stem}_bn/{leaf}'], np.float64)
        for leaf in ('scale', 'bias', 'mean', 'var')
      }
      factor = norm['scale'] / np.sqrt(norm['var'] + model.variant.epsilon)
      if leaf == 'offset':
        offset = norm['bias'] - norm['mean'] * factor
        result[name] = offset.astype(np.float32)
      else:
        kernel = np.asarray(parameters[f'{stem}_conv/kernel'])
        result[name] = convolution.prepared(
          kernel * factor.astype(np.float32), shapes[name]
        )
  return result
