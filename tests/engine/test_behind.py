# SPDX-License-Identifier: Apache-2.0
"""Work in a thread behind the loop: order, bounds, errors."""

import itertools
import threading
import time

import pytest
from makers import HANGS, wait_until

from resnet_jax.engine import behind


def test_work_is_done_in_order_before_the_block_ends():
  done = []

  def slow(number):
    time.sleep(0.002)
    done.append(number)

  with behind.Behind(slow) as later:
    for number in range(20):
      later.give(number)
  assert done == list(range(20))


def test_the_loop_goes_on_while_work_is_done_and_is_held_back_at_the_bound():
  go_on, given = threading.Event(), []

  def wait(number):
    del number
    assert go_on.wait(HANGS)

  def loop():
    with behind.Behind(wait) as later:
      for number in range(behind.WAITING + 4):
        later.give(number)
        given.append(number)

  thread = threading.Thread(target=loop)
  thread.start()
  # One is at work, and so many wait.
  wait_until(lambda: len(given) == 1 + behind.WAITING)
  time.sleep(0.05)
  assert len(given) == 1 + behind.WAITING
  go_on.set()
  thread.join(HANGS)
  assert len(given) == behind.WAITING + 4


def test_an_error_ends_the_loop_at_the_next_piece_and_nothing_follows_it():
  done = []

  def work(number):
    if number == 2:
      raise OSError('the disk is full')
    done.append(number)

  def loop():
    with behind.Behind(work) as later:
      for number in itertools.count():
        later.give(number)
        time.sleep(0.001)

  with pytest.raises(OSError, match='the disk is full'):
    loop()
  assert done == [0, 1]


def test_an_error_of_the_last_piece_is_raised_at_the_end():
  def work(number):
    raise OSError(f'no place for {number}')

  with (
    pytest.raises(OSError, match='no place for 7'),
    behind.Behind(work) as later,
  ):
    later.give(7)


def test_an_error_of_the_loop_waits_for_what_was_given():
  done = []

  def slow(number):
    time.sleep(0.01)
    done.append(number)

  def loop():
    with behind.Behind(slow) as later:
      later.give(1)
      later.give(2)
      raise ValueError('of the loop')

  with pytest.raises(ValueError, match='of the loop'):
    loop()
  assert done == [1, 2]
