# SPDX-License-Identifier: Apache-2.0
"""How far a run is, where there is no terminal (tests/test_terminal.py)."""

import pytest

from resnet_jax.system import console


def test_elsewhere_there_are_plain_lines(monkeypatch, capsys):
  now = 100.0
  monkeypatch.setattr(console.time, 'monotonic', lambda: now)
  with console.Progress(total=100, done=10) as bar:
    for _ in range(9):
      now += 10
      bar.add(10)
  lines = capsys.readouterr().err.splitlines()
  # Every 15 s at most; the first batch, with the compiler in it, is no rate.
  assert lines == [
    '30 of 100 images, 1.0 images/s, 70 s left',
    '50 of 100 images, 1.0 images/s, 50 s left',
    '70 of 100 images, 1.0 images/s, 30 s left',
    '90 of 100 images, 1.0 images/s, 10 s left',
    '90 images in 90.0 s, 1.0 images/s',
  ]


def test_a_failed_run_does_not_say_that_it_is_done(capsys):
  with pytest.raises(ValueError, match='x'), console.Progress(3):
    raise ValueError('x')
  assert capsys.readouterr().err == ''
