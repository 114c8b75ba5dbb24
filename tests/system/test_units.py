# SPDX-License-Identifier: Apache-2.0
"""Units of work, the parts of workers, and marks."""

import json
import os

import pytest
from makers import user_error

from resnet_jax.system import ledger, units


@pytest.mark.parametrize(
  ('rows', 'batch', 'size', 'count'),
  [
    (1, 1, 1, 1),
    (7, 2, 2, 4),
    (8, 2, 2, 4),
    # As many marks as a folder may have, then larger units.
    (4096, 1, 1, 4096),
    (4097, 1, 2, 2049),
    (10**9, 256, 256 * 954, 4095),
  ],
)
def test_units_are_whole_batches_and_not_too_many(rows, batch, size, count):
  split = units.split(rows, batch)
  assert (split.size, len(split)) == (size, count)
  assert split[0].start == 0
  assert split[count - 1].stop == rows
  assert all(
    split[n].stop == split[n + 1].start for n in range(min(count, 99) - 1)
  )
  for row in (0, rows // 2, rows - 1):
    unit = split.of(row)
    assert unit.start <= row < unit.stop
  assert split.count(range(count)) == rows
  with pytest.raises(IndexError):
    split[count]


@pytest.mark.parametrize('count', [1, 3, 4, 16])
@pytest.mark.parametrize('number', [1, 4, 5, 100])
def test_the_parts_are_all_units_once(count, number):
  parts = [units.Part(index, count).of(number) for index in range(count)]
  assert [n for part in parts for n in part] == list(range(number))
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


def part(text, environment=None, processes=(0, 1)):
  found = units.part(text, environment or {}, lambda: processes)
  return found.index, found.count


@pytest.mark.parametrize(
  ('environment', 'expected'),
  [
    ({}, (2, 5)),
    ({'SLURM_PROCID': '3', 'SLURM_NTASKS': '8'}, (3, 8)),
    ({'SLURM_PROCID': '3'}, (2, 5)),
    ({'SLURM_ARRAY_TASK_ID': '3', 'SLURM_ARRAY_TASK_COUNT': '16'}, (3, 16)),
    (
      {
        'SLURM_ARRAY_TASK_ID': '16',
        'SLURM_ARRAY_TASK_COUNT': '16',
        'SLURM_ARRAY_TASK_MIN': '1',
        # Of the one process of this task.
        'SLURM_PROCID': '0',
        'SLURM_NTASKS': '1',
      },
      (15, 16),
    ),
    # A single task that is run again takes whatever is missing.
    (
      {
        'SLURM_ARRAY_TASK_ID': '7',
        'SLURM_ARRAY_TASK_COUNT': '1',
        'SLURM_ARRAY_TASK_MIN': '7',
      },
      (0, 1),
    ),
  ],
)
def test_auto_asks_slurm_then_jax(environment, expected):
  assert part('auto', environment, (2, 5)) == expected


def test_a_part_is_named():
  assert part('') == (0, 1)
  assert part('3/16') == (3, 16)
  assert part('0/1') == (0, 1)
  environment = {'SLURM_PROCID': '3', 'SLURM_NTASKS': '8', 'PATH': 'x'}
  found = units.part('auto', environment, lambda: (0, 1))
  assert str(found) == 'part 3/8 (SLURM_PROCID=3, SLURM_NTASKS=8)'


@pytest.mark.parametrize(
  'text', ['3/3', '4/3', '0/0', '-1/3', '1', '1/', 'a/b', '1/2/3', 'Auto', ' ']
)
def test_what_is_no_part_is_refused(text):
  message = user_error(part, text)
  assert message.startswith(f"part='{text}' is no part. ")
  assert '0/4 to 3/4' in message


@pytest.mark.parametrize(
  ('number', 'count', 'least'),
  [('9', '2', '3'), ('2', '3', '5'), ('x', '3', '0'), ('1', '', '0')],
)
def test_tasks_that_do_not_follow_each_other_are_refused(number, count, least):
  found = {
    'SLURM_ARRAY_TASK_ID': number,
    'SLURM_ARRAY_TASK_COUNT': count,
    'SLURM_ARRAY_TASK_MIN': least,
  }
  message = user_error(part, 'auto', found)
  assert f'SLURM_ARRAY_TASK_ID={number}' in message
  assert message.endswith('Set part=i/n.')


def make(folder, rows=7, size=2):
  return ledger.Ledger.create(folder, units.Units(rows, size))


def test_a_unit_is_made_once(tmp_path):
  made = make(tmp_path)
  for unit in made.claimed(range(3)):
    made.write(unit.number, 1, f'digest {unit.number}')
  again = ledger.Ledger(tmp_path)
  assert again.units == units.Units(7, 2)
  assert list(again.missing()) == [units.Unit(3, 6, 7)]
  assert [unit.number for unit in again.claimed(range(4))] == [3]
  mark = again.mark(2)
  assert (mark.start, mark.stop, mark.done, mark.failed) == (4, 6, 1, 1)
  assert (mark.sha256, mark.pid) == ('digest 2', os.getpid())
  assert mark.begun <= mark.ended
  assert again.mark(3) is None
  again.clear()
  assert {p.name for p in made.path.iterdir()} == {
    *('zarr.json', '000000.json', '000001.json', '000002.json')
  }
  made.close()
  again.close()


def test_a_run_that_began_anew_gets_no_marks_of_the_old(tmp_path):
  old = make(tmp_path)
  old.path.rename(tmp_path / 'aside')
  with pytest.raises(FileNotFoundError):
    old.write(0, 0, '')
  make(tmp_path)
  with pytest.raises(OSError, match='removed and begun anew'):
    old.write(0, 0, '')
  assert not ledger.Ledger(tmp_path).marks()


@pytest.mark.parametrize(
  'change',
  [
    {'unit': 1},
    {'stop': 3},
    {'done': 2},
    {'done': 3, 'failed': -1},
    {'done': 1.0},
    {'done': True},
    {'sha256': None},
    {'pid': 'x'},
    {'ended': float('nan')},
    {'begun': float('inf')},
    {'more': 1},
  ],
  ids=str,
)
def test_a_damaged_mark_is_refused(tmp_path, change):
  made = make(tmp_path)
  made.write(0, 1, '')
  assert len(made.marks()) == 1
  path = made.path / '000000.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=r'units/000000\.json '):
    made.marks()


@pytest.mark.parametrize('data', ['', '{', '[]', '[' * 9999])
def test_a_mark_that_is_no_object_is_refused(tmp_path, data):
  made = make(tmp_path)
  (made.path / '000002.json').write_text(data)
  with pytest.raises(ValueError, match=r'units/000002\.json'):
    made.marks()


def test_a_clock_of_no_calendar_is_shown_as_a_number(tmp_path):
  made = make(tmp_path)
  made.write(0, 1, '')
  mark = made.mark(0)
  assert mark.date.startswith('20')
  for ended in (1e300, -1e300, 4e11):
    changed = ledger.Mark(**(vars(mark) | {'ended': ended}))
    assert changed.date == f'{ended:g} s since 1970'


@pytest.mark.parametrize(
  'stated', [{}, {'rows': 0, 'unit_rows': 1}, {'rows': 7, 'unit_rows': True}]
)
def test_a_folder_of_no_units_is_refused(tmp_path, stated):
  made = make(tmp_path)
  (made.path / 'zarr.json').write_text(json.dumps({'attributes': stated}))
  with pytest.raises(ValueError, match=r'units/zarr\.json'):
    ledger.Ledger(tmp_path)


def test_the_error_names_units_and_rows():
  split = units.Units(7, 2)
  missing = [split[n] for n in range(4)]
  assert ledger.described(missing) == (
    '4 units of work missing: unit 0 (rows 0 to 1), unit 1 (rows 2 to 3),'
    ' unit 2 (rows 4 to 5) and 1 more'
  )
