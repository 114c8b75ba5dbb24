# SPDX-License-Identifier: Apache-2.0
"""The loop, through its typed arguments: order, overlap, errors, writing."""

import collections
import io
import itertools
import threading
import time
from unittest import mock

import numpy as np
import pytest
from makers import HANGS, wait_until
from PIL import Image

from resnet_jax.data import pipeline, preprocess, sources
from resnet_jax.engine import loop, runner
from resnet_jax.models import resnet
from resnet_jax.system import errors, timing
from resnet_jax.weights import random

PREPROCESS = preprocess.Preprocess((1, 2, 3), resize_size=36, crop_size=32)
ROWS = 2
SHAPE = (ROWS, 1, 32, 32, 3)
# Writes that may wait.
WAITING = 2


def grey(value):
  file = io.BytesIO()
  Image.new('RGB', (40, 40), (value, value, value)).save(file, 'PNG')
  return file.getvalue()


class Log:
  """In place of the network: notes its calls, and takes the mean of red."""

  def __init__(self, fail=None):
    self.events = []
    self._fail = fail

  def is_compiled(self, images, shape):
    """Never, so that it is asked to."""
    return False

  def compile(self, images, shape):
    """Compiles nothing."""
    self.events.append(('compile', images, shape))

  def warm_up(self, shape):
    """Nor does it anything."""
    self.events.append(('warm up', shape))

  def __call__(self, images, rows, clock=None):
    """The result is the images."""
    assert len(images) <= rows == ROWS
    self.events.append(('timed' if clock else 'start', int(images[0].max())))
    if clock:
      for stage in ('transfer', 'compute'):
        with clock.measure(stage, len(images)):
          pass
    return images

  def fetch(self, images, mask):
    """(N, 1, 1, 1), the mean of red."""
    assert len(images) == len(mask)
    self.events.append(('fetch', int(images[0].max())))
    if self._fail and images.max() >= 5:
      raise self._fail
    return {'red': images[..., 0].mean((1, 2, 3)).reshape(-1, 1, 1, 1)}


def run_of(count, log, contents=None, **settings):
  """A run over grey images, of values 1, 2, ... ."""
  contents = contents or [grey(value + 1) for value in range(count)]
  items = [
    sources.Item(str(n), f'in/{n}', n, lambda data=data: data)
    for n, data in enumerate(contents)
  ]
  return loop.Run(items, PREPROCESS, log, ROWS, ROWS, **settings)


def test_a_batch_is_on_its_way_before_the_last_one_is_fetched(monkeypatch):
  log, clock = Log(), timing.Clock()
  measure = mock.Mock(wraps=clock.measure)
  monkeypatch.setattr(clock, 'measure', measure)
  found = run_of(14, log, warm_up_from=7).stream(clock=clock)
  # Before the first is asked for: a timer of the rest times no compiler, and no
  # device that works for the first time.
  assert log.events == [('compile', ROWS, SHAPE), ('warm up', SHAPE)]
  values = []
  for batch, layers in found:
    assert layers['red'].shape == (len(batch.items), 1, 1, 1)
    values += zip(batch.labels, layers['red'].ravel(), strict=True)
    log.events.append(('yield', batch.start + 1))
  assert values == [(n, n + 1) for n in range(14)]
  assert log.events[2:] == [
    ('start', 1),
    # The batches numbered 1 and 4 are timed, and overlap nothing.
    *(('fetch', 1), ('yield', 1)),
    *(('timed', 3), ('fetch', 3), ('yield', 3)),
    ('start', 5),
    *(('start', 7), ('fetch', 5), ('yield', 5)),
    *(('fetch', 7), ('yield', 7)),
    *(('timed', 9), ('fetch', 9), ('yield', 9)),
    ('start', 11),
    *(('start', 13), ('fetch', 11), ('yield', 11)),
    *(('fetch', 13), ('yield', 13)),
  ]
  assert list(clock.rates()) == [s for s in timing.STAGES if s != 'write']
  images = collections.Counter()
  for call in measure.call_args_list:
    images[call.args[0]] += call.args[1]
  assert images['read'] == 14
  # The same number of images for both ways.
  assert images['transfer'] == images['compute'] == 2 * ROWS


@pytest.mark.parametrize(('start', 'starts'), [(0, [0, 2, 4]), (4, [4])])
def test_the_last_batch_is_smaller_and_one_batch_is_enough(start, starts):
  log, clock = Log(), timing.Clock()
  batches = list(run_of(5, log).stream(start, clock=clock))
  assert [batch.start for batch, _ in batches] == starts
  assert batches[-1][1]['red'].tolist() == [[[[5]]]]
  assert clock.bound()[0] in timing.STAGES
  # So few batches are done before a warm-up has paid.
  assert ('warm up', SHAPE) not in log.events


def test_an_array_goes_the_same_way_uncut():
  log = Log()
  pixels = np.full((3, 40, 48, 3), [[[[7]]], [[[8]]], [[[9]]]], np.uint8)
  batches = list(loop.Run(pixels, PREPROCESS, log, ROWS, ROWS).stream())
  assert [batch.keys for batch, _ in batches] == [['0', '1'], ['2']]
  assert log.events[0] == ('compile', ROWS, (ROWS, 1, 40, 48, 3))
  assert [v['red'].ravel().tolist() for _, v in batches] == [[7, 8], [9]]


def test_nothing_left_compiles_nothing():
  log, clock = Log(), timing.Clock()
  found = run_of(4, log).stream(4, clock=clock)
  assert list(found) == log.events == []
  assert clock.line() == ''


def test_images_are_decoded_while_the_compiler_works(monkeypatch):
  decoded, log = threading.Event(), Log()
  crops_of = pipeline.crops_of

  def noting(data, how):
    try:
      return crops_of(data, how)
    finally:
      decoded.set()

  def compile_(images, shape):
    assert decoded.wait(HANGS)
    Log.compile(log, images, shape)

  monkeypatch.setattr(pipeline, 'crops_of', noting)
  monkeypatch.setattr(log, 'compile', compile_)
  assert len(list(run_of(3, log).stream())) == 2
  assert log.events[0] == ('compile', ROWS, SHAPE)


def test_a_broken_image_does_not_wait_for_the_compiler(monkeypatch):
  log, go_on = Log(), threading.Event()
  monkeypatch.setattr(log, 'compile', lambda *given: go_on.wait(HANGS))
  with pytest.raises(errors.UserError, match='image in/1: the file is empty'):
    run_of(2, log, contents=[grey(1), b'']).stream()
  go_on.set()
  assert log.events == []


def test_an_error_of_the_compiler_is_the_callers(monkeypatch):
  log = Log()
  monkeypatch.setattr(log, 'compile', mock.Mock(side_effect=ValueError('no')))
  with pytest.raises(ValueError, match='no'):
    run_of(2, log).stream()


def test_without_a_clock_nothing_is_timed():
  log = Log()
  list(run_of(5, log).stream())
  assert {event for event, *_ in log.events} == {'compile', 'start', 'fetch'}


def test_a_broken_image_is_masked_if_asked():
  contents = [grey(1), b'', grey(3)]
  run = run_of(3, Log(), contents=contents)
  (first, values), (second, _) = run.stream(on_error='record')
  assert first.mask.tolist() == [True, False]
  assert second.mask.tolist() == [True]
  assert first.reasons == ['', 'the file is empty']
  assert values['red'][0] == 1
  assert np.isnan(values['red'][1]).all()


def test_errors_of_the_network_name_the_images():
  run = run_of(8, Log(errors.UserError('values are too large.')))
  with pytest.raises(
    errors.UserError, match=r'^in/4 to in/5: values are too large\.$'
  ):
    list(run.stream())
  run = run_of(5, Log(RuntimeError('no memory')))
  with pytest.raises(RuntimeError, match='no memory') as caught:
    list(run.stream())
  assert caught.value.__notes__ == ['It was at the images in/4.']


def test_a_measured_batch_has_the_same_values():
  model = resnet.ResNet(18)
  parameters = random.initialise(model, 0)
  run = runner.Runner(model, parameters, ['pool1'], PREPROCESS)
  images = np.random.default_rng(0).integers(
    0, 256, (3, 1, 32, 32, 3), np.uint8
  )
  clock = timing.Clock()
  measured = run.fetch(run(images, clock=clock))['pool1']
  np.testing.assert_array_equal(measured, run.fetch(run(images))['pool1'])
  assert list(clock.rates()) == ['transfer', 'compute']
  # One program for both.
  assert run.compile(images.shape) is run.compile(images.shape)


# --------------------------------------------------------------- writing


def test_work_is_done_in_order_before_the_block_ends():
  done = []

  def slow(number):
    time.sleep(0.002)
    done.append(number)

  with loop.writing_behind(slow) as give:
    for number in range(20):
      give(number)
  assert done == list(range(20))


def test_the_loop_continues_while_work_is_done_and_waits_at_the_bound():
  go_on, given = threading.Event(), []

  def wait(number):
    del number
    assert go_on.wait(HANGS)

  def run():
    with loop.writing_behind(wait) as give:
      for number in range(WAITING + 4):
        give(number)
        given.append(number)

  thread = threading.Thread(target=run)
  thread.start()
  # One is at work, and WAITING wait.
  wait_until(lambda: len(given) == 1 + WAITING)
  time.sleep(0.05)
  assert len(given) == 1 + WAITING
  go_on.set()
  thread.join(HANGS)
  assert len(given) == WAITING + 4


def test_an_error_ends_the_loop_at_the_next_piece_and_nothing_follows_it():
  done = []

  def work(number):
    if number == 2:
      raise OSError('the disk is full')
    done.append(number)

  def run():
    with loop.writing_behind(work) as give:
      for number in itertools.count():
        give(number)
        time.sleep(0.001)

  with pytest.raises(OSError, match='the disk is full'):
    run()
  assert done == [0, 1]


def test_an_error_of_the_last_piece_is_raised_at_the_end():
  def work(number):
    raise OSError(f'no place for {number}')

  with (
    pytest.raises(OSError, match='no place for 7'),
    loop.writing_behind(work) as give,
  ):
    give(7)


def test_an_error_of_the_loop_waits_for_what_was_given():
  done = []

  def slow(number):
    time.sleep(0.01)
    done.append(number)

  def run():
    with loop.writing_behind(slow) as give:
      give(1)
      give(2)
      raise ValueError('of the loop')

  with pytest.raises(ValueError, match='of the loop'):
    run()
  assert done == [1, 2]
