# SPDX-License-Identifier: Apache-2.0
"""Runs that several processes share, and what may befall them."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading

import feature_runs
import pytest
import zarr
from conftest import ROOT
from makers import Started, config_of, contents, user_error

import resnet_jax
from resnet_jax import jobs
from resnet_jax.features import output
from resnet_jax.features import store as zarr_store
from resnet_jax.system import ledger

SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=2'
# Seven images are four units.
UNITS = 4


def config(folder, name='out', **settings):
  paths = {'data': str(folder / 'images'), 'output_dir': str(folder / name)}
  return config_of(SMALL, **(paths | {'output_layer': 'pool1'} | settings))


def extract(folder, part='', **settings):
  return jobs.run('extract', config(folder, part=part, **settings))


def same(folder, first, second):
  """Compares two stores but for the settings that their records state."""
  found = [contents(folder / name) for name in (first, second)]
  for files_ in found:
    group = json.loads(files_.pop('zarr.json'))
    for setting in ('data', 'output_dir', 'crops'):
      del group['attributes']['record']['config'][setting]
    files_['group'] = group
  assert found[0] == found[1]


# ------------------------------------------------------------------ the job


def test_parts_in_any_order_make_the_same_store(image_folder, capsys):
  folder = image_folder.parent
  extract(folder, name='whole')
  for part in ('2/3', '0/3'):
    assert extract(folder, part) == 0
    said = capsys.readouterr().err
    assert f'part {part} (part={part})' in said
    assert 'has nothing left to do' in said
    assert not (folder / 'out').exists()
  assert 'unit of work missing: unit 1 (rows 2 to 3)' in said
  message = user_error(resnet_jax.load_features, folder / 'out')
  assert '1 unit of work missing: unit 1 (rows 2 to 3)' in message
  # Done already, and not done again.
  assert extract(folder, '0/3') == 0
  said = capsys.readouterr().err
  assert 'resuming after 2 of 2 images of this part' in said
  assert 'stages' not in said
  assert extract(folder, '1/3') == 0
  said = capsys.readouterr().err
  assert 'to write: 2 rows' in said
  assert '2 images in' in said
  assert 'features of 7 images are in' in said
  same(folder, 'whole', 'out')
  assert sorted(os.listdir(folder / 'out' / 'units')) == [
    *(f'{n:06}.json' for n in range(UNITS)),
    'zarr.json',
  ]
  assert len(zarr.open_group(folder / 'out', mode='r')['pool1'][:]) == 7
  assert extract(folder, '2/3') == 0
  assert 'is finished already' in capsys.readouterr().err


def test_a_part_without_units_and_then_all_that_is_left(image_folder, capsys):
  folder = image_folder.parent
  extract(folder, '0/9')
  assert '4 units of work missing' in capsys.readouterr().err
  extract(folder)
  assert 'features of 7 images are in' in capsys.readouterr().err
  assert len(resnet_jax.load_features(folder / 'out').rows) == 7


def test_slurm_and_jax_name_the_part(image_folder, capsys, monkeypatch):
  folder = image_folder.parent
  monkeypatch.setenv('SLURM_ARRAY_TASK_ID', '2')
  monkeypatch.setenv('SLURM_ARRAY_TASK_MIN', '1')
  monkeypatch.setenv('SLURM_ARRAY_TASK_COUNT', '2')
  extract(folder, 'auto')
  assert 'part 1/2 (SLURM_ARRAY_TASK_ID=2, SLURM' in capsys.readouterr().err
  for name in ('ID', 'MIN', 'COUNT'):
    monkeypatch.delenv(f'SLURM_ARRAY_TASK_{name}')
  extract(folder, 'auto')
  assert 'part 0/1 (JAX: no variables' in capsys.readouterr().err
  assert (folder / 'out').exists()


def test_failed_images_of_all_parts_are_counted(image_folder, capsys):
  folder = image_folder.parent
  for name in ('a.png', 'x/g.png'):
    (image_folder / name).write_bytes(b'broken')
  assert extract(folder, '1/2', on_error='record') == 3
  assert '1 image could not be read' in capsys.readouterr().err
  assert extract(folder, '0/2', on_error='record') == 3
  assert '2 images could not be read' in capsys.readouterr().err
  found = resnet_jax.load_features(folder / 'out')
  assert list(found.status) == [2, 1, 1, 1, 1, 1, 2]
  assert extract(folder, on_error='record') == 3
  assert '2 images could not be read' in capsys.readouterr().err


def test_workers_of_another_run_are_refused_by_name(image_folder):
  folder = image_folder.parent
  extract(folder, '0/2')
  before = contents(folder / 'out.part')
  for change, says in (
    ({'seed': 1}, 'the SHA-256 of the weights is'),
    ({'pool': 'avg'}, "pool is 'none' there, 'avg' now"),
  ):
    message = user_error(extract, folder, '1/2', **change)
    assert says in message
  (image_folder / 'z.png').write_bytes((image_folder / 'a.png').read_bytes())
  message = user_error(extract, folder, '1/2')
  assert 'the number of images is 7 there, 8 now' in message
  assert contents(folder / 'out.part') == before


def test_crops_are_made_in_parts(image_folder, capsys):
  folder = image_folder.parent
  runs = {'whole': [''], 'out': ['1/2', '0/2']}
  for name, parts in runs.items():
    for part in parts:
      settings = {'crops': str(folder / name), 'part': part}
      assert jobs.run('crop', config(folder, **settings)) == 0
  said = capsys.readouterr().err
  assert '1 unit of work missing: unit 0 (rows 0 to 3)' in said
  assert 'crops of 7 images are in' in said
  same(folder, 'whole', 'out')


def test_a_run_that_others_began_and_finished_meanwhile(tmp_path):
  """While a third one was about to begin it."""
  out, plan = tmp_path / 'out', feature_runs.plan_of(7, 2)

  def create(new):
    store(out)
    zarr_store.create(new, plan, feature_runs.FACTS)

  output.make_part(out, create)
  assert [path.name for path in tmp_path.iterdir()] == ['out']
  output.publish(out)

  def late(new):
    (new / 'file').write_text('')
    # Begun by another, with other settings.
    store(tmp_path / 'late', stop=2)

  part = output.make_part(tmp_path / 'late', late)
  assert zarr_store.read_settings(part) == feature_runs.FACTS.settings
  assert len(list(tmp_path.iterdir())) == 2


def test_a_store_that_began_anew_gets_no_rows_of_the_old(tmp_path):
  """A worker goes on after somebody removed its run and began another."""
  plan = feature_runs.plan_of(7, 2)
  writer = feature_runs.open_writer('zarr', tmp_path / 'out', plan)
  (tmp_path / 'out.part').rename(tmp_path / 'aside')
  message = user_error(feature_runs.write_batch, writer, plan)
  assert 'No such file' in message
  store(tmp_path / 'out', stop=2)
  before = contents(tmp_path / 'out.part')
  message = user_error(feature_runs.write_batch, writer, plan)
  assert 'removed and begun anew, by another process' in message
  assert contents(tmp_path / 'out.part') == before


def test_what_has_no_parts_refuses_them(image_folder):
  folder = image_folder.parent
  message = user_error(extract, folder, '0/2', feature_format='text')
  assert 'one process writes feature_format=text' in message
  message = user_error(extract, folder, '2/2')
  assert 'is no part' in message
  for name in ('predict', 'evaluate', 'summary'):
    message = user_error(jobs.run, name, config(folder, part='0/2'))
    assert f"part='0/2': --job={name} runs in one process" in message
    assert 'extract' in message


def test_two_programs_with_the_same_part_share_it(image_folder, run_main):
  folder = image_folder.parent
  (image_folder / 'many.list').write_text('a.png\nb.jpg\n' * 100)
  arguments = [
    '--job=extract',
    f'--config=configs/resnet.py:{SMALL}',
    '--config.data=images/many.list',
    '--config.output_layer=pool1',
  ]
  both = [Started(folder, *arguments, '--config.part=0/1') for _ in range(2)]
  # One of them is killed in the middle of its work.
  both[0].wait_until((folder / 'features.part/units/000003.json').exists)
  both[0].kill()
  assert both[1].wait() == 0
  run_main(*arguments, check=0)
  extract(folder, name='whole', data=str(image_folder / 'many.list'))
  same(folder, 'whole', 'features')


# --------------------------------------------------------------- the status


def store(directory, stop=None, failed=()):
  """A store of seven made-up rows, in units of two."""
  plan = feature_runs.plan_of(7, 2)
  feature_runs.write('zarr', directory, plan, stop=stop, failed=failed)


def status(directory, capsys, **settings):
  done = jobs.run('status', config_of(output_dir=str(directory), **settings))
  return done, capsys.readouterr().out


def test_status_of_an_unfinished_store(tmp_path, capsys):
  out = tmp_path / 'out'
  store(out, stop=4, failed=(1, 2, 3))
  code, said = status(out, capsys)
  assert code == 1
  assert f'{out}.part: not finished\n' in said
  assert '2 of 4 units, 4 of 7 images, 3 failed\n' in said
  assert (
    f'last: unit 1 by {socket.gethostname()}, process {os.getpid()}, 20'
    in (said)
  )
  assert said.endswith(
    '2 units of work missing: unit 2 (rows 4 to 5), unit 3 (rows 6 to 6)\n'
  )
  assert status(tmp_path / 'out.part', capsys) == (code, said)
  code, said = status(out, capsys, verify=True)
  assert (code, said.endswith('verified: 2 units, none damaged\n')) == (1, True)


def test_status_of_a_finished_store_and_of_crops(
  tmp_path, capsys, image_folder
):
  store(tmp_path / 'out', failed=(1,))
  code, said = status(tmp_path / 'out', capsys, verify=True)
  assert code == 0
  assert (
    f'{tmp_path / "out"}: finished\n4 of 4 units, 7 of 7 images, 1 failed'
    in (said)
  )
  assert 'missing' not in said
  assert said.endswith('verified: 4 units, none damaged\n')
  crops = config(image_folder.parent, crops=str(tmp_path / 'crops'))
  assert jobs.run('crop', crops) == 0
  code, said = status(tmp_path / 'crops', capsys, verify=True)
  assert (code, '7 of 7 images, 0 failed' in said) == (0, True)


def replace(old, new):
  return lambda data: data.replace(old, new)


@pytest.mark.parametrize(
  ('file', 'damage', 'says'),
  [
    ('wide/c/1/0/0/0', lambda data: data[:-9], ''),
    ('wide/c/1/0/0/0', lambda data: b'', ''),
    ('wide/c/1/0/0/0', None, ''),
    ('flat/c/1/0/0/0', lambda data: b'x' + data[1:], ''),
    ('reason/c/1', lambda data: data[:-9], 'checksum'),
    ('reason/c/1', None, 'other than those that were marked'),
    ('status/c/1', lambda data: data[:-1], ''),
    ('units/000001.json', replace(b'"done": 1', b'"done": 2'), ''),
  ],
)
def test_damage_is_found_and_its_unit_named(
  tmp_path, capsys, file, damage, says
):
  finished = file.startswith('wide')
  store(tmp_path / 'out', stop=None if finished else 6, failed=(2, 4))
  path = tmp_path / ('out' if finished else 'out.part') / file
  data = path.read_bytes()
  if damage:
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
  else:
    path.unlink()
  if file.startswith('units'):
    message = user_error(status, tmp_path / 'out', capsys)
    assert 'units/000001.json is of other rows' in message
    return
  code, said = status(tmp_path / 'out', capsys, verify=True)
  assert code == 1
  (line,) = [line for line in said.splitlines() if 'DAMAGED' in line]
  assert line.startswith('DAMAGED: unit 1 (rows 2 to 3), units/000001.json: ')
  assert says in line
  assert 'verified' not in said


def test_values_exchanged_with_their_checksums_are_found(tmp_path, capsys):
  store(tmp_path / 'out')
  first, second = (tmp_path / f'out/wide/c/{n}/0/0/0' for n in (0, 2))
  data = first.read_bytes()
  first.write_bytes(second.read_bytes())
  second.write_bytes(data)
  code, said = status(tmp_path / 'out', capsys, verify=True)
  assert (code, said.count('DAMAGED')) == (1, 2)


def test_a_damaged_unit_is_made_again(tmp_path, capsys):
  out, part = tmp_path / 'out', tmp_path / 'out.part'
  store(out)
  whole = contents(out)
  (out / 'wide/c/1/0/0/0').write_bytes(b'')
  out.rename(part)
  plan = feature_runs.plan_of(7, 2)
  message = user_error(feature_runs.write, 'zarr', out, plan, done=7)
  assert 'is damaged: wide lacks a chunk' in message
  assert '--job=status with verify=true names the unit' in message
  (part / 'units/000001.json').unlink()
  feature_runs.write('zarr', out, plan, done=2)
  assert contents(out) == whole
  assert status(out, capsys, verify=True)[0] == 0


@pytest.mark.parametrize('ended', [4102444800.0, 1e300, -5.0])
def test_clocks_that_are_wrong(tmp_path, capsys, ended):
  store(tmp_path / 'out', stop=4)
  path = tmp_path / 'out.part/units/000001.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'ended': ended}))
  code, said = status(tmp_path / 'out', capsys)
  assert (code, '2 of 4 units' in said) == (1, True)
  assert ('ahead of the one here' in said) == (ended > 0)
  # It has no say in what is done.
  feature_runs.write(
    'zarr', tmp_path / 'out', feature_runs.plan_of(7, 2), done=4
  )
  assert status(tmp_path / 'out', capsys, verify=True)[0] == 0


def test_what_has_no_units_is_said(tmp_path, capsys):
  feature_runs.write('text', tmp_path / 'text', feature_runs.plan_of(7, 2))
  for name in ('nowhere', 'text'):
    message = user_error(status, tmp_path / name, capsys)
    assert 'there is no Zarr store at' in message


# ------------------------------------------------------------- the writers

WORKER = """
import pathlib, sys, time
import feature_runs
from resnet_jax.features import output, store
from resnet_jax.system import files, units

directory, rows, pause, text = sys.argv[1:]
directory = pathlib.Path(directory)
plan = feature_runs.plan_of(int(rows), 2)
failed = range(1, int(rows), 5)
values = feature_runs.values_of(plan, failed)
reasons = feature_runs.reasons_of(plan, failed)
part = units.part(text, {}, lambda: (0, 1))
if not directory.exists():
  output.make_part(
    directory, lambda new: store.create(new, plan, feature_runs.FACTS)
  )
  try:
    writer = store.StoreWriter(files.part(directory), plan)
    for start in writer.starts(part):
      rows = slice(start, min(start + 2, plan.rows))
      time.sleep(float(pause))
      chosen = {name: array[rows] for name, array in values.items()}
      writer.write(start, chosen, reasons[rows])
    if not writer.missing():
      writer.finish()
      output.publish(directory)
  except Exception:
    if not directory.exists():
      raise
"""


def worker(directory, rows=40, pause=0.0, part=''):
  return subprocess.Popen(
    [sys.executable, '-c', WORKER, directory, str(rows), str(pause), part],
    env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}'},
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(process):
  _, said = process.communicate()
  assert process.returncode in (0, -signal.SIGKILL), said
  return process.returncode


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """What one undisturbed process makes."""
  folder = tmp_path_factory.mktemp('whole')
  assert ended(worker(folder / 'out')) == 0
  return contents(folder / 'out')


@pytest.mark.parametrize('same_part', [False, True])
def test_killed_workers_cost_nothing_but_time(tmp_path, whole, same_part):
  """At random moments, also while the run is created."""
  out, dice, killed = tmp_path / 'out', random.Random(same_part), 0
  parts = ['', '0/1'] if same_part else ['0/2', '1/2']
  for _ in range(4):
    workers = [worker(out, pause=0.1, part=part) for part in parts]
    for process in workers:
      timer = threading.Timer(dice.uniform(0.1, 0.9), process.kill)
      timer.start()
      killed += ended(process) != 0
      timer.cancel()
  assert killed
  for process in [worker(out, part=part) for part in parts]:
    assert ended(process) == 0
  assert contents(out) == whole
  assert [path.name for path in tmp_path.iterdir()] == ['out']
  made = ledger.Ledger(out).marks().values()
  assert len({mark.pid for mark in made}) > 1


def test_many_workers_begin_and_end_at_once(tmp_path, whole):
  out = tmp_path / 'out'
  workers = [worker(out, part=f'{n}/3') for n in range(3)]
  workers += [worker(out) for _ in range(2)]
  assert [ended(process) for process in workers] == [0] * 5
  assert contents(out) == whole
  assert [path.name for path in tmp_path.iterdir()] == ['out']
