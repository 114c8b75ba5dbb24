# SPDX-License-Identifier: Apache-2.0
"""The rate of each stage of a run, and the stage that bounds the run.

The stages overlap, so two things are measured:

* How long a stage is busy, for its rate.  Threads add up their time for reading
  (wall clock) and decoding (CPU time), and the rate is that of all threads
  together.  The loop waits for the transfer and the network at a few batches
  only (`engine.loop`), since waiting at each would stop the overlap.
* How long the loop waits for images, the device or the writer, for the bound:
  the queues between the stages are short, so the loop waits for the slowest.

On a CPU the network and the decoders share the cores: the run is slower than
its slowest stage.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

STAGES = ('read', 'decode', 'transfer', 'compute', 'write')

# What the loop waits for, and the stages that can be the reason.
_WAITS = {
  'images': ('read', 'decode'),
  'device': ('transfer', 'compute'),
  'writer': ('write',),
}


class Clock:
  """The stages of one run, added up; thread-safe."""

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
    """Adds the block's time to a stage.

    Args:
      stage: one of STAGES.
      images: processed; 0 for a second part of the same work.
      workers: threads that do the same at once.
      of_a_core: count CPU time of the thread instead of wall-clock time.
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
    """Adds the block's time to the loop's waits.

    Args:
      what: 'images', 'device' or 'writer'.
    """
    start = time.perf_counter()
    try:
      yield
    finally:
      self._waited[what] += time.perf_counter() - start

  def rates(self) -> dict[str, float]:
    """Images a second of each stage that was used."""
    return {
      stage: self._images[stage] / self._seconds[stage]
      for stage in STAGES
      if self._images[stage] and self._seconds[stage]
    }

  def bound(self) -> tuple[str, float]:
    """The stage that bounds the run, and its share of the loop's time.

    Returns:
      A name of STAGES and 0 to 1; '' and 0 if nothing was done.
    """
    rates = self.rates()
    whole = sum(self._waited.values())
    what = max(self._waited, key=self._waited.__getitem__)
    reasons = [stage for stage in _WAITS[what] if stage in rates]
    if not whole or not reasons:
      return '', 0.0
    return min(reasons, key=rates.__getitem__), self._waited[what] / whole

  def figures(self) -> dict[str, Any]:
    """`rates` and `bound`, for a file of results."""
    stage, share = self.bound()
    return {
      'images_per_second': self.rates(),
      'bound': stage,
      'bound_share': share,
    }

  def line(self) -> str:
    """A line to print; '' if nothing was done."""
    stage, share = self.bound()
    if not stage:
      return ''
    rates = ', '.join(f'{k} {_number(v)}' for k, v in self.rates().items())
    return (
      f'stages, images/s: {rates}; bound by {stage} ({share:.0%} of the time)'
    )


def _number(rate: float) -> str:
  return f'{rate:.1f}' if rate < 100 else f'{rate:.0f}'
