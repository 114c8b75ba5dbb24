# SPDX-License-Identifier: Apache-2.0
"""Tar archives and shards: the same images in every form, hostile ones."""

import bz2
import concurrent.futures
import gzip
import json
import lzma
import os
import pickle
import tarfile
import zipfile

import imagenet_forms as forms
import numpy as np
import pytest
from makers import raw_tar, source_error

from resnet_jax.data import decoding, sources
from resnet_jax.system import errors

IMAGES = forms.images()


def open_(data):
  return sources.open_source(str(data))


def facts(source):
  return [(item.key, item.label, item.read()) for item in source.items]


# ------------------------------------------------ the same images, all forms

FORMS = {
  'folder': lambda root: forms.folder(root / 'f', IMAGES),
  'list': lambda root: forms.list_file(root / 'f' / 'val.txt', IMAGES),
  'tar': lambda root: forms.tar(root / 'v.tar', IMAGES),
  'tar out of order': lambda root: forms.tar(root / 'v.tar', IMAGES[::-1]),
  'shards .cls': lambda root: forms.shards(root / 's', IMAGES),
  'shards .json': lambda root: forms.shards(root / 's', IMAGES, 5, '.json'),
  'shards .txt': lambda root: forms.shards(root / 's', IMAGES, 9, '.txt'),
  'shards without labels': lambda root: forms.shards(root, IMAGES, suffix=''),
  'braces': lambda root: forms.shards(root, IMAGES) / 'val-{000..003}.tar',
  'wildcards': lambda root: forms.shards(root, IMAGES) / 'val-*.tar',
  'parquet': lambda root: forms.parquet(root / 'p', IMAGES),
}
LABELLED = {'list', 'parquet', 'braces', 'wildcards'}


@pytest.mark.parametrize('name', FORMS)
def test_every_form_gives_the_same_keys_and_images(tmp_path, name):
  if name == 'parquet':
    pytest.importorskip('pyarrow')
  source = open_(FORMS[name](tmp_path))
  labelled = name in LABELLED or name.startswith('shards .')
  assert facts(source) == [
    (one.name, one.label if labelled else -1, one.data) for one in IMAGES
  ]
  pixels = [decoding.decode(item.read()) for item in source.items]
  assert all(image.mode == 'RGB' and image.size == (44, 38) for image in pixels)


def test_the_images_have_what_is_odd_in_imagenet(tmp_path):
  source = open_(forms.tar(tmp_path / 'v.tar', forms.images(truncated=True)))
  kinds = {3: b'\xff\xd8', 5: b'\x89PNG', 7: b'\xff\xd8'}
  for row, magic in kinds.items():
    assert source.items[row].read().startswith(magic)
    decoding.decode(source.items[row].read())
  with pytest.raises(decoding.ImageError, match='truncated'):
    decoding.decode(source.items[9].read())


@pytest.mark.parametrize('container', ['folder', 'tar'])
@pytest.mark.parametrize('above', ['', 'val/'])
def test_class_folders_named_by_wordnet_ids_state_labels(
  tmp_path, container, above
):
  def name_of(one):
    return f'{above}{one.wnid}'

  if container == 'folder':
    data = forms.class_folders(tmp_path / 'c', IMAGES, name_of)
  else:
    data = forms.tar(
      tmp_path / 'c.tar', IMAGES, lambda one: f'{name_of(one)}/{one.name}'
    )
  source = open_(data)
  expected = {
    f'{name_of(one)}/{one.name}': (one.label, one.data) for one in IMAGES
  }
  assert {k: (label, data) for k, label, data in facts(source)} == expected
  assert [i.key for i in source.items] == sorted(expected)
  assert source.description.endswith(
    '; labels from the WordNet ids in their paths'
  )


def test_one_unknown_folder_and_no_label_is_guessed(tmp_path):
  forms.class_folders(tmp_path, IMAGES)
  forms.class_folders(tmp_path, IMAGES[:1], lambda one: 'n99999999')
  assert {item.label for item in open_(tmp_path).items} == {-1}


@pytest.mark.parametrize(
  'name_of',
  [
    lambda one: f'{one.stem}_{one.wnid}.JPEG',
    # As the training images are called, and Hugging Face's copies of them.
    lambda one: f'{one.wnid}_{one.name}',
    lambda one: f'{one.wnid}_{one.stem}_{one.wnid}.JPEG',
  ],
)
def test_names_with_a_wordnet_id_state_labels(tmp_path, name_of):
  data = forms.tar(tmp_path / 'a.tar', IMAGES, name_of)
  found = {item.key: item.label for item in open_(data).items}
  assert found == {name_of(one): one.label for one in IMAGES}


def test_shards_named_by_wordnet_ids_state_labels(tmp_path):
  for one in IMAGES:
    forms.tar(tmp_path / f'{one.wnid}.tar', [one])
  source = open_(tmp_path)
  found = {item.key: item.label for item in source.items}
  assert found == {one.name: one.label for one in IMAGES}


# --------------------------------------------------------------------- tar


def test_an_archive_is_known_by_its_content_and_says_what_it_left_out(tmp_path):
  extra = [('ReadMe.txt', b'a caption of no class'), ('x/data.bin', b'\0' * 9)]
  path = forms.tar(tmp_path / 'no-suffix', IMAGES, extra=extra)
  source = open_(path)
  assert source.description == (
    f'24 images in the tar archive {path}; 2 other members left out: .bin, .txt'
  )
  assert source.items[2].name == f'{path}:{IMAGES[2].name}'
  assert source.items[2].size == len(IMAGES[2].data)


def test_eight_threads_and_another_process_read_the_same(tmp_path):
  items = open_(forms.tar(tmp_path / 'a.tar', IMAGES)).items * 20
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda item: item.read(), items))
  assert found == [one.data for one in IMAGES] * 20
  assert pickle.loads(pickle.dumps(items[3])).read() == IMAGES[3].data


def test_no_file_stays_open(tmp_path):
  before = len(os.listdir('/proc/self/fd'))
  source = open_(forms.shards(tmp_path, IMAGES, per=1))
  facts(source)
  assert len(os.listdir('/proc/self/fd')) == before


def test_an_archive_that_was_changed_meanwhile_is_not_read(tmp_path):
  path = forms.tar(tmp_path / 'a.tar', IMAGES)
  item = open_(path).items[0]
  forms.tar(path, IMAGES[1:])
  with pytest.raises(decoding.ImageError, match='was changed while'):
    item.read()


@pytest.mark.parametrize(
  ('name', 'pack', 'command'),
  [
    ('a.tar.gz', gzip.compress, '(gzip)'),
    ('a.tar', bz2.compress, 'bunzip2 --keep'),
    ('a', lzma.compress, '(xz)'),
    ('a.zst', lambda data: b'\x28\xb5\x2f\xfd' + data, 'unzstd'),
  ],
)
def test_a_compressed_archive_is_refused_with_the_way_out(
  tmp_path, name, pack, command
):
  plain = forms.tar(tmp_path / 'plain', IMAGES)
  path = tmp_path / name
  path.write_bytes(pack(plain.read_bytes()))
  message = source_error(path)
  assert message.startswith(f'{path} is compressed (')
  assert command in message
  assert 'Unpack it once' in message


def test_a_zip_is_refused_with_the_way_out(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
    file.writestr('a.jpg', b'-')
  assert 'is compressed (zip)' in source_error(tmp_path / 'a.zip')


@pytest.mark.parametrize(
  'name', ['BZh91.jpg 3', 'PAR1.jpg 3', 'PAR1', 'PK.jpg 0']
)
def test_a_list_may_begin_as_it_likes(tmp_path, name):
  path = tmp_path / 'list.txt'
  path.write_text(name + '\n')
  source = sources.open_source(str(path), must_exist=False)
  assert [item.key for item in source.items] == [name.split()[0]]


# ------------------------------------------------------------- hostile archives


@pytest.mark.parametrize(
  'kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_not_images(tmp_path, kind):
  attributes = {'type': kind, 'linkname': '/etc/passwd'}
  path = raw_tar(
    tmp_path / 'a.tar',
    ({'name': 'a.jpg'}, b'-'),
    ({'name': 'link', **attributes}, b''),
  )
  assert open_(path).description.endswith('1 other member left out: no suffix')
  path = raw_tar(tmp_path / 'b.tar', ({'name': 'b.jpg', **attributes}, b''))
  message = source_error(path)
  assert message.startswith(f'{path}: b.jpg is a link, a device or a sparse')
  assert '--hard-dereference' in message


def test_a_name_that_occurs_twice_is_an_error(tmp_path):
  path = forms.tar(tmp_path / 'a.tar', [IMAGES[0], *IMAGES])
  assert source_error(path).startswith(
    f'{path} holds {IMAGES[0].name} more than once'
  )


def test_an_image_that_is_too_large_is_said_when_it_is_read(tmp_path):
  path = tmp_path / 'a.tar'
  info = tarfile.TarInfo('a.jpg')
  info.size = (1 << 30) + 512
  with open(path, 'wb') as file:
    file.write(info.tobuf())
    file.seek(info.size, os.SEEK_CUR)
    file.write(bytes(1024))
  (item,) = open_(path).items
  with pytest.raises(decoding.ImageError, match='are more than 1073741824'):
    item.read()


def test_random_damage_gives_images_or_one_error(tmp_path):
  whole = forms.tar(tmp_path / 'whole', IMAGES[:3]).read_bytes()
  random = np.random.default_rng(0)
  path = tmp_path / 'a.tar'
  for _ in range(200):
    damaged = np.frombuffer(whole, np.uint8).copy()
    places = random.integers(0, len(damaged), 30)
    damaged[places] = random.integers(0, 256, 30)
    path.write_bytes(damaged.tobytes())
    try:
      source = open_(path)
    except errors.UserError:
      continue
    assert len(source.items) == 3


def test_an_archive_without_images_is_an_error(tmp_path):
  path = forms.tar(tmp_path / 'a.tar', [], extra=[('n01440764.tar', b'-')])
  assert source_error(path) == (
    f'there are no images in the tar archive {path}; 1 other member left out:'
    ' .tar.'
  )
  path.write_bytes(bytes(10240))
  assert source_error(path).startswith('there are no images in the')


# ------------------------------------------------------------------- shards


def test_shards_are_read_shard_by_shard_and_described(tmp_path):
  forms.shards(tmp_path, IMAGES)
  (tmp_path / 'readme.md').write_text('-')
  assert open_(tmp_path).description == (
    f'24 images in 4 tar archives in the folder {tmp_path} (1 other file'
    ' left out: .md); labels from the members beside them'
  )


def test_keys_that_recur_in_shards_begin_with_the_shard(tmp_path):
  for number, one in enumerate(IMAGES[:3]):
    forms.tar(tmp_path / f's{number}.tar', [one], lambda one: '000000.jpg')
  source = open_(tmp_path)
  assert facts(source) == [
    (f's{number}/000000.jpg', -1, one.data)
    for number, one in enumerate(IMAGES[:3])
  ]
  assert 'keys begin with the names of the archives' in source.description


def sample(*beside, images=('a.jpg',)):
  return [*((name, b'-') for name in images), *beside]


@pytest.mark.parametrize(
  ('beside', 'label'),
  [
    ([('a.cls', b'7\n')], 7),
    ([('a.cls', b' 007 ')], 7),
    ([('a.cls', b'-1')], -1),
    ([('a.cls', b'n01440764')], 0),
    ([('a.json', b'{"label": 12, "key": "x"}')], 12),
    ([('a.json', b'{"cls": "13"}')], 13),
    ([('a.json', b'{"caption": "a dog"}')], -1),
    ([('a.json', b'[1, 2]')], -1),
    ([('a.txt', b'n01443537')], 1),
    ([('a.txt', 'ein grüner Hund'.encode())], -1),
    ([('a.cls', b'4'), ('a.json', b'{"label": 4}'), ('a.txt', b'words')], 4),
  ],
)
def test_what_a_sample_says_of_its_class(tmp_path, beside, label):
  path = forms.tar(tmp_path / 'a.tar', [], extra=sample(*beside))
  assert [item.label for item in open_(path).items] == [label]


@pytest.mark.parametrize(
  ('name', 'content', 'named'),
  [
    ('a.cls', b'dog', 'dog'),
    ('a.cls', b'\xef\xbb\xbfdog\r\n', 'dog'),
    ('a.cls', b'', ''),
    ('a.cls', b'-2', '-2'),
    ('a.cls', b'9' * 5000, '9' * 200),
    ('a.cls', b'\xff\xfe', '\ufffd\ufffd'),
    ('a.cls', b'1' * (2 << 20), '2097152 bytes of .cls'),
    ('a.json', b'{', '{'),
    ('a.json', b'[' * 200_000, '[' * 200),
    ('a.json', b'{"label": ' + b'9' * 5000 + b'}', '{"label": ' + '9' * 190),
    ('a.json', b'{"label": 1.5}', '1.5'),
    ('a.json', b'{"label": true}', 'True'),
    ('a.json', b'{"label": null}', ''),
    ('a.json', b'{"label": [0, 1]}', '[0, 1]'),
    ('a.json', b'{"label": "dog"}', 'dog'),
  ],
)
def test_what_is_no_number_is_a_name_and_stops_nothing(
  tmp_path, name, content, named
):
  path = forms.tar(tmp_path / 'a.tar', [], extra=sample((name, content)))
  (item,) = open_(path).items
  assert (item.label, item.named) == (-1, named)


@pytest.mark.parametrize(
  ('beside', 'label', 'named'),
  [
    # A name comes before a number, what is neither after it.
    ([('a.cls', b'3'), ('a.json', b'{"label": "dog"}')], 3, 'dog'),
    ([('a.cls', b'3'), ('a.json', b'{"label": 3.0}')], 3, ''),
    ([('a.json', b'{"label": 0, "wnid": "n02102040"}')], 0, 'n02102040'),
    ([('a.json', '\ufeff{"label": 7}'.encode())], 7, ''),
    ([('a.json', '{"label": 7, "x": "é"}'.encode('latin-1'))], 7, ''),
  ],
)
def test_names_and_numbers_of_one_sample(tmp_path, beside, label, named):
  path = forms.tar(tmp_path / 'a.tar', [], extra=sample(*beside))
  (item,) = open_(path).items
  assert (item.label, item.named) == (label, named)


@pytest.mark.parametrize(
  ('members', 'message'),
  [
    (
      sample(('a.cls', b'1'), ('a.json', b'{"label": 2}')),
      'a.cls states the label 1, and a.json the label 2, for the same image',
    ),
    (
      sample(('a.cls', b'1'), images=('a.jpg', 'a.seg.png')),
      'the sample a has 2 images',
    ),
    (
      sample(('a.cls', b'1'), ('b.cls', b'2')),
      'has labels for 1 sample without an image: b',
    ),
  ],
)
def test_a_shard_that_contradicts_itself_is_an_error(
  tmp_path, members, message
):
  path = forms.tar(tmp_path / 'a.tar', [], extra=members)
  found = source_error(path)
  assert found.startswith(str(path))
  assert message in found


# ----------------------------------------------------------------- patterns


@pytest.mark.parametrize(
  ('pattern', 'names'),
  [
    ('{0..2}.tar', ['0.tar', '1.tar', '2.tar']),
    ('{08..10}.tar', ['08.tar', '09.tar', '10.tar']),
    ('{2..0}.tar', ['2.tar', '1.tar', '0.tar']),
    ('{b,a}.tar', ['b.tar', 'a.tar']),
    ('{a,b}{1..2}.tar', ['a1.tar', 'a2.tar', 'b1.tar', 'b2.tar']),
    ('*.tar', ['0.tar', '1.tar']),
    ('[0-1].tar', ['0.tar', '1.tar']),
    ('{1,0}*.tar', ['1.tar', '0.tar']),
  ],
)
def test_braces_and_wildcards(tmp_path, pattern, names):
  for name in names:
    forms.tar(tmp_path / name, [], extra=[(f'{name}.png', b'-')])
  source = open_(tmp_path / pattern)
  assert [item.key for item in source.items] == [
    f'{name}.png' for name in names
  ]


def test_a_shard_that_is_missing_is_named(tmp_path):
  forms.shards(tmp_path, IMAGES)
  pattern = f'{tmp_path}/val-{{000..005}}.tar'
  assert source_error(pattern) == (
    f"data='{pattern}': 2 of the files that it names do not exist:"
    f' {tmp_path}/val-004.tar, {tmp_path}/val-005.tar. Get them, or correct'
    ' the pattern.'
  )
  assert '1 of the files that it names' in source_error(tmp_path / '*.nothing')


def test_a_pattern_of_too_many_files_is_refused_at_once():
  data = 'x{0..99999}{0..99999}{0..999999999}.tar'
  assert source_error(data) == f"data='{data}' names more than 100000 files."


def test_several_files_are_of_one_form(tmp_path):
  forms.folder(tmp_path, IMAGES)
  message = source_error(tmp_path / '*.JPEG')
  assert f'{tmp_path / IMAGES[0].name} is neither a tar archive' in message
  assert 'give a folder or a list' in message
  forms.tar(tmp_path / 'a.tar', IMAGES)
  (tmp_path / 'b.tar').write_text(json.dumps('text'))
  message = source_error(tmp_path / '?.tar')
  assert (
    f'{tmp_path}/b.tar is neither a tar archive nor Parquet, and' in message
  )


def test_a_folder_of_tar_and_parquet_files_needs_a_choice(tmp_path):
  forms.shards(tmp_path, IMAGES)
  (tmp_path / 'a.parquet').write_bytes(b'PAR1\x15')
  assert f"data='{tmp_path}/*.tar'" in source_error(tmp_path)
