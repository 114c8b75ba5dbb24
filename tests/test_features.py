# SPDX-License-Identifier: Apache-2.0
"""Feature files: what is written, gone on with, refused and read."""

import dataclasses
import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import zarr

import resnet_jax
from resnet_jax import errors, features, files
from resnet_jax.features import layout, output, store, stream

LAYERS = {'b_layer': (3, 2, 2), 'a_layer': (4, 1, 1)}
FACTS = layout.Facts({'model': 'x', 'seed': 1}, {'note': 'ü'})
FORMS = tuple(features.FORMATS)


def plan_of(rows, batch=3, dtype='float32', layers=None):
  keys = [f'd{i % 2}/p{i} ü.png' for i in range(rows)]
  return layout.Layout(keys, list(range(rows)), layers or LAYERS, dtype, batch)


def values_of(plan):
  random = np.random.default_rng(0)
  return {
    name: random.normal(size=(plan.rows, *shape)).astype(plan.dtype)
    for name, shape in plan.layers.items()
  }


def write(form, directory, plan, *, stop=None, reasons=None, facts=FACTS):
  """Writes rows from where a run stopped up to `stop`; then publishes."""
  kind = features.FORMATS[form]
  path = output.make_part(directory, lambda p: kind.create(p, plan, facts))
  writer = kind.writer(path, plan)
  values = values_of(plan)
  stop = plan.rows if stop is None else stop
  for start in range(writer.done, stop, plan.batch_rows):
    rows = slice(start, min(start + plan.batch_rows, plan.rows))
    texts = (reasons or [''] * plan.rows)[rows]
    writer.write(start, {k: v[rows] for k, v in values.items()}, texts)
  if stop == plan.rows:
    writer.finish()
    output.publish(directory)
  return writer


def contents(directory):
  return {
    path.relative_to(directory).as_posix(): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


# ------------------------------------------------------------- all formats


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('stop', [0, 3, 6])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, form, stop):
  plan = plan_of(8)
  write(form, tmp_path / 'whole', plan)
  write(form, tmp_path / 'halted', plan, stop=stop)
  assert not (tmp_path / 'halted').exists()
  writer = write(form, tmp_path / 'halted', plan)
  assert writer.done == 8
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', FORMS)
def test_a_crash_before_the_progress_is_noted_changes_nothing(
  tmp_path, form, monkeypatch
):
  plan = plan_of(8)
  write(form, tmp_path / 'whole', plan)

  def crash(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  write(form, tmp_path / 'halted', plan, stop=3)
  kind = features.FORMATS[form]
  writer = kind.writer(tmp_path / 'halted.part', plan)
  rows = {k: v[3:6] for k, v in values_of(plan).items()}
  if form == 'zarr':

    class Crashing:
      __getitem__ = crash

    monkeypatch.setitem(writer._arrays, 'status', Crashing())
  else:
    monkeypatch.setattr(stream, '_write_json', crash)
  with pytest.raises(errors.UserError) as caught:
    writer.write(3, rows, [''] * 3)
  assert 'cannot write features to' in str(caught.value)
  assert 'No space left on device' in str(caught.value)
  assert 'make room' in str(caught.value)
  monkeypatch.undo()
  assert kind.writer(tmp_path / 'halted.part', plan).done == 3
  write(form, tmp_path / 'halted', plan)
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', FORMS)
def test_the_plan_is_an_upper_bound_that_is_near(tmp_path, form):
  plan = plan_of(7, layers={'a': (64, 12, 12), 'b': (500, 1, 1)})
  write(form, tmp_path / 'out', plan)
  written = sum(
    len(data)
    for name, data in contents(tmp_path / 'out').items()
    if not name.endswith('.json')
  )
  planned = features.FORMATS[form].planned_bytes(plan, plan.rows)
  # Text is planned at its longest; the store pads its last batch.
  assert written <= planned < 1.5 * written


@pytest.mark.parametrize('form', FORMS)
def test_settings_are_compared_before_anything_is_written(tmp_path, form):
  directory = tmp_path / 'out'
  read = features.FORMATS[form].read_settings
  assert not output.is_finished(directory, FACTS.settings, read)
  write(form, directory, plan_of(4), stop=3)
  assert not output.is_finished(directory, FACTS.settings, read)
  with pytest.raises(errors.UserError) as caught:
    output.is_finished(directory, {'model': 'y', 'new': 2}, read)
  message = str(caught.value)
  assert "model is 'x' there, 'y' now" in message
  assert 'new is None there, 2 now' in message
  assert 'seed is 1 there, None now' in message
  assert 'Choose another output_dir' in message
  write(form, directory, plan_of(4))
  assert output.is_finished(directory, FACTS.settings, read)


def test_foreign_contents_are_left_alone(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'thesis.txt').write_text('')
  (tmp_path / 'file').write_text('')
  for name in ('out', 'file'):
    with pytest.raises(errors.UserError, match='not a run of this program'):
      output.is_finished(tmp_path / name, {}, store.read_settings)
  assert (tmp_path / 'out' / 'thesis.txt').exists()


@pytest.mark.parametrize('name', ['.', '..', 'a/..', '/', 'a/../..'])
def test_an_output_directory_needs_a_name(name):
  with pytest.raises(errors.UserError, match='name a folder of its own'):
    output.checked(name)
  assert str(output.checked('new/../out/')) == 'out'


def test_a_run_of_another_format_is_recognised(tmp_path):
  write('zarr', tmp_path / 'out', plan_of(4))
  assert features.read_settings(tmp_path / 'out') == FACTS.settings
  write('text', tmp_path / 'text', plan_of(4))
  assert features.read_settings(tmp_path / 'text') == FACTS.settings
  assert features.read_settings(tmp_path) is None


def test_an_empty_directory_and_a_crash_while_creating_are_fine(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out.new').mkdir()
  (tmp_path / 'out.new' / 'half').write_text('')
  write('zarr', tmp_path / 'out', plan_of(4))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out']


def test_too_little_space_says_how_much(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  assert output.check_space(tmp_path / 'not' / 'there', 1000) == 1000
  with pytest.raises(errors.UserError) as caught:
    output.check_space(tmp_path, 1_000_001)
  assert '1,000,001 bytes are to be written' in str(caught.value)
  assert '1,000 are free' in str(caught.value)
  assert 'pool=avg or dtype=float16' in str(caught.value)


def test_an_atomic_write_leaves_the_old_or_the_new(tmp_path, monkeypatch):
  path = tmp_path / 'f'
  files.write_atomically(path, b'old')

  def crash(*_):
    raise OSError(errno.EIO, 'broken')

  monkeypatch.setattr(os, 'fsync', crash)
  with pytest.raises(OSError, match='broken'):
    files.write_atomically(path, b'new')
  assert path.read_bytes() == b'old'
  monkeypatch.undo()
  files.write_atomically(path, b'new')
  assert path.read_bytes() == b'new'


# ---------------------------------------------------------------- the store


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_the_store_is_read_by_us_and_by_zarr(tmp_path, dtype):
  plan = plan_of(8, dtype=dtype)
  reasons = [''] * 8
  reasons[4] = 'it is brökn'
  writer = write('zarr', tmp_path / 'out', plan, reasons=reasons)
  assert writer.failed == 1
  ours = resnet_jax.load_features(tmp_path / 'out')
  theirs = zarr.open_group(tmp_path / 'out', mode='r')
  values = values_of(plan)
  assert set(ours) == set(LAYERS)
  for name, expected in values.items():
    assert ours[name].shape == theirs[name].shape == expected.shape
    assert ours[name].dtype == theirs[name].dtype == expected.dtype
    np.testing.assert_array_equal(ours[name][:], expected)
    np.testing.assert_array_equal(np.asarray(ours[name]), expected)
    np.testing.assert_array_equal(theirs[name][:], expected)
    for index in (
      *(-1, slice(None, None, -2), [5, 0], (slice(2, 5), 1), (3, -1, 0, 0)),
      *(slice(9, 9), expected[:, 0, 0, 0] > 0, (...,)),
    ):
      np.testing.assert_array_equal(ours[name][index], expected[index])
    for index in (8, -9):
      with pytest.raises(IndexError):
        ours[name][index]
    with pytest.raises(IndexError, match='index the rows first'):
      ours[name][0, [1]]
  assert ours.rows == list(plan.keys) == list(theirs['keys'][:])
  assert list(ours.labels) == list(theirs['labels'][:]) == list(range(8))
  assert list(ours.status) == list(theirs['status'][:])
  assert list(ours.status) == [1, 1, 1, 1, 2, 1, 1, 1]
  assert ours.reasons == reasons == list(theirs['reason'][:])
  assert dict(theirs.attrs) == {
    'settings': FACTS.settings,
    'record': FACTS.record,
  }
  assert ours.settings == FACTS.settings
  assert ours.record == FACTS.record


def test_large_rows_get_chunks_of_their_own(tmp_path, monkeypatch):
  monkeypatch.setattr(store, '_MAX_CHUNK_BYTES', 2 * 3 * 2 * 2 * 4)
  plan = plan_of(8, batch=4)
  write('zarr', tmp_path / 'out', plan)
  names = contents(tmp_path / 'out')
  assert {n for n in names if n.startswith('b_layer/c')} == {
    f'b_layer/c/{i}/0/0/0' for i in range(4)
  }
  ours = resnet_jax.load_features(tmp_path / 'out')
  for name, expected in values_of(plan).items():
    np.testing.assert_array_equal(ours[name][:], expected)


def test_unfinished_missing_and_wrong_layers_are_said(tmp_path):
  write('zarr', tmp_path / 'out', plan_of(8), stop=3)
  with pytest.raises(errors.UserError, match=r'out\.part is what there is'):
    resnet_jax.load_features(tmp_path / 'out')
  with pytest.raises(errors.UserError, match='it has pending rows'):
    resnet_jax.load_features(tmp_path / 'out.part')
  with pytest.raises(errors.UserError, match='there is no feature store'):
    resnet_jax.load_features(tmp_path / 'nowhere')
  write('zarr', tmp_path / 'out', plan_of(8))
  with pytest.raises(errors.UserError, match="Did you mean 'a_layer'"):
    resnet_jax.load_features(tmp_path / 'out')['a_layr']


def _edit_json(change):
  def edit(data):
    value = json.loads(data)
    change(value)
    return json.dumps(value).encode()

  return edit


@pytest.mark.parametrize(
  ('file', 'change'),
  [
    ('zarr.json', lambda d: d[:-9]),
    ('zarr.json', lambda d: b'[]'),
    ('keys/c/0', lambda d: d[:-1]),
    ('keys/c/0', lambda d: b'\xff\xff\xff\xff' + d[4:]),
    ('keys/c/0', lambda d: d[:4] + b'\xff\xff\xff\xff' + d[8:]),
    ('keys/zarr.json', _edit_json(lambda v: v.update(shape=[10**12]))),
    ('keys/zarr.json', _edit_json(lambda v: v.update(codecs=[]))),
    ('a_layer/zarr.json', _edit_json(lambda v: v['shape'].insert(0, 10**9))),
    ('a_layer/zarr.json', _edit_json(lambda v: v.update(shape=[8, 4, 9, 9]))),
    (
      'labels/zarr.json',
      _edit_json(lambda v: v.update(shape=[10**12])),
    ),
    ('status/c/0', lambda d: bytes([d[0] ^ 1]) + d[1:]),
  ],
)
def test_a_damaged_store_is_refused(tmp_path, file, change):
  write('zarr', tmp_path / 'out', plan_of(8))
  path = tmp_path / 'out' / file
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(
    errors.UserError, match=r'no feature store, or a damaged|is damaged:'
  ):
    resnet_jax.load_features(tmp_path / 'out')


@pytest.mark.parametrize(
  'change', [lambda d: d[:-3], lambda d: bytes([d[0] ^ 1]) + d[1:]]
)
def test_a_damaged_chunk_is_noticed_when_it_is_read(tmp_path, change):
  write('zarr', tmp_path / 'out', plan_of(8))
  chunk = tmp_path / 'out/a_layer/c/1/0/0/0'
  chunk.write_bytes(change(chunk.read_bytes()))
  layer = resnet_jax.load_features(tmp_path / 'out')['a_layer']
  assert np.isfinite(layer[:3]).all()
  with pytest.raises(errors.UserError, match=r'is damaged: .*Extract the feat'):
    layer[:]


# ------------------------------------------------- the original's two formats


def test_a_pickle_is_the_originals_dict(tmp_path):
  plan = plan_of(8)
  write('pickle', tmp_path / 'out', plan)
  loaded = resnet_jax.load_feature_py(tmp_path / 'out')
  with open(tmp_path / 'out' / 'batch_0', 'rb') as file:
    plain = pickle.load(file)
  names = [key.split('/')[-1] for key in plan.keys]
  assert list(loaded) == list(plain) == names
  for row, name in enumerate(names):
    assert list(loaded[name]) == list(LAYERS)
    for layer, array in values_of(plan).items():
      expected = array[row].reshape(1, -1)
      np.testing.assert_array_equal(loaded[name][layer], expected)
      np.testing.assert_array_equal(plain[name][layer], expected)
      assert loaded[name][layer].dtype == expected.dtype


@pytest.mark.parametrize('stop', [None, 3, 6, 9])
def test_files_change_within_and_at_the_end_of_a_batch(
  tmp_path, monkeypatch, stop
):
  monkeypatch.setattr(
    stream, 'PICKLE', dataclasses.replace(stream.PICKLE, rows_per_file=4)
  )
  plan = plan_of(12)
  if stop:
    write('pickle', tmp_path / 'out', plan, stop=stop)
    # As killed behind the last note: rows, and a file, that are not noted.
    last = sorted((tmp_path / 'out.part').glob('batch_*'))[-1]
    with open(last, 'ab') as file:
      file.write(b'garbage')
    (tmp_path / 'out.part' / 'batch_2').touch()
  write('pickle', tmp_path / 'out', plan)
  names = sorted(p.name for p in (tmp_path / 'out').iterdir())
  assert names == ['batch_0', 'batch_1', 'batch_2', 'run.json']
  for number in range(3):
    with open(tmp_path / 'out' / f'batch_{number}', 'rb') as file:
      assert len(pickle.load(file)) == 4
      assert not file.read()
  loaded = resnet_jax.load_feature_py(tmp_path / 'out')
  assert list(loaded) == [key.split('/')[-1] for key in plan.keys]


def test_ten_thousand_samples_a_file_in_the_order_of_the_numbers(tmp_path):
  plan = plan_of(10_001, batch=5000, layers={'a': (1, 1, 1)})
  write('pickle', tmp_path / 'out', plan)
  with open(tmp_path / 'out' / 'batch_1', 'rb') as file:
    assert list(pickle.load(file)) == ['p10000 ü.png']
  shutil.copy(tmp_path / 'out' / 'batch_1', tmp_path / 'out' / 'batch_10')
  with open(tmp_path / 'out' / 'batch_2', 'wb') as file:
    pickle.dump({'two': {}}, file)
  loaded = list(resnet_jax.load_feature_py(tmp_path / 'out'))
  assert loaded[-2:] == ['p10000 ü.png', 'two']
  assert len(loaded) == 10_002


def test_alike_base_names_become_paths_and_twins_are_refused():
  assert stream.row_names(['x/a', 'y/b']) == (['a', 'b'], '')
  names, note = stream.row_names(['x/a', 'y/a', 'b'])
  assert names == ['x/a', 'y/a', 'b']
  assert 'relative paths' in note
  with pytest.raises(errors.UserError, match="'x/a' is listed twice"):
    stream.row_names(['x/a', 'b', 'x/a'])


class _Touch:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_a_crafted_pickle_is_refused_and_not_run(tmp_path):
  with open(tmp_path / 'batch_0', 'wb') as file:
    pickle.dump({'p': _Touch(tmp_path / 'gotcha')}, file)
  with pytest.raises(errors.UserError, match=r'posix\.mkdir|nt\.mkdir'):
    resnet_jax.load_feature_py(tmp_path)
  assert not (tmp_path / 'gotcha').exists()


def test_text_lines_give_float32_back_exactly(tmp_path):
  plan = plan_of(8)
  reasons = [''] * 7 + ['broken']
  write('text', tmp_path / 'out', plan, reasons=reasons)
  values = values_of(plan)
  lines = (tmp_path / 'out/rank-00000').read_text().splitlines()
  first = ' '.join(f'{v:.9g}' for v in values['b_layer'][0].ravel())
  assert lines[0].startswith(f'{first};')
  assert lines[0].count(';') == 2
  assert lines[0].endswith(';')
  samples = resnet_jax.load_feature_c(tmp_path / 'out/rank-00000')
  for row, sample in enumerate(samples):
    for place, array in enumerate(values.values()):
      text = np.array(sample[place], np.float32)
      np.testing.assert_array_equal(text, array[row].ravel())
  run = json.loads((tmp_path / 'out/run.json').read_text())
  assert run['failed'] == [{'row': 7, 'key': plan.keys[7], 'reason': 'broken'}]
  assert run['settings'] == FACTS.settings


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('1 2;3;\n1 2;3\n', 'line 2 does not end with a semicolon'),
    ('1 2;3;', 'line 1 does not end'),
    ('1 x;\n', "could not convert string to float: 'x'"),
    ('\n', 'line 1 does not end'),
    ('ü;\n', 'ascii'),
  ],
)
def test_damaged_text_is_refused(tmp_path, text, message):
  (tmp_path / 'rank-00000').write_text(text)
  with pytest.raises(errors.UserError, match='is not a text file of') as caught:
    resnet_jax.load_feature_c(tmp_path / 'rank-00000')
  assert message in str(caught.value)


def test_the_readers_say_what_is_not_there(tmp_path):
  with pytest.raises(errors.UserError, match='no feature files batch_N in'):
    resnet_jax.load_feature_py(tmp_path)
  with pytest.raises(errors.UserError, match=r'cannot read .*No such file'):
    resnet_jax.load_feature_c(tmp_path / 'rank-00000')
  write('text', tmp_path / 'out', plan_of(8), stop=3)
  with pytest.raises(errors.UserError, match='is not finished'):
    resnet_jax.load_feature_c(tmp_path / 'out' / 'rank-00000')
  with pytest.raises(errors.UserError, match='is not finished'):
    resnet_jax.load_feature_py(tmp_path / 'out')
