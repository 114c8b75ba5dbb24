# SPDX-License-Identifier: Apache-2.0
"""The program's output: results to stdout, everything else to stderr."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

from tqdm import tqdm

from resnet_jax.system import errors
from resnet_jax.system.text import brief, counted, plain

_SECONDS_A_LINE = 15.0

# How a terminal shows what a line begins with.
_MARKS = {
  'error:': '\x1b[1;31m',
  'FAILED:': '\x1b[1;31m',
  'WARNING:': '\x1b[1;33m',
  'NOTE:': '\x1b[1m',
}
_PLAIN = '\x1b[0m'

# Between the columns of a table.
_GAP = '  '

# Always images a second: tqdm itself inverts slow rates.
_BAR = (
  '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'
)


def say(text: str) -> None:
  """Prints a line to stderr."""
  line = brief(plain(text))
  if _has_colours(sys.stderr):
    words = '|'.join(_MARKS)
    line = re.sub(
      f'^({words})', lambda m: f'{_MARKS[m[1]]}{m[1]}{_PLAIN}', line
    )
  with _writing('standard error'):
    # Not into the line of a progress bar.
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def result(text: str = '') -> None:
  """Prints a line, or lines, to stdout."""
  with _writing('standard output'):
    print(plain(text), flush=True)


@contextlib.contextmanager
def _writing(where: str) -> Iterator[None]:
  """Names the stream that cannot be written; a closed pipe is no error."""
  try:
    yield
  except BrokenPipeError:
    raise
  except OSError as error:
    raise errors.UserError(
      f'cannot write to {where}: {error.strerror or error}. Redirect it to'
      ' another place, or make room.'
    ) from error


def prepare() -> None:
  """Prepares the program's standard streams; a notebook has its own.

  Closed ones lead nowhere, so that no other file gets their numbers.  What the
  encoding of stdout lacks is escaped, as Python does on stderr.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      # The lowest free number is this one.
      os.open(os.devnull, os.O_RDWR)
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, 'r+', encoding='utf-8'))  # noqa: SIM115
  if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == 'strict':
    sys.stdout.reconfigure(errors='backslashreplace')


def abandon() -> None:
  """Drops what cannot be written: Python would complain of it at its end."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _has_colours(stream: TextIO) -> bool:
  """Whether to use colours; see https://no-color.org."""
  return (
    stream.isatty()
    and not os.environ.get('NO_COLOR')
    and os.environ.get('TERM', 'dumb') != 'dumb'
  )


def width(stream: TextIO) -> int | None:
  """Columns of a stream's terminal; None: it is not a terminal."""
  return shutil.get_terminal_size().columns if stream.isatty() else None


class Bytes:
  """The progress of a download; a context manager.  Silent if unused."""

  def __init__(self) -> None:
    self._bar: tqdm | None = None
    self._spoke = time.monotonic()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def set(self, done: int, total: int | None) -> None:
    """Reports `done` of `total` bytes."""
    if sys.stderr.isatty():
      if self._bar is None:
        self._bar = tqdm(
          unit='B',
          unit_scale=True,
          file=sys.stderr,
          # tqdm draws no bar on a terminal without a size.
          ncols=shutil.get_terminal_size().columns,
          nrows=shutil.get_terminal_size().lines,
        )
      self._bar.total = total
      self._bar.update(done - self._bar.n)
    elif time.monotonic() - self._spoke > _SECONDS_A_LINE:
      self._spoke = time.monotonic()
      of = f' of {total / 1e6:.1f}' if total else ''
      say(f'{done / 1e6:.1f}{of} MB')


def show(
  rows: Sequence[Mapping[str, Any]],
  as_json: bool,
  heads: int = 0,
  **facts: Any,
) -> None:
  """Prints rows with the same keys: a table, or JSON with `facts` beside them.

  The table aligns numbers to the right and shows six digits of a float.

  Args:
    rows: cells by the name of their column.
    as_json: print JSON instead.
    heads: columns that identify a row.  On a terminal, a table with such
      columns that is too wide is split into pieces that all begin with them.
    **facts: beside the rows, in JSON.
  """
  if as_json:
    result(json.dumps(facts | {'rows': list(rows)}, indent=2))
    return
  if not rows:
    return
  columns = list(rows[0])
  cells = [columns, *([_cell(row[c]) for c in columns] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  right = [isinstance(rows[0][c], int | float) for c in columns]
  most = width(sys.stdout) if heads else None
  for number, piece in enumerate(_pieces(widths, heads, most)):
    if number:
      result()
    for row in cells:
      line = _GAP.join(
        row[c].rjust(widths[c]) if right[c] else row[c].ljust(widths[c])
        for c in piece
      )
      result(line.rstrip())


def _pieces(
  widths: Sequence[int], heads: int, most: int | None
) -> list[list[int]]:
  """The columns of each piece of a table that is at most `most` wide."""
  pieces = [list(range(heads))]
  for column in range(heads, len(widths)):
    piece = [*pieces[-1], column]
    total = sum(widths[c] for c in piece) + len(_GAP) * (len(piece) - 1)
    # A column that is too wide gets a piece of its own.
    if most is not None and total > most and len(pieces[-1]) > heads:
      piece = [*range(heads), column]
      pieces.append(piece)
    pieces[-1] = piece
  return pieces


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.6g}'
  # The name of a file may have a line end.
  return str(value).replace('\n', r'\n')


class Progress:
  """The progress of a run: a bar on a terminal, plain lines elsewhere.

  A context manager.  Its clock starts when it is made, so compile first.
  """

  def __init__(self, total: int, done: int = 0) -> None:
    self._total = total
    self._first, self._done = done, done
    self._begin = time.monotonic()
    self._spoke = self._begin
    self._bar = tqdm(
      total=total,
      initial=done,
      unit=' images',
      bar_format=_BAR,
      # The line at the end replaces it.
      leave=False,
      file=sys.stderr,
      disable=not sys.stderr.isatty(),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    *others: object,
  ) -> None:
    self._bar.close()
    seconds = time.monotonic() - self._begin
    if kind is None:
      images = counted(self._done - self._first, 'image')
      say(f'{images} in {seconds:.1f} s{self._rate()}')

  def add(self, count: int) -> None:
    """Counts `count` more images."""
    self._done += count
    now = time.monotonic()
    if not self._bar.disable:
      self._bar.update(count)
    elif now - self._spoke > _SECONDS_A_LINE and self._done < self._total:
      self._spoke = now
      say(f'{self._done} of {self._total} images{self._rate()}')

  def _rate(self) -> str:
    """The rate and the time left, once an image is done."""
    count = self._done - self._first
    if not count:
      return ''
    rate = count / max(time.monotonic() - self._begin, 1e-9)
    left = (self._total - self._done) / rate
    text = f', {rate:.1f} images/s'
    return text + (f', {left:.0f} s left' if left else '')
