# SPDX-License-Identifier: Apache-2.0
"""The batch size: chosen by the memory, halved when the memory runs out.

A caller gets the values of the batches that it asked for, also when the device
computes them in smaller pieces.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.engine import devices as device_lib
from resnet_jax.engine import runner
from resnet_jax.system import errors, timing

# Where the choice starts, in pixels a device: a core's round (see `devices`);
# accelerators are faster with more.  _MOST_CROPS caps it.
_PIXELS = {'cpu': 48 * 224 * 224}
_PIXELS_ELSEWHERE = 256 * 224 * 224
_MOST_CROPS = 256
# Of the free memory: the driver and other processes need some, too.
_SHARE = 0.8

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Pending:
  """A batch on the devices.

  Attributes:
    images: the batch, kept until its values are fetched.
    rows: images of a whole batch.
    piece: images that were started at a time.
    results: one a piece.
  """

  images: np.ndarray
  rows: int
  piece: int
  results: list[runner.Result]


def first_rows(devices: Sequence[jax.Device], crops: int, size: int) -> int:
  """The batch size to try first, for images of `crops` crops of a size."""
  pixels = _PIXELS.get(devices[0].platform, _PIXELS_ELSEWHERE)
  each = max(1, min(pixels // size**2, _MOST_CROPS) // crops)
  return each * len(devices)


def even_rows(rows: int, count: int, devices: Sequence[jax.Device]) -> int:
  """A batch size of at most `rows` that divides `count` evenly.

  A batch is computed whole, so 100 images are 54 and 46, not 96 and 4.
  """
  rows = min(rows, count)
  if not rows:
    return 0
  even = -(-count // -(-count // rows))
  step = device_lib.even_step(devices)
  return min(rows, -(-even // step) * step)


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
    rows: images that are computed at a time; 0: a whole batch.
  """

  def __init__(
    self,
    make: Callable[[], runner.Runner],
    devices: Sequence[jax.Device],
    say: Say,
  ) -> None:
    """Keeps `make` until the runner is needed."""
    self.devices = devices
    self.rows = 0
    self._make = make
    self._say = say
    self._reported: set[tuple[int, ...]] = set()

  @functools.cached_property
  def _run(self) -> runner.Runner:
    return self._make()

  def fitting(self, shape: tuple[int, ...]) -> int:
    """Compiles for batches of a shape, halved until the program fits.

    Args:
      shape: (rows, cuts, S, S, 3).

    Returns:
      The batch size.
    """
    rows = shape[0]
    while True:
      try:
        program = self._compiled((rows, *shape[1:]))
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

  def compile(self, shape: tuple[int, ...]) -> None:
    """Compiles for batches of a shape, or for the pieces that fit."""
    rows, *image = shape
    self._enduring(rows, lambda piece: self._compiled((piece, *image)))

  def _compiled(self, shape: tuple[int, ...]) -> jax.stages.Compiled:
    begin = time.perf_counter()
    program = self._run.compile(shape)
    if shape not in self._reported:
      self._reported.add(shape)
      self._say(f'compiled in {time.perf_counter() - begin:.1f} s')
    return program

  def warm_up(self, shape: tuple[int, ...]) -> None:
    """Computes a black batch once, so that the first real one is not slower."""
    black = np.zeros(shape, np.uint8)
    self.fetch(self(black, shape[0]), np.zeros(shape[0], bool))

  def __call__(
    self, images: np.ndarray, rows: int, clock: timing.Clock | None = None
  ) -> Pending:
    """Starts the computation; `fetch` waits for it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
      rows: images of a whole batch, N or more.
      clock: as for `runner.Runner`.
    """

    def start(piece: int) -> Pending:
      results = [
        self._run(images[first : first + piece], piece, clock)
        for first in range(0, len(images), piece)
      ]
      return Pending(images, rows, piece, results)

    return self._enduring(rows, start)

  def fetch(self, pending: Pending, real: np.ndarray) -> dict[str, np.ndarray]:
    """(N, C, H, W) of each layer; see `runner.Runner.fetch`.

    Args:
      pending: what the call returned.
      real: a mask of the images whose values count.
    """
    try:
      pieces = [
        self._run.fetch(result, real[first : first + pending.piece])
        for first, result in zip(
          range(0, len(real), pending.piece), pending.results, strict=True
        )
      ]
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
      self._halve(error, pending.piece)
      return self.fetch(self(pending.images, pending.rows), real)
    if len(pieces) == 1:
      return pieces[0]
    return {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}

  def _enduring(self, rows: int, work: Callable[[int], Any]) -> Any:
    """What `work(piece)` returns, tried with ever smaller pieces."""
    while True:
      piece = min(self.rows or rows, rows)
      try:
        return work(piece)
      except (jax.errors.JaxRuntimeError, MemoryError) as error:
        self._halve(error, piece)

  def _halve(self, error: BaseException, rows: int) -> None:
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
    if not self.rows or half < self.rows:
      self.rows = half
      self._say(
        f'NOTE: out of memory with {rows} images at a time; continuing with'
        f' {half}'
      )
