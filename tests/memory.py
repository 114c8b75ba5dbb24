# SPDX-License-Identifier: Apache-2.0
"""Gives memory back between the tests, and reports each worker's peak."""

import ctypes
import gc
import resource
import sys

import jax
import pytest

# The goal, so that a laptop has room for a worker a core.  Not a limit: which
# worker runs which tests differs from run to run.
MOST = 1500 << 20
# By how much it grows before compiled programs and freed memory go.
_GROWTH = 200 << 20
_PAGE = resource.getpagesize()
_M_MMAP_THRESHOLD = -3  # malloc.h

if sys.platform == 'linux':
  # Else glibc raises it with what was freed, and then keeps what is freed.
  ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 23)


class Memory:
  """A plugin: gives freed memory back, and reports each worker's peak."""

  def __init__(self):
    self._level = 0
    self._peaks = {}

  @pytest.hookimpl(wrapper=True, tryfirst=True)
  def pytest_runtest_protocol(self, item, nextitem):
    """Gives back what a file's tests freed, or one large test.

    After the teardown: until then the item holds its fixtures' values.
    """
    result = yield
    last = nextitem is None or nextitem.path != item.path
    if last:
      _forget(item.module)
    if last or _resident() > self._level + _GROWTH:
      give_back()
      self._level = _resident()
    return result

  @pytest.hookimpl(optionalhook=True)
  def pytest_testnodedown(self, node):
    """Takes a worker's peak."""
    if output := getattr(node, 'workeroutput', None):
      self._peaks[node.gateway.id] = output['peak']

  @pytest.hookimpl(tryfirst=True)
  def pytest_sessionfinish(self, session):
    """Hands the peak over."""
    if hasattr(session.config, 'workeroutput'):
      session.config.workeroutput['peak'] = _peak()
    else:
      self._peaks = self._peaks or {'the process': _peak()}

  def pytest_terminal_summary(self, terminalreporter):
    """Prints the peaks."""
    for worker, peak in sorted(self._peaks.items()):
      terminalreporter.write_line(
        f'peak memory of {worker}: {peak >> 20} MB of {MOST >> 20} wanted',
        red=peak > MOST,
      )


def give_back():
  """Frees compiled programs, and gives freed memory back to the system."""
  jax.clear_caches()
  gc.collect()
  if sys.platform == 'linux':
    # glibc keeps what is freed in the middle of its heaps.
    ctypes.CDLL(None).malloc_trim(0)


def _forget(module):
  """Empties the caches of a file of tests: networks' parameters, mostly."""
  for value in vars(module).values():
    if hasattr(value, 'cache_clear'):
      value.cache_clear()


def _resident():
  """Bytes in memory now; 0 where /proc does not tell."""
  if sys.platform != 'linux':
    return 0
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * _PAGE


def _peak():
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
