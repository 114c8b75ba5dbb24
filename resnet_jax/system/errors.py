# SPDX-License-Identifier: Apache-2.0
"""The exception for what a user can cause, with the nearest match."""

import difflib
from collections.abc import Iterable

from resnet_jax.system import text


class UserError(Exception):
  """A mistake of the user or of a file; `main` prints it without a traceback.

  The message says what was given, what is allowed and what to do next.  It is
  not a ValueError, because absl's flag parser wraps those in tracebacks.
  """

  def __init__(self, message: str) -> None:
    # Names in it may come from a hostile file; Python prints it as it is.
    super().__init__(text.brief(text.plain(message)))


def unknown(
  what: str, given: str, allowed: Iterable[str], described: str = ''
) -> UserError:
  """The error for a name outside a closed set, with the nearest match.

  Args:
    what: the kind of name.
    given: the name.
    allowed: all known names.
    described: replaces a list of `allowed` that would fill the screen.
  """
  names = [str(name) for name in allowed]
  listed = described or ', '.join(names)
  return UserError(
    f"unknown {what} '{given}'.{hint(given, names)} Allowed: {listed}."
  )


def hint(given: str, names: Iterable[str]) -> str:
  """` Did you mean 'NAME'?` with the nearest name, or ''."""
  near = difflib.get_close_matches(str(given), list(names), n=1, cutoff=0.6)
  return f" Did you mean '{near[0]}'?" if near else ''


def check_choice(what: str, given: str, allowed: Iterable[str]) -> str:
  """Returns `given` if it is one of `allowed`, else raises `unknown`."""
  names = list(allowed)
  if given not in names:
    raise unknown(what, given, names)
  return given
