# SPDX-License-Identifier: Apache-2.0
"""Writing in a thread, so that a slow disk does not hold computing up."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

# Batches that may wait: enough for a disk that stops now and then, and few,
# since they are held in memory.
WAITING = 2

Work = TypeVar('Work')


class Behind(Generic[Work]):
  """Does one piece of work after another, in order; a context manager.

  What fails is raised where the next piece is given, or at the end; nothing is
  done after it.  When the block ends, all is done that was given before.
  """

  def __init__(self, do: Callable[[Work], None]) -> None:
    """Starts the thread, which will `do` each piece."""
    self._do = do
    self._queue: queue.Queue[Work | None] = queue.Queue(WAITING)
    self._error: BaseException | None = None
    self._thread = threading.Thread(target=self._work, name='behind')
    # Whoever ends the program in a hurry does not wait for a disk.
    self._thread.daemon = True
    self._thread.start()

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._queue.put(None)
    self._thread.join()
    # An error of the block comes first: this one may be its consequence.
    if error is None:
      self._check()

  def give(self, work: Work) -> None:
    """Has it done later; waits while as many as WAITING wait already."""
    self._check()
    self._queue.put(work)
    self._check()

  def _check(self) -> None:
    if self._error:
      raise self._error

  def _work(self) -> None:
    while (work := self._queue.get()) is not None:
      if self._error:
        # What waits is given up, and nobody is left waiting for a place.
        continue
      try:
        self._do(work)
      except BaseException as error:
        # Raised where somebody looks.
        self._error = error
