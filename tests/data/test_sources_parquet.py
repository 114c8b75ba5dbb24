# SPDX-License-Identifier: Apache-2.0
"""Parquet files: rows, keys, labels, memory, damage."""

import concurrent.futures
import functools
import sys

import imagenet_forms as forms
import numpy as np
import pytest
from makers import source_error

from resnet_jax.data import decoding, sources
from resnet_jax.data.sources import parquet
from resnet_jax.system import errors

pa = pytest.importorskip('pyarrow')
writer = pytest.importorskip('pyarrow.parquet')

IMAGES = forms.images()
IMAGE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])


def open_(data):
  return sources.open_source(str(data))


def write(path, rows, labels=None, kind=IMAGE, **others):
  columns = {'image': pa.array(rows, kind)}
  if labels is not None:
    columns['label'] = pa.array(labels)
  columns |= {name: pa.array(values) for name, values in others.items()}
  writer.write_table(pa.table(columns), path)
  return path


def row(data=b'-', path='a.jpg'):
  return {'bytes': data, 'path': path}


@pytest.mark.parametrize(('files', 'group'), [(1, 100), (1, 1), (3, 4)])
def test_rows_in_order_whatever_the_groups(tmp_path, files, group):
  source = open_(forms.parquet(tmp_path, IMAGES, files, group))
  assert [(i.key, i.label, i.read()) for i in source.items] == [
    (one.name, one.label, one.data) for one in IMAGES
  ]
  s = 's' if files > 1 else ''
  assert source.description == (
    f'24 images in {files} Parquet file{s} in the folder {tmp_path}'
  )


def test_a_file_is_known_by_its_content(tmp_path):
  path = write(tmp_path / 'data', [row()], [3])
  source = open_(path)
  assert source.description == f'1 image in the Parquet file {path}'
  (item,) = source.items
  assert (item.key, item.label) == ('a.jpg', 3)
  assert item.name == f'{path}:a.jpg'


def test_rows_are_read_in_any_order_by_any_number_of_threads(tmp_path):
  items = open_(forms.parquet(tmp_path, IMAGES, 2, 3)).items
  order = np.random.default_rng(0).integers(0, len(items), 400).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda index: items[index].read(), order))
  assert found == [IMAGES[index].data for index in order]


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
  items = open_(forms.parquet(tmp_path, IMAGES, 1, 3)).items
  read = items[0].read
  assert isinstance(read, functools.partial)
  groups = read.func.__self__
  for item in items:
    item.read()
  # These images are small enough for all of them.
  assert len(groups._kept) == 8
  monkeypatch.setattr(parquet, '_KEEP_BYTES', 0)
  for item in items:
    item.read()
    assert len(groups._kept) == 2


def test_a_group_is_read_once_for_its_neighbours(tmp_path, monkeypatch):
  items = open_(forms.parquet(tmp_path, IMAGES, 1, 6)).items
  loaded, load = [], parquet._Groups._load

  def counted(self, group):
    loaded.append(group)
    return load(self, group)

  monkeypatch.setattr(parquet._Groups, '_load', counted)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda item: item.read(), items))
  assert sorted(loaded) == [0, 1, 2, 3]


@pytest.mark.parametrize(
  'paths',
  [
    [None, None],
    ['a.jpg', None],
    ['a.jpg', 'a.jpg'],
    ['../a.jpg', 'b.jpg'],
    ['/cache/a.jpg', '/cache/b.jpg'],
    ['a.jpg', ''],
  ],
)
def test_paths_that_are_no_keys_give_way_to_numbers(tmp_path, paths):
  path = write(tmp_path / 'val.parquet', [row(path=name) for name in paths])
  source = open_(path)
  assert [i.key for i in source.items] == ['val/00000000', 'val/00000001']
  assert source.description.endswith(
    'keys are FILE/ROW, as paths are not unique'
  )


@pytest.mark.parametrize(
  ('labels', 'found'),
  [(None, [-1, -1]), ([5, None], [5, -1]), ([-1, 999], [-1, 999])],
)
def test_labels(tmp_path, labels, found):
  path = write(tmp_path / 'p', [row(), row(path='b.jpg')], labels)
  assert [i.label for i in open_(path).items] == found


@pytest.mark.parametrize('label', [-2, 1 << 40])
def test_a_label_out_of_range_is_an_error(tmp_path, label):
  path = write(tmp_path / 'p', [row(), row(path='b.jpg')], [0, label])
  assert source_error(path).startswith(f'{path}: row 1 has the label {label};')


def test_the_columns_may_have_other_names_and_neighbours(tmp_path):
  table = pa.table({'n': [1], 'img': pa.array([row(b'data')], IMAGE)})
  writer.write_table(table, tmp_path / 'p')
  (item,) = open_(tmp_path / 'p').items
  assert item.read() == b'data'


@pytest.mark.parametrize(
  ('columns', 'count'),
  [
    ({'n': [1]}, 0),
    ({'image': [{'bytes': [1, 2], 'path': 'a'}]}, 0),
    ({'image': pa.array([row()], IMAGE), 'b': pa.array([row()], IMAGE)}, 2),
  ],
)
def test_columns_that_are_no_images_are_listed(tmp_path, columns, count):
  path = tmp_path / 'p'
  writer.write_table(pa.table(columns), path)
  message = source_error(path)
  assert message.startswith(
    f'{path} has {count} columns of images: its columns are'
    f' {", ".join(columns)}.'
  )


@pytest.mark.parametrize('rows', [[row(None)], [None]])
def test_a_row_without_bytes_is_said_when_it_is_read(tmp_path, rows):
  (item,) = open_(write(tmp_path / 'p', rows)).items
  with pytest.raises(decoding.ImageError, match='its row has no bytes'):
    item.read()


def test_a_bomb_of_one_image_many_times_is_not_unpacked(tmp_path, monkeypatch):
  # A dictionary holds it once, so that the file is small.
  path = write(tmp_path / 'p', [row(bytes(100_000), f'{n}') for n in range(99)])
  assert path.stat().st_size < 50_000
  monkeypatch.setattr(parquet, '_MAX_GROUP_BYTES', 5_000_000)
  with pytest.raises(decoding.ImageError, match='more than 5000000 bytes'):
    open_(path).items[0].read()


def test_a_bomb_of_paths_is_not_unpacked(tmp_path, monkeypatch):
  rows = [row(b'%09d' % n, 'x' * 9000) for n in range(4000)]
  path = write(tmp_path / 'p', rows)
  monkeypatch.setattr(parquet, '_MAX_TEXT_BYTES', 20_000_000)
  assert 'its paths and labels have more than 20000000' in source_error(path)


def test_a_bomb_of_rows_is_refused(tmp_path):
  path = write(tmp_path / 'p', [None] * 300_000)
  assert 'it claims 300000 rows' in source_error(path)


def test_a_file_cut_off_or_damaged_is_an_error(tmp_path):
  whole = forms.parquet(tmp_path / 'w', IMAGES, 1)
  data = next(whole.iterdir()).read_bytes()
  path = tmp_path / 'p'
  for length in (5, 12, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:length])
    message = source_error(path)
    assert message.startswith(f'{path} is a Parquet file that cannot be read:')
    assert 'footer' in message
  path.write_bytes(data[:-8] + b'\xff\xff\xff\x7f' + b'PAR1')
  assert 'footer' in source_error(path)
  footer = len(data) - 8 - int.from_bytes(data[-8:-4], 'little')
  path.write_bytes(data[:footer] + bytes(32) + data[footer + 32 :])
  assert 'cannot be read' in source_error(path)


def test_random_damage_gives_bytes_or_an_error(tmp_path):
  whole = forms.parquet(tmp_path / 'w', IMAGES[:6], 1)
  data = np.frombuffer(next(whole.iterdir()).read_bytes(), np.uint8)
  random = np.random.default_rng(0)
  path = tmp_path / 'p'
  for _ in range(100):
    damaged = data.copy()
    places = random.integers(5, len(data) - 8, 10)
    damaged[places] = random.integers(0, 256, 10)
    path.write_bytes(damaged.tobytes())
    try:
      for item in open_(path).items:
        item.read()
    except (errors.UserError, decoding.ImageError):
      continue


def test_a_file_that_was_changed_meanwhile_is_not_read(tmp_path):
  path = write(tmp_path / 'p', [row()])
  (item,) = open_(path).items
  write(path, [row(b'another')])
  with pytest.raises(decoding.ImageError, match='was changed while'):
    item.read()


def test_several_splits_need_a_choice(tmp_path):
  forms.parquet(tmp_path, IMAGES)
  write(tmp_path / 'train-00000-of-00001.parquet', [row()])
  message = source_error(tmp_path)
  assert (
    'belong to several splits: train, validation. Name one, as in' in message
  )
  assert f"data='{tmp_path}/train-*.parquet'" in message
  assert len(open_(tmp_path / 'validation-*.parquet').items) == 24


def test_a_split_that_is_not_whole_is_an_error(tmp_path):
  forms.parquet(tmp_path, IMAGES, 3)
  (tmp_path / 'validation-00001-of-00003.parquet').unlink()
  message = source_error(tmp_path)
  assert message.startswith(
    'only 2 of the 3 Parquet files of the split validation exist.'
  )
  one = tmp_path / 'validation-00000-of-00003.parquet'
  assert len(open_(one).items) == 8


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
  path = write(tmp_path / 'p', [row()])
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  assert source_error(path) == (
    'Parquet files are read with pyarrow, which is not installed. Install it'
    " with: pip install 'resnet-jax-zoo[parquet]'"
  )
