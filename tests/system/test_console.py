# SPDX-License-Identifier: Apache-2.0
"""What a person sees on a terminal, and what goes into a file."""

import contextlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from resnet_jax.system import console

termios = pytest.importorskip('termios')


def _on_a_terminal(arguments, folder, columns=80, results=None, **variables):
  """Status, and what the program shows, its lines ending as in a file.

  Its results go to the file `results` instead, if there is one.
  """
  ours, theirs = os.openpty()
  termios.tcsetwinsize(theirs, (24, columns))
  environment = {'PYTHONPATH': str(ROOT), 'TERM': 'xterm', **variables}
  process = subprocess.Popen(
    [sys.executable, '-m', 'resnet_jax.main', *arguments],
    cwd=folder,
    env={
      k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'NO_COLOR')
    }
    | environment,
    stdout=results or theirs,
    stderr=theirs,
  )
  os.close(theirs)
  shown = b''
  # The other end hangs up by an error.
  with contextlib.suppress(OSError):
    while piece := os.read(ours, 4096):
      shown += piece
  os.close(ours)
  return process.wait(), shown.decode().replace('\r\n', '\n')


def test_a_wide_table_comes_in_pieces_that_fit(tmp_path):
  status, shown = _on_a_terminal(['--job=zoo'], tmp_path)
  assert status == 0
  lines = shown.splitlines()
  assert max(map(len, lines)) <= 80
  pieces = [piece.splitlines() for piece in shown.split('\n\n')]
  assert len(pieces) > 1
  columns = [re.split('  +', piece[0].strip()) for piece in pieces]
  # Each row says what it is, in every piece; no column is lost.
  assert all(piece[:2] == ['weights', 'depth'] for piece in columns)
  assert [name for piece in columns for name in piece[2:]] == [
    *('top-1 / top-5', 'stride', 'pool', 'input', 'size', 'verified by'),
    'licence',
  ]
  for piece in pieces:
    assert re.match(r'msra +50  ', piece[1])


def test_elsewhere_a_row_is_a_line(run_main):
  done = run_main('--job=zoo', check=0, env={'COLUMNS': '80'})
  assert '\n\n' not in done.stdout
  assert max(map(len, done.stdout.splitlines())) > 80


def test_a_column_that_is_too_wide_stands_alone(monkeypatch, capsys):
  monkeypatch.setattr(console, 'width', lambda stream: 12)
  rows = [{'name': 'a', 'one': 1, 'two': 2, 'long': 'x' * 20, 'end': 3}]
  console.show(rows, False, heads=1)
  assert capsys.readouterr().out.split('\n\n') == [
    'name  one\na       1',
    'name  two\na       2',
    'name  long\na     xxxxxxxxxxxxxxxxxxxx',
    'name  end\na       3\n',
  ]
  # Without such columns it is left to the terminal.
  console.show(rows, False)
  assert len(capsys.readouterr().out.splitlines()) == 2


def test_results_have_no_control_characters(capsys):
  console.result('labels of \x1b]0;title\x07: 1\t2')
  console.show([{'name': '\x1b[2J'}], False)
  assert capsys.readouterr().out == (
    'labels of \\x1b]0;title\\x07: 1\t2\nname\n\\x1b[2J\n'
  )


def test_warnings_and_errors_have_colours_on_a_terminal_only(
  run_main, tmp_path
):
  arguments = ['--job=extrct']
  status, shown = _on_a_terminal(arguments, tmp_path)
  assert status == 1
  assert shown.startswith('\x1b[1;31merror:\x1b[0m unknown job')
  for variables in ({'NO_COLOR': '1'}, {'TERM': 'dumb'}):
    _, shown = _on_a_terminal(arguments, tmp_path, **variables)
    assert shown.startswith('error: unknown job')
  done = run_main(*arguments, env={'TERM': 'xterm'})
  assert done.stderr.startswith('error: unknown job')


def test_the_bar_goes_when_its_summary_comes(image_folder):
  settings = '18,weights=random,resize_size=40,crop_size=32,batch_size=2'
  _, shown = _on_a_terminal(
    [f'--config=configs/resnet.py:{settings},data=images', '--job=extract'],
    image_folder.parent,
    columns=100,
  )
  # Frames follow one another by a carriage return, and the last is blank.
  frame = r'\r +\d+%\|.*\d/7 \[\d\d:\d\d<[\d:?]+, +[\d.?]+ images/s\]'
  assert re.search(frame, shown)
  assert re.search(r'\r *\r7 images in [\d.]+ s, [\d.]+ images/s\n', shown)
  assert '\x1b[1;33mWARNING:\x1b[0m UNTRAINED' in shown


def test_predict_shows_a_bar_while_its_results_go_to_a_file(image_folder):
  (image_folder / 'b.jpg').write_bytes(b'no image')
  settings = '18,weights=random,resize_size=40,crop_size=32,batch_size=2'
  with open(image_folder.parent / 'labels.txt', 'wb') as file:
    status, shown = _on_a_terminal(
      [
        f'--config=configs/resnet.py:{settings},data=images,on_error=record',
        '--job=predict',
      ],
      image_folder.parent,
      results=file,
    )
  assert status == 3
  assert re.search(r'\d+%\|.*\d/7 \[', shown)
  assert re.search(r'\n7 images in [\d.]+ s', shown.replace('\r', '\n'))
  # A message has a line of its own, not the bar's.
  lines = [line for line in re.split(r'[\r\n]', shown) if 'FAILED:' in line]
  assert len(lines) == 1
  assert lines[0].startswith('\x1b[1;31mFAILED:\x1b[0m images/b.jpg: ')
  text = (image_folder.parent / 'labels.txt').read_text()
  assert text.count('Label of ') == 6
