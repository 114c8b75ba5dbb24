# SPDX-License-Identifier: Apache-2.0
"""The loop: images in, values of layers out, a batch at a time.

Jobs, notebooks and benchmarks all run on it.  While the devices compute a
batch, the next ones are decoded, the one before is fetched and, with
`writing_behind`, written.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from resnet_jax.data import pipeline, sources
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import decoding_difference, runner, sizing
from resnet_jax.system import cores, errors, memory, timing

# Images to read, or cropped ones: (N, H, W, 3) uint8, RGB.
Images: TypeAlias = Sequence[sources.Item] | np.ndarray
# A batch, and (N, C, H, W) of each layer.
Computed: TypeAlias = tuple[pipeline.Batch, dict[str, np.ndarray]]

# Of one batch's features, on the device and again on the host.
_MAX_BATCH_BYTES = 512 << 20

# Runs of fewer batches skip the warm-up, which takes as long as one batch.
_WARM_UP_FROM = 20

# Indices of the batches whose transfer and computation are timed.  Few, because
# nothing overlaps a timed batch; not the first, which is slower.
_TIMED = frozenset(4**power for power in range(16))

# Writes that may wait: enough for a disk that stalls now and then, and few, as
# they are held in memory.
_WAITING_WRITES = 2

Work = TypeVar('Work')


def batch_rows(
  network: sizing.Network,
  count: int,
  shape: tuple[int, ...],
  *,
  crops: int,
  row_bytes: int,
  batch_size: int = 0,
  resumed: int = 0,
) -> int:
  """The batch size, in images.

  Args:
    network: compiled here where its memory decides.
    count: of all images.
    shape: of a cut image, (cuts, H, W, 3).
    crops: of an image.
    row_bytes: of an image's values.
    batch_size: crops a batch, as the user asks; 0: as many as are fast and fit.
    resumed: the rows of the run to resume; 0: there is none.
  """
  if not batch_size and 0 < resumed <= count:
    return resumed
  rows = batch_size // crops
  if not batch_size:
    rows = sizing.first_rows(network.devices, crops, max(shape[1:3]))
  rows = max(1, min(rows, count, _MAX_BATCH_BYTES // max(row_bytes, 1)))
  if batch_size or not count:
    return rows
  rows = sizing.even_rows(rows, count, network.devices)
  return network.fitting((rows, *shape))


@dataclasses.dataclass(frozen=True)
class Run:
  """Images and the network that they go through.

  Attributes:
    images: all of them.
    preprocess: how they are read.
    network: gives the layers.
    rows: images a batch.
    check_decoding: whether to report how far an inexact decoding is off.
    say: prints the report.
    warm_up_from: batches from which a warm-up pays.
  """

  images: Images
  preprocess: Preprocess
  network: sizing.Network
  rows: int
  check_decoding: bool = False
  say: Callable[[str], None] = lambda text: None
  warm_up_from: int = _WARM_UP_FROM

  def stream(
    self,
    start: int = 0,
    *,
    threads: int = 0,
    on_error: str = 'fail',
    clock: timing.Clock | None = None,
  ) -> Iterator[Computed]:
    """Layers of the images from `start` on, in order, a batch at a time.

    Compiles, and warms up, before it returns.

    Args:
      start: the first image.
      threads: that decode; 0: one a core.
      on_error: 'fail', or 'record': an image that cannot be read is masked in
        its batch, and its values are NaN.
      clock: times the stages.

    Returns:
      Batches, and (N, C, H, W) of each layer.

    Raises:
      UserError: an image cannot be read, and on_error is 'fail'; or a value
        does not fit its dtype.
    """
    clock = clock or timing.Clock()
    batches = self._batches(start, threads or cores.count(), on_error, clock)
    # Before the compiler works: the next batches are decoded meanwhile, and a
    # broken image is reported first.
    with clock.waiting('images'):
      first = next(batches, None)
    if first is None:
      return iter(())
    shape = (self.rows, *first.images.shape[1:])
    self.network.compile(shape)
    count = -(-(len(self.images) - start) // self.rows)
    if count >= self.warm_up_from:
      self.network.warm_up(shape)
    decoded = not any(item.stored for item in first.items)
    if self.check_decoding and decoded and self.preprocess.decode != 'exact':
      self.say(
        decoding_difference.line(
          first, self.preprocess, self.network, self.rows
        )
      )
    return self._loop(first, batches, clock, count)

  def _batches(
    self, start: int, threads: int, on_error: str, clock: timing.Clock
  ) -> Generator[pipeline.Batch, None, None]:
    if isinstance(self.images, np.ndarray):
      return pipeline.array_batches(self.images, rows=self.rows, start=start)
    return pipeline.batches(
      self.images,
      self.preprocess,
      rows=self.rows,
      start=start,
      threads=threads,
      on_error=on_error,
      clock=clock,
    )

  def _loop(
    self,
    first: pipeline.Batch,
    others: Generator[pipeline.Batch, None, None],
    clock: timing.Clock,
    count: int,
  ) -> Iterator[Computed]:
    def begin(batch: pipeline.Batch, timed: bool) -> sizing.Pending:
      with clock.waiting('device'), _naming(batch):
        return self.network(batch.images, self.rows, clock if timed else None)

    def finish(batch: pipeline.Batch, pending: sizing.Pending) -> Computed:
      with clock.waiting('device'), _naming(batch):
        values = self.network.fetch(pending, batch.mask)
      if not batch.mask.all():
        rows = batch.mask.reshape(-1, 1, 1, 1)
        values = {k: np.where(rows, v, np.nan) for k, v in values.items()}
      return batch, values

    def hand_out(computed: Computed) -> Iterator[Computed]:
      with clock.waiting('writer'):
        yield computed
      # The caller may have forked meanwhile: the decoding threads are missing.
      runner.check_usable()

    # The batch that the devices compute.
    before: tuple[pipeline.Batch, sizing.Pending] | None = None
    batch: pipeline.Batch | None = first
    number = 0
    with contextlib.closing(others):
      while batch:
        if number in _TIMED or count == 1:
          if before:
            yield from hand_out(finish(*before))
          before = None
          pending = begin(batch, timed=True)
          with clock.measure('transfer', 0):
            computed = finish(batch, pending)
          yield from hand_out(computed)
        else:
          pending = begin(batch, timed=False)
          if before:
            yield from hand_out(finish(*before))
          before = batch, pending
        number += 1
        with clock.waiting('images'):
          batch = next(others, None)
      if before:
        yield from hand_out(finish(*before))


@contextlib.contextmanager
def _naming(batch: pipeline.Batch) -> Iterator[None]:
  """Names the images that an error is about."""
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f'{batch.name}: {error}') from error
  except Exception as error:
    error.add_note(f'It was at the images {batch.name}.')
    raise


@contextlib.contextmanager
def writing_behind(
  write: Callable[[Work], None],
) -> Iterator[Callable[[Work], None]]:
  """Writes in a thread, so that a slow disk does not hold up the devices.

  Yields a function that queues a write; the writes run in order.  It blocks
  while `_WAITING_WRITES` wait.  The next call, or the end of the block, raises
  the error of a write, and nothing is written after it.
  """
  waiting: collections.deque[concurrent.futures.Future[None]]
  waiting = collections.deque()

  def after(last: concurrent.futures.Future[None] | None, work: Work) -> None:
    if last:
      # The last write is done; if it failed, so does this one.
      last.result()
    write(work)

  with concurrent.futures.ThreadPoolExecutor(1, 'write') as pool:

    def give(work: Work) -> None:
      while waiting and (len(waiting) > _WAITING_WRITES or waiting[0].done()):
        waiting.popleft().result()
      last = waiting[-1] if waiting else None
      with memory.starting_threads():
        future = pool.submit(functools.partial(after, last, work))
      waiting.append(future)

    yield give
    for future in waiting:
      future.result()
