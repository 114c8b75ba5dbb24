# SPDX-License-Identifier: Apache-2.0
"""The original's feature files: pickles, text, and resuming after a crash."""

import dataclasses
import errno
import json
import os
import pickle

import numpy as np
import pytest
from feature_runs import (
  FACTS,
  LAYERS,
  open_writer,
  plan_of,
  values_of,
  write,
  write_batch,
)
from makers import contents

from resnet_jax import features
from resnet_jax.features import stream, table
from resnet_jax.system import errors

# All that append rows to files.
FORMS = tuple(name for name in features.FORMATS if name != 'zarr')
# Rows 0 to 3, 4 to 7 and 8 to 11 in a file each.
SHORT = dataclasses.replace(stream.PICKLE, rows_per_file=4)


def names_of(plan):
  return [key.split('/')[-1] for key in plan.keys]


def load_plainly(path):
  with open(path, 'rb') as file:
    loaded = pickle.load(file)
    assert file.read() == b''
  return loaded


# ----------------------------------------------------------------- pickles


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
  ('rows', 'batch', 'failed'), [(1, 1, ()), (6, 3, (1,)), (8, 3, (0, 7))]
)
def test_a_pickle_is_the_originals_dict(tmp_path, rows, batch, failed, dtype):
  plan = plan_of(rows, batch, dtype)
  write('pickle', tmp_path / 'out', plan, failed=failed)
  assert set(contents(tmp_path / 'out')) == {'batch_0', 'run.json'}
  expected = values_of(plan, failed)
  for loaded in (
    load_plainly(tmp_path / 'out' / 'batch_0'),
    features.load_feature_py(str(tmp_path / 'out')),
  ):
    assert type(loaded) is dict
    assert list(loaded) == names_of(plan)
    for row, entry in enumerate(loaded.values()):
      assert type(entry) is dict
      assert list(entry) == ['wide', 'flat']
      for layer, size in (('wide', 12), ('flat', 5)):
        assert entry[layer].dtype == np.dtype(dtype)
        assert entry[layer].shape == (1, size)
        # In the order (C, H, W).
        np.testing.assert_array_equal(
          entry[layer][0], expected[layer][row].reshape(-1)
        )
        assert np.isnan(entry[layer]).all() == (row in failed)


def test_values_in_any_memory_order_are_written_in_theirs(tmp_path):
  plan = plan_of(3, 3)
  array = np.arange(3 * 12, dtype=np.float32).reshape(3, 3, 2, 2)
  turned = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
  values = {
    'wide': turned.transpose(0, 3, 1, 2),
    'flat': np.zeros((3, 5, 1, 1)),
  }
  assert not values['wide'].flags.c_contiguous
  write('pickle', tmp_path / 'pickle', plan, values=values)
  loaded = features.load_feature_py(tmp_path / 'pickle')
  write('text', tmp_path / 'text', plan, values=values)
  samples = features.load_feature_c(tmp_path / 'text' / 'rank-00000')
  for row, name in enumerate(names_of(plan)):
    expected = list(range(12 * row, 12 * row + 12))
    assert loaded[name]['wide'].tolist() == [expected]
    assert samples[row][0] == expected


@pytest.mark.parametrize('rows', [3, 4, 5, 8, 11, 12])
@pytest.mark.parametrize('batch', [1, 2, 3, 4, 5, 9, 12])
def test_a_file_ends_within_or_with_a_batch(tmp_path, rows, batch):
  plan = plan_of(rows, batch)
  write(SHORT, tmp_path / 'out', plan)
  count = -(-rows // 4)
  files = {f'batch_{number}' for number in range(count)}
  assert set(contents(tmp_path / 'out')) == files | {'run.json'}
  for number in range(count):
    entries = load_plainly(tmp_path / 'out' / f'batch_{number}')
    assert list(entries) == names_of(plan)[4 * number : 4 * number + 4]
  loaded = features.load_feature_py(tmp_path / 'out')
  assert list(loaded) == names_of(plan)
  for row, entry in enumerate(loaded.values()):
    for layer, values in values_of(plan).items():
      np.testing.assert_array_equal(entry[layer][0], values[row].ravel())


def test_a_file_holds_ten_thousand_samples(tmp_path):
  # 4096 does not divide 10000: the file ends within a batch.
  plan = plan_of(10_001, 4096, layers={'a': (1, 1, 1)})
  write('pickle', tmp_path / 'out', plan)
  names = names_of(plan)
  batches = [load_plainly(tmp_path / 'out' / f'batch_{i}') for i in (0, 1)]
  assert [list(entries) for entries in batches] == [
    names[:10_000],
    names[10_000:],
  ]
  loaded = features.load_feature_py(tmp_path / 'out')
  assert list(loaded) == names
  found = np.array([entry['a'][0, 0] for entry in loaded.values()])
  np.testing.assert_array_equal(found, values_of(plan)['a'].ravel())
  assert not (tmp_path / 'out' / 'batch_2').exists()


@pytest.mark.parametrize(
  ('keys', 'names', 'noted'),
  [
    (['x/a.png', 'y/b.png', 'c.png'], ['a.png', 'b.png', 'c.png'], False),
    (['a', 'A'], ['a', 'A'], False),
    (['x/a', 'y/a', 'b'], ['x/a', 'y/a', 'b'], True),
    (['x/a', 'x/b', 'a'], ['x/a', 'x/b', 'a'], True),
  ],
)
def test_images_of_one_base_name_keep_their_paths(tmp_path, keys, names, noted):
  plan = table.FeatureTable(keys, [-1] * len(keys), LAYERS, 'float32', 2)
  write('pickle', tmp_path / 'out', plan)
  loaded = features.load_feature_py(tmp_path / 'out')
  assert list(loaded) == names
  for row, name in enumerate(names):
    expected = values_of(plan)['wide'][row].reshape(1, -1)
    np.testing.assert_array_equal(loaded[name]['wide'], expected)
  notes = features.FORMATS['pickle'].notes(plan)
  assert len(notes) == noted
  assert all('same base name' in note for note in notes)
  assert all('batch_N are relative paths' in note for note in notes)
  assert (
    features.FORMATS['zarr'].notes(plan)
    == features.FORMATS['text'].notes(plan)
    == []
  )


def test_an_image_listed_twice_is_refused_by_pickle_only(tmp_path):
  keys = ['x/a', 'b', 'x/a']
  plan = table.FeatureTable(keys, [-1] * 3, LAYERS, 'float32', 2)
  for attempt in (
    lambda: features.FORMATS['pickle'].notes(plan),
    lambda: write('pickle', tmp_path / 'pickle', plan),
  ):
    with pytest.raises(errors.UserError) as caught:
      attempt()
    assert str(caught.value) == (
      "'x/a' is listed twice, and the pickle format holds an image once. List"
      ' it once, or use feature_format=zarr.'
    )
  assert features.FORMATS['text'].notes(plan) == []
  write('text', tmp_path / 'text', plan)
  rows = features.load_feature_c(tmp_path / 'text' / 'rank-00000')
  assert len(rows) == 3
  write_zarr = features.FORMATS['zarr']
  (tmp_path / 'zarr').mkdir()
  write_zarr.create(tmp_path / 'zarr', plan, FACTS)
  assert write_zarr.writer(tmp_path / 'zarr', plan).done == 0


def test_files_are_read_in_the_order_of_their_numbers(tmp_path):
  for number in (10, 2, 0, 1, 100):
    # A later file takes the place of a former one's entry, as in the original.
    entry = {'a': np.full((1, 2), number, np.float32)}
    with open(tmp_path / f'batch_{number}', 'wb') as file:
      pickle.dump({f'p{number}': entry, 'all': entry}, file)
  for other in ('batch_', 'batch_x', 'batch_3.bak', 'my_batch_4', 'run.json'):
    (tmp_path / other).write_text('not a pickle')
  loaded = features.load_feature_py(tmp_path)
  assert list(loaded) == ['p0', 'all', 'p1', 'p2', 'p10', 'p100']
  assert loaded['all']['a'].tolist() == [[100, 100]]


class Call:
  """Pickled as a call, which a plain reader makes."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', [0, 2, 3, 5])
@pytest.mark.parametrize(
  ('call', 'named'),
  [
    (lambda path: Call(os.mkdir, path), 'mkdir'),
    (lambda path: Call(eval, f'__import__("os").mkdir({path!r})'), 'eval'),
    (lambda path: {'p': {'a': Call(os.mkdir, path)}}, 'mkdir'),
  ],
)
def test_a_crafted_pickle_is_refused_and_not_run(
  tmp_path, call, named, protocol
):
  gotcha = tmp_path / 'gotcha'
  data = pickle.dumps(call(str(gotcha)), protocol)
  (tmp_path / 'batch_0').write_bytes(data)
  with pytest.raises(errors.UserError) as caught:
    features.load_feature_py(tmp_path)
  assert str(caught.value).startswith(f'{tmp_path / "batch_0"} is refused: ')
  assert named in str(caught.value)
  assert 'only NumPy arrays' in str(caught.value)
  assert not gotcha.exists()
  # It would have been run.
  pickle.loads(data)
  assert gotcha.exists()


@pytest.mark.parametrize(
  ('data', 'says'),
  [
    (pickle.dumps([1, 2]), 'holds no dict'),
    (b'', ''),
    (b'not a pickle', ''),
    (pickle.dumps({'a': {'b': np.zeros((1, 9))}})[:-9], ''),
  ],
)
def test_what_is_no_pickle_of_features_is_refused(tmp_path, data, says):
  (tmp_path / 'batch_0').write_bytes(data)
  with pytest.raises(errors.UserError) as caught:
    features.load_feature_py(tmp_path)
  assert str(tmp_path / 'batch_0') in str(caught.value)
  assert says in str(caught.value)


def test_the_reader_of_pickles_says_what_is_not_there(tmp_path):
  out = tmp_path / 'out'
  for directory in (out, tmp_path):
    with pytest.raises(errors.UserError) as caught:
      features.load_feature_py(directory)
    assert str(caught.value).startswith(
      f'there are no feature files batch_N in {directory}'
    )
  write('pickle', out, plan_of(), stop=3)
  with pytest.raises(errors.UserError) as caught:
    features.load_feature_py(out)
  assert str(caught.value) == (
    f'{out} is not finished: there is only {out}.part. Start the same extract'
    ' job again; it resumes.'
  )
  with pytest.raises(errors.UserError, match=r'out\.part is not finished\. '):
    features.load_feature_py(f'{out}.part')


# -------------------------------------------------------------------- text


def test_a_line_is_values_and_semicolons_in_the_order_asked_for(tmp_path):
  layers = {'z': (2, 1, 2), 'a': (1, 1, 1), 'm': (2, 1, 1)}
  plan = table.FeatureTable(['p', 'q'], [-1, -1], layers, 'float32', 2)
  values = {
    'z': np.array([0, -1, 0.5, 1e-30, 1, 2, 3, 4]).reshape(2, 2, 1, 2),
    'a': np.array([7, 1 / 3]).reshape(2, 1, 1, 1),
    'm': np.array([16777216, 1e20, np.nan, np.nan]).reshape(2, 2, 1, 1),
  }
  singles = {k: v.astype(np.float32) for k, v in values.items()}
  write('text', tmp_path / 'out', plan, values=singles)
  assert (tmp_path / 'out' / 'rank-00000').read_bytes() == (
    b'0 -1 0.5 1.00000000e-30;7;16777216 1.00000002e+20;\n'
    b'1 2 3 4;0.333333343;nan nan;\n'
  ).replace(b'1.00000000e-30', b'1e-30')
  samples = features.load_feature_c(str(tmp_path / 'out' / 'rank-00000'))
  assert samples[0] == [[0, -1, 0.5, 1e-30], [7], [16777216, 1.00000002e20]]
  assert samples[1][0] == [1, 2, 3, 4]
  assert [[len(layer) for layer in sample] for sample in samples] == [
    [4, 1, 2],
    [4, 1, 2],
  ]


def test_text_gives_every_float32_back(tmp_path):
  random = np.random.default_rng(0)
  bits = random.integers(0, 2**32, 4000, np.uint32)
  single = np.finfo(np.float32)
  special = [0, -0.0, np.inf, -np.inf, single.max, -single.max, single.tiny]
  special += [single.smallest_subnormal, np.nextafter(np.float32(1), 2), 0.1]
  array = np.concatenate([bits.view(np.float32), np.float32(special)])
  array[np.isnan(array)] = np.float32(1 / 3)
  plan = table.FeatureTable(
    ['p'], [-1], {'a': (array.size, 1, 1)}, 'float32', 1
  )
  write(
    'text', tmp_path / 'out', plan, values={'a': array.reshape(1, -1, 1, 1)}
  )
  [[found]] = features.load_feature_c(tmp_path / 'out' / 'rank-00000')
  # Of the bits, so that -0 is told from 0.
  np.testing.assert_array_equal(
    np.array(found, np.float32).view(np.uint32), array.view(np.uint32)
  )


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('failed', [(), (0, 4, 7)], ids=str)
def test_text_is_read_back_row_by_row(tmp_path, dtype, failed):
  plan = plan_of(dtype=dtype)
  write('text', tmp_path / 'out', plan, failed=failed)
  assert set(contents(tmp_path / 'out')) == {'rank-00000', 'run.json'}
  samples = features.load_feature_c(tmp_path / 'out' / 'rank-00000')
  assert len(samples) == 8
  for row, sample in enumerate(samples):
    assert len(sample) == 2
    for found, values in zip(
      sample, values_of(plan, failed).values(), strict=True
    ):
      np.testing.assert_array_equal(
        np.array(found).astype(dtype), values[row].ravel()
      )
      assert np.isnan(found).all() == (row in failed)


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('1 2;3;\n1 2;3\n', 'line 2: it does not end with a semicolon'),
    ('1 2;3;\n1;2;\n1 2;', 'line 3: it does not end with a semicolon'),
    ('1 2;\n\n', 'line 2: it does not end with a semicolon'),
    ('1 2;\n3;\n1 x 2;\n', "line 3: could not convert string to float: 'x'"),
    ('1,2;\n', "line 1: could not convert string to float: '1,2'"),
    ('1 2; 3;x\n', 'line 1: it does not end with a semicolon'),
    ('1;\nü;\n', 'line 2: could not convert string to float'),
  ],
)
def test_damaged_text_names_the_line(tmp_path, text, says):
  path = tmp_path / 'rank-00000'
  path.write_text(text, encoding='utf-8')
  with pytest.raises(errors.UserError) as caught:
    features.load_feature_c(path)
  assert str(caught.value).startswith(f'{path} is not a text file of features')
  assert says in str(caught.value)


def test_the_reader_of_text_says_what_is_not_there(tmp_path):
  out = tmp_path / 'out'
  for path, cause in [
    (out / 'rank-00000', 'No such file or directory'),
    (tmp_path, 'Is a directory'),
  ]:
    with pytest.raises(errors.UserError) as caught:
      features.load_feature_c(path)
    assert str(caught.value).startswith(f'cannot read {path}: {cause}')
  write('text', out, plan_of(), stop=3)
  with pytest.raises(errors.UserError) as caught:
    features.load_feature_c(out / 'rank-00000')
  assert str(caught.value).startswith(f'{out} is not finished: there is ')
  assert 'Start the same extract job again' in str(caught.value)


# ----------------------------------------------------------------- resuming


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('failed', [(), (1, 4, 7)], ids=str)
def test_the_failed_rows_are_noted(tmp_path, form, failed):
  plan = plan_of()
  part = tmp_path / 'out.part'
  write(form, tmp_path / 'out', plan, stop=6, failed=failed)
  progress = json.loads((part / 'progress.json').read_bytes())
  assert progress['rows'] == 6
  assert 'failed' not in json.loads((part / 'run.json').read_bytes())
  write(form, tmp_path / 'out', plan, done=6, failed=failed)
  assert not (tmp_path / 'out' / 'progress.json').exists()
  run = json.loads((tmp_path / 'out' / 'run.json').read_bytes())
  assert run == {
    'settings': FACTS.settings,
    'record': FACTS.record,
    'failed': [
      {'row': row, 'key': plan.keys[row], 'reason': f'row {row} brökn'}
      for row in failed
    ],
  }


@pytest.mark.parametrize('form', [*FORMS, SHORT], ids=[*FORMS, '4'])
@pytest.mark.parametrize('failed', [(), (1, 4, 9)], ids=str)
@pytest.mark.parametrize('batch', [2, 3, 4])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, form, failed, batch):
  plan = plan_of(10, batch)
  write(form, tmp_path / 'whole', plan, failed=failed)
  for done in range(0, 11, batch):
    out = tmp_path / str(done)
    write(form, out, plan, stop=done, failed=failed)
    assert not out.exists()
    write(form, out, plan, done=done, failed=failed)
    assert contents(out) == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', [*FORMS, SHORT], ids=[*FORMS, '4'])
def test_a_run_may_stop_after_every_batch(tmp_path, form):
  plan = plan_of(11)
  write(form, tmp_path / 'whole', plan, failed=(4,))
  for done in (0, 3, 6):
    write(form, tmp_path / 'out', plan, done=done, stop=done + 3, failed=(4,))
  write(form, tmp_path / 'out', plan, done=9, failed=(4,))
  assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', [*FORMS, SHORT], ids=[*FORMS, '4'])
@pytest.mark.parametrize('batch', [2, 3, 4, 5, 9])
@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_rows_that_were_not_noted_are_written_again(
  tmp_path, monkeypatch, form, batch, call
):
  """Killed behind appended rows, in one file or in two of them."""
  plan = plan_of(10, batch)
  write(form, tmp_path / 'whole', plan, failed=(4,))

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  for done in range(0, 10, batch):
    out = tmp_path / str(done)
    writer = write(form, out, plan, stop=done, failed=(4,))
    part = tmp_path / f'{done}.part'
    before = contents(part)
    with monkeypatch.context() as patch:
      patch.setattr(os, call, full)
      with pytest.raises(errors.UserError) as caught:
        write_batch(writer, plan, (4,))
    assert str(caught.value) == (
      f'cannot write features to {part}: No space left on device. Choose'
      ' another place, or make room, and start again.'
    )
    # The rows are in the files; nothing says so.
    assert contents(part) != before
    assert contents(part).get('progress.json') == before.get('progress.json')
    write(form, out, plan, done=done, failed=(4,))
    after = contents(out)
    after.pop('progress.json.part', None)
    assert after == contents(tmp_path / 'whole')


@pytest.mark.parametrize(
  ('done', 'garbage'),
  [
    (0, ['batch_0']),
    (3, ['batch_0']),
    (3, ['batch_0', 'batch_1', 'batch_2']),
    (6, ['batch_1', 'batch_2']),
    (9, ['batch_2']),
  ],
)
def test_garbage_behind_what_is_noted_is_cut_off(tmp_path, done, garbage):
  plan = plan_of(12)
  write(SHORT, tmp_path / 'whole', plan)
  write(SHORT, tmp_path / 'out', plan, stop=done)
  for name in garbage:
    with open(tmp_path / 'out.part' / name, 'ab') as file:
      file.write(b'garbage' * 1000)
  write(SHORT, tmp_path / 'out', plan, done=done)
  assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', FORMS)
def test_a_file_that_lost_rows_does_not_resume(tmp_path, form):
  plan = plan_of()
  write(form, tmp_path / 'out', plan, stop=6)
  part = tmp_path / 'out.part'
  path = part / ('batch_0' if form == 'pickle' else 'rank-00000')
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.UserError) as caught:
    write_batch(open_writer(form, tmp_path / 'out', plan), plan)
  assert str(caught.value) == (
    f'{path} is shorter than progress.json says. Remove {part} to start over.'
  )


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
  'text', ['', '{"rows": 3', '[]', '{"rows": 3}', 'ü', '[' * 99_999]
)
def test_damaged_progress_does_not_resume(tmp_path, form, text):
  write(form, tmp_path / 'out', plan_of(), stop=3)
  part = tmp_path / 'out.part'
  (part / 'progress.json').write_text(text, encoding='utf-8')
  with pytest.raises(errors.UserError) as caught:
    open_writer(form, tmp_path / 'out', plan_of())
  assert str(caught.value).startswith(f'{part} is damaged: ')
  assert str(caught.value).endswith('Remove it to start over.')


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
  'layers', [{'a': (1, 1, 1)}, LAYERS, {'a': (64, 12, 12), 'b': (2048, 1, 1)}]
)
def test_the_plan_is_an_upper_bound(tmp_path, form, dtype, layers):
  plan = plan_of(5, 2, dtype, layers)
  values = {
    # The longest numbers there are in text.
    name: np.full((5, *shape), -1.17549435e-38, np.float32).astype(dtype)
    for name, shape in layers.items()
  }
  write(form, tmp_path / 'out', plan, values=values)
  written = sum(
    len(data)
    for name, data in contents(tmp_path / 'out').items()
    if name != 'run.json'
  )
  planned = features.FORMATS[form].planned_bytes(plan, 5)
  assert written <= planned
  if plan.row_bytes() > 10_000 and (form == 'pickle' or dtype == 'float32'):
    assert planned < 1.25 * written
