# SPDX-License-Identifier: Apache-2.0
"""The batch size: chosen by the memory, halved when the memory runs out.

A caller gets the values of the batches that it asked for, also when the device
computes them in other pieces.  Two programs compute a batch of any number of
images: one for a single image, and one for many.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from resnet_jax.engine import runner
from resnet_jax.system import errors, timing

# Where the choice starts, in pixels a device: a core's round (see `devices`);
# accelerators are faster with more.  _MOST_CROPS caps it.
_PIXELS = {'cpu': 48 * 224 * 224}
_PIXELS_ELSEWHERE = 256 * 224 * 224
_MOST_CROPS = 256
# Of the free memory: the driver and other processes need some, too.
_SHARE = 0.8

# The most images that are computed one by one rather than in a padded large
# batch, as a share of it: where both take as long.  On two cores an image of
# ResNet-50 took 18.7 ms alone, shared by both, and 13.8 ms in a batch of 96.
# Accelerators are not measured; an image alone leaves most of one idle.
_ONE_BY_ONE = {'cpu': 0.7}
_ONE_BY_ONE_ELSEWHERE = 0.1

Say = Callable[[str], None]

Work = TypeVar('Work')


def first_rows(devices: Sequence[jax.Device], crops: int, size: int) -> int:
  """The batch size to try first, for images of `crops` crops of a size."""
  pixels = _PIXELS.get(devices[0].platform, _PIXELS_ELSEWHERE)
  each = max(1, min(pixels // size**2, _MOST_CROPS) // crops)
  return each * len(devices)


class Piece(NamedTuple):
  """Images that one run of a program computes.

  Attributes:
    program: images that it is compiled for: one, or many.
    images: of the batch; the rest is padding.
  """

  program: int
  images: int


def dealt(images: int, large: int, platform: str) -> list[Piece]:
  """The pieces of a batch, in order.

  They depend on the arguments only, so that a resumed run gives the same bytes.

  Args:
    images: of the batch.
    large: images of the large program.
    platform: of the devices, as JAX calls it.
  """
  whole, rest = divmod(images, large)
  pieces = [Piece(large, large)] * whole
  share = _ONE_BY_ONE.get(platform, _ONE_BY_ONE_ELSEWHERE)
  # A single place of padding costs less than another program.
  if rest > share * large or 0 < rest == large - 1:
    return [*pieces, Piece(large, rest)]
  return [*pieces, *[Piece(1, 1)] * rest]


@dataclasses.dataclass(frozen=True)
class Pending:
  """A batch on the devices.

  Attributes:
    images: the batch, kept until its values are fetched.
    large: images of the large program that was asked for.
    pieces: that were started.
    results: one a piece.
  """

  images: np.ndarray
  large: int
  pieces: list[Piece]
  results: list[runner.Result]


def is_exhausted(error: BaseException) -> bool:
  """Whether the error means that memory ran out."""
  return isinstance(error, MemoryError) or (
    isinstance(error, jax.errors.JaxRuntimeError)
    # The status code is only in the text.
    and 'RESOURCE_EXHAUSTED' in str(error)
  )


def needed_bytes(program: jax.stages.Compiled, images: int) -> int:
  """Bytes that a program needs on each device besides the parameters.

  Args:
    program: compiled.
    images: bytes of a device's share of a batch.
  """
  stated: Any = program.memory_analysis()
  # The next batch arrives while the last one's values wait to be fetched.
  return (
    2 * images + stated.temp_size_in_bytes + 2 * stated.output_size_in_bytes
  )


def available_bytes(devices: Sequence[jax.Device]) -> int | None:
  """Bytes free on each of the devices; None: unknown."""
  known = [device.memory_stats() or {} for device in devices]
  if all('bytes_limit' in stats for stats in known):
    return min(
      stats['bytes_limit'] - stats.get('bytes_in_use', 0) for stats in known
    )
  if devices[0].platform != 'cpu':
    return None
  shared = _host_bytes()
  return None if shared is None else shared // len(devices)


def _host_bytes() -> int | None:
  """Bytes available without swapping, also in a container; Linux only."""
  found = []
  try:
    for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        found.append(int(line.split()[1]) << 10)
    group = pathlib.Path('/sys/fs/cgroup')
    most = (group / 'memory.max').read_text().strip()
    if most != 'max':
      used = int((group / 'memory.current').read_text())
      # Cached files count as used, and are freed on demand.
      for line in (group / 'memory.stat').read_text().splitlines():
        if line.startswith('inactive_file '):
          used -= int(line.split()[1])
      found.append(int(most) - used)
  except (OSError, ValueError, IndexError):
    pass
  return max(min(found), 0) if found else None


class Network:
  """A `runner.Runner` for batches larger than the device may hold.

  Attributes:
    devices: that share a batch.
  """

  def __init__(
    self,
    make: Callable[[], runner.Runner],
    devices: Sequence[jax.Device],
    say: Say,
  ) -> None:
    """Keeps `make` until the runner is needed."""
    self.devices = devices
    self._make = make
    self._say = say
    self._compiled: set[tuple[int, ...]] = set()
    # A batch's programs are compiled while its images are decoded.
    self._lock = threading.RLock()
    # By the shape of an image: the most that are computed at a time, where the
    # memory has decided it.
    self._most: dict[tuple[int, ...], int] = {}

  @functools.cached_property
  def _run(self) -> runner.Runner:
    return self._make()

  def dealt(self, images: int, shape: tuple[int, ...]) -> list[Piece]:
    """The pieces of a batch.

    Args:
      images: of the batch.
      shape: of the large program's images, (rows, cuts, S, S, 3).
    """
    rows, *image = shape
    large = min(rows, self._most.get(tuple(image), rows))
    return dealt(images, large, self.devices[0].platform)

  def fitting(self, shape: tuple[int, ...]) -> int:
    """Compiles the large program, halved until it fits into the memory.

    Args:
      shape: of its images.

    Returns:
      The images that it takes.
    """
    rows, *image = shape
    with self._lock:
      if (key := tuple(image)) not in self._most:
        self._most[key] = self._fitting(shape)
      return min(rows, self._most[key])

  def _fitting(self, shape: tuple[int, ...]) -> int:
    rows = shape[0]
    while True:
      try:
        program = self._program((rows, *shape[1:]))
      except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_exhausted(error) or rows == 1:
          raise
        of = ''
      else:
        room = available_bytes(self.devices)
        images = rows * math.prod(shape[1:]) // len(self.devices)
        needed = needed_bytes(program, images)
        if rows == 1 or room is None or needed <= room * _SHARE:
          return rows
        of = f': {needed >> 20} MB of {room >> 20} free'
      self._say(
        f'batches of {rows} images do not fit into the memory{of}; taking'
        f' {-(-rows // 2)} at a time'
      )
      rows = -(-rows // 2)

  def compile(self, images: int, shape: tuple[int, ...]) -> None:
    """Compiles what computes a batch; the arguments are those of `dealt`."""
    self._enduring(images, shape, lambda: self._programs(images, shape))

  def is_compiled(self, images: int, shape: tuple[int, ...]) -> bool:
    """Whether `compile` has nothing to do."""
    programs = {piece.program for piece in self.dealt(images, shape)}
    return all((size, *shape[1:]) in self._compiled for size in programs)

  def _programs(self, images: int, shape: tuple[int, ...]) -> None:
    for size in dict.fromkeys(p.program for p in self.dealt(images, shape)):
      self._program((size, *shape[1:]))

  def _program(self, shape: tuple[int, ...]) -> jax.stages.Compiled:
    with self._lock:
      begin = time.perf_counter()
      program = self._run.compile(shape)
      if shape not in self._compiled:
        self._compiled.add(shape)
        self._say(f'compiled in {time.perf_counter() - begin:.1f} s')
      return program

  def warm_up(self, shape: tuple[int, ...]) -> None:
    """Computes a black batch once, so that the first real one is not slower."""
    black = np.zeros(shape, np.uint8)
    self.fetch(self(black, shape[0]), np.zeros(shape[0], bool))

  def __call__(
    self, images: np.ndarray, large: int, clock: timing.Clock | None = None
  ) -> Pending:
    """Starts the computation; `fetch` waits for it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
      large: images of the large program.
      clock: as for `runner.Runner`.
    """
    shape = (large, *images.shape[1:])

    def start() -> Pending:
      self._programs(len(images), shape)
      pieces = self.dealt(len(images), shape)
      (size, count), *others = pieces
      results = [self._run(images[:count], size, clock)]
      left = len(images) - count
      # Transfers overlap with computing, so the time is that of all others.
      timed = clock.measure('compute', left) if clock and left else None
      with timed or contextlib.nullcontext():
        for size, more in others:
          part = images[count : count + more]
          results.append(self._run(part, size, None))
          count += more
        if timed:
          jax.block_until_ready([result.values for result in results])
      return Pending(images, large, pieces, results)

    return self._enduring(len(images), shape, start)

  def fetch(self, pending: Pending, real: np.ndarray) -> dict[str, np.ndarray]:
    """(N, C, H, W) of each layer; see `runner.Runner.fetch`.

    Args:
      pending: what the call returned.
      real: a mask of the images whose values count.
    """
    parts, first = [], 0
    try:
      for piece, result in zip(pending.pieces, pending.results, strict=True):
        part = real[first : first + piece.images]
        parts.append(self._run.fetch(result, part))
        first += piece.images
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
      self._halve(error, pending.pieces[0].program, pending.images.shape[1:])
      return self.fetch(self(pending.images, pending.large), real)
    if len(parts) == 1:
      return parts[0]
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

  def _enduring(
    self, images: int, shape: tuple[int, ...], work: Callable[[], Work]
  ) -> Work:
    """What `work` returns, tried with ever smaller programs."""
    while True:
      largest = self.dealt(images, shape)[0].program
      try:
        return work()
      except (jax.errors.JaxRuntimeError, MemoryError) as error:
        self._halve(error, largest, shape[1:])

  def _halve(
    self, error: BaseException, rows: int, image: tuple[int, ...]
  ) -> None:
    """Continues with half of `rows`; raises `error` where that cannot help."""
    if not is_exhausted(error):
      raise error
    if rows == 1:
      raise errors.UserError(
        'there is not enough memory for a single image. Ask for fewer layers,'
        ' pool=avg, multi_crop=false or a smaller crop_size.'
      ) from error
    half = -(-rows // 2)
    # Both batches in flight may fail; report it once.
    if half < self._most.get(image, rows):
      self._most[image] = half
      self._say(
        f'NOTE: out of memory with {rows} images at a time; continuing with'
        f' {half}'
      )
