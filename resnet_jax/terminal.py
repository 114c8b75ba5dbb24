# SPDX-License-Identifier: Apache-2.0
"""What is said to the person who waits, beside the results."""

import os
import re
import shutil
import sys
import time
from typing import Self, TextIO

from tqdm import tqdm

_SECONDS_A_LINE = 15.0

# What a line begins with, and how that is shown on a terminal.
_MARKS = {
  'error:': '\x1b[1;31m',
  'FAILED:': '\x1b[1;31m',
  'WARNING:': '\x1b[1;33m',
  'NOTE:': '\x1b[1m',
}
_PLAIN = '\x1b[0m'


def plain(text: str) -> str:
  """A text without the control characters that names in a file may have."""
  return ''.join(
    c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text
  )


def say(text: str) -> None:
  """A line; results go to standard output."""
  line = plain(text)
  if _has_colours(sys.stderr):
    words = '|'.join(_MARKS)
    line = re.sub(
      f'^({words})', lambda m: f'{_MARKS[m[1]]}{m[1]}{_PLAIN}', line
    )
  # Not into the line of a bar.
  tqdm.write(line, file=sys.stderr)
  sys.stderr.flush()


def _has_colours(stream: TextIO) -> bool:
  """By https://no-color.org, too."""
  return (
    stream.isatty()
    and not os.environ.get('NO_COLOR')
    and os.environ.get('TERM', 'dumb') != 'dumb'
  )


def width(stream: TextIO) -> int | None:
  """Columns of the terminal that a stream is; None: it is none."""
  return shutil.get_terminal_size().columns if stream.isatty() else None


class Bytes:
  """Shows a download; a context manager.  Nothing appears without one."""

  def __init__(self) -> None:
    self._bar: tqdm | None = None
    self._spoke = time.monotonic()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def set(self, done: int, total: int | None) -> None:
    """Notes that `done` bytes of `total` are there."""
    if sys.stderr.isatty():
      if self._bar is None:
        self._bar = tqdm(
          unit='B',
          unit_scale=True,
          file=sys.stderr,
          # A terminal that does not tell its size would get no bar at all.
          ncols=shutil.get_terminal_size().columns,
          nrows=shutil.get_terminal_size().lines,
        )
      self._bar.total = total
      self._bar.update(done - self._bar.n)
    elif time.monotonic() - self._spoke > _SECONDS_A_LINE:
      self._spoke = time.monotonic()
      of = f' of {total / 1e6:.1f}' if total else ''
      say(f'{done / 1e6:.1f}{of} MB')
