# SPDX-License-Identifier: Apache-2.0
"""Weights by name or path, checked, with what must be known about them."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from resnet_jax import errors
from resnet_jax.models import resnet
from resnet_jax.weights import paddle, random

UNTRAINED = (
  'UNTRAINED: random weights; features and labels mean nothing, only shapes,'
  ' formats and speed do'
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """A network's parameters and where they are from.

  Attributes:
    parameters: `layer/leaf` float32 arrays in the order of computing; kernels
      (ky, kx, Ci, Co), the classifier's (in, out).
    source: for a person: what was loaded.
    trained: whether anybody trained them.
    warnings: what the user should hear, a sentence each.
    digest: SHA-256 of names, shapes and values, 64 hexadecimal digits.
  """

  parameters: dict[str, np.ndarray]
  source: str
  trained: bool
  warnings: tuple[str, ...] = ()
  digest: str = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    object.__setattr__(self, 'digest', digest(self.parameters))


def load(
  name: str,
  model: resnet.ResNet,
  *,
  conv_order: str = 'OHWI',
  seed: int = 0,
) -> Weights:
  """Loads the weights of a network.

  Args:
    name: `random`; the path of a Paddle directory; or `auto`:
      `model/resnet_50` (and so on) below the working directory.
    model: the network they are for.
    conv_order: how convolutions lie in a Paddle directory; see
      `weights.paddle`.
    seed: for `random`, 0 to 2**32 - 1.

  Raises:
    UserError: there is no such file, or it does not hold the network.
  """
  errors.check_choice('conv_order', conv_order, paddle.CONV_ORDERS)
  if name == 'random':
    if not 0 <= seed < 2**32:
      raise errors.UserError(f'seed={seed} is not between 0 and 4294967295.')
    parameters = random.initialise(resnet.parameter_shapes(model), seed)
    source = f'random, seed {seed}'
    return Weights(parameters, source, False, (f'{UNTRAINED}.',))
  path = _find(name, model.depth)
  shapes = resnet.parameter_shapes(model)
  parameters = paddle.read(path, shapes, conv_order)
  warnings = []
  if other := paddle.suspect_order(parameters, conv_order):
    axes = {'OHWI': '(Co, ky, kx, Ci)', 'OIHW': '(Co, Ci, ky, kx)'}
    warnings.append(
      f'the filters in {path} are smooth, as trained ones are, if read as'
      f' {axes[other]}, but not as {axes[conv_order]}, as they were read now.'
      f' Set conv_order={other}, or the features are probably wrong.'
    )
  source = f'Paddle directory {path}, conv_order {conv_order}'
  return Weights(parameters, source, True, tuple(warnings))


def digest(parameters: dict[str, np.ndarray]) -> str:
  """SHA-256 of names, shapes and float32 bytes, in the order of the names."""
  total = hashlib.sha256()
  for name in sorted(parameters):
    array = np.ascontiguousarray(parameters[name], '<f4')
    total.update(f'{name} {array.shape}\n'.encode())
    total.update(array.data)
  return total.hexdigest()


def _find(name: str, depth: int) -> pathlib.Path:
  usual = pathlib.Path('model') / f'resnet_{depth}'
  path = usual if name == 'auto' else pathlib.Path(name).expanduser()
  if name and path.is_dir():
    return path
  ways = (
    f'Give weights=DIRECTORY, a Paddle model directory; or put one at {usual};'
    ' or take weights=random, untrained, to try the program. (Other formats'
    ' and download are not there yet.)'
  )
  if name == 'auto':
    raise errors.UserError(f'no weights found: {usual} is not there. {ways}')
  found = 'is a file, not a directory' if path.exists() else 'is not there'
  raise errors.UserError(f"weights='{name}': {path} {found}. {ways}")
