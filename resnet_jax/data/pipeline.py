# SPDX-License-Identifier: Apache-2.0
"""Items to batches: decoded and cropped in threads, in order, padded.

Threads and not processes, because they measured faster: 400 JPEGs (four times
the 100 photographs of a sample, 0.19 megapixels on average, in the disk's
cache) to crops of 224, on two cores, Python 3.11, Pillow 13 with libjpeg-turbo;
the best of three runs, images/s, without the start of the workers:

    workers                             1     2     4
    threads                           208   413   397
    processes, crops pickled          194   357   334
    processes, crops in shared memory 212   375   374

Pillow lets other threads run while it decodes and resizes; of processes every
crop has to be copied once more.
"""

import collections
import dataclasses
import queue
import threading
from collections.abc import Generator, Sequence

import numpy as np

from resnet_jax.data import crops, decoding, preprocess, sources
from resnet_jax.system import cores, errors, timing

ON_ERROR = ('fail', 'record')


@dataclasses.dataclass(frozen=True)
class Batch:
  """Images that go through the network together.

  Attributes:
    start: the row of the first image.
    images: (rows, cuts, S, S, 3) uint8, RGB; zeros where `mask` is false.
    mask: (rows,) bool; false for padding and for images that failed.
    items: the images, without padding.
    reasons: why an image could not be read, '' for the others.
  """

  start: int
  images: np.ndarray
  mask: np.ndarray
  items: Sequence[sources.Item]
  reasons: list[str]


def batches(
  items: Sequence[sources.Item],
  how: preprocess.Preprocess,
  *,
  rows: int,
  start: int = 0,
  threads: int = 2,
  on_error: str = 'fail',
  clock: timing.Clock | None = None,
) -> Generator[Batch, None, None]:
  """Yields the items from `start` on, in their order, `rows` at a time.

  At most two batches wait (more only where that is fewer images than
  threads), so memory does not depend on the number of items.

  An error ends it as soon as the next batch is asked for or waited for,
  whichever image it is of; batches that wait and images that are still
  being read are given up.

  Args:
    items: what to read.
    how: resize and crops.
    rows: images a batch; the last one is padded to it.
    start: the first item to read.
    threads: how many decode at once.
    on_error: 'fail', or 'record' to go on, the reason noted in the batch.
    clock: is told how long reading and decoding take.

  Raises:
    UserError: an image cannot be read, and `on_error` is 'fail'.
  """
  errors.check_choice('on_error', on_error, ON_ERROR)
  firsts = iter(range(start, len(items), rows))
  decoders = _Decoders(
    min(threads, len(items) - start), how, on_error, clock or timing.Clock()
  )
  shape = (rows, *how.shape)
  waiting: collections.deque[Batch] = collections.deque()

  def submit(count: int) -> None:
    for _, first in zip(range(count), firsts, strict=False):
      chosen = items[first : first + rows]
      images, mask = np.zeros(shape, np.uint8), np.zeros(rows, bool)
      batch = Batch(first, images, mask, chosen, [''] * len(chosen))
      waiting.append(batch)
      decoders.submit(batch)

  try:
    submit(max(2, -(-threads // rows)))
    while waiting:
      batch = waiting.popleft()
      decoders.wait_for(batch)
      submit(1)
      yield batch
  finally:
    decoders.stop()


class _Decoders:
  """Threads that fill batches.

  They are daemons, and nobody waits for their end: neither an error nor the
  program's end is held up by an image that comes slowly.
  """

  def __init__(
    self,
    threads: int,
    how: preprocess.Preprocess,
    on_error: str,
    clock: timing.Clock,
  ) -> None:
    self._threads = threads
    self._cores = min(threads, cores.count())
    self._how = how
    self._on_error = on_error
    self._clock = clock
    self._stopped = False
    self._todo: queue.SimpleQueue[tuple[Batch, int] | None]
    self._todo = queue.SimpleQueue()
    self._done: queue.SimpleQueue[tuple[Batch, BaseException | None]]
    self._done = queue.SimpleQueue()
    # Images that a batch still lacks, by its start.
    self._missing: dict[int, int] = {}
    for number in range(threads):
      threading.Thread(
        target=self._work, name=f'decode_{number}', daemon=True
      ).start()

  def submit(self, batch: Batch) -> None:
    """Has a batch filled in the background."""
    self._missing[batch.start] = len(batch.items)
    for row in range(len(batch.items)):
      self._todo.put((batch, row))

  def wait_for(self, batch: Batch) -> None:
    """Returns when the batch is full; raises what befell any image."""
    while self._missing[batch.start] or not self._done.empty():
      filled, error = self._done.get()
      if error:
        raise error
      self._missing[filled.start] -= 1
    del self._missing[batch.start]

  def stop(self) -> None:
    """Ends every thread with the image that it is at."""
    self._stopped = True
    for _ in range(self._threads):
      self._todo.put(None)

  def _work(self) -> None:
    while (task := self._todo.get()) and not self._stopped:
      batch, row = task
      try:
        self._fill(batch, row)
      except BaseException as error:
        # Whatever it is, somebody waits for this image; and it is the end, so
        # the other threads begin no further one until that is heard of.
        self._stopped = True
        error.add_note(f'It was at the image {batch.items[row].name}.')
        self._done.put((batch, error))
      else:
        self._done.put((batch, None))

  def _fill(self, batch: Batch, row: int) -> None:
    item = batch.items[row]
    try:
      with self._clock.measure('read', 1, self._threads):
        data = item.read()
      with self._clock.measure('decode', 1, self._cores, of_a_core=True):
        batch.images[row] = crops.crops_of(data, self._how)
      batch.mask[row] = True
    except decoding.ImageError as error:
      reason = str(error)
    except OSError as error:
      reason = error.strerror or str(error)
    except MemoryError:
      reason = 'there is not enough memory for it'
    else:
      return
    if self._on_error == 'fail':
      raise errors.UserError(
        f'cannot read the image {item.name}: {reason}. Repair it or'
        ' leave it out (a job goes on without it with on_error=record).'
      )
    batch.reasons[row] = reason
