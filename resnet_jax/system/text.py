# SPDX-License-Identifier: Apache-2.0
"""The wording of messages."""

from collections.abc import Sequence


def plain(text: str) -> str:
  """A text without the control characters that names in a file may have."""
  return ''.join(
    c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text
  )


def one_line(text: str) -> str:
  """A name on one line: what does not print, line ends too, as escapes."""
  if text.isprintable():
    return text
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


def counted(count: int, noun: str) -> str:
  """`1 image`, `50,000 images`."""
  return f'{count:,} {noun}{"s" * (count != 1)}'


def some(names: Sequence[str], most: int = 3) -> str:
  """`a, b, c and 2 more`, each on one line."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(map(one_line, names[:most])) + more
