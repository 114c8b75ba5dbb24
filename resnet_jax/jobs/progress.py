# SPDX-License-Identifier: Apache-2.0
"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from resnet_jax.jobs import console

_SECONDS_A_LINE = 15.0

# Always pictures a second: by itself tqdm turns slow rates round.
_BAR = (
  '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'
)


class Progress:
  """Counts pictures; a context manager.

  The clock starts here: who makes one has compiled before.
  """

  def __init__(self, total: int, done: int = 0) -> None:
    self._total = total
    self._first, self._done = done, done
    self._begin = time.monotonic()
    self._spoke = self._begin
    self._bar = (
      tqdm(
        total=total,
        initial=done,
        unit=' pictures',
        bar_format=_BAR,
        # The line that follows says it all.
        leave=False,
        file=sys.stderr,
      )
      if sys.stderr.isatty()
      else None
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._bar is not None:
      self._bar.close()
    seconds = time.monotonic() - self._begin
    count = self._done - self._first
    if kind is None:
      noun = 'picture' if count == 1 else 'pictures'
      console.say(f'{count} {noun} in {seconds:.1f} s{self._rate()}')

  def add(self, count: int) -> None:
    """Notes that `count` more pictures are done."""
    self._done += count
    now = time.monotonic()
    if self._bar is not None:
      self._bar.update(count)
    elif now - self._spoke > _SECONDS_A_LINE and self._done < self._total:
      self._spoke = now
      console.say(f'{self._done} of {self._total} pictures{self._rate()}')

  def _rate(self) -> str:
    """The rate and the time left, once there is something to go by."""
    count = self._done - self._first
    if not count:
      return ''
    rate = count / max(time.monotonic() - self._begin, 1e-9)
    left = (self._total - self._done) / rate
    text = f', {rate:.1f} pictures/s'
    return text + (f', {left:.0f} s left' if left else '')
