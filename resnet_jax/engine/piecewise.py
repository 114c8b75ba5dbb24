# SPDX-License-Identifier: Apache-2.0
"""The first stages of a network a few images at a time, the last all at once.

The values of a few images fill a core's cache in the first stages; in the last,
the parameters are larger than the values, and many images share them.
"""

from collections.abc import Sequence

import jax

from resnet_jax.models import resnet, structure


def capture(
  module: resnet.ResNet,
  parameters: dict[str, jax.Array],
  x: jax.Array,
  layers: Sequence[str],
  pieces: int,
) -> dict[str, jax.Array]:
  """As `resnet.capture`, with the stages before the last in pieces.

  Args:
    module: the network.
    parameters: see `resnet.capture`.
    x: (N, H, W, 3), normalised.
    layers: canonical names.
    pieces: the most pieces; as many of them as divide N evenly.
  """
  pieces = max(k for k in range(1, pieces + 1) if len(x) % k == 0)
  if pieces == 1:
    return resnet.capture(module, parameters, x, layers)
  last = structure.blocks(module.depth, module.variant)[-1].stage
  order = resnet.value_names(module)
  begin = next(i for i, n in enumerate(order) if n.startswith(f'res{last}_'))
  front = [name for name in layers if order.index(name) < begin]
  rear = [name for name in layers if name not in front]
  handed = order[begin - 1]

  def run(piece: jax.Array) -> dict[str, jax.Array]:
    wanted = tuple(dict.fromkeys([*front, *([handed] if rear else [])]))
    return resnet.capture(module, parameters, piece, wanted, end=last - 1)

  cut = x.reshape(pieces, -1, *x.shape[1:])
  values = {
    name: value.reshape(-1, *value.shape[2:])
    for name, value in jax.lax.map(run, cut).items()
  }
  captured = {name: values[name] for name in front}
  if rear:
    captured |= resnet.capture(
      module, parameters, values[handed], rear, begin=last
    )
  return captured
