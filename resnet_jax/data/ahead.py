# SPDX-License-Identifier: Apache-2.0
"""Slices of remote files, read ahead of who needs them, within a bound.

A server takes longer to answer than an image to decode, so what follows in the
order of the images is fetched meanwhile; neighbours in a file come together.
"""

import collections
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence

from resnet_jax.data import places

# Fetched, or being fetched, and not yet taken.
AHEAD_BYTES = 64 << 20
# The largest range of joined neighbours, and what may lie between two.
_JOINED_BYTES = 4 << 20
_GAP_BYTES = 1 << 16
_FETCHERS = 16
# How far apart those are that threads ask for at once.
_NEAR = 64


def readers(
  slices: Sequence[places.Slice],
) -> list[Callable[[], bytes]]:
  """What reads each slice; their order is that in which they will be read."""
  reader = _Ahead(_joined(slices))
  result: list[Callable[[], bytes]] = []
  for number, group in enumerate(reader.groups):
    for member in group.members:
      start = member.offset - group.whole.offset
      result.append(
        functools.partial(reader.read, number, start, member.size)
        if len(group.members) > 1
        else functools.partial(reader.read, number, 0, -1)
      )
  return result


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
  """Neighbours in a file.

  Attributes:
    whole: the range that has them.
    members: slices that follow one another in the order of the images.
  """

  whole: places.Slice
  members: list[places.Slice]


def _joined(slices: Sequence[places.Slice]) -> list[_Group]:
  groups: list[_Group] = []
  for one in slices:
    last = groups[-1].whole if groups else None
    if last and last.path == one.path and last.stamp == one.stamp is not None:
      gap = one.offset - last.offset - last.size
      size = one.offset + one.size - last.offset
      if 0 <= gap <= _GAP_BYTES and size <= _JOINED_BYTES:
        whole = dataclasses.replace(last, size=size)
        groups[-1] = _Group(whole, [*groups[-1].members, one])
        continue
    groups.append(_Group(one, [one]))
  return groups


class _Fetch:
  """A group that is fetched or being fetched."""

  def __init__(self, whole: places.Slice) -> None:
    self.whole = whole
    self.size = max(whole.size, 0)
    self.is_taken = False
    self.done = threading.Event()
    self.data = b''
    self.error: BaseException | None = None

  def run(self) -> None:
    """Fetches; the error is raised where the bytes are needed."""
    try:
      self.data = self.whole()
    except BaseException as error:
      self.error = error
    self.done.set()


class _Ahead:
  """Reads groups, and those that follow in the background."""

  def __init__(self, groups: list[_Group]) -> None:
    self.groups = groups
    self._lock = threading.Lock()
    self._held: collections.OrderedDict[int, _Fetch] = collections.OrderedDict()
    self._bytes = 0
    # Of each group that is held, the members that nobody has taken.
    self._left: dict[int, int] = {}
    self._todo: collections.deque[_Fetch] = collections.deque()
    self._workers = 0
    # The group that was asked for last, and the first that is not asked for.
    self._last = -2 - _NEAR
    self._next = 0

  def read(self, number: int, start: int, size: int) -> bytes:
    """A part of a group's bytes; size -1: all.

    Raises what reading the group raises.
    """
    with self._lock:
      fetch = self._held.get(number) or self._hold(number)
      # Also what still waits for a thread.
      is_mine = not fetch.is_taken
      fetch.is_taken = True
      self._left[number] -= 1
      # Threads ask for neighbours in any order; whoever jumps starts anew.
      if abs(number - self._last) > _NEAR:
        self._last, self._next = number, number + 1
      elif number >= self._last:
        self._last = number
        self._plan(number)
    if is_mine:
      fetch.run()
    fetch.done.wait()
    with self._lock:
      if self._held.get(number) is fetch and (
        fetch.error or self._left[number] <= 0
      ):
        self._drop(number)
    if fetch.error:
      raise fetch.error
    return fetch.data if size < 0 else fetch.data[start : start + size]

  def _hold(self, number: int) -> _Fetch:
    group = self.groups[number]
    fetch = self._held[number] = _Fetch(group.whole)
    self._left[number] = len(group.members)
    self._bytes += fetch.size
    # What was fetched and not taken, as by someone who reads here and there.
    for other in list(self._held):
      if self._bytes <= AHEAD_BYTES:
        break
      if other != number and self._held[other].done.is_set():
        self._drop(other)
    return fetch

  def _drop(self, number: int) -> None:
    self._bytes -= self._held.pop(number).size
    del self._left[number]

  def _plan(self, number: int) -> None:
    """Has groups after this one fetched, as many as the bound allows."""
    self._next = max(self._next, number + 1)
    while self._next < len(self.groups) and len(self._held) < 4 * _FETCHERS:
      whole = self.groups[self._next].whole
      if self._bytes + whole.size > AHEAD_BYTES:
        break
      if self._next not in self._held and whole.size >= 0:
        self._todo.append(self._hold(self._next))
      self._next += 1
    # Without another thread, who needs a group fetches it.
    with contextlib.suppress(RuntimeError):
      for _ in range(min(_FETCHERS - self._workers, len(self._todo))):
        # Daemons: what nobody needs does not hold up the end of the program.
        threading.Thread(target=self._work, name='ahead', daemon=True).start()
        self._workers += 1

  def _work(self) -> None:
    while True:
      with self._lock:
        if not self._todo:
          self._workers -= 1
          return
        fetch = self._todo.popleft()
        is_mine = not fetch.is_taken
        fetch.is_taken = True
      if is_mine:
        fetch.run()
