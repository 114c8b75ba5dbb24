# SPDX-License-Identifier: Apache-2.0
"""How many images at a time: chosen from the memory, halved when it is short.

Whoever asks for batches of some size gets values for them, whatever the number
of images that the device takes at once has come down to.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.engine import devices as device_lib
from resnet_jax.engine import runner
from resnet_jax.system import errors, timing

# Pixels a device at a time to start from, and the most crops: a core's round
# (see `devices`); accelerators want many.
_PIXELS = {'cpu': 48 * 224 * 224}
_PIXELS_ELSEWHERE = 256 * 224 * 224
_MOST_CROPS = 256
# Of what is free: the driver, and whoever else computes there, need some, too.
_SHARE = 0.8

Say = Callable[[str], None]
# (layer values by piece of the batch, and the images that they are of).
Pending = tuple[np.ndarray, list[runner.Result], int]


def first_rows(devices: Sequence[jax.Device], crops: int, size: int) -> int:
  """Images at a time to try first, of so many crops of a size each."""
  pixels = _PIXELS.get(devices[0].platform, _PIXELS_ELSEWHERE)
  each = max(1, min(pixels // size**2, _MOST_CROPS) // crops)
  return each * len(devices)


def even_rows(rows: int, count: int, devices: Sequence[jax.Device]) -> int:
  """At most `rows` at a time, so that the last of `count` is no small rest.

  Every batch is computed whole: 100 images are not 96 and 4, but 54 and 46.
  """
  rows = min(rows, count)
  if not rows:
    return 0
  even = -(-count // -(-count // rows))
  step = device_lib.even_step(devices)
  return min(rows, -(-even // step) * step)


def is_exhausted(error: BaseException) -> bool:
  """Whether it says that there is not enough memory."""
  return isinstance(error, MemoryError) or (
    isinstance(error, jax.errors.JaxRuntimeError)
    and 'RESOURCE_EXHAUSTED' in str(error)
  )


def needed_bytes(program: jax.stages.Compiled, images: int) -> int:
  """What a program takes of each device besides the parameters.

  Args:
    program: compiled.
    images: bytes of a device's part of a batch.
  """
  stated: Any = program.memory_analysis()
  # The next batch is on its way, and the last one's values wait to be fetched.
  return (
    2 * images + stated.temp_size_in_bytes + 2 * stated.output_size_in_bytes
  )


def available_bytes(devices: Sequence[jax.Device]) -> int | None:
  """What is free on each of some devices; None: nobody knows."""
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
  """Memory that can be had without swapping, also in a container; Linux."""
  found = []
  try:
    for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        found.append(int(line.split()[1]) << 10)
    group = pathlib.Path('/sys/fs/cgroup')
    most = (group / 'memory.max').read_text().strip()
    if most != 'max':
      used = int((group / 'memory.current').read_text())
      # Of what is used, cached files can be had.
      for line in (group / 'memory.stat').read_text().splitlines():
        if line.startswith('inactive_file '):
          used -= int(line.split()[1])
      found.append(int(most) - used)
  except (OSError, ValueError, IndexError):
    pass
  return max(min(found), 0) if found else None


class Network:
  """A `runner.Runner` for batches larger than the device may hold.

  It is made when it is needed first.

  Attributes:
    rows: images that go through the network at a time; 0: a whole batch.
  """

  def __init__(
    self,
    make: Callable[[], runner.Runner],
    devices: Sequence[jax.Device],
    say: Say,
  ) -> None:
    self._make = make
    self._devices = devices
    self._say = say
    self.rows = 0
    self._said: set[tuple[int, ...]] = set()

  @functools.cached_property
  def _run(self) -> runner.Runner:
    return self._make()

  def fitting(self, shape: tuple[int, ...]) -> int:
    """The images of `shape`, halved until their program fits the memory.

    It is compiled then.

    Args:
      shape: (rows, cuts, S, S, 3).
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
        room = available_bytes(self._devices)
        images = rows * int(np.prod(shape[1:])) // len(self._devices)
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
    """Compiles for batches of a shape, or of what fits of it."""
    self._enduring(lambda: self._compiled(self._piece(shape)), shape[0])

  def _compiled(self, shape: tuple[int, ...]) -> jax.stages.Compiled:
    begin = time.perf_counter()
    program = self._run.compile(shape)
    if shape not in self._said:
      self._said.add(shape)
      self._say(f'compiled in {time.perf_counter() - begin:.1f} s')
    return program

  def warm_up(self, shape: tuple[int, ...]) -> None:
    """Has the device do once what it does with every batch."""
    self.fetch(self(np.zeros(shape, np.uint8)), np.zeros(shape[0], bool))

  def __call__(self, images: np.ndarray) -> Pending:
    """Starts the computation; `fetch` waits for it.

    Args:
      images: (N, cuts, H, W, 3) uint8, RGB.
    """
    return self._enduring(lambda: self._started(images, self._run), len(images))

  def measured(self, images: np.ndarray, clock: timing.Clock) -> Pending:
    """As a call, but waits, to time; see `runner.Runner.measured`."""
    return self._enduring(
      lambda: self._started(
        images, lambda piece: self._run.measured(piece, clock)
      ),
      len(images),
    )

  def fetch(self, pending: Pending, real: np.ndarray) -> dict[str, np.ndarray]:
    """(N, C, H, W) of each layer; see `runner.Runner.fetch`.

    Args:
      pending: what the call returned.
      real: a mask of the images that are not padding.
    """
    images, results, rows = pending
    try:
      pieces = []
      for start, result in zip(
        range(0, len(images), rows), results, strict=True
      ):
        mask = np.zeros(rows, bool)
        piece = real[start : start + rows]
        mask[: len(piece)] = piece
        values = self._run.fetch(result, mask)
        pieces.append({k: v[: len(piece)] for k, v in values.items()})
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
      self._halve(error, rows)
      return self.fetch(self(images), real)
    if len(pieces) == 1:
      return pieces[0]
    return {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}

  def _started(
    self,
    images: np.ndarray,
    start: Callable[[np.ndarray], runner.Result],
  ) -> Pending:
    rows, *_ = self._piece(images.shape)
    results = []
    for first in range(0, len(images), rows):
      piece = images[first : first + rows]
      if len(piece) < rows:
        # One shape, one program.
        padded = np.zeros((rows, *images.shape[1:]), images.dtype)
        padded[: len(piece)] = piece
        piece = padded
      results.append(start(piece))
    return images, results, rows

  def _piece(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return min(self.rows or shape[0], shape[0]), *shape[1:]

  def _enduring(self, work: Callable[[], Any], rows: int) -> Any:
    """What `work` returns, tried with ever smaller pieces."""
    while True:
      tried = min(self.rows or rows, rows)
      try:
        return work()
      except (jax.errors.JaxRuntimeError, MemoryError) as error:
        self._halve(error, tried)

  def _halve(self, error: BaseException, rows: int) -> None:
    """Goes on with half of `rows`; raises where that is no help."""
    if not is_exhausted(error):
      raise error
    if rows == 1:
      raise errors.UserError(
        'there is not enough memory for a single image. Ask for fewer layers,'
        ' pool=avg, multi_crop=false or a smaller crop_size.'
      ) from error
    half = -(-rows // 2)
    # Two batches may be on their way, and only the first has to say it.
    if not self.rows or half < self.rows:
      self.rows = half
      self._say(
        f'NOTE: out of memory with {rows} images at a time; going on with'
        f' {half}'
      )
