# SPDX-License-Identifier: Apache-2.0
"""Strict JAX, and what several test files use."""

import os
import pathlib
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


def pytest_addoption(parser):
  parser.addoption('--weights-dir', help='published weights, see README')
  parser.addoption('--pictures-dir', help="the document's dog.jpg and cat.jpg")


def pytest_terminal_summary(terminalreporter, config):
  """Says what was not tested, and why, whatever the other options."""
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


@pytest.fixture
def run_main(tmp_path):
  """Runs the program in `tmp_path`, as a user does; returns what it did."""

  def run(*arguments, check=None, cwd=tmp_path, env=None):
    done = subprocess.run(
      [sys.executable, '-m', 'resnet_jax.main', *map(str, arguments)],
      cwd=cwd,
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

  return run


@pytest.fixture
def pictures(tmp_path):
  """A folder of seven small pictures, two of them in a subfolder."""
  random = np.random.default_rng(0)
  names = ['a.png', 'b.jpg', 'c d.png', 'e.png', 'f.png', 'x/a.png', 'x/g.png']
  for name in names:
    path = tmp_path / 'pictures' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((80, 60)).save(path)
  return tmp_path / 'pictures'
