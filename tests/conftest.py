# SPDX-License-Identifier: Apache-2.0
"""Strict JAX, and what several test files use."""

import ctypes
import gc
import os
import pathlib
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

jax.config.update('jax_numpy_rank_promotion', 'raise')
# As the program has it on a CPU of two cores, whatever this one's are.  JAX
# has to start before a test calls what sets the number.
jax.config.update('jax_num_cpu_devices', 2)
jax.devices()

ROOT = pathlib.Path(__file__).parent.parent


# What a worker may take, so that a laptop has room for one a core.
MOST_MEMORY = 1500 << 20
# By how much it grows before freed memory is given back.
_GROWTH = 200 << 20
_PAGE = resource.getpagesize()
_given_back_at = 0
_peaks: dict[str, int] = {}


def pytest_addoption(parser):
  parser.addoption('--weights-dir', help='published weights, see README')
  parser.addoption('--images-dir', help="the document's dog.jpg and cat.jpg")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown():
  """Gives freed memory back to the system: glibc would keep most of it."""
  global _given_back_at
  result = yield
  if sys.platform == 'linux' and _resident() > _given_back_at + _GROWTH:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _given_back_at = _resident()
  return result


def _resident():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * _PAGE


def _peak():
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """A worker's peak, as it was handed over."""
  _peaks[node.gateway.id] = getattr(node, 'workeroutput', {}).get('peak', 0)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session):
  """Fails a run in which a worker took too much memory."""
  result = yield
  config = session.config
  if hasattr(config, 'workeroutput'):
    config.workeroutput['peak'] = _peak()
    return result
  if not _peaks:
    _peaks['main'] = _peak()
  if max(_peaks.values()) > MOST_MEMORY and session.exitstatus == 0:
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
  return result


def pytest_terminal_summary(terminalreporter, config):
  """Each worker's memory, and what was not tested and why."""
  for worker, peak in sorted(_peaks.items()):
    terminalreporter.write_line(
      f'peak memory of {worker}: {peak >> 20} MB, allowed: {MOST_MEMORY >> 20}',
      red=peak > MOST_MEMORY,
    )
  reasons = {}
  for report in terminalreporter.stats.get('skipped', []):
    reason = report.longrepr[2].removeprefix('Skipped: ')
    reasons[reason] = reasons.get(reason, 0) + 1
  for reason, count in sorted(reasons.items()):
    terminalreporter.write_line(f'NOT TESTED ({count}): {reason}', yellow=True)


@pytest.fixture(scope='session', autouse=True)
def compiled_programs(tmp_path_factory):
  """Keeps compiled programs for this run of the tests only."""
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    # One for all the workers.
    folder = folder.parent
  folder = folder / 'compiled'
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('RESNET_JAX_COMPILATION_CACHE', str(folder))
    yield folder


def run_program(folder, *arguments, check=None, env=None):
  """Runs the program in a folder, as a user does; returns what it did."""
  done = subprocess.run(
    [sys.executable, '-m', 'resnet_jax.main', *map(str, arguments)],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(ROOT)} | (env or {}),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  if check is not None:
    assert done.returncode == check, done.stderr
    assert 'Traceback' not in done.stderr
  return done


@pytest.fixture
def run_main(tmp_path):
  """`run_program` in `tmp_path`, or in `cwd`."""

  def run(*arguments, cwd=tmp_path, **keywords):
    return run_program(cwd, *arguments, **keywords)

  return run


def make_image_folder(folder):
  """A folder `images` of seven small ones, two of them in a subfolder."""
  random = np.random.default_rng(0)
  names = ['a.png', 'b.jpg', 'c d.png', 'e.png', 'f.png', 'x/a.png', 'x/g.png']
  for name in names:
    path = folder / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((80, 60)).save(path)
  return folder / 'images'


@pytest.fixture
def image_folder(tmp_path):
  """See `make_image_folder`."""
  return make_image_folder(tmp_path)
