# SPDX-License-Identifier: Apache-2.0
"""File names written as a pattern: `val-{000..049}.tar`, `val-*.parquet`.

Braces are Bash's (its manual, "Brace Expansion"), not nested: a list or a range
of whole numbers.  Every file that they name must exist; `*`, `?` and `[...]`
match those that do.
"""

import glob
import itertools
import math
import re
from collections.abc import Iterator

from resnet_jax.data import places
from resnet_jax.data.places import Place
from resnet_jax.system import errors
from resnet_jax.system.text import some

_MAX_FILES = 100_000
_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d{1,9})\.\.(\d{1,9})')


def is_pattern(text: str) -> bool:
  """Whether a text has braces or wildcards."""
  return bool(_BRACES.search(text)) or glob.has_magic(text)


def expand(path: Place) -> list[Place]:
  """The files that a place, as a pattern, names, in order.

  Raises:
    UserError: some that braces name do not exist, or there are none, or too
      many.
  """
  text = places.text(path)
  names = list(_braces(text))
  files = places.files_named(path, names)
  missing = [
    places.shown(path, name)
    for name, of in zip(names, files, strict=True)
    if not of
  ]
  if missing:
    raise errors.UserError(
      f"data='{places.shown(path, text)}': {len(missing)} of the files that it"
      f' names do not exist: {some(missing, 5)}. Get them, or correct the'
      ' pattern.'
    )
  return [one for of in files for one in of]


def _braces(text: str) -> Iterator[str]:
  # What stands between braces, and inside them, in turn.
  parts = [
    _choices(part) if number % 2 else [part]
    for number, part in enumerate(_BRACES.split(text))
  ]
  if math.prod(map(len, parts)) > _MAX_FILES:
    raise errors.UserError(f"data='{text}' names more than {_MAX_FILES} files.")
  return map(''.join, itertools.product(*parts))


def _choices(inside: str) -> list[str]:
  match = _RANGE.fullmatch(inside)
  if match is None:
    return inside.split(',')
  first, last = map(int, match.groups())
  is_padded = any(len(n) > 1 and n[0] == '0' for n in match.groups())
  width = max(map(len, match.groups())) if is_padded else 0
  step = 1 if first <= last else -1
  numbers = range(first, last + step, step)[: _MAX_FILES + 1]
  return [f'{number:0{width}d}' for number in numbers]
