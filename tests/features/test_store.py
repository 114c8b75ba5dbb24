# SPDX-License-Identifier: Apache-2.0
"""The Zarr store: two readers, resuming after a crash, and damage."""

import dataclasses
import json
import pathlib
import struct

import feature_runs
import numpy as np
import pytest
import zarr
from feature_runs import (
  FACTS,
  LAYERS,
  plan_of,
  reasons_of,
  values_of,
  write_batch,
)
from makers import contents, user_error

from resnet_jax import features
from resnet_jax.codecs.zarr import arrays
from resnet_jax.system import errors, files

ZARR = features.FORMATS['zarr']


def write(directory, plan, **keywords):
  """See `feature_runs.write`; returns the folder of the unfinished run."""
  feature_runs.write('zarr', directory, plan, **keywords)
  return files.part(directory)


# ----------------------------------------------------------------- readers


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
  ('rows', 'batch', 'failed'),
  [
    (1, 1, ()),
    (6, 3, ()),
    (7, 3, (2, 6)),
    (8, 3, (4,)),
    # A batch that failed as a whole.
    (8, 3, (0, 3, 4, 5)),
    (5, 5, (0,)),
  ],
)
def test_both_readers_give_what_was_written(
  tmp_path, dtype, rows, batch, failed
):
  plan = plan_of(rows, batch, dtype)
  write(tmp_path / 'out', plan, failed=failed)
  ours = features.load_features(str(tmp_path / 'out'))
  theirs = zarr.open_group(tmp_path / 'out', mode='r')

  assert set(ours) == set(LAYERS)
  assert len(ours) == len(LAYERS)
  assert set(theirs.array_keys()) == {*LAYERS, 'keys', 'labels'} | {
    'status',
    'reason',
  }
  for name, expected in values_of(plan, failed).items():
    assert np.isnan(expected).any() == bool(failed)
    for array in (ours[name], theirs[name]):
      assert array.shape == expected.shape
      assert array.dtype == np.dtype(dtype)
      np.testing.assert_array_equal(array[:], expected)
  status = [2 if row in failed else 1 for row in range(rows)]
  for found, expected in [
    (ours.rows, list(plan.keys)),
    (list(theirs['keys'][:]), list(plan.keys)),
    (ours.labels.tolist(), list(plan.labels)),
    (theirs['labels'][:].tolist(), list(plan.labels)),
    (ours.status.tolist(), status),
    (theirs['status'][:].tolist(), status),
    (ours.reasons, reasons_of(plan, failed)),
    (list(theirs['reason'][:]), reasons_of(plan, failed)),
  ]:
    assert found == expected
  assert all(type(key) is str for key in [*ours.rows, *theirs['keys'][:]])
  assert (ours.labels.dtype, ours.status.dtype) == (np.int32, np.uint8)
  assert theirs['labels'].dtype == np.int32
  assert theirs['status'].dtype == np.uint8
  assert ours.settings == theirs.attrs['settings'] == FACTS.settings
  assert ours.record == theirs.attrs['record'] == FACTS.record
  dimensions = theirs['wide'].metadata.dimension_names
  assert dimensions == ('row', 'wide_c', 'wide_y', 'wide_x')


@pytest.mark.parametrize(
  'index',
  [
    0,
    -1,
    np.int64(7),
    slice(2, 7),
    slice(-3, None),
    slice(6, 100),
    slice(None, None, -2),
    slice(5, 5),
    [4, 0, -8, 4],
    np.arange(8) % 3 == 1,
    (slice(None), 1),
    (slice(1, 8, 3), slice(1, None), -1),
    (7, 2, 1),
    (7, 2, 1, 0),
    ([5, 2], 0),
    (slice(5, 5), 1),
    (...,),
    (),
  ],
  ids=str,
)
def test_a_layer_is_indexed_as_an_array(tmp_path, index):
  write(tmp_path / 'out', plan_of())
  layer = features.load_features(tmp_path / 'out')['wide']
  expected = values_of(plan_of())['wide']
  np.testing.assert_array_equal(layer[index], expected[index])


def test_a_layer_becomes_an_array_and_says_what_it_is(tmp_path):
  write(tmp_path / 'out', plan_of())
  ours = features.load_features(tmp_path / 'out')
  layer, expected = ours['flat'], values_of(plan_of())['flat']
  assert len(layer) == 8
  np.testing.assert_array_equal(np.asarray(layer), expected)
  double = np.asarray(layer, np.float64)
  assert double.dtype == np.float64
  np.testing.assert_array_equal(double, expected.astype(np.float64))
  assert repr(layer) == 'StoredLayer(shape=(8, 5, 1, 1), dtype=float32)'
  assert repr(ours).startswith('Features(8 rows, flat: (8, 5, 1, 1), wide: ')
  np.testing.assert_array_equal(list(layer), expected)
  for index in (8, (0, 5), (slice(None), 0, 1), 'flat', (0, 0, 0, 0, 0)):
    with pytest.raises(IndexError):
      layer[index]
  for index in ((0, [1]), (..., 0), (None, 0)):
    with pytest.raises(IndexError, match='index the rows first'):
      layer[index]


def test_a_store_of_nothing_but_failures_is_read(tmp_path):
  write(tmp_path / 'out', plan_of(4), failed=range(4))
  ours = features.load_features(tmp_path / 'out')
  assert np.isnan(ours['wide'][:]).all()
  assert list(ours.status) == [2] * 4


def test_an_unknown_layer_names_the_nearest(tmp_path):
  write(tmp_path / 'out', plan_of())
  ours = features.load_features(tmp_path / 'out')
  assert 'wide' in ours
  assert 'wied' not in ours
  with pytest.raises(errors.UserError) as caught:
    ours['wied']
  assert str(caught.value) == (
    "unknown layer of this store 'wied'. Did you mean 'wide'? Allowed: flat,"
    ' wide.'
  )
  with pytest.raises(errors.UserError) as caught:
    ours['keys']
  assert 'Did you mean' not in str(caught.value)


# ------------------------------------------------------------------ chunks


@pytest.mark.parametrize(
  ('batch', 'rows_in_a_chunk', 'expected'),
  [
    # The most rows that divide a batch and stay below the limit.
    (4, 4, 4),
    (4, 3, 2),
    (4, 2, 2),
    (6, 5, 3),
    (5, 4, 1),
    # A row larger than the limit is a chunk of its own.
    (4, 0.5, 1),
  ],
)
def test_chunks_of_large_rows_are_smaller_than_a_batch(
  tmp_path, batch, rows_in_a_chunk, expected
):
  row_bytes = 3 * 2 * 2 * 4
  limit = int(rows_in_a_chunk * row_bytes)
  plan = dataclasses.replace(plan_of(batch * 2 + 1, batch), chunk_bytes=limit)
  write(tmp_path / 'whole', plan)
  theirs = zarr.open_group(tmp_path / 'whole', mode='r')
  assert theirs['wide'].chunks == (expected, 3, 2, 2)
  assert theirs['status'].chunks == (batch,)
  files = [k for k in contents(tmp_path / 'whole') if k.startswith('wide/c/')]
  assert len(files) == -(-plan.rows // expected)
  ours = features.load_features(tmp_path / 'whole')
  for name, values in values_of(plan).items():
    np.testing.assert_array_equal(ours[name][:], values)
    np.testing.assert_array_equal(theirs[name][:], values)

  write(tmp_path / 'halted', plan, stop=batch)
  write(tmp_path / 'halted', plan, done=batch)
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


def file_bytes(path):
  return sum(
    len(data)
    for name, data in contents(path).items()
    if not name.endswith('zarr.json')
  )


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
  ('rows', 'batch', 'layers'),
  [
    (1, 1, {'a': (1, 1, 1)}),
    (7, 3, {'a': (1, 1, 1), 'b': (2, 1, 1)}),
    (7, 3, LAYERS),
    (8, 1, {f'l{i}': (1, 1, 1) for i in range(9)}),
    (6, 6, {'a': (64, 12, 12)}),
    (9, 3, {'a': (64, 12, 12), 'b': (2048, 1, 1)}),
  ],
)
def test_the_plan_is_an_upper_bound(tmp_path, rows, batch, layers, dtype):
  plan = plan_of(rows, batch, dtype, layers)
  write(tmp_path / 'out', plan)
  planned = ZARR.planned_bytes(plan, rows)
  written = file_bytes(tmp_path / 'out')
  assert written <= planned
  if plan.row_bytes() > 1000:
    # The padding of the last batch is planned and written.
    assert planned < 1.25 * written


@pytest.mark.parametrize('rows', [97, 100, 193])
def test_rows_behind_the_last_whole_batch_take_little_room(tmp_path, rows):
  plan = plan_of(rows, 96, layers={'a': (64, 12, 12)})
  write(tmp_path / 'out', plan)
  values = rows * plan.row_bytes()
  chunks = list((tmp_path / 'out' / 'a' / 'c').glob('*/0/0/0'))
  written = sum(path.stat().st_size for path in chunks)
  assert values <= written < 1.12 * values + (1 << 20)
  assert len(chunks) <= 20


def test_the_plan_of_what_is_left_is_an_upper_bound(tmp_path):
  plan = plan_of(8, 3, layers={'a': (64, 12, 12)})
  part = write(tmp_path / 'out', plan, stop=3)
  before = file_bytes(part)
  write(tmp_path / 'out', plan, done=3)
  more = file_bytes(tmp_path / 'out') - before
  assert more <= ZARR.planned_bytes(plan, 5) < 1.25 * more


def test_a_missing_chunk_does_not_hide_behind_padding(tmp_path):
  # Of 4 batches of 3 rows, the padding is as large as two rows.
  plan = plan_of(10, 3, layers={'a': (4, 3, 3)})
  write(tmp_path / 'out', plan)
  stored = features.load_features(tmp_path / 'out')
  chunks = sorted((tmp_path / 'out' / 'a' / 'c').iterdir())
  assert len(chunks) > 1
  (chunks[0] / '0' / '0' / '0').unlink()
  assert 'is damaged: ' in user_error(lambda: stored['a'][:])
  message = user_error(features.load_features, tmp_path / 'out')
  assert 'its files hold less' in message


# ----------------------------------------------------------------- resuming


@pytest.mark.parametrize('failed', [(), (1, 4, 7)], ids=str)
@pytest.mark.parametrize('done', [0, 3, 6])
def test_values_without_their_status_are_written_again(tmp_path, done, failed):
  plan = plan_of()
  write(tmp_path / 'whole', plan, failed=failed)
  part = write(tmp_path / 'halted', plan, stop=done, failed=failed)

  # A file in the place of the folder lets only the status fail.
  chunks, aside = part / 'status' / 'c', part / 'status' / 'aside'
  writer = ZARR.writer(part, plan)
  assert writer.done == done
  if done:
    chunks.rename(aside)
  chunks.write_text('')
  with pytest.raises(errors.UserError) as caught:
    write_batch(writer, plan, failed)
  message = str(caught.value)
  assert f'cannot write features to {part}' in message
  assert 'Choose another place, or make room, and start again.' in message
  assert (part / f'wide/c/{done // plan.batch_rows}/0/0/0').exists()
  # Nothing says that the rows are there.
  assert writer.done == done
  chunks.unlink()
  if done:
    aside.rename(chunks)

  write(tmp_path / 'halted', plan, done=done, failed=failed)
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


def test_the_reasons_of_a_killed_try_are_forgotten(tmp_path):
  plan = plan_of()
  write(tmp_path / 'whole', plan)
  part = write(tmp_path / 'halted', plan, stop=6, failed=(4,))
  (part / 'units' / '000001.json').unlink()
  # This time the image of row 4 can be read.
  write(tmp_path / 'halted', plan, done=3)
  assert features.load_features(tmp_path / 'halted').reasons == [''] * 8
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


def test_a_batch_cut_between_values_and_status_is_pending(tmp_path):
  """The chunks of a batch are there, what says so is not."""
  plan = plan_of()
  write(tmp_path / 'whole', plan, failed=(4,))
  part = write(tmp_path / 'halted', plan, stop=6, failed=(4,))
  (part / 'status' / 'c' / '1').unlink()
  (part / 'units' / '000001.json').unlink()
  for name in ('wide/c/1/0/0/0', 'flat/c/1/0/0/0', 'reason/c/1'):
    assert (part / name).exists()
  # Half a chunk under TensorStore's name for it, as a killed process leaves.
  chunk = part / 'wide' / 'c' / '1' / '0' / '0' / '0'
  chunk.with_name('0.__lock').write_bytes(b'half')
  write(tmp_path / 'halted', plan, done=3, failed=(4,))
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


def test_a_finished_store_has_nothing_left_to_do(tmp_path):
  plan = plan_of()
  write(tmp_path / 'out', plan, failed=(4,))
  writer = ZARR.writer(tmp_path / 'out', plan)
  assert (writer.done, writer.failed) == (8, 1)


@pytest.mark.parametrize(
  ('file', 'data'),
  [
    ('units/000000.json', b'{"unit": 0}'),
    ('units/000009.json', b'{}'),
    ('units/zarr.json', b'{}'),
    ('units/zarr.json', None),
    ('status/zarr.json', b'{'),
    ('wide/zarr.json', None),
  ],
)
def test_a_damaged_run_does_not_resume(tmp_path, file, data):
  part = write(tmp_path / 'out', plan_of(), stop=3)
  if data is None:
    (part / file).unlink()
  else:
    (part / file).write_bytes(data)
  with pytest.raises(errors.UserError) as caught:
    ZARR.writer(part, plan_of())
  assert str(caught.value).startswith(f'{part} is damaged: ')
  assert str(caught.value).endswith('Remove it to start over.')


# ------------------------------------------------------- refused by readers


def test_an_unfinished_or_missing_store_is_refused(tmp_path):
  out, part = tmp_path / 'out', tmp_path / 'out.part'
  with pytest.raises(errors.UserError) as caught:
    features.load_features(out)
  assert str(caught.value) == f'there is no feature store at {out}.'
  write(out, plan_of(), stop=6)
  with pytest.raises(errors.UserError) as caught:
    features.load_features(out)
  assert str(caught.value) == (
    f'{out} is not finished: there is only {part}; 1 unit of work missing: unit'
    ' 2 (rows 6 to 7). Start the same extract job again; it resumes.'
  )
  with pytest.raises(errors.UserError) as caught:
    features.load_features(part)
  assert str(caught.value) == (
    f'{part} is not finished; 1 unit of work missing: unit 2 (rows 6 to 7).'
    ' Start the same extract job again; it resumes.'
  )


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.txt').write_text('')
  with pytest.raises(
    errors.UserError, match='is not a feature store, or is dama'
  ):
    features.load_features(tmp_path)


def flip(place):
  def damage(data):
    damaged = bytearray(data)
    damaged[place] ^= 0x10
    return bytes(damaged)

  return damage


def cut(count):
  return lambda data: data[:-count]


@pytest.mark.parametrize(
  'damage',
  [flip(0), flip(77), flip(-5), flip(-1), cut(1), cut(4), cut(144), cut(148)],
  ids=[
    'first byte',
    'middle',
    'last value',
    'checksum',
    'without a byte',
    'without checksum',
    'checksum only',
    'empty',
  ],
)
def test_a_damaged_chunk_is_noticed_by_both_readers(tmp_path, damage):
  write(tmp_path / 'out', plan_of())
  ours = features.load_features(tmp_path / 'out')['wide']
  theirs = zarr.open_group(tmp_path / 'out', mode='r')['wide']
  chunk = tmp_path / 'out' / 'wide' / 'c' / '1' / '0' / '0' / '0'
  data = chunk.read_bytes()
  assert len(data) == 3 * 3 * 2 * 2 * 4 + 4
  chunk.write_bytes(damage(data))

  expected = values_of(plan_of())['wide']
  np.testing.assert_array_equal(ours[:3], expected[:3])
  for index in (slice(None), 3, slice(2, 4)):
    with pytest.raises(errors.UserError) as caught:
      ours[index]
    assert str(caught.value).startswith(
      f'{tmp_path / "out" / "wide"} is damaged: '
    )
    assert str(caught.value).endswith('Extract the features again.')
  with pytest.raises(ValueError, match=r'.'):
    theirs[3:6]
  chunk.write_bytes(data)
  np.testing.assert_array_equal(ours[:], expected)


def edit(**changes):
  return lambda data: json.dumps(json.loads(data) | changes).encode()


def grid(*chunk):
  return {'name': 'regular', 'configuration': {'chunk_shape': chunk}}


def signed(damage):
  """The damage of a chunk whose checksum is right."""

  def change(data):
    changed = damage(data[:-4])
    return changed + arrays.checksum(changed)

  return change


def claim(count):
  return lambda data: struct.pack('<I', count) + data[4:]


MOST = 2**32 - 1
DEEP = b'[' * 200_000 + b']' * 200_000


@pytest.mark.parametrize(
  ('file', 'damage', 'says'),
  [
    ('zarr.json', cut(9), ''),
    ('zarr.json', lambda _: b'\xff\xfe', ''),
    ('zarr.json', lambda _: b'[]', ''),
    ('zarr.json', lambda _: DEEP, 'nested too deeply'),
    ('keys/zarr.json', lambda _: DEEP, 'nested too deeply'),
    ('wide/zarr.json', lambda _: DEEP, 'nested too deeply'),
    ('zarr.json', edit(attributes={}), 'settings'),
    ('keys/c/0', None, ''),
    ('keys/c/0', lambda _: b'', ''),
    ('keys/c/0', cut(1), 'checksum'),
    ('keys/c/0', signed(cut(1)), 'breaks off'),
    ('keys/c/0', lambda data: data[:40], ''),
    ('keys/c/0', signed(claim(MOST)), f'{MOST} strings, where 8'),
    ('keys/c/0', signed(claim(7)), '7 strings, where 8 are expected'),
    # The first key's length; then bytes that are no UTF-8.
    (
      'keys/c/0',
      signed(lambda d: d[:4] + b'\xff\xff\xff\xff' + d[8:]),
      'breaks off',
    ),
    ('keys/c/0', signed(lambda d: d[:8] + b'\xff' + d[9:]), 'utf-8'),
    ('keys/zarr.json', lambda _: b'not JSON', ''),
    ('keys/zarr.json', lambda _: b'[]', ''),
    ('keys/zarr.json', None, ''),
    ('keys/zarr.json', edit(codecs=[]), 'other codecs than vlen-utf8'),
    (
      'keys/zarr.json',
      edit(codecs=[{'name': 'vlen-utf8'}, {'name': 'gzip'}]),
      'other codecs than vlen-utf8',
    ),
    ('keys/zarr.json', edit(shape=[]), ''),
    ('keys/zarr.json', edit(shape=['x']), ''),
    ('keys/zarr.json', edit(shape=[7]), ''),
    ('keys/zarr.json', edit(shape=[10**15]), ''),
    ('keys/zarr.json', edit(shape=[MOST], chunk_grid=grid(MOST)), ''),
    ('keys/zarr.json', edit(chunk_grid=grid(0)), ''),
    ('keys/zarr.json', edit(chunk_grid=grid(1)), ''),
    ('reason/zarr.json', edit(shape=[10**15]), ''),
    ('reason/zarr.json', edit(shape=[9]), ''),
    ('reason/c/1', signed(claim(MOST)), f'{MOST} strings, where 3'),
    ('reason/c/1', cut(1), ''),
    ('labels/zarr.json', edit(shape=[7]), 'the shape (7,) in chunks of'),
    ('labels/zarr.json', edit(shape=[10**15]), '8 rows'),
    ('labels/zarr.json', None, ''),
    ('status/zarr.json', edit(shape=[10**15]), '8 rows'),
    ('wide/zarr.json', lambda _: b'not JSON', ''),
    ('wide/zarr.json', None, ''),
    ('wide/zarr.json', edit(codecs=[{'name': 'nonsense'}]), 'nonsense'),
    ('wide/zarr.json', edit(shape=[10**15, 3, 2, 2]), '8 rows'),
    ('wide/zarr.json', edit(shape=[7, 3, 2, 2]), '8 rows'),
    ('wide/zarr.json', edit(shape=[8, 3, 9, 9]), 'and its files hold less'),
    ('wide/zarr.json', edit(shape=[10**9, 8, 3, 2, 2]), ''),
    (
      'wide/zarr.json',
      edit(shape=[], chunk_grid=grid(), dimension_names=[]),
      '148 bytes, and a chunk 8',
    ),
  ],
)
def test_a_damaged_store_is_refused(tmp_path, file, damage, says):
  out = tmp_path / 'out'
  write(out, plan_of(), failed=(4,))
  path = out / file
  if damage is None:
    path.unlink()
  else:
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
  with pytest.raises(errors.UserError) as caught:
    features.load_features(out)
  start = f'{out} is not a feature store, or is damaged: '
  assert str(caught.value).startswith(start)
  assert says in str(caught.value)[len(start) :]
  assert len(str(caught.value)) > len(start) + 2


@pytest.mark.parametrize(
  ('file', 'damage'),
  [
    ('labels/c/0', flip(3)),
    ('labels/c/0', cut(1)),
    ('status/c/0', flip(0)),
    ('status/c/2', cut(2)),
  ],
)
def test_damaged_labels_and_status_are_refused(tmp_path, file, damage):
  write(tmp_path / 'out', plan_of())
  path = tmp_path / 'out' / file
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(errors.UserError) as caught:
    features.load_features(tmp_path / 'out')
  assert str(tmp_path / 'out' / path.parent.parent.name) in str(caught.value)
  assert 'damaged' in str(caught.value)


def test_a_missing_status_is_pending(tmp_path):
  write(tmp_path / 'out', plan_of())
  (tmp_path / 'out' / 'status' / 'c' / '1').unlink()
  with pytest.raises(errors.UserError, match='is not finished: it has pending'):
    features.load_features(tmp_path / 'out')


def test_files_of_others_in_a_store_are_passed_over(tmp_path):
  write(tmp_path / 'out', plan_of())
  pathlib.Path(tmp_path / 'out' / '.DS_Store').write_text('')
  assert set(features.load_features(tmp_path / 'out')) == set(LAYERS)
