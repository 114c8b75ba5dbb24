# SPDX-License-Identifier: Apache-2.0
"""The wording of messages."""

from collections.abc import Sequence


def plain(text: str) -> str:
  r"""A text whose control characters, as names in a file may have, are escaped.

  ESC is `\x1b`, and a terminal does not obey it.
  """
  return ''.join(
    c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in text
  )


def counted(count: int, noun: str) -> str:
  """`1 image`, `50,000 images`."""
  return f'{count:,} {noun}{"s" * (count != 1)}'


def some(names: Sequence[str], most: int = 3) -> str:
  """`a, b, c and 2 more`."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
