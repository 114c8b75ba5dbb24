# SPDX-License-Identifier: Apache-2.0
"""Stores of crops: damaged ones, hostile ones, and others than of crops."""

import json
import os

import numpy as np
import pytest
import zarr
from makers import config_of, user_error

import resnet_jax
from resnet_jax import jobs
from resnet_jax.codecs.zarr import arrays, strings
from resnet_jax.data import crop_store, decoding, pipeline, sources
from resnet_jax.data.preprocess import Preprocess

SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=3'
OWN = Preprocess(resize_size=40, crop_size=32)
AGAIN = ' Make the crops again (--job=crop), or copy the folder again.'


@pytest.fixture
def store(tmp_path, image_folder):
  """The folder of the crops of seven images, of which the last is broken."""
  (image_folder / 'x' / 'g.png').write_bytes(b'no image')
  path = tmp_path / 'crops.zarr'
  config = config_of(
    SMALL, data=str(image_folder), crops=str(path), on_error='record'
  )
  assert jobs.run('crop', config) == 3
  return path


def opened(path):
  return sources.open_source(str(path))


def read(items, rows=3, on_error='record'):
  return list(pipeline.batches(items, OWN, rows=rows, on_error=on_error))


def chunk(store, number):
  return store / 'crops' / 'c' / str(number) / '0' / '0' / '0'


def refused(store):
  """Why a store is not opened."""
  message = user_error(opened, store)
  assert message.startswith(f'{store} is damaged: ')
  assert message.endswith(AGAIN)
  assert len(message) < 2000
  return message


def test_blocks_are_rows_of_a_chunk_and_images_one_by_one(store, image_folder):
  items = opened(store).items
  assert items[0].stored.store.chunk_rows == 4
  # Whatever a batch begins with: chunks of 4 rows, then of the 3 left.
  for rows in (1, 2, 3, 4, 5, 7):
    images = np.concatenate([batch.images for batch in read(items, rows)])
    expected = read(opened(image_folder).items, 7)[0]
    np.testing.assert_array_equal(images, expected.images)
  images = opened(image_folder).items
  order = [2, 3, 4, 0, 6, 5, 1]
  mixed = [(items if n % 2 else images)[n] for n in order]
  [batch] = read(mixed, 7)
  np.testing.assert_array_equal(batch.images, expected.images[order])
  assert batch.mask.tolist() == [n != 6 for n in order]
  assert [r for r in batch.reasons if r] == [expected.reasons[6]]


def test_an_item_reads_its_crop(store, image_folder):
  items = opened(store).items
  expected = read(opened(image_folder).items, 7)[0].images
  np.testing.assert_array_equal(np.asarray(items[1].read()), expected[1, 0])
  with pytest.raises(decoding.ImageError, match='none of the formats'):
    items[6].read()
  assert repr(items[0].stored.store) == (
    f'CropStore({store}, shape=(7, 32, 32, 3))'
  )


@pytest.mark.parametrize('chunks', [('0', '1'), ('1',)])
def test_a_store_that_is_not_finished_is_not_called_damaged(store, chunks):
  for number in chunks:
    (store / 'status' / 'c' / number).unlink()
    for file in (store / 'crops' / 'c' / number).rglob('*/0'):
      if file.is_file():
        file.unlink()
  part = store.rename(store.with_name('crops.zarr.part'))
  message = user_error(opened, part)
  rows = 7 if len(chunks) == 2 else 3
  assert message == (
    f'{part} is not finished: {rows} rows of 7 are not made yet. Start the same'
    ' crop job again; it resumes.'
  )
  message = user_error(opened, store)
  assert message.startswith(f'{store} is not finished: there is only {part}.')


@pytest.mark.parametrize('on_error', ['fail', 'record'])
def test_a_damaged_chunk_is_an_error_whatever_is_recorded(store, on_error):
  data = bytearray(chunk(store, 1).read_bytes())
  data[100] ^= 1
  chunk(store, 1).write_bytes(data)
  items = opened(store).items
  # The first chunk is whole.
  assert read(items[:4], on_error=on_error)[0].mask.all()
  message = user_error(read, items, on_error=on_error)
  assert message.startswith(f'{store} is damaged: ')
  assert message.endswith(AGAIN)


@pytest.mark.parametrize('on_error', ['fail', 'record'])
def test_a_chunk_that_goes_missing_is_no_black_image(store, on_error):
  items = opened(store).items
  chunk(store, 1).unlink()
  assert read(items[:4], on_error=on_error)[0].mask.all()
  for missing in (
    lambda: read(items, on_error=on_error),
    items[5].read,
  ):
    message = user_error(missing)
    assert message.startswith(f'{store} is damaged: ')
    assert 'crops/c/1/0/0/0' in message


def _piped(path):
  path.unlink()
  os.mkfifo(path)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda path: path.unlink(), 'crops/c/0/0/0/0: No such file'),
    (lambda path: path.write_bytes(b''), 'crops/c/0/0/0/0 has 0 bytes, not 12'),
    (
      lambda path: os.truncate(path, 1 << 40),
      'crops/c/0/0/0/0: of its 1099511627776 bytes only',
    ),
    (
      _piped,
      'crops/c/0/0/0/0: it is a pipe or a device',
    ),
  ],
)
def test_a_chunk_is_a_file_of_its_size(store, damage, message):
  damage(chunk(store, 0))
  assert message in refused(store)


def _shaped(shape, chunk_shape=None):
  def change(stated):
    grid = {'chunk_shape': chunk_shape or shape}
    grid = {'name': 'regular', 'configuration': grid}
    return json.dumps(stated | {'shape': shape, 'chunk_grid': grid})

  return change


@pytest.mark.parametrize(
  'damage',
  [
    _shaped([2**40, 32, 32, 3], [4, 32, 32, 3]),
    _shaped([7, 2**40, 2**40, 3]),
    _shaped([7, 4096, 4096, 3]),
    _shaped([7, 32, 32, 4]),
    _shaped([7, 32, 31, 3]),
    _shaped([7, 31, 31, 3]),
    _shaped([7, 4, 32, 32, 3]),
    _shaped([7, 32, 32, 3], [4, 32, 16, 3]),
    _shaped([7, 32, 32, 3], [0, 32, 32, 3]),
    _shaped([10**400]),
    _shaped([]),
    lambda stated: json.dumps(stated | {'data_type': 'float32'}),
    lambda stated: json.dumps(stated | {'codecs': [{'name': 'zstd'}]}),
    lambda stated: json.dumps(
      stated | {'chunk_key_encoding': {'name': 'v2', 'configuration': {}}}
    ),
    lambda stated: json.dumps(stated | {'chunk_key_encoding': []}),
    lambda _: '[' * 100_000 + ']' * 100_000,
    lambda _: '{}',
    lambda _: 'no JSON',
  ],
)
@pytest.mark.parametrize('array', ['crops', 'labels', 'sizes', 'status'])
def test_what_an_array_states_is_checked_before_it_is_read(
  store, array, damage
):
  path = store / array / 'zarr.json'
  path.write_text(damage(json.loads(path.read_text())))
  refused(store)


@pytest.mark.parametrize(
  'change',
  [
    lambda settings: settings.pop('preprocessing'),
    lambda settings: settings.update(preprocessing=3),
    lambda settings: settings.update(contents='features'),
    lambda settings: settings.update(contents=[[]]),
    lambda settings: settings.clear(),
  ],
)
def test_what_a_store_states_of_itself_is_checked(store, change):
  group = json.loads((store / 'zarr.json').read_text())
  change(group['attributes']['settings'])
  (store / 'zarr.json').write_text(json.dumps(group))
  refused(store)


STATED = {
  **{'resize': 'short_side', 'resize_size': 40, 'crop_size': 32},
  **{'multi_crop': False, 'interpolation': 'lanczos'},
  **{'rounding': 'nearest', 'decode': 'exact'},
}


@pytest.mark.parametrize(
  'preprocessing',
  [
    *({}, [], None, 'x', 3, {'colour': 'red'}, {'crop_size': 32}),
    *([[1, 2], ['a', 3]], [[key, value] for key, value in STATED.items()]),
    *({'resize': 'none'}, {'resize': 'none', 'crop_size': None}),
    STATED | {'colour': 'red'},
    STATED | {'resize': ['short_side']},
    STATED | {'resize': 'squash'},
    STATED | {'decode': 'none'},
    STATED | {'decode': 'x' * 300_000},
    STATED | {'crop_size': None},
    STATED | {'crop_size': 32.0},
    STATED | {'crop_size': 0},
    STATED | {'multi_crop': 0},
    STATED | {'multi_crop': True},
    STATED | {'resize_size': 10**40},
    STATED | {'resize_size': [['x' * 400] * 7] * 300},
    {str(number): number for number in range(50_000)},
    [[['x' * 999] * 9] * 9] * 9,
  ],
)
def test_a_preprocessing_that_this_program_has_not_is_refused(
  store, preprocessing
):
  group = json.loads((store / 'zarr.json').read_text())
  group['attributes']['settings']['preprocessing'] = preprocessing
  (store / 'zarr.json').write_text(json.dumps(group))
  message = refused(store)
  if preprocessing == STATED | {'multi_crop': True}:
    assert 'its crops are (7, 32, 32, 3)' in message
  else:
    assert message.startswith(f'{store} is damaged: its preprocessing is ')
    assert 'which is none of this version' in message


@pytest.mark.parametrize(
  ('array', 'value', 'most'),
  [
    *(('stray', 9, 1), ('status', 3, 2)),
    *(('sizes', -5, 2**60 - 1), ('sizes', 2**62, 2**60 - 1)),
    *(('labels', -2, 10**9 - 1), ('labels', 10**9, 10**9 - 1)),
  ],
)
def test_numbers_of_a_row_have_bounds(store, array, value, most):
  zarr.open_group(store)[array][2] = value
  assert f'{array} has {value}, which is not between' in refused(store)
  assert f' and {most}. ' in refused(store)


@pytest.mark.parametrize('lost', ['zarr.json', 'crops'])
def test_a_store_that_lost_a_part_is_damaged(store, lost):
  (store / lost).rename(store.parent / 'aside')
  assert lost in refused(store)


def test_crops_of_another_size_than_stated_are_refused(store):
  group = json.loads((store / 'zarr.json').read_text())
  group['attributes']['settings']['preprocessing']['crop_size'] = 40
  (store / 'zarr.json').write_text(json.dumps(group))
  assert 'is damaged: its crops are (7, 32, 32, 3)' in refused(store)


@pytest.mark.parametrize('name', ['keys', 'reason', 'named'])
@pytest.mark.parametrize('size', [3, 2**32 - 1])
def test_texts_are_as_many_as_rows(store, name, size):
  for file in (store / name / 'c').iterdir():
    data = size.to_bytes(4, 'little') + file.read_bytes()[4:-4]
    file.write_bytes(data + arrays.checksum(data))
  assert f'a chunk of {size} strings, where ' in refused(store)


@pytest.mark.parametrize('name', ['keys', 'reason', 'named'])
def test_each_bit_of_texts_is_checked(store, name):
  for file in (store / name / 'c').iterdir():
    before = file.read_bytes()
    for place in (0, 4, len(before) // 2, len(before) - 1):
      data = bytearray(before)
      data[place] ^= 1
      file.write_bytes(data)
      assert f'{name}/c/{file.name}' in refused(store)
    file.write_bytes(b'')
    assert f'{name}/c/{file.name}' in refused(store)
    file.write_bytes(before)
  found = zarr.open_group(store, mode='r')[name][:]
  own = {'keys': 'keys', 'reason': 'reasons', 'named': 'named'}[name]
  assert found.tolist() == getattr(opened(store).items[0].stored.store, own)


@pytest.mark.parametrize('name', ['keys', 'named'])
def test_only_reasons_may_lack_chunks(store, name):
  assert len(list((store / 'reason' / 'c').iterdir())) == 1
  (store / name / 'c' / '0').unlink()
  assert f'{name}/c/0' in refused(store)


def test_texts_of_earlier_versions_have_no_checksum(store):
  before = crop_store.CropStore(store)
  for name in ('keys', 'reason', 'named'):
    stated = json.loads((store / name / 'zarr.json').read_text())
    assert stated['codecs'].pop() == {'name': 'crc32c'}
    (store / name / 'zarr.json').write_text(json.dumps(stated))
    assert 'more bytes' in refused(store)
    for file in (store / name / 'c').iterdir():
      file.write_bytes(file.read_bytes()[:-4])
  after = crop_store.CropStore(store)
  assert (after.keys, after.named) == (before.keys, before.named)
  assert after.reasons == before.reasons
  # A run that such a version began goes on.
  [file] = (store / 'reason' / 'c').iterdir()
  data = file.read_bytes()
  reasons = [*after.reasons[4:], '']
  strings.write_chunk(store / 'reason', 1, reasons, 4)
  assert file.read_bytes() == data


def test_labels_status_and_reasons_are_checked(store):
  (store / 'reason' / 'c' / '1').unlink()
  assert 'its status and reasons do not agree' in refused(store)


@pytest.mark.parametrize('array', ['labels', 'sizes', 'stray', 'named'])
def test_a_missing_array_is_named(store, array):
  for path in sorted((store / array).rglob('*'), reverse=True):
    path.unlink() if path.is_file() else path.rmdir()
  assert array in refused(store)


def test_features_are_not_crops_and_crops_not_features(
  tmp_path, store, image_folder
):
  out = tmp_path / 'out'
  config = config_of(
    SMALL, data=str(store), output_dir=str(out), on_error='record'
  )
  assert jobs.run('extract', config) == 3
  message = user_error(opened, out)
  assert message.startswith(f'{out} is a store of features, not of crops')
  message = user_error(resnet_jax.load_features, store)
  assert message.startswith(f'{store} is a store of crops, not of features')
  # A folder of images may hold anything else.
  (image_folder / 'zarr.json').write_text('{}')
  assert len(opened(image_folder).items) == 7


def test_rows_are_written_in_powers_of_two():
  found = {
    count: crop_store.batch_rows(OWN, count) for count in (1, 2, 7, 97, 10**6)
  }
  assert found == {1: 1, 2: 2, 7: 4, 97: 64, 10**6: 128}
  large = Preprocess(resize_size=4096, crop_size=4096, multi_crop=True)
  assert crop_store.batch_rows(large, 10**6) == 1
  usual = Preprocess(multi_crop=True)
  assert crop_store.batch_rows(usual, 10**6) == 64
