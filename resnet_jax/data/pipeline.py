# SPDX-License-Identifier: Apache-2.0
"""Items to batches: decoded and cropped in threads, in order.

Crops that were stored are read into the batch a block of rows at a time.

Threads and not processes, because threads measured faster: 400 JPEGs (four
times the 100 photographs of a sample, 0.19 megapixels on average, in the disk's
cache) to crops of 224, on two cores, Python 3.11, Pillow 13 with libjpeg-turbo;
the best of three runs, images/s, without the start of the workers:

    workers                             1     2     4
    threads                           208   413   397
    processes, crops pickled          194   357   334
    processes, crops in shared memory 212   375   374

Pillow lets other threads run while it decodes and resizes; a process copies
every crop once more.
"""

import collections
import dataclasses
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from resnet_jax.data import decoding, sources
from resnet_jax.data.crops import crops_of
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.system import cores, errors, memory, timing
from resnet_jax.system.text import counted, one_line

ON_ERROR = ('fail', 'record')


@dataclasses.dataclass(frozen=True, repr=False)
class Batch:
  """Images that go through the network together.

  Attributes:
    start: the row of the first image.
    images: (N, cuts, H, W, 3) uint8, RGB; black where `mask` is false.
    mask: (N,) bool; false for images that could not be read.
    items: the images' names and labels, N of them.
    reasons: why an image could not be read, '' for the others.
  """

  start: int
  images: np.ndarray
  mask: np.ndarray
  items: Sequence[sources.Item]
  reasons: list[str]

  def __repr__(self) -> str:
    return (
      f'Batch(start={self.start}, {counted(len(self.items), "image")},'
      f' {one_line(self.keys[0])} to {one_line(self.keys[-1])}, images:'
      f' {self.images.shape})'
    )

  @property
  def keys(self) -> list[str]:
    """The images' keys."""
    return [item.key for item in self.items]

  @property
  def labels(self) -> list[int]:
    """The images' labels, -1 where there is none."""
    return [item.label for item in self.items]

  @property
  def name(self) -> str:
    """The first and the last image, for a message."""
    ends = (self.items[0].name, self.items[-1].name)
    return ' to '.join(dict.fromkeys(ends))


def batches(
  items: Sequence[sources.Item],
  preprocess: Preprocess,
  *,
  rows: int,
  start: int = 0,
  starts: Iterable[int] | None = None,
  threads: int = 0,
  on_error: str = 'fail',
  clock: timing.Clock | None = None,
) -> Generator[Batch, None, None]:
  """Yields the items from `start` on, in their order, `rows` at a time.

  At most two batches wait (more only where that is fewer images than threads),
  so memory does not depend on the number of items.

  An error of any image ends the generator at the next batch that is asked for
  or waited for; waiting batches and images that are being read are dropped.

  Args:
    items: the images to read.
    preprocess: resizes and crops.
    rows: the batch size; the last batch may be smaller.
    start: the first item to read.
    starts: the first items of the batches, the least of them `start`, asked for
      as late as possible; None: all from `start` on.
    threads: decoders that work at once; 0: one a core.
    on_error: 'fail', or 'record' to continue with the reason in the batch.
    clock: times reading and decoding.

  Raises:
    UserError: an image cannot be read, and `on_error` is 'fail'.
  """
  errors.check_choice('on_error', on_error, ON_ERROR)
  threads = threads or cores.count()
  firsts = iter(range(start, len(items), rows) if starts is None else starts)
  # A single image takes less time than the start of a thread.
  alone = len(items) - start == 1
  decoders = _Decoders(
    0 if alone else min(threads, len(items) - start),
    preprocess,
    on_error,
    clock or timing.Clock(),
  )
  waiting: collections.deque[Batch] = collections.deque()

  def submit(count: int) -> None:
    for _, first in zip(range(count), firsts, strict=False):
      chosen = items[first : first + rows]
      images = np.zeros((len(chosen), *preprocess.shape), np.uint8)
      mask = np.zeros(len(chosen), bool)
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


def array_batches(
  images: np.ndarray, *, rows: int, start: int = 0
) -> Generator[Batch, None, None]:
  """Yields cropped images (N, H, W, 3) uint8, RGB, `rows` at a time."""
  for first in range(start, len(images), rows):
    piece = images[first : first + rows]
    items = [
      sources.Item(str(n), f'image {n} of the array', sources.NO_LABEL, bytes)
      for n in range(first, first + len(piece))
    ]
    mask = np.ones(len(piece), bool)
    yield Batch(first, piece[:, None], mask, items, [''] * len(piece))


class _Decoders:
  """Threads that fill batches; with none, `submit` does it.

  They are daemons that nobody joins: a slow image holds up neither an error nor
  the end of the program.
  """

  def __init__(
    self,
    threads: int,
    preprocess: Preprocess,
    on_error: str,
    clock: timing.Clock,
  ) -> None:
    self._threads = threads
    self._cores = min(max(1, threads), cores.count())
    self._preprocess = preprocess
    self._on_error = on_error
    self._clock = clock
    self._stopped = False
    self._todo: queue.SimpleQueue[tuple[Batch, range] | None]
    self._todo = queue.SimpleQueue()
    self._done: queue.SimpleQueue[tuple[Batch, int, BaseException | None]]
    self._done = queue.SimpleQueue()
    # The number of images that a batch lacks, by its start.
    self._missing: dict[int, int] = {}
    with memory.starting_threads():
      for number in range(threads):
        threading.Thread(
          target=self._work, name=f'decode_{number}', daemon=True
        ).start()

  def submit(self, batch: Batch) -> None:
    """Fills a batch in the background."""
    self._missing[batch.start] = len(batch.items)
    for rows in _blocks(batch.items):
      self._todo.put((batch, rows))
    if not self._threads:
      self._todo.put(None)
      self._work()

  def wait_for(self, batch: Batch) -> None:
    """Returns when the batch is full; raises the error of any image."""
    while self._missing[batch.start] or not self._done.empty():
      filled, count, error = self._done.get()
      if error:
        raise error
      self._missing[filled.start] -= count
    del self._missing[batch.start]

  def stop(self) -> None:
    """Ends every thread after its current image."""
    self._stopped = True
    for _ in range(self._threads):
      self._todo.put(None)

  def _work(self) -> None:
    while (task := self._todo.get()) and not self._stopped:
      batch, rows = task
      try:
        if batch.items[rows[0]].stored:
          self._copy(batch, rows)
        else:
          self._fill(batch, rows[0])
      except BaseException as error:
        # Any error ends the run, so the other threads start no other image
        # until `wait_for` has raised it.
        self._stopped = True
        error.add_note(f'It was at the image {batch.items[rows[0]].name}.')
        self._done.put((batch, 0, error))
      else:
        self._done.put((batch, len(rows), None))

  def _fill(self, batch: Batch, row: int) -> None:
    item = batch.items[row]
    try:
      with self._clock.measure('read', 1, max(1, self._threads)):
        data = item.read()
      with self._clock.measure('decode', 1, self._cores, of_a_core=True):
        batch.images[row] = crops_of(data, self._preprocess)
      batch.mask[row] = True
    except decoding.ImageError as error:
      reason = str(error)
    except OSError as error:
      reason = error.strerror or str(error)
    except MemoryError:
      reason = 'there is not enough memory for it'
    else:
      return
    self._failed(batch, row, reason)

  def _copy(self, batch: Batch, rows: range) -> None:
    """Reads stored crops, which `_blocks` found to be rows of one store."""
    places = [item.stored for item in batch.items[rows.start : rows.stop]]
    first = places[0]
    assert first
    with self._clock.measure('read', len(rows), self._threads):
      first.store.read(first.row, batch.images[rows.start : rows.stop])
    batch.mask[rows.start : rows.stop] = True
    for row, reason in enumerate(
      first.store.reasons[first.row : first.row + len(rows)], rows.start
    ):
      if reason:
        batch.mask[row] = False
        self._failed(batch, row, reason)

  def _failed(self, batch: Batch, row: int, reason: str) -> None:
    """Records why an image cannot be read, or raises it."""
    item = batch.items[row]
    if self._on_error == 'fail':
      again = ', make the crops again' if item.stored else ''
      raise errors.UserError(
        f'cannot read the image {item.name}: {reason}. Replace it{again} or'
        ' leave it out (jobs and stream: on_error=record continues without'
        ' it).'
      )
    batch.reasons[row] = reason


def _blocks(items: Sequence[sources.Item]) -> Iterator[range]:
  """What a thread reads at a time: an image, or stored crops in a row.

  No block is longer than a chunk, so that the threads share a batch.
  """
  start = 0
  for row in range(1, len(items) + 1):
    first = items[start].stored
    here = items[row].stored if row < len(items) else None
    follows = (
      first
      and here
      and here.store is first.store
      and here.row == first.row + row - start
      and here.row % first.store.chunk_rows
    )
    if not follows:
      yield range(start, row)
      start = row
