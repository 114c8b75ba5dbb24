# SPDX-License-Identifier: Apache-2.0
"""The job `inspect`: a table of all parameters, or the values of some.

Values are printed as the original's documentation does, `od -j 16 -f FILE`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.jobs import setup
from resnet_jax.models import aliases
from resnet_jax.system import console
from resnet_jax.weights import assemble, paddle, parameters

_VALUES_A_LINE = 4


def run(config: ConfigDict) -> int:
  """Prints the table or the values."""
  loaded = setup.load_weights(config, finite=False)
  if config.parameter:
    chosen = parameters.select(config.parameter, loaded.loaded)
    for name in chosen:
      _show_values(name, loaded, config)
    return 0
  rows = [_row(name, loaded) for name in loaded.parameters]
  facts = {'digest': loaded.digest, 'source': loaded.source}
  console.show(rows, config.as_json, heads=1, **facts)
  bad = sum(row['non-finite'] for row in rows)
  console.say(
    f'{len(rows)} parameters, {sum(row["count"] for row in rows)} values,'
    f' {bad} of them not finite; digest {loaded.digest}'
  )
  return 0


def _row(name: str, loaded: weights.Weights) -> dict[str, Any]:
  array, origin = loaded.parameters[name], loaded.loaded.origins[name]
  finite = array[np.isfinite(array)].astype(np.float64)
  return {
    'parameter': name,
    'in the file': origin.name,
    'shape': _shape(array.shape),
    'stored': f'{_shape(origin.shape)} {origin.dtype}',
    'layout': loaded.loaded.layout if array.ndim > 1 else '(C,)',
    'count': array.size,
    **{
      key: float(getattr(finite, key)()) if finite.size else None
      for key in ('mean', 'std', 'min', 'max')
    },
    'non-finite': array.size - finite.size,
  }


def _shape(shape: tuple[int, ...]) -> str:
  return 'x'.join(map(str, shape))


def _show_values(
  name: str, loaded: weights.Weights, config: ConfigDict
) -> None:
  array = loaded.parameters[name]
  if config.as_json:
    row = _row(name, loaded)
    values = np.where(np.isfinite(array), array, np.nan).ravel().tolist()
    row['values'] = [None if np.isnan(value) else value for value in values]
    console.show([row], True, digest=loaded.digest)
    return
  stored = paddle.stored(array, config.conv_order)
  # Paddle has no biases of convolutions.
  where = (
    ''
    if name.endswith(assemble.CONV_BIAS)
    else f' as Paddle stores it, in {aliases.paddle_parameter(name)}'
  )
  console.say(f'{name}, {_shape(stored.shape)}{where}')
  for line in _od(stored.ravel()):
    console.result(line)


def _od(values: np.ndarray) -> Iterator[str]:
  """The lines that `od -j 16 -f` prints for Paddle's file."""
  header, before, starred = 16, b'', False
  for start in range(0, values.size, _VALUES_A_LINE):
    numbers = values[start : start + _VALUES_A_LINE]
    again = numbers.size == _VALUES_A_LINE and numbers.tobytes() == before
    if not again:
      text = ''.join(f'{_shortest(number):>16}' for number in numbers)
      yield f'{header + 4 * start:07o}{text}'
    elif not starred:
      # od prints the first of equal lines, and a star.
      yield '*'
    before, starred = numbers.tobytes(), again
  yield f'{header + 4 * values.size:07o}'


def _shortest(number: np.float32) -> str:
  if np.isnan(number):
    return '-nan' if np.signbit(number) else 'nan'
  # od prints the fewest digits that round back to the same float32.
  for digits in range(6, 10):
    text = f'{number:.{digits}g}'
    if np.float32(text) == number:
      return text
  return text
