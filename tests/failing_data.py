# SPDX-License-Identifier: Apache-2.0
"""Images, folders, shards, Parquet files and labels that failed, or went wrong.

The inputs are those of public bug reports, made anew.
"""

import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import unicodedata
import zlib

import numpy as np
import pytest
from makers import config_of, raw_tar, source_error, user_error
from PIL import Image

import resnet_jax
from resnet_jax import jobs
from resnet_jax.data import decoding, labels, sources, truth

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')

SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=4'
LFS = (
  b'version https://git-lfs.github.com/spec/v1\n'
  b'oid sha256:' + b'4d' * 32 + b'\n'
  b'size 12345\n'
)
LFS_SAYS = 'a Git LFS pointer; `git lfs pull` gets the file'
STORE = 'store it as grey or RGB of 8 bits'
RAMP = np.tile(np.arange(256, dtype=np.uint8), (60, 1))


def encoded(image, form='JPEG', **options):
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def photo(seed=0, mode='RGB'):
  random = np.random.default_rng(seed)
  coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
  return coarse.resize((80, 60)).convert(mode)


PHOTO = encoded(photo())


def tiff(values, *, bits=16, sample_format=1, photometric=1, pixels=None):
  """A grey TIFF of one strip, with the tags as they are given."""
  height, width = values.shape
  data = values.astype(values.dtype.newbyteorder('<')).tobytes()
  data = data if pixels is None else pixels
  short, long = 3, 4
  tags = [
    *((256, short, width), (257, short, height), (258, short, bits)),
    *((259, short, 1), (262, short, photometric), (273, long, 8)),
    *((277, short, 1), (278, short, height), (279, long, len(data))),
    (339, short, sample_format),
  ]
  entries = b''.join(struct.pack('<HHII', t, k, 1, v) for t, k, v in tags)
  head = b'II*\0' + struct.pack('<I', 8 + len(data))
  return head + data + struct.pack('<H', len(tags)) + entries + bytes(4)


def pack_12(values):
  """Two values in three bytes."""
  pairs = values.reshape(-1, 2).astype(np.uint32)
  words = (pairs[:, 0] << 12) | pairs[:, 1]
  three = np.stack([words >> 16, words >> 8, words], 1) & 255
  return three.astype(np.uint8).tobytes()


def grey(image):
  """The pixels of what is decoded, which is grey."""
  pixels = np.asarray(decoding.decode(image))
  assert (pixels == pixels[..., :1]).all()
  return pixels[..., 0]


def refused(image):
  with pytest.raises(decoding.ImageError) as caught:
    decoding.decode(image)
  return str(caught.value)


def put(root, files):
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return root


def archive(path, files, **options):
  """A tar of names, bytes as they are, and contents."""
  members = [({'name': name}, data) for name, data in files.items()]
  return raw_tar(path, *members, **options)


def opened(data):
  return sources.open_source(str(data))


def facts(source):
  return [(item.key, item.label) for item in source.items]


def extracted(tmp_path, data, **settings):
  """The store that the job `extract` writes."""
  config = config_of(
    SMALL, data=str(data), output_dir=str(tmp_path / 'out'), **settings
  )
  assert jobs.run('extract', config) == 0
  return resnet_jax.load_features(tmp_path / 'out')


def own_labels(data, names):
  """The labels that `evaluate` takes of a source for some classes."""
  classes = labels.classes(len(names), stored=names)
  source = truth.resolved(opened(data), classes, keep=False)
  found = truth.load('', source.items, *truth.columns(classes))
  return [min(answer) for answer in found.answers]


# ------------------------------------------------------ pictures: the values


def test_a_tiff_of_12_bits_is_scaled_by_its_bits():
  values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
  data = tiff(values, bits=12, pixels=pack_12(values))
  np.testing.assert_array_equal(grey(data), values >> 4)


@pytest.mark.parametrize(
  ('values', 'sample_format', 'message'),
  [
    (RAMP.astype(np.uint32), 1, 'values of 32 bits have no agreed white'),
    (RAMP.astype(np.int32), 2, 'values of 32 bits have no agreed white'),
    (RAMP.astype(np.float32), 3, 'floating-point values have no agreed white'),
    (RAMP.astype(np.int16), 2, 'signed values have no agreed black and white'),
    (RAMP.astype(np.int8), 2, 'signed values have no agreed black and white'),
  ],
)
def test_values_without_an_agreed_white_are_refused(
  values, sample_format, message
):
  bits = 8 * values.dtype.itemsize
  found = refused(tiff(values, bits=bits, sample_format=sample_format))
  assert found == f'{message}; {STORE}'


@pytest.mark.parametrize('mode', ['I', 'F'])
@pytest.mark.parametrize('source', ['L', 'I;16'])
def test_an_image_made_in_python_without_a_known_white_is_refused(mode, source):
  image = photo(mode='L').convert(source).convert(mode)
  model = resnet_jax.load('resnet18', weights='random', crop_size=32)
  message = user_error(model.features, image, 'logits')
  assert 'have no agreed white; ' in message
  assert '8 bits' in message


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'PPM'])
def test_an_opened_image_of_16_bits_is_read_as_its_file(form):
  values = np.arange(0, 1 << 16, 16, dtype=np.uint16).reshape(64, 64)
  data = encoded(Image.fromarray(values), form)
  image = Image.open(io.BytesIO(data))
  assert image.mode.startswith('I')
  np.testing.assert_array_equal(grey(image), values >> 8)
  np.testing.assert_array_equal(grey(data), values >> 8)


@pytest.mark.parametrize(
  'change', [Image.Image.copy, lambda image: image.crop((0, 0, 32, 32))]
)
@pytest.mark.parametrize('kind', ['12 bits', 'white is zero', 'PNG', 'array'])
def test_a_copy_of_16_bits_has_no_known_white(kind, change):
  values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
  original = Image.fromarray(values)
  file = {
    '12 bits': tiff(values, bits=12, pixels=pack_12(values)),
    'white is zero': tiff(values, photometric=0),
    'PNG': encoded(original, 'PNG'),
  }.get(kind)
  image = Image.open(io.BytesIO(file)) if file else original
  model = resnet_jax.load('resnet18', weights='random', crop_size=32)
  message = user_error(model.features, change(image), 'logits')
  assert 'have no agreed white; give the file, or scale them to' in message


def planes(values, *, photometric, compression=1):
  """A TIFF with one strip for each colour (PlanarConfiguration 2)."""
  height, width, count = values.shape
  short, long = 3, 4
  pack = zlib.compress if compression == 8 else bytes
  strips = [pack(values[..., n].tobytes()) for n in range(count)]
  begin = [8 + sum(map(len, strips[:n])) for n in range(count)]
  tags = [
    *((256, short, [width]), (257, short, [height])),
    *((258, short, [8 * values.itemsize] * count), (259, short, [compression])),
    *((262, short, [photometric]), (273, long, begin), (277, short, [count])),
    *((278, short, [height]), (279, long, [len(strip) for strip in strips])),
    (284, short, [2]),
    *([(338, short, [2])] if (photometric, count) == (2, 4) else []),
  ]
  at = 8 + sum(map(len, strips))
  end = at + 2 + 12 * len(tags) + 4
  entries, more = b'', b''
  for tag, kind, numbers in tags:
    form = f'<{len(numbers)}{"H" if kind == short else "I"}'
    packed = struct.pack(form, *numbers)
    if len(packed) > 4:
      more, packed = more + packed, struct.pack('<I', end + len(more))
    entries += struct.pack('<HHI', tag, kind, len(numbers)) + packed.ljust(
      4, b'\0'
    )
  head = b'II*\0' + struct.pack('<I', at) + b''.join(strips)
  return head + struct.pack('<H', len(tags)) + entries + bytes(4) + more


@pytest.mark.parametrize('compression', [1, 8])
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'CMYK'])
def test_planes_are_read_by_their_bits_or_refused(mode, bits, compression):
  colours = np.random.default_rng(0).integers(0, 256, (20, 30, len(mode)))
  values = colours.astype(np.uint8)
  # The lower 8 bits are others, and no part of what is read.
  stored = values if bits == 8 else values * np.uint16(256) + values[::-1]
  photometric = 5 if mode == 'CMYK' else 2
  data = planes(stored, photometric=photometric, compression=compression)
  if (bits, compression) == (16, 1):
    message = refused(data)
    assert f'BitsPerSample {(16,) * len(mode)}, uncompressed with' in message
    assert 'PlanarConfiguration 2' in message
    assert STORE in message
    return
  expected = Image.fromarray(values[..., :3])
  if mode == 'CMYK':
    expected = Image.merge(
      'CMYK', [Image.fromarray(values[..., n]) for n in range(4)]
    ).convert('RGB')
  np.testing.assert_array_equal(decoding.decode(data), expected)


def test_the_advice_for_what_pillow_does_not_read_is_8_bits():
  pairs = np.zeros((8, 8, 2), np.uint16)
  assert refused(planes(pairs, photometric=1)).endswith(STORE)


@pytest.mark.parametrize('values', [RAMP, RAMP.astype(np.uint16) * 257])
def test_white_is_zero_is_not_a_negative(values):
  bits = 8 * values.dtype.itemsize
  last = np.iinfo(values.dtype).max
  np.testing.assert_array_equal(
    grey(tiff(last - values, bits=bits, photometric=0)),
    grey(tiff(values, bits=bits)),
  )
  np.testing.assert_array_equal(grey(tiff(values, bits=bits)), RAMP)


def test_a_tiff_that_is_not_decoded_says_what_it_has():
  message = refused(tiff(RAMP.astype(np.uint16), bits=14))
  assert message.startswith('a TIFF of BitsPerSample (14,), ')
  assert message.endswith(f' cannot be decoded; {STORE}')


@pytest.mark.parametrize('kind', [b'zTXt', b'iTXt', b'tEXt', b'iCCP'])
def test_a_png_with_a_long_text_gives_its_pixels(kind):
  packed = zlib.compress(bytes(2 << 20))
  body = {
    b'zTXt': b'key\0\0' + packed,
    b'iTXt': b'key\0\1\0\0\0' + packed,
    b'tEXt': b'key\0' + b'x' * (2 << 20),
    b'iCCP': b'name\0\0' + packed,
  }[kind]
  crc = struct.pack('>I', zlib.crc32(kind + body))
  plain = encoded(photo(), 'PNG')
  # After the header, which has 33 bytes with the signature; and at the end.
  chunk = struct.pack('>I', len(body)) + kind + body + crc
  long = plain[:33] + chunk + plain[33:-12] + chunk + plain[-12:]
  np.testing.assert_array_equal(decoding.decode(long), decoding.decode(plain))


# ----------------------------------------------------- folders: what is there

LABEL = {'n01440764': 0, 'n02102040': 217}
HIDDEN = (
  '.ipynb_checkpoints/img0-checkpoint.jpg',
  '._img0.jpg',
  '.thumbs/a/b.jpg',
  '@eaDir/img0.jpg/SYNOPHOTO_THUMB_M.jpg',
  'Thumbs.db',
  '.DS_Store',
)


@pytest.mark.parametrize('hidden', HIDDEN)
@pytest.mark.parametrize('where', ['n01440764/', ''])
def test_what_is_hidden_is_left_out_and_counted(tmp_path, hidden, where):
  files = {f'{w}/img{n}.jpg': PHOTO for w in LABEL for n in range(2)}
  expected = [(name, LABEL[name[:9]]) for name in sorted(files)]
  files[where + hidden] = PHOTO
  folder = opened(put(tmp_path / 'f', files))
  tar = opened(archive(tmp_path / 'a.tar', files))
  assert facts(folder) == facts(tar) == expected
  for source in (folder, tar):
    note = f'; 1 hidden item left out: {hidden.partition("/")[0]}; labels'
    assert note in source.description


def test_a_hidden_copy_changes_no_features(tmp_path):
  files = {f'{w}/img{n}.jpg': PHOTO for w in LABEL for n in range(2)}
  files['n01440764/.ipynb_checkpoints/img0-checkpoint.jpg'] = PHOTO
  store = extracted(tmp_path, put(tmp_path / 'f', files), output_layer='logits')
  assert list(store.labels) == [0, 0, 217, 217]


@pytest.mark.parametrize('apart', [False, True])
def test_the_doubles_of_macos_are_left_out(tmp_path, apart):
  doubles = '__MACOSX/' if apart else ''
  files = {}
  for wnid in LABEL:
    files[f'{wnid}/img0.jpg'] = PHOTO
    files[f'{doubles}{wnid}/._img0.jpg'] = b'\0\5\x16\7' + bytes(100)
  source = opened(put(tmp_path, files))
  assert facts(source) == [(f'{w}/img0.jpg', k) for w, k in LABEL.items()]
  said = '1 hidden item left out: __MACOSX' if apart else '2 hidden items left'
  assert said in source.description


def test_a_folder_that_is_hidden_itself_may_be_given(tmp_path):
  source = opened(put(tmp_path / '.cache', {'a.jpg': PHOTO}))
  assert facts(source) == [('a.jpg', -1)]


def test_every_suffix_that_the_decoder_reads_is_an_image(tmp_path):
  forms = {
    **dict.fromkeys(('jpg', 'jpeg', 'jpe', 'jfif', 'JPG'), 'JPEG'),
    **{'pjpeg': 'JPEG', 'pjp': 'JPEG', 'dib': 'DIB'},
    **dict.fromkeys(('png', 'apng'), 'PNG'),
    **dict.fromkeys(('ppm', 'pgm', 'pbm', 'pnm'), 'PPM'),
    **{'mpo': 'MPO', 'webp': 'WEBP', 'tif': 'TIFF', 'bmp': 'BMP', 'gif': 'GIF'},
  }
  if 'AVIF' in decoding.FORMATS:
    forms['avif'] = 'AVIF'
  modes = {'pgm': 'L', 'pbm': '1'}
  for suffix, form in forms.items():
    image = photo(mode=modes.get(suffix, 'RGB'))
    put(tmp_path, {f'a.{suffix}': encoded(image, form)})
  found = opened(tmp_path).items
  assert [i.key for i in found] == sorted(f'a.{suffix}' for suffix in forms)
  for item in found:
    assert decoding.decode(item.read()).size == (80, 60)


def test_what_is_no_image_is_counted_and_its_suffixes_named(tmp_path):
  names = ('a.jp2', 'b.jp2', 'c.psd', 'd.TXT', 'e.heic', 'README')
  put(tmp_path, dict.fromkeys((*names, 'z.jpg'), PHOTO))
  assert opened(tmp_path).description == (
    f'1 image in the folder {tmp_path}; 6 other files left out: .heic, .jp2,'
    ' .psd and 2 more'
  )


def test_the_paths_that_cost_the_others_their_label_are_named(tmp_path):
  files = dict.fromkeys(
    ('n01440764/a.jpg', 'n02102040/b.jpg', 'new/c.jpg'), PHOTO
  )
  source = opened(put(tmp_path, files))
  assert {item.label for item in source.items} == {-1}
  assert source.description.endswith(
    '; no labels, as 1 of 3 paths have no WordNet id of ILSVRC 2012: new/c.jpg'
  )
  columns = truth.columns(labels.imagenet_classes())
  message = user_error(truth.load, '', source.items, *columns)
  assert message.startswith('1 of 3 images has no WordNet id of ILSVRC 2012 in')
  assert 'new/c.jpg' in message
  assert 'n01440764/a.jpg' not in message


# ------------------------------------------------------------------- shards


@pytest.mark.parametrize(
  'text',
  [
    *(b'{"label": 3.0}', b'{"label": [0, 1, 0]}', b'{"label": null}'),
    *(b'{"label": "cat"}', b'{"label": true}', b'{"label": {"a": 1}}'),
    *(b'{"label": -7}', b'{"label": 1e999}', b'{"label": NaN}', b'{"label"'),
    *('{"label": "größe"}'.encode('latin-1'), b'\xff\xfe{\0}\0', b''),
  ],
)
def test_a_label_of_any_type_stops_only_evaluate(tmp_path, text):
  data = archive(tmp_path / 'a.tar', {'0001.jpg': PHOTO, '0001.json': text})
  assert facts(opened(data)) == [('0001.jpg', -1)]
  message = user_error(own_labels, data, ('dog', 'cow'))
  nothing = text in (b'', b'{"label": null}')
  assert ('no label in the data' if nothing else 'fits no class') in message


def test_features_of_a_shard_with_such_labels(tmp_path):
  texts = {'1.json': b'{"label": 3.0}', '2.json': b'{"label": "cat"}'}
  files = {'1.jpg': PHOTO, '2.jpg': PHOTO, **texts}
  data = archive(tmp_path / 'a.tar', files)
  store = extracted(tmp_path, data, output_layer='logits')
  assert list(store.labels) == [-1, -1]


@pytest.mark.parametrize(
  ('name', 'text', 'label'),
  [
    ('1.json', '\ufeff{"label": 1}'.encode(), 1),
    ('1.json', '{"label": 1, "caption": "größe"}'.encode('latin-1'), 1),
    ('1.cls', '\ufeff1\r\n'.encode(), 1),
    ('1.cls', b'dog', 1),
    ('1.json', b'{"label": "dog"}', 1),
    # A number is never taken where there is a name.
    ('1.json', b'{"label": 0, "wnid": "dog"}', 1),
    ('1.json', b'{"label": 0, "class_name": "dog"}', 1),
    ('1.json', b'{"label": 0, "name": "dog"}', 1),
    ('1.json', b'{"class": "dog", "cls": 0}', 1),
    ('1.json', b'{"label": "0", "label_name": "dog"}', 1),
    # A name of the image is not one of its class.
    ('1.json', b'{"label": 1, "name": "cat.jpg"}', 1),
    ('1.json', b'{"label": 1, "name": "a/1", "class": null}', 1),
  ],
)
def test_a_shards_labels_by_number_or_name(tmp_path, name, text, label):
  data = archive(tmp_path / 'a.tar', {'1.jpg': PHOTO, name: text})
  assert own_labels(data, ('cat', 'dog')) == [label]


def test_jfif_is_an_image_of_a_shard(tmp_path):
  files = {'1.jfif': PHOTO, '1.cls': b'7', '2.jpg': PHOTO, '2.cls': b'8'}
  source = opened(archive(tmp_path / 'a.tar', files))
  assert facts(source) == [('1.jfif', 7), ('2.jpg', 8)]


def test_a_label_whose_image_is_left_out_names_that(tmp_path):
  files = {'1.jp2': PHOTO, '1.cls': b'7', '2.jpg': PHOTO, '2.cls': b'8'}
  message = source_error(archive(tmp_path / 'a.tar', files))
  assert (
    '1 sample without an image: 1 (1 other member left out: .jp2)' in message
  )


@pytest.mark.parametrize('dot', ['', './'])
@pytest.mark.parametrize(
  'label', [{}, {'0001.cls': b'1', '._0001.cls': b'\0\5'}]
)
def test_the_doubles_of_macos_in_a_shard(tmp_path, dot, label):
  files = {'._0001.jpg': b'\0\5\x16\7', '0001.jpg': PHOTO, **label}
  files = {dot + name: data for name, data in files.items()}
  source = opened(archive(tmp_path / 'a.tar', files))
  assert facts(source) == [('0001.jpg', 1 if label else -1)]
  assert 'left out: ._0001.' in source.description


def test_a_name_in_another_encoding_is_read_with_escapes(tmp_path):
  path = tmp_path / 'a.tar'
  for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
    with tarfile.open(path, 'w', format=form, encoding='latin-1') as file:
      info = tarfile.TarInfo('caf\udce9.jpg')
      if form == tarfile.USTAR_FORMAT:
        info.name = 'café.jpg'
      info.size = len(PHOTO)
      file.encoding = 'latin-1'
      file.addfile(info, io.BytesIO(PHOTO))
    (item,) = opened(path).items
    assert item.key == 'caf\\xe9.jpg'
    assert item.read() == PHOTO


def test_a_tar_without_its_end_names_the_command_that_mends_it(tmp_path):
  files = {'0001.jpg': PHOTO, '0001.cls': b'7'}
  path = archive(tmp_path / 'no end.tar', files, end=0)
  message = source_error(path)
  assert f"`tar -rf '{path}' -T /dev/null` (GNU tar) adds the mark" in message


@pytest.mark.skipif(not shutil.which('tar'), reason='needs GNU tar')
def test_the_command_mends_it(tmp_path):
  files = {'0001.jpg': PHOTO, '0001.cls': b'7'}
  path = archive(tmp_path / 'a.tar', files, end=0)
  done = subprocess.run(['tar', '-rf', path, '-T', os.devnull], check=False)
  if done.returncode:
    pytest.skip('this tar is not GNU')
  assert facts(opened(path)) == [('0001.jpg', 7)]


# ------------------------------------------------------------------ Parquet


def parquet(path, columns, features=None):
  """A file of columns, with what `datasets` notes of them."""
  pa = pytest.importorskip('pyarrow')
  writer = pytest.importorskip('pyarrow.parquet')
  table = pa.table(columns)
  if features:
    note = json.dumps({'info': {'features': features}})
    table = table.replace_schema_metadata({'huggingface': note})
  writer.write_table(table, path)
  return path


def rows(*fields):
  return [
    {name: {'bytes': PHOTO, 'path': f'{n}.jpg'}[name] for name in fields}
    for n in range(4)
  ]


NAMES = {'_type': 'ClassLabel'}


@pytest.mark.parametrize(
  'names',
  [
    ['n02102040', 'n01440764'],
    # As `datasets` has them in ImageNet.
    ['English springer, English springer spaniel', 'tench, Tinca tinca'],
    ['English springer', 'tench'],
  ],
)
def test_a_class_label_is_known_by_its_name(tmp_path, names):
  data = parquet(
    tmp_path / 'p',
    {'image': rows('bytes', 'path'), 'label': [0, 1, 0, 1]},
    {'image': {'_type': 'Image'}, 'label': {**NAMES, 'names': names}},
  )
  classes = labels.imagenet_classes()
  source = truth.resolved(opened(data), classes, keep=False)
  assert [item.label for item in source.items] == [217, 0, 217, 0]
  found = truth.load('', opened(data).items, *truth.columns(classes))
  assert [min(answer) for answer in found.answers] == [217, 0, 217, 0]
  store = extracted(tmp_path, data, output_layer='logits')
  assert list(store.labels) == [217, 0, 217, 0]
  model = resnet_jax.load('resnet18', weights='random', crop_size=32)
  ((batch, _),) = model.stream(data, 'logits')
  assert batch.labels == [217, 0, 217, 0]


@pytest.mark.parametrize('column', ['label', 'kind'])
def test_names_that_fit_no_class_are_an_error_of_evaluate(tmp_path, column):
  data = parquet(
    tmp_path / 'p',
    {'img': rows('bytes', 'path'), column: [0, 1, 1, -1]},
    {column: {**NAMES, 'names': ['cat', 'dog']}},
  )
  items = opened(data).items
  message = user_error(truth.load, '', items[:3], ('dog', 'cow'))
  assert "the data names its classes, and 'cat' fits no class" in message
  assert 'class_names=FILE' in message
  # A number of the data never stands beside those of the network.
  classes = labels.classes(2, stored=('dog', 'cow'))
  for keep in (True, False):
    found = truth.resolved(opened(data), classes, keep=keep)
    assert [item.label for item in found.items] == [-1, 0, 0, -1]
    assert "; 1 image without a label, as 'cat' fits no" in found.description
  # Features keep the numbers of the data if no name fits a class.
  classes = labels.classes(2, stored=('pig', 'cow'))
  kept = truth.resolved(opened(data), classes, keep=True)
  assert [item.label for item in kept.items] == [0, 1, 1, -1]
  assert "; labels are the data's own numbers, as 'cat', " in kept.description
  none = truth.resolved(opened(data), classes, keep=False)
  assert {item.label for item in none.items} == {-1}


def test_a_name_and_a_number_that_contradict_each_other(tmp_path):
  files = {}
  for key, kind in (('1', 'ape'), ('2', 'moose'), ('3', 'gnu')):
    text = json.dumps({'label': 0, 'class_name': kind})
    files |= {f'{key}.jpg': PHOTO, f'{key}.json': text.encode()}
  data = archive(tmp_path / 'a.tar', files)
  message = user_error(own_labels, data, ('zebra', 'ape', 'moose'))
  assert "the data names its classes, and 'gnu' fits no class" in message
  assert own_labels(data, ('gnu', 'ape', 'moose')) == [1, 2, 0]
  classes = labels.classes(3, stored=('zebra', 'ape', 'moose'))
  kept = truth.resolved(opened(data), classes, keep=True)
  assert [item.label for item in kept.items] == [1, 2, -1]
  assert "; 1 image without a label, as 'gnu' fits no" in kept.description


def test_numbers_of_classes_without_names_are_taken_and_that_is_said(tmp_path):
  data = parquet(
    tmp_path / 'p',
    {'image': rows('bytes', 'path'), 'label': [0, 1, 1, 0]},
    {'label': {**NAMES, 'names': ['cat', 'dog']}},
  )
  assert own_labels(data, ('LABEL_0', 'LABEL_1', 'LABEL_2')) == [0, 1, 1, 0]
  source = truth.resolved(opened(data), labels.classes(3), keep=False)
  assert 'the network, which have no names' in source.description


def test_imagenets_two_cranes_are_told_apart_by_their_place(tmp_path):
  # `datasets` allows no name twice, and calls the second crane2.
  classes = labels.imagenet_classes()
  names = [known.name for known in classes]
  assert names[134] == names[517] == 'crane'
  names[517] = 'crane2'
  data = parquet(
    tmp_path / 'p',
    {'image': rows('bytes', 'path'), 'label': [517, 134, 3, 638]},
    {'label': {**NAMES, 'names': names}},
  )
  columns = truth.columns(classes)
  found = truth.load('', opened(data).items, *columns)
  assert found.answers == ({517}, {134}, {3}, {638})
  # In another order nothing says which crane is meant.
  turned = parquet(
    tmp_path / 'q',
    {'image': rows('bytes', 'path'), 'label': [517 - 3, 134, 3, 638]},
    {'label': {**NAMES, 'names': names[3:] + names[:3]}},
  )
  message = user_error(truth.load, '', opened(turned).items, *columns)
  assert "'crane2' fits no class of this network" in message


def test_labels_as_texts_are_names(tmp_path):
  pa = pytest.importorskip('pyarrow')
  texts = pa.array(['cat', 'dog', 'cat', None])
  for column in (
    texts,
    texts.cast(pa.large_string()),
    texts.dictionary_encode(),
  ):
    data = parquet(
      tmp_path / 'p', {'image': rows('bytes', 'path'), 'label': column}
    )
    found = [(item.label, item.named) for item in opened(data).items]
    assert found == [(-1, 'cat'), (-1, 'dog'), (-1, 'cat'), (-1, '')]
    classes = labels.classes(2, stored=('dog', 'cat'))
    source = truth.resolved(opened(data), classes, keep=True)
    assert [item.label for item in source.items] == [1, 0, 1, -1]


@pytest.mark.parametrize('column', ['class_name', 'label_name', 'wnid'])
def test_a_column_of_names_comes_before_one_of_numbers(tmp_path, column):
  names = ['ape', 'moose', 'ape', None]
  columns = {'image': rows('bytes'), 'label': [0, 1, 0, 1], column: names}
  data = parquet(tmp_path / 'p', columns)
  classes = labels.classes(3, stored=('zebra', 'ape', 'moose'))
  source = truth.resolved(opened(data), classes, keep=True)
  assert [item.label for item in source.items] == [1, 2, 1, -1]
  # Numbers with names of their own decide.
  kinds = {'label': {**NAMES, 'names': ['moose', 'zebra']}}
  data = parquet(tmp_path / 'q', columns, kinds)
  source = truth.resolved(opened(data), classes, keep=True)
  assert [item.label for item in source.items] == [2, 0, 2, 0]


@pytest.mark.parametrize('form', ['binary', 'large_binary', 'struct'])
def test_images_without_a_path_are_read(tmp_path, form):
  pa = pytest.importorskip('pyarrow')
  images = [PHOTO] * 4
  column = (
    rows('bytes') if form == 'struct' else pa.array(images, getattr(pa, form)())
  )
  for others in ({'label': [1, 2, 3, 4]}, {}):
    data = parquet(tmp_path / 'p', {'image': column, **others})
    source = opened(data)
    numbers = others.get('label', [-1] * 4)
    keys = [f'p/{row:08d}' for row in range(4)]
    assert facts(source) == list(zip(keys, numbers, strict=True))
    assert [item.read() for item in source.items] == images


def test_the_metadata_says_which_column_of_bytes_is_the_image(tmp_path):
  columns = {'mask': [b'-'] * 4, 'photo': [PHOTO] * 4}
  data = parquet(tmp_path / 'p', columns, {'photo': {'_type': 'Image'}})
  assert [item.read() for item in opened(data).items] == [PHOTO] * 4
  message = source_error(parquet(tmp_path / 'p', columns))
  assert 'has 2 columns of images: its columns are mask, photo.' in message


@pytest.mark.parametrize('name', ['my.image', 'image.bytes', '.', 'a.b.c'])
def test_a_column_may_have_a_dot_in_its_name(tmp_path, name):
  for column in (rows('bytes', 'path'), [PHOTO] * 4):
    columns = {name: column, 'label': [1, 2, 3, 4]}
    source = opened(parquet(tmp_path / 'p', columns))
    assert [item.label for item in source.items] == [1, 2, 3, 4]
    assert [item.read() for item in source.items] == [PHOTO] * 4


def test_labels_that_are_not_read_are_named(tmp_path):
  data = parquet(
    tmp_path / 'p',
    {'img': rows('bytes', 'path'), 'fine': [1, 2, 3, 4], 'coarse': [0] * 4},
    {name: {**NAMES, 'names': list('abcde')} for name in ('fine', 'coarse')},
  )
  assert '; no labels, as they could be in fine (int64), coarse (int64)' in (
    opened(data).description
  )
  data = parquet(
    tmp_path / 'p', {'img': rows('bytes', 'path'), 'label': [0.5] * 4}
  )
  assert 'label (double)' in opened(data).description


@pytest.mark.parametrize(
  'note',
  ['{', '[]', '{"info": 3}', '{"info": {"features": {"label": {"names": 3}}}}'],
)
def test_damaged_metadata_is_none(tmp_path, note):
  pa = pytest.importorskip('pyarrow')
  writer = pytest.importorskip('pyarrow.parquet')
  table = pa.table({'image': rows('bytes', 'path'), 'label': [1, 2, 3, 4]})
  writer.write_table(
    table.replace_schema_metadata({'huggingface': note}), tmp_path / 'p'
  )
  assert [i.label for i in opened(tmp_path / 'p').items] == [1, 2, 3, 4]


# ------------------------------------------------------------ labels by name

CIFAR = labels.NAMED['cifar10']
# As the alphabet does not have them.
TURNED = CIFAR[::-1]


def evaluated(tmp_path, folders, names, start=''):
  """The labels by key that `evaluate` counts, of folders and class names."""
  image = encoded(photo().resize((32, 32)), 'PNG')
  data = put(tmp_path / 'f', {f'{name}/0.png': image for name in folders})
  text = start + ''.join(f'{name}\r\n' for name in names)
  put(tmp_path, {'names.txt': text.encode()})
  config = config_of(
    '20,weights=random',
    'cifar',
    data=str(data),
    labels='folders',
    class_names=str(tmp_path / 'names.txt'),
    results=str(tmp_path / 'results'),
  )
  assert jobs.run('evaluate', config) == 0
  lines = (tmp_path / 'results' / 'predictions.jsonl').read_text().splitlines()
  found = map(json.loads, lines[1:])
  return {image['key']: image['labels']['folders'] for image in found}


@pytest.mark.parametrize('start', ['', '\ufeff'])
def test_folders_are_classes_by_name(tmp_path, start):
  assert evaluated(tmp_path, CIFAR, TURNED, start) == {
    f'{name}/0.png': [TURNED.index(name)] for name in CIFAR
  }


@pytest.mark.parametrize(
  ('wrong', 'hint'),
  [('fire_truck', "'fire truck'"), ('Truck', ''), ('lorry', '')],
)
def test_one_folder_with_another_name_is_named(tmp_path, wrong, hint):
  names = [*TURNED[1:], 'fire truck']
  message = user_error(evaluated, tmp_path, [*TURNED[1:], wrong], names)
  assert (
    "9 of 10 folders are named by the names of the 10 classes; '" in message
  )
  assert f"'{wrong}' is not." in message
  assert hint in message


@pytest.mark.parametrize('change', [str.title, str.upper, '{} '.format])
def test_names_in_another_case_are_not_put_in_alphabetical_order(change):
  items = [
    sources.Item(f'{change(name)}/0.png', name, -1, bytes) for name in CIFAR
  ]
  message = user_error(truth.load, 'folders', items, TURNED)
  assert message.startswith('0 of 10 folders are named by the names of the 10')
  assert 'airplane' in message.lower()


@pytest.mark.parametrize('name', ['class {}', 'LABEL_{}', '{}'])
def test_alphabetical_order_is_said(name):
  items = [sources.Item(f'{n}/0.png', '', -1, bytes) for n in 'cab']
  names = [name.format(number) for number in range(3)]
  found = truth.load('folders', items, names)
  assert [min(answer) for answer in found.answers] == [2, 0, 1]
  assert 'in alphabetical order, as the network' in found.description


@pytest.mark.parametrize(
  ('folders', 'odd'),
  [
    (('a', 'b', 'c'), "'a', 'b', 'c' are not."),
    (('n01440764', 'n02102040', 'n02123045'), "'n01440764', 'n02102040', 'n0"),
    (('class_0', 'class_1', 'class_2'), "'class_0', 'class_1', 'class_2' are"),
    (('0', '1', 'c'), "'0', '1', 'c' are not."),
    (('a', 'b'), "'a', 'b' are not."),
  ],
)
def test_no_order_stands_for_names_on_both_sides(folders, odd):
  items = [sources.Item(f'{n}/0.png', '', -1, bytes) for n in folders]
  message = user_error(truth.load, 'folders', items, ('zebra', 'ape', 'moose'))
  assert message.startswith(f'0 of {len(folders)} folders are named by the na')
  assert odd in message
  assert 'set class_names=FILE, with the folders' in message


@pytest.mark.parametrize('folders', [('2', '0', '1'), ('002', '000', '001')])
def test_numbers_of_folders_are_the_classes(folders):
  items = [sources.Item(f'{n}/0.png', '', -1, bytes) for n in folders]
  found = truth.load('folders', items, ('zebra', 'ape', 'moose'))
  assert found.answers == ({2}, {0}, {1})
  assert 'named by the numbers of the classes' in found.description


@pytest.mark.parametrize('between', [' ', '\t', ', ', ': ', '_'])
def test_class_names_may_begin_with_wordnet_ids(tmp_path, between):
  names = f'n02123045{between}tabby, cat\nn01440764{between}tench\n'
  path = put(tmp_path, {'names.txt': names.encode()}) / 'names.txt'
  columns = truth.columns(labels.classes(2, str(path)))
  for folders in (('n01440764', 'n02123045'), ('tench', 'tabby')):
    items = [sources.Item(f'{n}/0.png', '', -1, bytes) for n in folders]
    found = truth.load('folders', items, *columns)
    assert found.answers == ({1}, {0})


def test_a_class_name_that_occurs_twice_is_no_name():
  items = [sources.Item(f'{n}/0.png', '', -1, bytes) for n in 'ab']
  message = user_error(truth.load, 'folders', items, ('a', 'b', 'b'))
  assert "'b' is the name of the classes 1, 2" in message
  found = truth.load('folders', items[:1], ('a', 'b', 'b'))
  assert found.answers == ({0},)
  items = [sources.Item('', '', -1, bytes, named='crane')]
  columns = truth.columns(labels.imagenet_classes())
  message = user_error(truth.load, '', items, *columns)
  assert "'crane' is the name of the classes 134, 517" in message


def test_folders_of_imagenet_by_id_name_or_synonym():
  names = ('n01440764', 'English springer', 'crane, bird', 'maillot')
  items = [sources.Item(f'{n}/0.png', '', -1, bytes) for n in names]
  columns = truth.columns(labels.imagenet_classes())
  message = user_error(truth.load, 'folders', items, *columns)
  assert '3 of 4 folders are named by the WordNet ids (such as' in message
  assert "'crane, bird' is not." in message
  found = truth.load('folders', [*items[:2], items[3]], *columns)
  assert found.answers == ({0}, {217}, {638})


def test_wordnet_ids_of_another_network_are_not_imagenets_numbers(tmp_path):
  files = {f'{wnid}/0.jpg': PHOTO for wnid in LABEL}
  data = put(tmp_path, files)
  assert own_labels(data, ('x', 'n02102040', 'n01440764')) == [2, 1]
  message = user_error(own_labels, data, ('x', 'y'))
  assert "'n01440764', 'n02102040' fit no class of this network" in message
  message = user_error(truth.load, '', opened(data).items, ())
  assert 'fit no class' in message


# ------------------------------------------------------------------ pointers


@pytest.mark.parametrize(
  'name', ['a.jpg', 'a.tar', 'a.parquet', 'a.list', 'a.png', 'data']
)
def test_a_git_lfs_pointer_says_what_it_is(tmp_path, name):
  path = put(tmp_path, {name: LFS}) / name
  assert source_error(path) == f'{path} is {LFS_SAYS}.'


@pytest.mark.parametrize('suffix', ['tar', 'parquet'])
def test_a_folder_of_pointers_says_what_they_are(tmp_path, suffix):
  put(tmp_path, {f'{n}.{suffix}': LFS for n in range(2)})
  assert LFS_SAYS in source_error(tmp_path)


def test_pointers_of_images_labels_names_and_means_say_what_they_are(tmp_path):
  assert refused(LFS) == f'it is {LFS_SAYS}'
  path = put(tmp_path, {'pointer': LFS}) / 'pointer'
  items = [sources.Item('a', 'a', -1, bytes)]
  assert LFS_SAYS in user_error(truth.load, str(path), items, ())
  assert LFS_SAYS in user_error(labels.classes, 3, str(path))
  message = user_error(
    resnet_jax.load, 'resnet18', weights='random', mean=str(path)
  )
  assert LFS_SAYS in message
  put(tmp_path, {'meta.mat': LFS, 'truth.txt': b'1\n'})
  columns = truth.columns(labels.imagenet_classes())
  message = user_error(truth.load, str(tmp_path / 'truth.txt'), items, *columns)
  assert LFS_SAYS in message


# --------------------------------------------------------------------- names


@pytest.mark.parametrize(('there', 'written'), [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_a_name_is_the_same_in_both_unicode_forms(tmp_path, there, written):
  def names(form, *texts):
    return [unicodedata.normalize(form, text) for text in texts]

  # Of a folder and of a file, one of which has the form that is written.
  mixed = names(there, 'Å/') + names(written, 'ö.jpg')
  keys = [*names(there, 'Ä/é.jpg', 'Ü.jpg'), ''.join(mixed)]
  put(tmp_path, dict.fromkeys(keys, PHOTO))
  lines = names(written, 'Ä/é.jpg 3', 'Ü.jpg 4', 'Å/ö.jpg 5')
  path = put(tmp_path, {'val.txt': '\n'.join(lines).encode()}) / 'val.txt'
  listed = opened(path)
  assert [item.label for item in listed.items] == [3, 4, 5]
  assert [item.read() for item in listed.items] == [PHOTO] * 3
  items = opened(tmp_path).items
  found = truth.load(str(path), items, ())
  answers = dict(zip([i.key for i in items], found.answers, strict=True))
  assert answers == dict(zip(keys, ({3}, {4}, {5}), strict=True))
  folder = names(there, 'é/0.jpg')[0]
  items = [sources.Item(folder, '', -1, bytes)]
  assert truth.load('folders', items, names(written, 'é')).answers == ({0},)


def test_names_that_differ_in_their_form_alone_stay_apart(tmp_path):
  keys = [unicodedata.normalize(form, 'é.jpg') for form in ('NFC', 'NFD')]
  items = [sources.Item(key, key, -1, bytes) for key in keys]
  lines = ''.join(f'{key} {n}\n' for n, key in enumerate(keys)).encode()
  path = put(tmp_path, {'val.txt': lines}) / 'val.txt'
  assert truth.load(str(path), items[::-1], ()).answers == ({1}, {0})


NAME = 'a\nLabel of b.jpg is: 7\n\x1b[31m.png'
SHOWN = 'a\\nLabel of b.jpg is: 7\\n\\x1b[31m.png'


@pytest.mark.skipif(os.name != 'posix', reason='names may not have line ends')
def test_a_line_end_in_a_name_does_not_split_a_line(tmp_path, capsys):
  data = put(tmp_path / 'f', {NAME: encoded(photo(), 'PNG')})
  assert jobs.run('predict', config_of(SMALL, data=str(data))) == 0
  printed = capsys.readouterr().out.splitlines()
  assert printed[0].startswith(f'Label of {data}/{SHOWN} is: ')
  assert sum(line.startswith('Label of') for line in printed) == 1
  # The key is the name itself.
  assert [item.key for item in opened(data).items] == [NAME]
  put(data, {NAME: b'-'})
  config = config_of(SMALL, data=str(data))
  message = user_error(jobs.run, 'predict', config)
  assert f'cannot read the image {data}/{SHOWN}: ' in message
  shard = archive(tmp_path / 'a.tar', {NAME: PHOTO})
  (item,) = opened(shard).items
  assert (item.key, item.name) == (NAME, f'{shard}:{SHOWN}')
  message = user_error(truth.load, 'folders', [item], ())
  assert SHOWN in message
  assert '\n' not in message
