# SPDX-License-Identifier: Apache-2.0
"""Strict JAX, and what several test files use."""

import os

import jax
import memory
import numpy as np
import pytest
from makers import ROOT, run_program
from PIL import Image

__all__ = ['ROOT', 'make_image_folder']

# Their tests are those of test_failing.
for _name in ('data', 'environment', 'weights'):
  pytest.register_assert_rewrite(f'failing_{_name}')

jax.config.update('jax_numpy_rank_promotion', 'raise')
# As the program has it on a CPU of two cores, whatever this one's are.  JAX
# has to start before a test calls what sets the number.
jax.config.update('jax_num_cpu_devices', 2)
jax.devices()


def pytest_addoption(parser):
  parser.addoption('--weights-dir', help='published weights, see README')
  parser.addoption('--images-dir', help="the document's dog.jpg and cat.jpg")


def pytest_configure(config):
  config.pluginmanager.register(memory.Memory())


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
