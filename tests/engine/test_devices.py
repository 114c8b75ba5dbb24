# SPDX-License-Identifier: Apache-2.0
"""Which devices compute, and how images are dealt out to them."""

import itertools
import math
import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from conftest import ROOT

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import devices, reductions, runner
from resnet_jax.models import resnet
from resnet_jax.system import errors
from resnet_jax.weights import random

MEAN = (100.0, 110.0, 120.0)
PREPROCESS = Preprocess(MEAN)
LAYERS = ('pool1', 'res2_1_addto', 'logits')
COLLECTIVES = ('all-gather', 'all-reduce', 'collective-permute', 'all-to-all')


def fakes(platform, count):
  device = types.SimpleNamespace(platform=platform, device_kind=platform)
  return (device,) * count


@pytest.mark.parametrize(
  ('platform', 'there', 'images', 'crops', 'deal'),
  [
    # devices, rounds, rows, pieces
    ('cpu', 2, 64, 1, (2, 1, 64, 16)),
    ('cpu', 2, 96, 1, (2, 1, 96, 16)),
    ('cpu', 2, 97, 1, (2, 2, 50, 25)),
    ('cpu', 2, 101, 1, (2, 2, 52, 13)),
    ('cpu', 2, 7, 1, (2, 1, 8, 2)),
    ('cpu', 8, 3, 1, (3, 1, 3, 1)),
    ('cpu', 1, 100, 1, (1, 3, 34, 17)),
    ('cpu', 2, 6, 10, (2, 1, 6, 10)),
    ('cpu', 2, 8, 10, (2, 1, 8, 20)),
    ('cpu', 2, 9, 10, (2, 2, 6, 10)),
    ('cpu', 2, 1, 10, (1, 1, 1, 5)),
    ('gpu', 1, 256, 1, (1, 1, 256, 1)),
    ('gpu', 4, 255, 1, (4, 1, 256, 1)),
    ('gpu', 4, 2, 10, (2, 1, 2, 1)),
  ],
)
def test_how_images_are_dealt_out(platform, there, images, crops, deal):
  found = devices.deal(fakes(platform, there), images, crops)
  assert found == devices.Deal(*deal)


def test_nothing_is_lost_and_little_is_padded():
  for there, images, crops in itertools.product(
    range(1, 9), range(1, 150), (1, 10)
  ):
    for platform in ('cpu', 'gpu'):
      deal = devices.deal(fakes(platform, there), images, crops)
      assert deal.devices == min(there, images)
      each, left = divmod(deal.rows, deal.devices)
      assert not left
      padded = deal.rounds * deal.rows - images
      # One more a device and round would be one too many.
      assert 0 <= padded < deal.devices * deal.rounds
      if platform == 'gpu':
        assert (deal.rounds, deal.pieces) == (1, 1)
      else:
        assert each * crops <= 48
        piece, left = divmod(each * crops, deal.pieces)
        assert not left
        assert 1 <= piece <= 3
        # As few rounds as such parts allow.
        most = deal.devices * (48 // crops)
        assert deal.rounds == math.ceil(images / most)


def test_what_a_record_calls_them():
  assert devices.describe(fakes('cpu', 1)) == 'cpu'
  assert devices.describe(fakes('cpu', 2)) == 'cpu x 2'
  card = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H100')
  assert devices.describe([card]) == 'gpu NVIDIA H100'


def _printed(code):
  """The words that a program prints in a process of its own."""
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.split()


CORES = """
import os, jax
from resnet_jax.engine import devices
{before}
devices.use_cores()
print(len(devices.select(False)), len(os.sched_getaffinity(0)))
"""


@pytest.mark.parametrize('before', ['', 'jax.devices()'])
def test_a_cpu_is_a_device_a_core_unless_jax_has_started(before):
  found, cores = map(int, _printed(CORES.format(before=before)))
  assert found == (1 if before else min(cores, 8))


def test_the_memory_of_a_program_that_runs_jax_already_is_not_touched(
  monkeypatch,
):
  def refuse(name):
    raise AssertionError('mallopt')

  monkeypatch.setattr(devices.cores, 'count', lambda: 2)
  monkeypatch.setattr(devices.ctypes, 'CDLL', refuse)
  # The setting that the tests started JAX with: no error says so.
  devices.use_cores()


@pytest.fixture(scope='module')
def network():
  model = resnet.ResNet(18, classes=10)
  return model, random.initialise(model, 0)


def on(network, count, layers, **settings):
  execution = runner.Execution(tuple(jax.devices('cpu')[:count]))
  return runner.Runner(
    *network, layers, PREPROCESS, execution=execution, **settings
  )


def pixels(count):
  generator = np.random.default_rng(3)
  return generator.integers(0, 256, (count, 1, 32, 32, 3), np.uint8)


def assert_close(found, expected):
  assert list(found) == list(expected)
  for name, value in expected.items():
    assert found[name].shape == value.shape
    scale = np.sqrt(np.mean(value**2))
    assert np.abs(found[name] - value).max() < 1e-5 * scale, name


def test_two_devices_give_the_values_of_one_and_do_not_talk(network):
  images = pixels(5)
  one, two = (on(network, count, LAYERS) for count in (1, 2))
  assert_close(two.fetch(two(images)), one.fetch(one(images)))
  text = two.compile(images.shape).as_text()
  assert re.search(r'num_partitions=2\b', text)
  assert not [word for word in COLLECTIVES if word in text]
  # The same images, the same bytes.
  first, second = (two.fetch(two(images)) for _ in range(2))
  for name in LAYERS:
    np.testing.assert_array_equal(first[name], second[name])


def test_a_device_holds_the_parameters_once(network):
  """Whether devices share an image or have some each."""
  run = on(network, 2, ['pool1'])
  places = []
  for count in (1, 4):
    parameters = run._program(pixels(count).shape).parameters
    places.append(
      {
        (name, shard.device): shard.data.unsafe_buffer_pointer()
        for name, array in parameters.items()
        for shard in array.addressable_shards
      }
    )
  one, both = places
  assert {device for _, device in one} == set(run._devices)
  assert one == both


def test_rounds_come_back_in_order(network):
  """More images than two devices take at once, and an odd number."""
  images = pixels(131)
  run = on(network, 2, ['pool1'])
  found = run.fetch(run(images))
  few = [run.fetch(run(images[i : i + 1])) for i in (0, 33, 34, 100, 130)]
  rows = found['pool1'][[0, 33, 34, 100, 130]]
  single = {'pool1': np.concatenate([value['pool1'] for value in few])}
  assert len(found['pool1']) == 131
  assert_close({'pool1': rows}, single)


def test_whose_value_is_too_large_is_known_on_every_device(network):
  model, parameters = network
  strong = parameters | {
    'conv1_conv/kernel': np.full((7, 7, 3, 64), 8, np.float32)
  }
  images = np.zeros((5, 1, 32, 32, 3), np.uint8)
  images[:] = np.array(MEAN[::-1], np.uint8)
  images[3] = 255
  half = reductions.Reduction(dtype='float16')
  run = on((model, strong), 2, ['conv1_conv'], reduction=half)
  result = run(images)
  others = np.array([True, True, True, False, True])
  values = run.fetch(result, others)['conv1_conv']
  assert np.isfinite(values[others]).all()
  assert np.isinf(values[3]).any()
  with pytest.raises(errors.UserError, match=r'conv1_conv are beyond 65504'):
    run.fetch(result, ~others)
  with pytest.raises(errors.UserError, match=r'conv1_conv are beyond 65504'):
    run.fetch(result)


@pytest.mark.parametrize(
  ('cores', 'shown', 'one'), [(3, 3, True), (64, 8, False)]
)
def test_cores_are_shown_also_where_the_system_has_no_affinity(
  cores, shown, one
):
  """As on macOS; and where cores are left over, devices keep their threads."""
  code = f"""
import os
del os.sched_getaffinity
os.cpu_count = lambda: {cores}
os.environ.pop('XLA_FLAGS', None)
from resnet_jax.engine import devices
devices.use_cores()
import jax
print(jax.local_device_count('cpu'), 'XLA_FLAGS' in os.environ)
"""
  assert _printed(code) == [str(shown), str(one)]


def test_cores_are_those_that_the_process_may_use():
  """A cluster's job has some of a machine's, and decodes in as many threads."""
  code = """
import os
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
os.cpu_count = lambda: 64
import threading, time
from unittest import mock
from resnet_jax.data import preprocess, sources
from resnet_jax.engine import loop
from resnet_jax.system import cores
found = set()
def read():
  time.sleep(0.01)
  found.add(threading.current_thread().name)
  return b''
items = [sources.Item('key', 'name', 0, read)] * 9
run = loop.Run(items, preprocess.Preprocess(), mock.MagicMock(), 9, 9)
run.stream(on_error='record')
print(cores.count(), len(found))
"""
  assert _printed(code) == ['1', '1']
