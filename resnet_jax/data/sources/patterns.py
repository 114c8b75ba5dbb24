# SPDX-License-Identifier: Apache-2.0
"""File names written as a pattern: `val-{000..049}.tar`, `val-*.parquet`.

Braces are Bash's (its manual, "Brace Expansion"): a list or a range of whole
numbers.  Every file that they name must exist; `*`, `?` and `[...]` match those
that do.
"""

import glob
import pathlib
import re

from resnet_jax.system import errors

_MAX_FILES = 100_000
_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d{1,9})\.\.(\d{1,9})')


def is_pattern(text: str) -> bool:
  """Whether a text has braces or wildcards."""
  return bool(_BRACES.search(text)) or glob.has_magic(text)


def expand(text: str) -> list[pathlib.Path]:
  """The files that a pattern names, in order.

  Raises:
    UserError: some that braces name do not exist, or there are none, or too
      many.
  """
  found: list[pathlib.Path] = []
  missing: list[str] = []
  for name in _braces(text):
    if glob.has_magic(name):
      files = [n for n in sorted(glob.glob(name)) if pathlib.Path(n).is_file()]
      found += map(pathlib.Path, files)
      missing += [] if files else [name]
    elif pathlib.Path(name).is_file():
      found.append(pathlib.Path(name))
    else:
      missing.append(name)
  if missing:
    raise errors.UserError(
      f"data='{text}': {len(missing)} of the files that it names do not exist:"
      f' {", ".join(missing[:5])}. Get them, or correct the pattern.'
    )
  return found


def _braces(text: str) -> list[str]:
  done, todo = [], [text]
  while todo:
    name = todo.pop()
    match = _BRACES.search(name)
    if match is None:
      done.append(name)
    else:
      # Reversed, as `pop` takes the last.
      for choice in reversed(_choices(match[1])):
        todo.append(name[: match.start()] + choice + name[match.end() :])
    if len(done) + len(todo) > _MAX_FILES:
      raise errors.UserError(
        f"data='{text}' names more than {_MAX_FILES} files."
      )
  return done


def _choices(inside: str) -> list[str]:
  match = _RANGE.fullmatch(inside)
  if match is None:
    return inside.split(',')
  first, last = match.groups()
  is_padded = any(len(n) > 1 and n[0] == '0' for n in (first, last))
  width = max(len(first), len(last)) if is_padded else 0
  numbers = range(int(first), int(last) + 1)
  return [f'{number:0{width}d}' for number in numbers[: _MAX_FILES + 1]]
