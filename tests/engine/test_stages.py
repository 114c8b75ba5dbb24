# SPDX-License-Identifier: Apache-2.0
"""The loop that jobs compute in, and the clock of its stages."""

import contextlib
import io
import json
import threading
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from resnet_jax.data import mean as mean_lib
from resnet_jax.data import preprocess, sources
from resnet_jax.engine import runner
from resnet_jax.jobs import common
from resnet_jax.models import resnet
from resnet_jax.system import errors, timing
from resnet_jax.weights import random

HOW = preprocess.Preprocess((1, 2, 3), resize_size=36, crop_size=32)
ROWS = 2


# ---------------------------------------------------------------- the clock


@pytest.fixture
def now(monkeypatch):
  """A clock that stands still until it is moved."""
  time = types.SimpleNamespace(value=100.0)
  counter = types.SimpleNamespace(perf_counter=lambda: time.value)
  monkeypatch.setattr(timing, 'time', counter)
  return time


def spend(now, context, seconds):
  with context:
    now.value += seconds


def test_rates_are_images_over_busy_seconds(now):
  clock = timing.Clock()
  for _ in range(10):
    spend(now, clock.measure('read', 1, workers=4), 0.5)
    spend(now, clock.measure('decode', 1, workers=2), 0.5)
  spend(now, clock.measure('transfer', 32), 1)
  # Back from the device: more time, no more images.
  spend(now, clock.measure('transfer', 0), 3)
  spend(now, clock.measure('compute', 32), 64)
  assert clock.rates() == {
    'read': pytest.approx(8),
    'decode': pytest.approx(4),
    'transfer': pytest.approx(8),
    'compute': pytest.approx(0.5),
  }


@pytest.mark.parametrize(
  ('waits', 'stage', 'share'),
  [
    ({'images': 6, 'device': 1, 'writer': 1}, 'decode', 0.75),
    ({'images': 1, 'device': 8, 'writer': 1}, 'compute', 0.8),
    ({'images': 1, 'device': 2, 'writer': 3}, 'write', 0.5),
  ],
)
def test_the_bound_is_the_slower_stage_of_what_was_waited_for(
  now, waits, stage, share
):
  clock = timing.Clock()
  seconds = {'read': 1, 'decode': 2, 'transfer': 0.01, 'compute': 3, 'write': 1}
  for name, value in seconds.items():
    spend(now, clock.measure(name, 100), value)
  for what, value in waits.items():
    spend(now, clock.waiting(what), value)
  assert clock.bound() == (stage, pytest.approx(share))
  assert clock.line() == (
    'stages, images/s: read 100, decode 50.0, transfer 10000, compute 33.3,'
    f' write 100; bound by {stage} ({100 * share:.0f}% of the time)'
  )
  figures = json.loads(json.dumps(clock.figures()))
  assert figures['bound'] == stage
  assert figures['bound_share'] == pytest.approx(share)
  assert figures['images_per_second']['decode'] == pytest.approx(50)


def test_a_failure_counts_too_and_nothing_done_is_no_line(now):
  clock = timing.Clock()
  assert clock.line() == ''
  assert clock.figures() == {
    'images_per_second': {},
    'bound': '',
    'bound_share': 0,
  }
  with contextlib.suppress(OSError), clock.measure('read', 1):
    now.value += 2
    raise OSError
  assert clock.rates() == {'read': 0.5}


def test_threads_lose_nothing():
  clock = timing.Clock()

  def work():
    for _ in range(2000):
      with clock.measure('decode', 1):
        pass

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  with clock.measure('decode', 0):
    pass
  assert clock._images['decode'] == 16000


# ----------------------------------------------------------------- the loop


def grey(value):
  file = io.BytesIO()
  Image.new('RGB', (40, 40), (value, value, value)).save(file, 'PNG')
  return file.getvalue()


class Log:
  """In place of the network: notes what is done, and takes red's mean."""

  def __init__(self, fail=None):
    self.events = []
    self._fail = fail

  def compile(self, shape):
    """Compiles nothing."""
    self.events.append(('compile', shape))

  def warm_up(self, shape):
    """Nor does it anything."""
    self.events.append(('warm up', shape))

  def __call__(self, images):
    """The result is the images."""
    self.events.append(('start', int(images[0].max())))
    return images

  def measured(self, images, clock):
    """The same, timed."""
    with clock.measure('transfer', len(images)):
      self.events.append(('measured', int(images[0].max())))
    with clock.measure('compute', len(images)):
      return images

  def fetch(self, images, mask):
    """(N, 1, 1, 1), the mean of red."""
    self.events.append(('fetch', int(images[0].max())))
    if self._fail and images.max() >= 5:
      raise self._fail
    return {'red': images[..., 0].mean((1, 2, 3)).reshape(-1, 1, 1, 1)}


@pytest.fixture
def compute():
  """Runs the loop over grey images, of values 1, 2, ... ."""

  def run(count, log, contents=None, **settings):
    contents = contents or [grey(value + 1) for value in range(count)]
    items = [
      sources.Item(str(n), f'in/{n}', n, lambda data=data: data)
      for n, data in enumerate(contents)
    ]
    setup = types.SimpleNamespace(
      source=sources.Source(items, 'images'), how=HOW
    )
    config = ConfigDict({'threads': 2, 'on_error': 'fail'})
    clock = timing.Clock()
    found = common.computed(
      config, setup, log, rows=ROWS, clock=clock, **settings
    )
    return found, clock

  return run


def test_a_batch_is_on_its_way_before_the_last_one_is_fetched(
  compute, monkeypatch
):
  # As in a run of many batches.
  monkeypatch.setattr(common, '_WARM_FROM', 7)
  log = Log()
  found, clock = compute(14, log)
  # Before the first is asked for: whoever times the rest times no compiler, and
  # no device that does it for the first time.
  shape = (ROWS, 1, 32, 32, 3)
  assert log.events == [('compile', shape), ('warm up', shape)]
  values = []
  for batch, layers in found:
    assert layers['red'].shape == (len(batch.items), 1, 1, 1)
    labels = [item.label for item in batch.items]
    values += zip(labels, layers['red'].ravel(), strict=True)
    log.events.append(('yield', batch.start + 1))
  assert values == [(n, n + 1) for n in range(14)]
  assert log.events[2:] == [
    ('start', 1),
    # The batches numbered 1 and 4 are timed, and overlap nothing.
    *(('fetch', 1), ('yield', 1)),
    *(('measured', 3), ('fetch', 3), ('yield', 3)),
    ('start', 5),
    *(('start', 7), ('fetch', 5), ('yield', 5)),
    *(('fetch', 7), ('yield', 7)),
    *(('measured', 9), ('fetch', 9), ('yield', 9)),
    ('start', 11),
    *(('start', 13), ('fetch', 11), ('yield', 11)),
    *(('fetch', 13), ('yield', 13)),
  ]
  assert list(clock.rates()) == [s for s in timing.STAGES if s != 'write']
  assert clock._images['read'] == 14
  # The same number of images for both ways.
  assert clock._images['transfer'] == clock._images['compute'] == 2 * ROWS


@pytest.mark.parametrize(('start', 'starts'), [(0, [0, 2, 4]), (4, [4])])
def test_padding_is_left_out_and_one_batch_is_enough(compute, start, starts):
  log = Log()
  found, clock = compute(5, log, start=start)
  batches = list(found)
  assert [batch.start for batch, _ in batches] == starts
  assert batches[-1][1]['red'].tolist() == [[[[5]]]]
  assert clock.bound()[0] in timing.STAGES
  # So few batches are done before a warm-up has paid.
  assert ('warm up', (ROWS, 1, 32, 32, 3)) not in log.events


def test_nothing_left_compiles_nothing(compute):
  log = Log()
  found, clock = compute(4, log, start=4)
  assert list(found) == log.events == []
  assert clock.line() == ''


def test_a_broken_image_is_said_before_the_compiler_works(compute):
  log = Log()
  with pytest.raises(errors.UserError, match='image in/1: the file is empty'):
    compute(2, log, contents=[grey(1), b''])
  assert log.events == []


def test_errors_of_the_network_name_the_images(compute):
  found, _ = compute(8, Log(errors.UserError('values are too large.')))
  with pytest.raises(
    errors.UserError, match=r'^in/4 to in/5: values are too large\.$'
  ):
    list(found)
  found, _ = compute(5, Log(RuntimeError('no memory')))
  with pytest.raises(RuntimeError, match='no memory') as caught:
    list(found)
  assert caught.value.__notes__ == ['It was at the images in/4.']


def test_a_measured_batch_has_the_same_values():
  model = resnet.ResNet(18)
  parameters = random.initialise(resnet.parameter_shapes(model), 0)
  run = runner.Runner(model, parameters, ['pool1'], mean_lib.as_array(HOW.mean))
  images = np.random.default_rng(0).integers(
    0, 256, (3, 1, 32, 32, 3), np.uint8
  )
  clock = timing.Clock()
  measured = run.fetch(run.measured(images, clock))['pool1']
  np.testing.assert_array_equal(measured, run.fetch(run(images))['pool1'])
  assert list(clock.rates()) == ['transfer', 'compute']
  # One program for both.
  assert run.compile(images.shape) is run.compile(images.shape)
