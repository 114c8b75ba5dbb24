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
  b'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n'
  b'size 12345\n'
)
LFS_SAYS = 'a Git LFS pointer; `git lfs pull` gets the file'
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


def weights_of(tmp_path, classes):
  """Weights of a network with some classes."""
  path = tmp_path / 'weights.safetensors'
  model = resnet_jax.load('resnet18', weights='random', classes=classes)
  return path, model


def names_file(tmp_path, *names, start=''):
  path = tmp_path / 'names.txt'
  path.write_bytes((start + ''.join(f'{name}\r\n' for name in names)).encode())
  return path


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
  assert found == f'{message}; store it as 8 or 16 bits'


@pytest.mark.parametrize('mode', ['I', 'F'])
@pytest.mark.parametrize('source', ['L', 'I;16'])
def test_an_image_made_in_python_without_a_known_white_is_refused(mode, source):
  image = photo(mode='L').convert(source).convert(mode)
  model = resnet_jax.load('resnet18', weights='random', crop_size=32)
  message = user_error(model.features, image, 'logits')
  assert 'have no agreed white; store it as 8 or 16 bits' in message


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'PPM'])
def test_an_opened_image_of_16_bits_is_read_as_its_file(form):
  values = np.arange(0, 1 << 16, 16, dtype=np.uint16).reshape(64, 64)
  data = encoded(Image.fromarray(values), form)
  image = Image.open(io.BytesIO(data))
  assert image.mode.startswith('I')
  np.testing.assert_array_equal(grey(image), values >> 8)
  np.testing.assert_array_equal(grey(data), values >> 8)


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
  assert message.endswith(' cannot be decoded; store it as 8 or 16 bits')


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

WNIDS = ('n01440764', 'n02102040')
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
  files = {f'{w}/img{n}.jpg': PHOTO for w in WNIDS for n in range(2)}
  files[where + hidden] = PHOTO
  expected = [
    (f'{w}/img{n}.jpg', k)
    for w, k in zip(WNIDS, (0, 217), strict=True)
    for n in range(2)
  ]
  folder = opened(put(tmp_path / 'f', files))
  tar = opened(archive(tmp_path / 'a.tar', files))
  assert facts(folder) == facts(tar) == expected
  for source in (folder, tar):
    note = f'; 1 hidden item left out: {hidden.partition("/")[0]}; labels'
    assert note in source.description


def test_a_hidden_copy_changes_no_features(tmp_path):
  files = {f'{w}/img{n}.jpg': PHOTO for w in WNIDS for n in range(2)}
  files['n01440764/.ipynb_checkpoints/img0-checkpoint.jpg'] = PHOTO
  store = extracted(tmp_path, put(tmp_path / 'f', files), output_layer='logits')
  assert list(store.labels) == [0, 0, 217, 217]


@pytest.mark.parametrize('apart', [False, True])
def test_the_doubles_of_macos_are_left_out(tmp_path, apart):
  doubles = '__MACOSX/' if apart else ''
  files = {}
  for wnid in WNIDS:
    files[f'{wnid}/img0.jpg'] = PHOTO
    files[f'{doubles}{wnid}/._img0.jpg'] = b'\0\5\x16\7' + bytes(100)
  source = opened(put(tmp_path, files))
  assert facts(source) == [
    (f'{w}/img0.jpg', k) for w, k in zip(WNIDS, (0, 217), strict=True)
  ]
  assert (
    'left out: __MACOSX'
    if apart
    else '2 hidden items left out' in source.description
  )


def test_a_folder_that_is_hidden_itself_may_be_given(tmp_path):
  source = opened(put(tmp_path / '.cache', {'a.jpg': PHOTO}))
  assert facts(source) == [('a.jpg', -1)]


def test_every_suffix_that_the_decoder_reads_is_an_image(tmp_path):
  forms = {
    **dict.fromkeys(('jpg', 'jpeg', 'jpe', 'jfif', 'JPG'), 'JPEG'),
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
  stated = 'null' in str(text)
  assert ('no label in the data' if stated else 'fits no class') in message


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


@pytest.mark.parametrize(
  ('column', 'names'), [('label', ['cat', 'dog']), ('kind', ['cat', 'dog'])]
)
def test_names_that_fit_no_class_are_an_error_of_evaluate(
  tmp_path, column, names
):
  data = parquet(
    tmp_path / 'p',
    {'img': rows('bytes', 'path'), column: [0, 1, 1, -1]},
    {column: {**NAMES, 'names': names}},
  )
  assert own_labels(
    parquet(
      tmp_path / 'q', {'img': rows('bytes')[:3], 'label': ['cat', 'dog', 'dog']}
    ),
    ('dog', 'cat'),
  ) == [1, 0, 0]
  items = opened(data).items
  message = user_error(truth.load, '', items[:3], ('dog', 'cow'))
  assert "the data names its classes, and 'cat' fits no class" in message
  assert 'class_names=FILE' in message
  # Features keep the numbers of the data, and predictions have no label.
  classes = labels.classes(2, stored=('dog', 'cow'))
  kept = truth.resolved(opened(data), classes, keep=True)
  assert [item.label for item in kept.items] == [0, 1, 1, -1]
  assert (
    "the data's own numbers, as 'cat' fits no class" in kept.description
    or '1 image without' in kept.description
  )
  none = truth.resolved(opened(data), classes, keep=False)
  assert [item.label for item in none.items] == [-1, 0, 0, -1]
