# SPDX-License-Identifier: Apache-2.0
"""List files, folders and single images."""

import os

import pytest
from makers import source_error
from PIL import Image

from resnet_jax.data import decoding, sources
from resnet_jax.system import errors


def image(path, format_='PNG'):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (3, 2), 'red').save(path, format_)
  return path


def write(tmp_path, text, encoding='utf-8'):
  path = tmp_path / 'list.txt'
  path.write_bytes(text.encode(encoding))
  return path


def listed(tmp_path, text, encoding='utf-8'):
  path = write(tmp_path, text, encoding)
  source = sources.open_source(str(path), must_exist=False)
  return [(item.key, item.label) for item in source.items]


# ------------------------------------------------------------------- lists


@pytest.mark.parametrize(
  ('line', 'key', 'label'),
  [
    ('a.jpg', 'a.jpg', -1),
    ('a.jpg 5', 'a.jpg', 5),
    ('a.jpg 0', 'a.jpg', 0),
    ('a.jpg\t999', 'a.jpg', 999),
    ('  a.jpg \t 7  ', 'a.jpg', 7),
    ('my dog.jpg 5', 'my dog.jpg', 5),
    ('my dog.jpg', 'my dog.jpg', -1),
    ('two  blanks.jpg 1', 'two  blanks.jpg', 1),
    ('"my dog 5"', 'my dog 5', -1),
    ('"my dog 5" 12', 'my dog 5', 12),
    ('"a.jpg"', 'a.jpg', -1),
    ('a.jpg -1', 'a.jpg -1', -1),
    ('a.jpg 1.5', 'a.jpg 1.5', -1),
    ('a.jpg 1 2', 'a.jpg 1', 2),
    ('"half.jpg 3', '"half.jpg', 3),
    ('12', '12', -1),
    ('x/y/a.jpg 3', 'x/y/a.jpg', 3),
    ('./x//a.jpg', 'x/a.jpg', -1),
    ('../b/a.jpg 1', '../b/a.jpg', 1),
    ('grün/猫 1.jpg 4', 'grün/猫 1.jpg', 4),
    # Breaks for str.splitlines, not for a file.
    ('a\u2028b\x85c.jpg 4', 'a\u2028b\x85c.jpg', 4),
  ],
)
def test_a_line_is_a_path_and_perhaps_a_label(tmp_path, line, key, label):
  assert listed(tmp_path, line) == [(key, label)]
  assert listed(tmp_path, f'{line}\nz.jpg 8\n') == [(key, label), ('z.jpg', 8)]


@pytest.mark.parametrize('end', ['\n', '\r\n', '\n\n', '\n \t\n', '\r\n\r\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_line_ends_blank_lines_and_byte_order_marks(tmp_path, end, encoding):
  text = end.join(['b.jpg 2', 'é.jpg', 'a.jpg 1', ''])
  expected = [('b.jpg', 2), ('é.jpg', -1), ('a.jpg', 1)]
  assert listed(tmp_path, text, encoding) == expected
  assert listed(tmp_path, end + text, encoding) == expected


def test_a_list_is_relative_to_itself_and_keeps_its_order(tmp_path):
  data = [image(tmp_path / 'in' / n) for n in ('b.png', 'x/a b.png')]
  path = tmp_path / 'in' / 'list.txt'
  path.write_text(f'x/a b.png 4\nb.png\n{data[0]} 3\nb.png 2\n', 'utf-8')
  source = sources.open_source(str(path))
  assert [(i.key, i.label) for i in source.items] == [
    ('x/a b.png', 4),
    ('b.png', -1),
    (data[0].as_posix(), 3),
    ('b.png', 2),
  ]
  assert [i.name for i in source.items] == [str(data[k]) for k in (1, 0, 0, 0)]
  assert source.items[0].read() == data[1].read_bytes()
  assert source.description == f'4 images listed in {path}'


def test_missing_images_are_counted_and_five_are_named(tmp_path):
  image(tmp_path / 'there.png')
  names = ['there.png', *(f'{n}.png' for n in range(7))]
  path = write(tmp_path, '\n'.join(names))
  message = source_error(path)
  assert message.startswith(
    f'7 of 8 images listed in {path} do not exist: '
    + ', '.join(str(tmp_path / f'{n}.png') for n in range(5))
    + ' and 2 more.'
  )
  assert '5.png' not in message
  assert 'relative to the list' in message
  assert 'on_error=record' in message
  kept = sources.open_source(str(path), must_exist=False)
  assert [i.key for i in kept.items] == names


def test_a_folder_in_a_list_is_no_image(tmp_path):
  (tmp_path / 'sub').mkdir()
  message = source_error(write(tmp_path, 'sub 3\n'))
  assert message.startswith('1 of 1 image listed')
  assert f'{tmp_path / "sub"}. Paths' in message


@pytest.mark.parametrize('text', ['', '\n \n\t\n', '\ufeff'])
def test_an_empty_list_is_an_error(tmp_path, text):
  path = write(tmp_path, text)
  assert source_error(path) == f'there are no images listed in {path}.'


@pytest.mark.parametrize(
  'content',
  [
    'größe.jpg 5\n'.encode('latin-1'),
    'a.jpg 5\n'.encode('utf-16'),
    b'\x00\x01\x02\x03 binary',
    bytes(range(256)),
    b'\x89PNG\r\n\x1a\n damaged',
  ],
)
def test_what_is_neither_image_nor_list_is_said_so(tmp_path, content):
  path = tmp_path / 'data'
  path.write_bytes(content)
  message = source_error(path)
  assert message == (
    f'{path} is neither a readable image nor a list of images in UTF-8.'
  )


# ----------------------------------------------------------------- folders


def test_a_folder_is_searched_to_the_bottom_in_order(tmp_path):
  root = tmp_path / 'root'
  names = ['b.png', 'a/z.JPG', 'a/b/c.Jpeg', 'a-b.png', 'B.TIF', 'c d.webp']
  for name in names:
    image(root / name)
  for name in ('notes.txt', 'a/noext', 'a/x.png.bak'):
    (root / name).write_text('-')
  source = sources.open_source(str(root))
  assert [i.key for i in source.items] == [
    'B.TIF',
    'a-b.png',
    'a/b/c.Jpeg',
    'a/z.JPG',
    'b.png',
    'c d.webp',
  ]
  assert [i.name for i in source.items] == [
    os.path.join(root, *i.key.split('/')) for i in source.items
  ]
  assert {i.label for i in source.items} == {-1}
  assert source.items[3].read() == (root / 'a' / 'z.JPG').read_bytes()
  assert source.description == (
    f'6 images in the folder {root}; 3 other files left out: .bak, .txt, no'
    ' suffix'
  )


def test_a_folder_of_images_alone_leaves_nothing_out(tmp_path):
  image(tmp_path / 'a.png')
  source = sources.open_source(str(tmp_path))
  assert source.description == f'1 image in the folder {tmp_path}'


def test_a_folder_without_images_is_an_error(tmp_path):
  assert source_error(tmp_path).startswith(
    f'there are no images in the folder {tmp_path}. Their suffixes are .apng,'
  )
  (tmp_path / 'a.txt').write_text('-')
  assert source_error(tmp_path).startswith(
    f'there are no images in the folder {tmp_path}; 1 other file left out:'
    ' .txt.'
  )


def test_a_label_that_is_no_number_is_said_so(tmp_path):
  image(tmp_path / 'cat.png')
  message = source_error(write(tmp_path, 'cat.png tabby\n'))
  assert message.startswith('1 of 1 image listed in')
  assert 'Labels must be whole numbers.' in message
  assert 'is not an image, so it was read as a list' in message


@pytest.mark.skipif(os.name != 'posix', reason='names are bytes on POSIX only')
def test_a_file_name_that_is_not_utf8_is_refused(tmp_path):
  name = os.fsencode(tmp_path) + b'/gr\xfcn.png'
  try:
    with open(name, 'wb') as file:
      file.write(b'-')
  except OSError:
    pytest.skip('this file system takes UTF-8 names only')
  assert source_error(tmp_path) == (
    "the file name 'gr\\udcfcn.png' is not UTF-8 and cannot be a key; rename"
    ' it.'
  )


# ---------------------------------------------------------- single images


@pytest.mark.parametrize('name', ['a.png', 'A.PNG', 'photo', 'b.dat', 'c 7'])
def test_an_image_is_known_by_suffix_or_content(tmp_path, name):
  path = image(tmp_path / name)
  source = sources.open_source(str(path))
  [item] = source.items
  assert (item.key, item.name, item.label) == (name, str(path), -1)
  assert item.read() == path.read_bytes()
  assert source.description == f'the image {path}'


def test_a_damaged_image_with_a_known_suffix_is_still_one(tmp_path):
  # Reading it says what is wrong with it.
  path = tmp_path / 'a.jpg'
  path.write_text('no image')
  source = sources.open_source(str(path))
  assert source.description == f'the image {path}'


@pytest.mark.parametrize(
  'name', ['nothing', 'nothing.jpg', 'x/y', '~no-such-user-at-all/x']
)
def test_a_missing_path_says_what_is_allowed(tmp_path, name, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert source_error(name) == (
    f"data='{name}': there is no such file or folder. Give a list file (one"
    ' image per line: path, label), a folder, an image, a tar archive, shards'
    " (a folder of .tar files, or a pattern such as 'val-{000..049}.tar'),"
    ' Parquet files or crops (--job=crop).'
  )


def test_a_path_the_system_refuses_is_an_error(tmp_path):
  name = str(tmp_path / ('x' * 300))
  assert source_error(name) == (
    f"data='{name}' cannot be read: File name too long."
  )


def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  image(tmp_path / 'a.png')
  [item] = sources.open_source('~/a.png').items
  assert item.name == str(tmp_path / 'a.png')


def test_linked_folders_are_followed_and_loops_end(tmp_path):
  (tmp_path / 'data' / 'b').mkdir(parents=True)
  (tmp_path / 'elsewhere').mkdir()
  for path in ('data/a.png', 'data/b/b.png', 'elsewhere/c.png'):
    Image.new('RGB', (4, 4)).save(tmp_path / path)
  (tmp_path / 'data' / 'link').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data' / 'b' / 'up').symlink_to(tmp_path / 'data')
  (tmp_path / 'elsewhere' / 'back').symlink_to(tmp_path / 'data')
  (tmp_path / 'data' / 'b' / 'self').symlink_to(tmp_path / 'data' / 'b')
  source = sources.open_source(str(tmp_path / 'data'))
  keys = [item.key for item in source.items]
  assert keys == ['a.png', 'b/b.png', 'link/c.png']
  (tmp_path / 'whole').symlink_to(tmp_path / 'data')
  assert len(sources.open_source(str(tmp_path / 'whole')).items) == 3


def test_a_pipe_is_no_image_and_does_not_hang(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  with pytest.raises(errors.UserError, match='is a pipe or a device, not'):
    sources.open_source(str(tmp_path / 'pipe.png'))
  (item,) = sources.open_source(str(tmp_path)).items
  with pytest.raises(decoding.ImageError, match='not a regular file'):
    item.read()


def test_no_data_is_an_error():
  with pytest.raises(errors.UserError, match="data='': there is no such"):
    sources.open_source('')
