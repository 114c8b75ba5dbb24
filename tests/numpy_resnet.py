# SPDX-License-Identifier: Apache-2.0
"""ResNets by definition, NumPy in float64: what the network is held against.

Written from the paper's table 1 and section 3.3, without the project's code.
Arrays are (N, C, H, W).  Parameters are drawn here, keyed by layer and leaf.
"""

import numpy as np

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
EPSILON = 1e-5


def convolve(x, kernel, stride):
  """Cross-correlation; kernel (ky, kx, Ci, Co), padded by ky // 2."""
  size = kernel.shape[0]
  pad = size // 2
  x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
  windows = windows[:, :, ::stride, ::stride]
  return np.einsum('nchwyx,yxcd->ndhw', windows, kernel, optimize=True)


def max_pool(x, rule):
  """3x3, stride 2, one window after the other."""
  if rule == 'pad1':
    pads = ((0, 0), (0, 0), (1, 1), (1, 1))
    x = np.pad(x, pads, constant_values=-np.inf)
    sizes = [(n - 3) // 2 + 1 for n in x.shape[2:]]
  else:
    sizes = [int(np.ceil((n - 3) / 2)) + 1 for n in x.shape[2:]]
  out = np.empty((*x.shape[:2], *sizes))
  for i in range(sizes[0]):
    for j in range(sizes[1]):
      window = x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      out[:, :, i, j] = window.max(axis=(2, 3))
  return out


class NumpyResNet:
  """Runs a network and keeps every layer; makes its parameters as it goes."""

  def __init__(self, depth, stride_in='1x1', pool='ceil', classes=1000, seed=0):
    self.depth, self.stride_in, self.pool = depth, stride_in, pool
    self.classes = classes
    self.parameters = {}
    self.layers = {}
    self._random = np.random.default_rng(seed)

  def _draw(self, name, make):
    if name not in self.parameters:
      self.parameters[name] = make().astype(np.float32)
    return self.parameters[name].astype(np.float64)

  def _conv_bn(self, x, name, channels, size, stride, *, relu):
    random = self._random
    shape = (size, size, x.shape[1], channels)
    scale = np.sqrt(2 / (size * size * x.shape[1]))
    kernel = self._draw(
      f'{name}_conv/kernel', lambda: random.normal(0, scale, shape)
    )
    x = self.layers[f'{name}_conv'] = convolve(x, kernel, stride)
    # Near the real statistics, so that every layer stays alive.
    spread = max(x.std(), 1e-3)
    gamma, mean, var, beta = (
      self._draw(f'{name}_bn/{leaf}', make)[:, None, None]
      for leaf, make in (
        ('scale', lambda: random.uniform(0.5, 1.5, channels)),
        ('mean', lambda: random.normal(0, 0.2 * spread, channels)),
        ('var', lambda: random.uniform(0.5, 1.5, channels) * spread**2),
        ('bias', lambda: random.normal(0, 0.3, channels)),
      )
    )
    x = gamma * (x - mean) / np.sqrt(var + EPSILON) + beta
    if relu:
      x = np.maximum(x, 0)
    self.layers[f'{name}_bn'] = x
    return x

  def __call__(self, x):
    """(N, 3, H, W) to {layer: (N, C, H, W)}."""
    x = self._conv_bn(x, 'conv1', 64, 7, 2, relu=True)
    x = self.layers['pool1'] = max_pool(x, self.pool)
    for stage, blocks in enumerate(BLOCKS[self.depth]):
      width = 64 * 2**stage
      for block in range(blocks):
        stride = 2 if stage and not block else 1
        x = self._block(x, f'res{stage + 2}_{block + 1}', width, stride)
    x = self.layers['avgpool'] = x.mean(axis=(2, 3), keepdims=True)
    kernel = self._draw(
      'logits/kernel',
      lambda: self._random.normal(0, 0.05, (x.shape[1], self.classes)),
    )
    bias = self._draw(
      'logits/bias', lambda: self._random.normal(0, 0.1, self.classes)
    )
    logits = x[:, :, 0, 0] @ kernel + bias
    self.layers['logits'] = logits[:, :, None, None]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    self.layers['output'] = powers[:, :, None, None]
    return self.layers

  def _block(self, x, name, width, stride):
    shortcut, out = x, width if self.depth < 50 else 4 * width
    if stride != 1 or x.shape[1] != out:
      shortcut = self._conv_bn(x, f'{name}_branch1', out, 1, stride, relu=False)
    if self.depth < 50:
      x = self._conv_bn(x, f'{name}_branch2a', width, 3, stride, relu=True)
      x = self._conv_bn(x, f'{name}_branch2b', width, 3, 1, relu=False)
    else:
      a, b = (stride, 1) if self.stride_in == '1x1' else (1, stride)
      x = self._conv_bn(x, f'{name}_branch2a', width, 1, a, relu=True)
      x = self._conv_bn(x, f'{name}_branch2b', width, 3, b, relu=True)
      x = self._conv_bn(x, f'{name}_branch2c', out, 1, 1, relu=False)
    x = self.layers[f'{name}_addto'] = np.maximum(x + shortcut, 0)
    return x


class NumpyCifar(NumpyResNet):
  """The paper's section 4.2, with the parts of the other in float64."""

  def __call__(self, x):
    """(N, 3, H, W) to {layer: (N, C, H, W)}."""
    x = self._conv_bn(x, 'conv1', 16, 3, 1, relu=True)
    for stage, width in enumerate((16, 32, 64)):
      for block in range((self.depth - 2) // 6):
        name = f'res{stage + 2}_{block + 1}'
        half = stage > 0 and block == 0
        shortcut = x
        if half:
          few, rows, columns = x.shape[1:]
          shape = (len(x), width, (rows + 1) // 2, (columns + 1) // 2)
          shortcut = np.zeros(shape)
          # The first quarter of the channels are zeros, and the last.
          first = (width - few) // 2
          shortcut[:, first : first + few] = x[:, :, ::2, ::2]
        x = self._conv_bn(x, f'{name}_branch2a', width, 3, 1 + half, relu=True)
        x = self._conv_bn(x, f'{name}_branch2b', width, 3, 1, relu=False)
        x = self.layers[f'{name}_addto'] = np.maximum(x + shortcut, 0)
    x = self.layers['avgpool'] = x.mean(axis=(2, 3), keepdims=True)
    kernel = self._draw(
      'logits/kernel', lambda: self._random.normal(0, 0.3, (64, self.classes))
    )
    bias = self._draw(
      'logits/bias', lambda: self._random.normal(0, 0.1, self.classes)
    )
    logits = x[:, :, 0, 0] @ kernel + bias
    self.layers['logits'] = logits[:, :, None, None]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    self.layers['output'] = (powers / powers.sum(axis=1, keepdims=True))[
      :, :, None, None
    ]
    return self.layers
