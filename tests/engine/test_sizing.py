# SPDX-License-Identifier: Apache-2.0
"""Batches that are chosen, and halved when memory is short."""

import functools
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from conftest import ROOT

import resnet_jax
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import runner, sizing
from resnet_jax.models import resnet
from resnet_jax.system import errors
from resnet_jax.weights import random

CPU = tuple(jax.devices('cpu')[:1])
EXHAUSTED = 'RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.'


@pytest.fixture(scope='module')
def network18():
  model = resnet.ResNet(18)
  return model, random.initialise(model, 0)


def small(network18):
  return runner.Runner(*network18, ['pool1'], Preprocess((1, 2, 3)))


def pixels(count):
  random_ = np.random.default_rng(0)
  return random_.integers(0, 256, (count, 1, 32, 32, 3), np.uint8)


class Limited:
  """A runner on a device that holds `most` images at a time."""

  def __init__(self, run, most, late=False):
    self._run, self.most, self._late = run, most, late
    self.shapes = []

  def _check(self, count):
    if count > self.most:
      raise jax.errors.JaxRuntimeError(EXHAUSTED)

  def compile(self, shape):
    """Compiles; needs no memory for it."""
    return self._run.compile(shape)

  def __call__(self, images, rows, clock):
    """Fails here, or where the values are fetched."""
    self.shapes.append(rows)
    if not self._late:
      self._check(rows)
    return rows, self._run(images, rows, clock)

  def fetch(self, result, real):
    """Fails here if it is to be late."""
    rows, result = result
    if self._late:
      self._check(rows)
    return self._run.fetch(result, real)


@pytest.mark.parametrize('late', [False, True])
@pytest.mark.parametrize('most', [1, 3, 4, 7])
def test_out_of_memory_halves_and_gives_the_same_values(network18, most, late):
  images, run, said = pixels(7), small(network18), []
  real = np.arange(7) < 6
  expected = run.fetch(run(images), real)['pool1']
  limited = Limited(run, most, late)
  network = sizing.Network(lambda: limited, CPU, said.append)
  network.compile(7, images.shape)
  # Two on their way, as in a run.
  first, second = network(images, 7), network(images[::-1].copy(), 7)
  for pending, wanted in ((first, expected), (second, expected[::-1])):
    found = network.fetch(pending, real)['pool1']
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  halvings = [rows for rows in (7, 4, 2) if rows > most]
  assert [line for line in said if 'memory' in line] == [
    f'NOTE: out of memory with {rows} images at a time; continuing with'
    f' {-(-rows // 2)}'
    for rows in halvings
  ]
  # And stays there.
  limited.shapes.clear()
  network.fetch(network(images, 7), real)
  pieces = network.dealt(7, images.shape)
  assert limited.shapes == [piece.program for piece in pieces]
  assert limited.shapes[0] == (-(-halvings[-1] // 2) if halvings else 7)


def test_a_rest_is_padded_or_computed_one_by_one(network18):
  images, run = pixels(8), small(network18)
  network = sizing.Network(lambda: run, CPU, lambda text: None)

  def values(count):
    found = network(images[:count], 8)
    return network.fetch(found, np.ones(count, bool))['pool1']

  network.compile(8, images.shape)
  whole = values(8)
  # In the program of a whole batch, the others' places are black.
  np.testing.assert_array_equal(values(7), whole[:7])
  assert len(run._programs) == 1
  np.testing.assert_allclose(values(3), whole[:3], rtol=1e-5, atol=1e-5)
  assert list(run._programs) == [(8, 1, 32, 32, 3), (1, 1, 32, 32, 3)]


def test_not_even_one_image_is_an_error_with_ways_out(network18):
  limited = Limited(small(network18), 0)
  network = sizing.Network(lambda: limited, CPU, lambda text: None)
  with pytest.raises(errors.UserError, match=r'single image.*pool=avg'):
    network(pixels(2), 2)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
  class Broken:
    """Fails for another reason."""

    def compile(self, shape):
      """Needs no memory."""

    def __call__(self, images, rows, clock):
      """Fails."""
      raise jax.errors.JaxRuntimeError('INTERNAL: a fault')

  said = []
  network = sizing.Network(Broken, CPU, said.append)
  with pytest.raises(jax.errors.JaxRuntimeError, match='a fault'):
    network(pixels(2), 2)
  assert [line for line in said if 'memory' in line] == []


@pytest.mark.parametrize(
  ('platform', 'crops', 'size', 'rows'),
  [
    ('cpu', 1, 224, 48),
    ('cpu', 10, 224, 4),
    ('cpu', 1, 448, 12),
    ('cpu', 1, 4096, 1),
    ('cpu', 1, 32, 256),
    ('gpu', 1, 224, 256),
    ('gpu', 10, 224, 25),
    ('gpu', 1, 448, 64),
  ],
)
def test_where_the_choice_starts(platform, crops, size, rows):
  device = types.SimpleNamespace(platform=platform)
  for count in (1, 2, 8):
    found = sizing.first_rows((device,) * count, crops, size)
    assert found == rows * count


def test_the_memory_that_the_program_states_decides(network18, monkeypatch):
  run, said = small(network18), []
  shape = (16, 1, 32, 32, 3)
  needs = {
    rows: sizing.needed_bytes(
      run.compile((rows, *shape[1:])), rows * 32 * 32 * 3
    )
    for rows in (16, 8, 4)
  }
  # The values and the images, each twice, are the least.
  assert needs[16] >= 2 * 16 * (64 * 8 * 8 * 4 + 32 * 32 * 3)
  assert needs[4] < needs[8] < needs[16]
  room = int(needs[8] / sizing._SHARE) + 1
  monkeypatch.setattr(sizing, 'available_bytes', lambda devices: room)
  network = sizing.Network(lambda: run, CPU, said.append)
  assert network.fitting(shape) == 8
  [line] = [line for line in said if 'fit' in line]
  assert line.startswith('batches of 16 images do not fit into the memory: ')
  assert line.endswith(f' MB of {room >> 20} free; taking 8 at a time')
  # The memory decides once.
  for free, expected in ((0, 1), (None, 16)):
    monkeypatch.setattr(sizing, 'available_bytes', lambda devices, n=free: n)
    assert network.fitting(shape) == 8
    other = sizing.Network(lambda: run, CPU, said.append)
    assert other.fitting(shape) == expected
    assert other.dealt(16, shape)[0].program == expected


def test_free_memory_is_the_devices_or_the_hosts(monkeypatch):
  found = sizing.available_bytes(CPU)
  assert found is None or 1 << 20 < found < 1 << 50
  monkeypatch.setattr(sizing, '_host_bytes', lambda: 100)
  assert sizing.available_bytes(CPU) == 100
  # Devices that share one memory, and devices that each have their own.
  assert sizing.available_bytes(CPU * 4) == 25
  device, fuller = (
    types.SimpleNamespace(
      memory_stats=functools.partial(
        dict, bytes_limit=100, bytes_in_use=in_use
      ),
      platform='gpu',
    )
    for in_use in (30, 60)
  )
  assert sizing.available_bytes([device]) == 70
  assert sizing.available_bytes([device, fuller]) == 40
  unknown = types.SimpleNamespace(memory_stats=lambda: None, platform='tpu')
  assert sizing.available_bytes([unknown]) is None
  assert sizing.available_bytes([device, unknown]) is None


@pytest.fixture
def shapes(monkeypatch):
  """The images of each program that runs, one entry a run."""
  found, started = [], runner.Runner.__call__

  def noting(self, images, rows, clock):
    found.append(rows)
    return started(self, images, rows, clock)

  monkeypatch.setattr(runner.Runner, '__call__', noting)
  return found


@pytest.mark.filterwarnings('ignore:UNTRAINED')
def test_in_a_notebook(shapes):
  with pytest.raises(errors.UserError, match="batch_size='many' is neither a"):
    resnet_jax.load(18, weights='random', batch_size='many')
  with pytest.raises(errors.UserError, match='batch_size=-1 is neither'):
    resnet_jax.load(18, weights='random', batch_size=-1)
  images = pixels(600)[:, 0]
  model = resnet_jax.load(18, weights='random')
  found = model.features(images, 'pool1')
  assert len(jax.local_devices()) == 2
  assert set(shapes) == {512, 1}
  shapes.clear()
  model = resnet_jax.load(18, weights='random', batch_size=7)
  np.testing.assert_allclose(
    model.features(images[:20], 'pool1'), found[:20], rtol=1e-5, atol=1e-4
  )
  assert set(shapes) == {7}


COUNT = """
import jax
def count(event, seconds, **details):
  if event.endswith('backend_compile_duration'):
    print(event, details.get('fun_name'))
jax.monitoring.register_event_duration_secs_listener(count)
from resnet_jax import main
main.run()
"""


FLAGS = (
  '--job=extract',
  '--config=configs/resnet.py:18,weights=random,resize_size=32,crop_size=32',
  '--config.data=images',
  '--config.output_layer=pool1',
)


def test_a_run_compiles_once(tmp_path, image_folder):
  """Its last batch is a part of one, and a warm-up comes before the first."""
  # 21 batches: fewer have no warm-up.
  (image_folder / 'many.list').write_text('a.png\n' * 41)
  (tmp_path / 'script.py').write_text(COUNT)
  done = subprocess.run(
    [
      *(sys.executable, 'script.py', *FLAGS, '--config.batch_size=2'),
      '--config.data=images/many.list',
    ],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('jit(run)') == 1
  assert done.stderr.count('compiled in') == 1


def test_a_run_is_resumed_with_its_own_batch_size(
  run_main, tmp_path, image_folder
):
  del image_folder
  done = run_main(*FLAGS, '--config.batch_size=2', check=0)
  assert 'float32, 2 images at a time' in done.stderr
  # Left to itself it would take all seven.
  again = run_main(*FLAGS, '--config.batch_size=auto', check=0)
  assert 'is finished already' in again.stderr
  (tmp_path / 'features').rename(tmp_path / 'features.part')
  again = run_main(*FLAGS, check=0)
  assert 'resuming after 7 of 7 images' in again.stderr
  other = run_main(*FLAGS, '--config.output_dir=other', check=0)
  assert 'float32, 7 images at a time' in other.stderr


@pytest.mark.parametrize(
  ('images', 'large', 'platform', 'expected'),
  [
    (1, 96, 'cpu', [(1, 1)]),
    (67, 96, 'cpu', [(1, 1)] * 67),
    (68, 96, 'cpu', [(96, 68)]),
    (96, 96, 'cpu', [(96, 96)]),
    (100, 96, 'cpu', [(96, 96)] + [(1, 1)] * 4),
    (275, 96, 'cpu', [(96, 96), (96, 96), (96, 83)]),
    # One place of padding costs less than another program.
    (1, 2, 'cpu', [(2, 1)]),
    (2, 3, 'cpu', [(3, 2)]),
    (1, 3, 'cpu', [(1, 1)]),
    (3, 1, 'cpu', [(1, 1)] * 3),
    (25, 256, 'gpu', [(1, 1)] * 25),
    (26, 256, 'gpu', [(256, 26)]),
  ],
)
def test_how_a_batch_is_dealt(images, large, platform, expected):
  assert sizing.dealt(images, large, platform) == expected


@pytest.fixture
def compilations():
  """The programs that JAX compiles for networks, one entry each."""
  found = []

  def listen(event, seconds, **details):
    del seconds
    if event.endswith('backend_compile_duration'):
      found.append(details.get('fun_name'))

  # It stays: JAX 0.7 has no public way to take it back.
  jax.monitoring.register_event_duration_secs_listener(listen)
  return found


@pytest.mark.filterwarnings('ignore:UNTRAINED')
def test_lists_of_any_length_compile_two_programs(compilations):
  model = resnet_jax.load(18, weights='random')
  assert len(model.execution.devices) == 2
  images = np.random.default_rng(0).integers(
    0, 256, (100, 224, 224, 3), np.uint8
  )
  counts, found = [], {}
  for count in (1, 3, 8, 20, 33, 100, 60, 1, 100):
    values = model.features(images[:count], 'pool1')
    counts.append(compilations.count('jit(run)'))
    # The second time, too.
    np.testing.assert_array_equal(values, found.setdefault(count, values))
  # The large one only where it is needed.
  assert counts == [1, 1, 1, 1, 1, 2, 2, 2, 2]
  for count, values in found.items():
    np.testing.assert_allclose(values, found[100][:count], rtol=1e-5, atol=1e-4)
  # Another layer compiles again, and the first one stays.
  model.features(images[:2], 'conv1_conv,pool1')
  model.features(images[:2], 'pool1')
  assert compilations.count('jit(run)') == 3


@pytest.mark.filterwarnings('ignore:UNTRAINED')
@pytest.mark.parametrize(
  ('asked', 'rows', 'programs'),
  [
    # Whole batches, and a rest one by one or padded.
    (('auto', 7, 5), (5, 5), [5, 1, 1]),
    (('auto', 14, 5), (5, 5), [5, 5, 5]),
    ((5, 7, 0), (5, 5), [5, 1, 1]),
    # The only batch.
    ((5, 2, 0), (2, 5), [1, 1]),
    (('auto', 7, 7), (7, 512), [1] * 7),
    # A record of other images: refused by its caller.
    (('auto', 7, 9), (7, 512), [1] * 7),
  ],
)
def test_a_resumed_run_has_the_bytes_of_one_that_was_not_stopped(
  shapes, asked, rows, programs
):
  batch_size, count, resumed = asked
  model = resnet_jax.load(18, weights='random', batch_size=batch_size)
  run = model.prepared(pixels(count)[:, 0], ('pool1',), resumed=resumed)
  run = run.fitted()
  assert (run.rows, run.large) == rows
  whole = [values['pool1'] for _, values in run.stream()]
  assert shapes == programs
  for number in range(len(whole)):
    rest = [values['pool1'] for _, values in run.stream(number * run.rows)]
    np.testing.assert_array_equal(
      np.concatenate(rest), np.concatenate(whole[number:])
    )
