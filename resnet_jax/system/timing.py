# SPDX-License-Identifier: Apache-2.0
"""How fast each stage of a run is alone, and which of them holds it up.

Two things are measured, because the stages work at the same time:

* How long a stage is busy, for its rate.  Threads add up what each of them
  took for reading (on the clock) and decoding (of a core, whoever else wants
  it), and the rate is that of all of them together; the transfer and the
  network are waited for at a few batches only (`jobs.common`), since waiting at
  each would stop what is measured.
* Where the loop that hands the batches on stands still, for the bound: it
  waits for images, for the device or for the writer, and because the queues
  between them are short, it waits for the slowest.

Where the network runs on the CPU, it and the decoders take the cores from one
another: the run is slower than the slowest stage.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

STAGES = ('read', 'decode', 'transfer', 'compute', 'write')

# What the loop waits for, and the stages that may be the reason.
_WAITS = {
  'images': ('read', 'decode'),
  'device': ('transfer', 'compute'),
  'writer': ('write',),
}


class Clock:
  """Adds up the stages of one run; any thread may add to it."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._images: collections.Counter[str] = collections.Counter()
    self._seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    self._waited: dict[str, float] = dict.fromkeys(_WAITS, 0.0)

  @contextlib.contextmanager
  def measure(
    self,
    stage: str,
    images: int,
    workers: int = 1,
    of_a_core: bool = False,
  ) -> Iterator[None]:
    """Counts the block's time to a stage.

    Args:
      stage: one of STAGES.
      images: how many went through; 0 for a second part of the same work.
      workers: how many can do the same at once.
      of_a_core: whether only the time counts in which the thread had a core.
    """
    timer = time.thread_time if of_a_core else time.perf_counter
    start = timer()
    try:
      yield
    finally:
      seconds = (timer() - start) / workers
      with self._lock:
        self._seconds[stage] += seconds
        self._images[stage] += images

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Counts the block's time as the loop's wait.

    Args:
      what: 'images', 'device' or 'writer'.
    """
    start = time.perf_counter()
    try:
      yield
    finally:
      self._waited[what] += time.perf_counter() - start

  def rates(self) -> dict[str, float]:
    """Images a second that each stage could do; of those that were used."""
    return {
      stage: self._images[stage] / self._seconds[stage]
      for stage in STAGES
      if self._images[stage] and self._seconds[stage]
    }

  def bound(self) -> tuple[str, float]:
    """The stage that held the run up, and the share of the loop's time.

    Returns:
      A name of STAGES and 0 to 1; '' and 0 where nothing was done.
    """
    rates = self.rates()
    whole = sum(self._waited.values())
    what = max(self._waited, key=self._waited.__getitem__)
    reasons = [stage for stage in _WAITS[what] if stage in rates]
    if not whole or not reasons:
      return '', 0.0
    return min(reasons, key=rates.__getitem__), self._waited[what] / whole

  def figures(self) -> dict[str, Any]:
    """The same as `line`, for a file of results."""
    stage, share = self.bound()
    return {
      'images_per_second': self.rates(),
      'bound': stage,
      'bound_share': share,
    }

  def line(self) -> str:
    """For a person; '' where nothing was done."""
    stage, share = self.bound()
    if not stage:
      return ''
    rates = ', '.join(f'{k} {_number(v)}' for k, v in self.rates().items())
    return (
      f'stages, images/s: {rates}; bound by {stage} ({share:.0%} of the time)'
    )


def _number(rate: float) -> str:
  return f'{rate:.1f}' if rate < 100 else f'{rate:.0f}'
