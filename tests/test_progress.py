# SPDX-License-Identifier: Apache-2.0
"""How far a run is, on a terminal and elsewhere."""

import contextlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from resnet_jax.jobs import progress

termios = pytest.importorskip('termios')


def test_a_terminal_shows_a_bar_with_rate_and_time_left(pictures):
  ours, theirs = os.openpty()
  termios.tcsetwinsize(theirs, (40, 100))
  settings = '18,weights=random,resize_size=40,crop_size=32,batch_size=2'
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'resnet_jax.main',
      f'--config=configs/resnet.py:{settings},data=pictures',
      '--job=extract',
    ],
    cwd=pictures.parent,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stderr=theirs,
  )
  os.close(theirs)
  shown = b''
  # The other end hangs up by an error.
  with contextlib.suppress(OSError):
    while piece := os.read(ours, 4096):
      shown += piece
  os.close(ours)
  assert process.wait() == 0
  text = shown.decode()
  frame = r'100%\|.*7/7 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ pictures/s\]'
  assert re.search(frame, text)
  assert '7 pictures in' in text


def test_elsewhere_there_are_plain_lines(monkeypatch, capsys):
  now = 100.0
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
  with progress.Progress(total=100, done=10) as bar:
    for _ in range(9):
      now += 10
      bar.add(10)
  lines = capsys.readouterr().err.splitlines()
  # Every 15 s at most; the first batch, with the compiler in it, is no rate.
  assert lines == [
    '30 of 100 pictures, 1.0 pictures/s, 70 s left',
    '50 of 100 pictures, 1.0 pictures/s, 50 s left',
    '70 of 100 pictures, 1.0 pictures/s, 30 s left',
    '90 of 100 pictures, 1.0 pictures/s, 10 s left',
    '90 pictures in 90.0 s, 1.0 pictures/s',
  ]


def test_a_failed_run_does_not_say_that_it_is_done(capsys):
  with pytest.raises(ValueError, match='x'), progress.Progress(3):
    raise ValueError('x')
  assert capsys.readouterr().err == ''
