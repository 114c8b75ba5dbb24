# SPDX-License-Identifier: Apache-2.0
"""HDF5 files: what h5py wrote is read back, what is not plain is refused."""

import json
import re
import zlib

import h5py
import ml_dtypes
import numpy as np
import pytest

from resnet_jax.codecs import faults, hdf5

VALUES = np.arange(24 * 50, dtype='f4').reshape(24, 50)


def read(path):
  """The arrays of a file by name, all of them read."""
  with path.open('rb') as stream, hdf5.opened(stream) as file:
    datasets = hdf5.contents(file).datasets
    return {
      name: hdf5.tensor(stream, dataset).read()
      for name, dataset in datasets.items()
    }


@pytest.fixture
def crafted(tmp_path):
  """An HDF5 file by a function that fills a group of it."""

  def make(fill):
    path = tmp_path / 'crafted.h5'
    with h5py.File(path, 'w') as file:
      fill(file.create_group('layer'))
    return path

  return make


@pytest.mark.parametrize(
  'storage',
  [
    {},
    {'chunks': (24, 50)},
    # The last chunks of both axes are not full.
    {'chunks': (5, 7)},
    {'chunks': (5, 7), 'compression': 9},
    {'chunks': (5, 7), 'shuffle': True},
    {'chunks': (5, 7), 'compression': 1, 'shuffle': True, 'fletcher32': True},
  ],
)
@pytest.mark.parametrize('dtype', ['<f2', '<f4', '>f8', 'i1', 'u2'])
def test_arrays_are_read_as_h5py_reads_them(crafted, storage, dtype):
  path = crafted(
    lambda group: group.create_dataset(
      'a', data=VALUES.astype(dtype), **storage
    )
  )
  found = read(path)
  assert list(found) == ['layer/a']
  with h5py.File(path) as file:
    np.testing.assert_array_equal(found['layer/a'], file['layer/a'][()])
  np.testing.assert_array_equal(found['layer/a'], VALUES.astype(dtype))


def test_bfloat16_of_keras_is_known_by_its_attribute(crafted):
  def fill(group):
    for name in ('known', 'opaque'):
      group[name] = VALUES.astype(ml_dtypes.bfloat16).view('V2')
    group['known'].attrs['dtype'] = 'bfloat16'

  found = read(crafted(fill))
  assert found['layer/known'].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(
    found['layer/known'].astype('f4'),
    VALUES.astype(ml_dtypes.bfloat16).astype('f4'),
  )
  assert found['layer/opaque'].dtype == 'V2'


def test_names_to_skip_are_found_and_not_entered(crafted):
  def fill(group):
    group['a'] = VALUES
    group.file['optimizer'] = h5py.ExternalLink('/nowhere', '/')

  path = crafted(fill)
  with path.open('rb') as stream, hdf5.opened(stream) as file:
    tree = hdf5.contents(file, ('optimizer', 'absent'))
    assert tree.skipped == ('optimizer',)
    assert list(tree.groups) == ['layer']
    with pytest.raises(faults.RefusedError, match='optimizer is a soft link'):
      hdf5.contents(file)


@pytest.mark.parametrize('version', ['earliest', 'latest'])
@pytest.mark.parametrize('dtype', [h5py.string_dtype(), 'S9'])
def test_a_text_is_read_and_a_list_of_texts_is_refused(
  tmp_path, version, dtype
):
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w', libver=version) as file:
    file.attrs.create('text', json.dumps({'a': 1}), dtype=dtype)
    file.attrs.create('texts', ['a', 'b'], dtype=dtype)
  with path.open('rb') as stream, hdf5.opened(stream) as file:
    assert json.loads(hdf5.text_attribute(stream, file, 'text')) == {'a': 1}
    assert hdf5.text_attribute(stream, file, 'absent') is None
    with pytest.raises(faults.RefusedError, match='texts is not a string'):
      hdf5.text_attribute(stream, file, 'texts')


# ------------------------------------------------------------------ refused


def external_storage(group):
  group.create_dataset('a', (4,), 'f4', external=[('/etc/passwd', 0, 16)])


def virtual(group):
  layout = h5py.VirtualLayout((4,), 'f4')
  layout[:] = h5py.VirtualSource('/etc/passwd', 'a', (4,))
  group.create_virtual_dataset('a', layout)


def link(kind, *args):
  def fill(group):
    group['a'] = kind(*args)

  return fill


def cycle(group):
  group['a'] = group


def deep(group):
  group.create_group('/'.join('abcdefghijklmnop'))


def many(group):
  for number in range(20_001):
    group.create_group(str(number), track_order=False)


def other_filter(group):
  group.create_dataset('a', data=np.zeros(99, 'f4'), compression='lzf')


def scale_offset(group):
  group.create_dataset('a', data=np.zeros(99, 'f4'), scaleoffset=3)


def no_storage(group):
  group.create_dataset('kernel', (7, 7, 3, 64), 'f4')


def huge_chunks(group):
  group.create_dataset('a', (2**40,), 'f4', chunks=(2**20,))


def bomb(group):
  # 256 MiB of zeros in 260 KiB.
  chunks = (2**18, 64)
  group.create_dataset(
    'a', data=np.zeros((2**20, 64), 'f4'), chunks=chunks, compression=1
  )


def shared_storage(group):
  # The same bytes, named again and again.
  data = group.create_dataset('a', data=np.zeros(4096, 'f4'))
  for number in range(9):
    group[f'b{number}'] = data


def empty(group):
  group['a'] = h5py.Empty('f4')


def named_type(group):
  group['a'] = np.dtype('f4')


@pytest.mark.parametrize(
  ('fill', 'message'),
  [
    (external_storage, 'the values of layer/a are in another file'),
    (virtual, r'layer/a is made of other arrays \(virtual\)'),
    (link(h5py.SoftLink, '/'), 'layer/a is a soft link or'),
    (link(h5py.SoftLink, '/nowhere'), 'layer/a is a soft link or'),
    (cycle, 'its groups are nested deeper than 12'),
    (deep, 'its groups are nested deeper than 12'),
    (many, 'it holds more than 20000 groups and arrays'),
    (other_filter, 'layer/a has the filter 32000, where gzip, shuffle'),
    (scale_offset, 'layer/a has the filter 6, where gzip, shuffle'),
    (no_storage, 'kernel states 37632 bytes, and the file holds 0 for it'),
    (huge_chunks, 'states 4398046511104 bytes, and the file holds 0 for it'),
    (bomb, r'states 268435456 bytes, and the file holds \d+ for it'),
    (shared_storage, r'its arrays take 163840 bytes of a file of \d+ bytes'),
    (empty, 'layer/a has no shape'),
    (named_type, 'layer/a is neither a group nor an array'),
  ],
)
def test_what_is_not_plain_is_refused(crafted, fill, message):
  with pytest.raises((faults.RefusedError, ValueError)) as caught:
    read(crafted(fill))
  assert re.search(message, str(caught.value))


@pytest.mark.parametrize('size', [1, 2**26])
def test_a_chunk_of_another_size_than_stated(crafted, size):
  def fill(group):
    made = group.create_dataset(
      'a', (64, 64), 'f4', chunks=(64, 64), compression=1
    )
    made.id.write_direct_chunk((0, 0), zlib.compress(bytes(size), 9))

  with pytest.raises(ValueError, match='buffer size must be'):
    read(crafted(fill))


def test_a_truncated_file_is_damaged(crafted):
  path = crafted(lambda group: group.create_dataset('a', data=VALUES))
  data = path.read_bytes()
  for size in (0, 7, 50, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match='open file'):
      read(path)
