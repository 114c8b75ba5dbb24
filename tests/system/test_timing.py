# SPDX-License-Identifier: Apache-2.0
"""The clock of a run's stages."""

import contextlib
import json
import threading
import types

import pytest

from resnet_jax.system import timing


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


def test_threads_lose_nothing(now):
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
  spend(now, clock.measure('decode', 0), 1)
  assert clock.rates() == {'decode': 16000}
