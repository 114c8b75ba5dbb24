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
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from resnet_jax.data import pipeline, sources
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import decoding_difference, runner, sizing
from resnet_jax.system import errors, memory, timing

# Images to read, or cropped ones: (N, H, W, 3) uint8, RGB.
Images: TypeAlias = Sequence[sources.Item] | np.ndarray
# A batch, and (N, C, H, W) of each layer.
Computed: TypeAlias = tuple[pipeline.Batch, dict[str, np.ndarray]]

# Runs of fewer batches skip the warm-up, which takes as long as one batch.
_WARM_UP_FROM = 20

# Indices of the batches whose transfer and computation are timed.  Few, because
# nothing overlaps a timed batch; not the first, which is slower.
_TIMED = frozenset(4**power for power in range(16))

# Writes that may wait: enough for a disk that stalls now and then, and few, as
# they are held in memory.
_WAITING_WRITES = 2

Work = TypeVar('Work')


@dataclasses.dataclass(frozen=True)
class Run:
  """Images and the network that they go through.

  Attributes:
    images: all of them.
    preprocess: how they are read.
    network: gives the layers.
    rows: images a batch.
    large: images of the large program.
    fit: whether the large program may have fewer, as many as fit.
    check_decoding: whether to report how far an inexact decoding is off.
    say: prints the report.
    warm_up_from: batches from which a warm-up pays.
  """

  images: Images
  preprocess: Preprocess
  network: sizing.Network
  rows: int
  large: int
  fit: bool = False
  check_decoding: bool = False
  say: Callable[[str], None] = lambda text: None
  warm_up_from: int = _WARM_UP_FROM

  @property
  def _shape(self) -> tuple[int, ...]:
    """Of the large program's images."""
    if isinstance(self.images, np.ndarray):
      return self.large, 1, *self.images.shape[1:]
    return self.large, *self.preprocess.shape

  def fitted(self) -> 'Run':
    """The run with the batch size that fits; compiles where that decides it."""
    if not self.fit or not self._uses_large(len(self.images)):
      return dataclasses.replace(self, fit=False)
    large = self.network.fitting(self._shape)
    return dataclasses.replace(
      self, rows=min(self.rows, large), large=large, fit=False
    )

  def _uses_large(self, images: int) -> bool:
    pieces = self.network.dealt(min(images, self.rows), self._shape)
    return any(piece.program > 1 for piece in pieces)

  def _compiling(self, images: int) -> Callable[[], None]:
    """Compiles what a batch needs, in a thread; returns what waits for it."""
    if self.network.is_compiled(images, self._shape):
      return lambda: None

    def work() -> None:
      if self.fit and self._uses_large(images):
        self.network.fitting(self._shape)
      self.network.compile(images, self._shape)

    pool = concurrent.futures.ThreadPoolExecutor(1, 'compile')
    with memory.starting_threads():
      future = pool.submit(work)
    pool.shutdown(wait=False)
    return future.result

  def stream(
    self,
    start: int = 0,
    *,
    starts: Iterator[int] | None = None,
    threads: int = 0,
    on_error: str = 'fail',
    clock: timing.Clock | None = None,
  ) -> Iterator[Computed]:
    """Layers of the images from `start` on, in order, a batch at a time.

    Compiles, while the first images are decoded, and warms up before it
    returns.

    Args:
      start: the first image.
      starts: the first images of the batches, asked for as late as possible;
        None: all from `start` on.
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
    if starts is not None:
      # What follows it, other processes may take.
      start = next(starts, len(self.images))
      starts = itertools.chain((start,), starts)
    left = len(self.images) - start
    if left <= 0:
      return iter(())
    timed, clock = clock is not None, clock or timing.Clock()
    batches = self._batches(start, starts, threads, on_error, clock)
    compiled = self._compiling(min(self.rows, left))
    with clock.waiting('images'):
      # A broken image is reported at once, whatever the compiler does.
      first = next(batches)
    compiled()
    count = -(-left // self.rows)
    if count >= self.warm_up_from:
      self.network.warm_up(self._shape)
    decoded = not any(item.stored for item in first.items)
    if self.check_decoding and decoded and self.preprocess.decode != 'exact':
      self.say(
        decoding_difference.line(
          first, self.preprocess, self.network, self.large
        )
      )
    return self._loop(first, batches, clock, timed, count)

  def _batches(
    self,
    start: int,
    starts: Iterator[int] | None,
    threads: int,
    on_error: str,
    clock: timing.Clock,
  ) -> Generator[pipeline.Batch, None, None]:
    if isinstance(self.images, np.ndarray):
      return pipeline.array_batches(self.images, rows=self.rows, start=start)
    return pipeline.batches(
      self.images,
      self.preprocess,
      rows=self.rows,
      start=start,
      starts=starts,
      threads=threads,
      on_error=on_error,
      clock=clock,
    )

  def _loop(
    self,
    first: pipeline.Batch,
    others: Generator[pipeline.Batch, None, None],
    clock: timing.Clock,
    timed: bool,
    count: int,
  ) -> Iterator[Computed]:
    def begin(batch: pipeline.Batch, timed: bool) -> sizing.Pending:
      with clock.waiting('device'), _naming(batch):
        return self.network(batch.images, self.large, clock if timed else None)

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
        if timed and (number in _TIMED or count == 1):
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
