# SPDX-License-Identifier: Apache-2.0
"""The wording of messages."""

from collections.abc import Sequence

# Letters of a message; those that list settings have about 1,200.
_LONGEST = 2000


def plain(text: str) -> str:
  r"""A text whose control characters, as names in a file may have, are escaped.

  ESC is `\x1b`, and a terminal does not obey it.
  """
  return ''.join(
    c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in text
  )


def one_line(text: str) -> str:
  """A name on one line: what does not print, line ends too, as escapes."""
  if text.isprintable():
    return text
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


def brief(text: str) -> str:
  """A message that fits a screen: of a longer one, the beginning and the end.

  The end says what to do.
  """
  left_out = len(text) - _LONGEST
  if left_out <= 0:
    return text
  end = _LONGEST // 4
  return f'{text[: _LONGEST - end]} ... ({left_out} letters) ... {text[-end:]}'


def counted(count: int, noun: str) -> str:
  """`1 image`, `50,000 images`."""
  return f'{count:,} {noun}{"s" * (count != 1)}'


def some(names: Sequence[str], most: int = 3) -> str:
  """`a, b, c and 2 more`, each on one line."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(map(one_line, names[:most])) + more


def size(count: int) -> str:
  """A number of bytes, human-readable: 12.3 MB."""
  power = min((len(str(count)) - 1) // 3, 4)
  if not power:
    return f'{count} bytes'
  return f'{count / 1000**power:.1f} {("kB", "MB", "GB", "TB")[power - 1]}'
