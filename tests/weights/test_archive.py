# SPDX-License-Identifier: Apache-2.0
"""Paddle's directories and their archives: alike, and damaged."""

import gzip
import io
import os
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from resnet_jax.data import presets
from resnet_jax.models import aliases, names, resnet, structure
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import archive, assemble, paddle, random

OPTIONS = assemble.Options()
# Small: 45 MB.
MODEL = resnet.ResNet(18)


@pytest.fixture(scope='module')
def untrained():
  parameters = random.initialise(MODEL, 0)
  rng = np.random.default_rng(0)
  # Statistics that differ, so that an exchange of files would show.
  return {
    name: array
    if array.ndim > 1
    else rng.uniform(0.5, 2, array.shape).astype(np.float32)
    for name, array in parameters.items()
  }


@pytest.fixture(scope='module')
def directory(tmp_path_factory, untrained):
  path = tmp_path_factory.mktemp('paddle') / 'resnet_18'
  paddle.write(untrained, path)
  yield path
  for file in path.iterdir():
    file.unlink()


@pytest.fixture(autouse=True)
def _no_large_files_stay(tmp_path):
  yield
  for path in tmp_path.rglob('*'):
    if path.is_file() or path.is_symlink():
      path.unlink()


def member(name, data=b'', kind=tarfile.REGTYPE, link=''):
  info = tarfile.TarInfo(name)
  info.size, info.type, info.linkname = len(data), kind, link
  return info.tobuf(tarfile.GNU_FORMAT) + data + b'\0' * (-len(data) % 512)


END = b'\0' * 1024


def load(path, options=OPTIONS):
  with open(path, 'rb') as file:
    assert archive.recognise(path, file.read(512))
  return archive.load(path, options)


def load_either(path, options=OPTIONS):
  if path.is_dir():
    assert paddle.recognise(path, b'')
    return paddle.load(path, options)
  return load(path, options)


def pack(path, directory, mode='w', form=tarfile.GNU_FORMAT, folder='r/'):
  """An archive by Python's own writer."""
  with tarfile.open(path, mode, format=form) as tar:
    for file in sorted(directory.iterdir()):
      tar.add(file, f'{folder}{file.name}')
  return path


def linked(directory, path):
  """A copy of the directory, its files shared until one is replaced."""
  path.mkdir()
  for file in directory.iterdir():
    os.link(file, path / file.name)
  return path


def replace(directory, name, data):
  (directory / name).unlink(missing_ok=True)
  (directory / name).write_bytes(data)


def equal(parameters, expected):
  assert list(parameters) == list(expected)
  for name, array in parameters.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected[name])


# ------------------------------------------------------------- what is right


@pytest.mark.parametrize(
  'how',
  [
    ('w:gz', tarfile.GNU_FORMAT, 'resnet_18/'),
    ('w', tarfile.USTAR_FORMAT, './model/resnet_18/'),
    # Writes an extended header before each file, for its time.
    ('w', tarfile.PAX_FORMAT, ''),
  ],
)
def test_an_archive_gives_what_the_directory_does(
  tmp_path, directory, untrained, how
):
  path = tmp_path / 'weights'
  mode, form, folder = how
  with tarfile.open(path, mode, format=form) as tar:
    tar.add(directory, folder or '.', recursive=False)
    for file in directory.iterdir():
      tar.add(file, f'{folder}{file.name}')
  loaded, expected = load(path), paddle.load(directory, OPTIONS)
  equal(loaded.parameters, untrained)
  equal(expected.parameters, untrained)
  assert loaded.format == 'Paddle archive (tar)'
  assert expected.format == 'Paddle directory'
  for key in ('module', 'origins', 'layout', 'preprocess', 'notes'):
    assert getattr(loaded, key) == getattr(expected, key)


def test_a_directory_says_how_it_was_read(directory):
  loaded = paddle.load(directory, OPTIONS)
  assert loaded.module == resnet.ResNet(
    18, 1000, variant=Variant(stride_in='1x1', stem_pool='ceil', epsilon=1e-5)
  )
  assert loaded.preprocess == presets.CAFFE
  assert loaded.layout == '(Co, ky, kx, Ci), (in, out)'
  assert loaded.notes == ()
  assert loaded.origins['conv1_conv/kernel'] == assemble.Origin(
    '_conv1_conv.w0', (64, 7, 7, 3), 'float32'
  )
  assert loaded.origins['logits/bias'].name == '_output.wbias'


@pytest.mark.parametrize('depth', structure.ARCHITECTURES)
def test_the_depth_is_found_from_the_names(tmp_path, depth):
  found = map(
    aliases.paddle_parameter, names.parameter_names(depth, head=False)
  )
  empty = paddle.ParameterFile(0, lambda: b'')
  with pytest.raises(errors.UserError, match=r'_conv1_conv\.w0: 0 bytes'):
    paddle.load_files(
      tmp_path, dict.fromkeys(found, empty), 'Paddle directory', OPTIONS
    )


@pytest.mark.parametrize('classes', [0, 7])
def test_the_classes_are_those_of_the_files(tmp_path, untrained, classes):
  parameters = {
    name: array[..., :classes] if name.startswith('logits/') else array
    for name, array in untrained.items()
    if classes or not name.startswith('logits/')
  }
  paddle.write(parameters, tmp_path / 'w')
  for path in (tmp_path / 'w', pack(tmp_path / 'a', tmp_path / 'w')):
    loaded = load_either(path)
    assert loaded.module.classes == classes
    equal(loaded.parameters, parameters)


def test_the_filters_order_is_the_users(tmp_path, untrained):
  smooth = {
    name: ndimage.gaussian_filter(a, (0.8, 0.8, 0, 0)) if a.ndim == 4 else a
    for name, a in untrained.items()
  }
  paddle.write(smooth, tmp_path / 'w', 'OIHW')
  path = pack(tmp_path / 'a', tmp_path / 'w')
  loaded = load(path, assemble.Options(conv_order='OIHW'))
  equal(loaded.parameters, smooth)
  assert loaded.layout == '(Co, Ci, ky, kx), (in, out)'
  assert loaded.warnings == ()
  for other in (path, tmp_path / 'w'):
    (note,) = load_either(other).warnings
    assert f'the filters in {other} are smooth' in note
    assert 'Set conv_order=OIHW' in note
  with pytest.raises(errors.UserError, match="unknown conv_order 'HWIO'"):
    load(path, assemble.Options(conv_order='HWIO'))


# ----------------------------------------------------------- the files' faults


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize(
  'damage',
  [
    ('_res2_1_branch2a_bn.w2', lambda d: d[:-4], '268 bytes, where 272 are'),
    ('_res2_1_branch2a_bn.w2', lambda d: b'\1' + d[1:], 'its header (version'),
    (
      '_res2_1_branch2a_bn.w2',
      lambda d: d[:8] + struct.pack('<Q', 2**60) + d[16:],
      'its header (version, bytes per value, values) is (0, 4, 11529215046',
    ),
    ('_output.wbias', lambda d: d[:-1], '4015 bytes, where 4012 are'),
    ('_output.wbias', lambda d: d[:16], '16 bytes, where 20 are'),
  ],
)
def test_damaged_files_are_named(tmp_path, directory, packed, damage):
  name, change, fault = damage
  path = linked(directory, tmp_path / 'w')
  replace(path, name, change((path / name).read_bytes()))
  path = pack(tmp_path / 'a', path) if packed else path
  with pytest.raises(errors.UserError) as caught:
    load_either(path)
  assert f'{path} is damaged: ' in str(caught.value)
  assert f'{name}: {fault}' in str(caught.value)


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize(
  ('value', 'fault'),
  [
    (np.nan, 'not finite, or too large for float32, in {} (1 of 64)'),
    (-1, 'holds negative variances in {}.'),
  ],
)
def test_impossible_values_are_named(tmp_path, directory, packed, value, fault):
  path, name = linked(directory, tmp_path / 'w'), '_res2_1_branch2a_bn.w2'
  data = (path / name).read_bytes()[:-4] + struct.pack('<f', value)
  replace(path, name, data)
  path = pack(tmp_path / 'a', path) if packed else path
  with pytest.raises(errors.UserError) as caught:
    load_either(path)
  assert str(caught.value).startswith(str(path))
  assert fault.format(name) in str(caught.value)


def test_values_that_are_not_finite_can_be_looked_at(tmp_path, directory):
  path = linked(directory, tmp_path / 'w')
  name = '_res2_1_branch2a_bn.w2'
  header = (path / name).read_bytes()[:16]
  replace(path, name, header + np.full(64, np.inf, '<f4').tobytes())
  loaded = paddle.load(path, assemble.Options(finite=False))
  assert np.isinf(loaded.parameters['res2_1_branch2a_bn/var']).all()


def test_a_file_that_cannot_be_read_is_named(tmp_path, directory):
  path = linked(directory, tmp_path / 'w')
  (path / '_conv1_bn.w2').unlink()
  (path / '_conv1_bn.w2').symlink_to(path / 'nowhere')
  with pytest.raises(errors.UserError) as caught:
    paddle.load(path, OPTIONS)
  assert str(caught.value) == (
    f'cannot read {path}/_conv1_bn.w2: No such file or directory.'
  )


@pytest.mark.parametrize('packed', [True, False])
def test_missing_and_surplus_files_are_named(tmp_path, directory, packed):
  path = linked(directory, tmp_path / 'w')
  (path / '_conv1_bn.w1').unlink()
  (path / '_output.wbias').unlink()
  replace(path, '_res4_5_branch2a_bn.w2', b'')
  path = pack(tmp_path / 'a', path) if packed else path
  with pytest.raises(errors.UserError) as caught:
    load_either(path)
  message = str(caught.value)
  assert message.startswith(f'{path}, read as Paddle ')
  assert 'does not hold a plain ResNet; the nearest is' in message
  assert 'ResNet-18: 2 names are missing (_conv1_bn.w1, _output.wb' in message
  assert '1 names are unknown (_res4_5_branch2a_bn.w2)' in message


def test_what_is_no_directory_of_weights(tmp_path):
  assert not paddle.recognise(tmp_path, b'')
  assert not paddle.recognise(tmp_path / 'none', b'')
  (tmp_path / 'file').write_bytes(b'x')
  assert not paddle.recognise(tmp_path / 'file', b'x')
  with pytest.raises(errors.UserError, match='cannot list the weights'):
    paddle.load(tmp_path / 'none', OPTIONS)


def test_a_pipe_or_a_device_is_not_read(tmp_path, directory):
  path = linked(directory, tmp_path / 'w')
  (path / '_conv1_bn.w0').unlink()
  (path / '_conv1_bn.w1').unlink()
  os.mkfifo(path / '_conv1_bn.w0')
  (path / '_conv1_bn.w1').symlink_to('/dev/zero')
  with pytest.raises(errors.UserError) as caught:
    paddle.load(path, OPTIONS)
  for name in ('_conv1_bn.w0', '_conv1_bn.w1'):
    assert f'{name}: 0 bytes, where 272 are expected' in str(caught.value)
  (path / '_conv1_bn.w0').unlink()


def test_a_pipe_in_place_of_the_metadata_is_not_read(tmp_path, directory):
  path = linked(directory, tmp_path / 'w')
  os.mkfifo(path / 'resnet_jax.json')
  with pytest.raises(errors.UserError, match=r'metadata .* cannot be read'):
    paddle.load(path, OPTIONS)


# ---------------------------------------------------------- the archive's own

FILE = '_conv1_bn.w0'
SPECIAL = 'refused: it holds r/_conv1_bn.w0, a link, a device or a sparse'
EXTENDED = '_conv1_bn.w0: 0 bytes, where 80 are expected'


@pytest.mark.parametrize(
  ('content', 'fault'),
  [
    (
      member('r/../' + FILE),
      "the name 'r/../_conv1_bn.w0' is not a path relative to the",
    ),
    (
      member('/' + FILE),
      "the name '/_conv1_bn.w0' is not a path relative to the",
    ),
    (
      member('r//' + FILE),
      'refused: it holds r//_conv1_bn.w0, which is not a path of',
    ),
    (
      member('a/b/c/' + FILE),
      'a/b/c/_conv1_bn.w0, which is not a path of at most 2 folders',
    ),
    (
      member('r/' + FILE, kind=tarfile.SYMTYPE, link='/etc/passwd'),
      'refused: it holds r/_conv1_bn.w0, a link, a device or a spar',
    ),
    (
      member('r/' + FILE, kind=tarfile.LNKTYPE, link='r/a'),
      SPECIAL,
    ),
    (member('r/' + FILE, kind=tarfile.CHRTYPE), SPECIAL),
    (member('r/' + FILE, kind=tarfile.BLKTYPE), SPECIAL),
    (member('r/' + FILE, kind=tarfile.FIFOTYPE), SPECIAL),
    (
      member('r/' + FILE, kind=tarfile.GNUTYPE_SPARSE),
      SPECIAL,
    ),
    (
      member('r/x', b'r/' + FILE.encode(), tarfile.GNUTYPE_LONGNAME)
      + member('r/' + FILE),
      EXTENDED,
    ),
    (
      member('r/x', b'r/' + FILE.encode(), tarfile.GNUTYPE_LONGLINK)
      + member('r/' + FILE),
      EXTENDED,
    ),
    (member('r/notes.txt'), 'it holds r/notes.txt, which is not a file of'),
    (member('r/' + FILE, b'x') * 2, 'refused: it holds _conv1_bn.w0 twice'),
    (
      member('x/x', b'20 path=/etc/passwd\n', tarfile.XHDTYPE)
      + member('r/' + FILE),
      "the name '/etc/passwd' is not a path relative to the archive",
    ),
    *(
      (
        member('x/x', record, tarfile.XHDTYPE) + member('r/' + FILE),
        EXTENDED,
      )
      for record in (b'21 path=_conv1_bn.w0\n', b'10 size=0\n')
    ),
    (
      member('x/x', b'20 path=/etc/passwd\n', tarfile.XGLTYPE)
      + member('r/' + FILE),
      'a header for all members states their path',
    ),
    (
      member('x/x', b'x' * (1 << 20), tarfile.XHDTYPE) + b'x',
      'an extended header is damaged',
    ),
    (
      member('x/x', b'x' * (1 << 20) + b'x', tarfile.XHDTYPE),
      'an extended header claims 1048577 bytes',
    ),
  ],
)
def test_what_an_archive_may_not_hold(tmp_path, content, fault):
  path = tmp_path / 'bad.tar'
  path.write_bytes(member('r', kind=tarfile.DIRTYPE) + content + END)
  with pytest.raises(errors.UserError, match=fault) as caught:
    load(path)
  assert str(path) in str(caught.value)
  packed = tmp_path / 'bad.tar.gz'
  packed.write_bytes(gzip.compress(path.read_bytes()))
  with pytest.raises(errors.UserError, match=fault):
    load(packed)


def _sized(size):
  header = bytearray(member('r/' + FILE))
  header[124:136] = size
  header[148:156] = b'        '
  header[148:156] = b'%06o\0 ' % sum(header)
  return bytes(header)


@pytest.mark.parametrize(
  ('content', 'fault'),
  [
    (member('r/' + FILE), 'so it is cut off'),
    (member('r/' + FILE, b'x')[:-1], 'so it is cut off'),
    (member('r/' + FILE)[:-1], 'so it is cut off'),
    (_sized(b'77777777777\0') + END, 'it is cut off or damaged'),
    (_sized(b'\x80' + b'\x7f' + b'\xff' * 10) + END, 'it is cut off'),
    (_sized(b'\xff' * 12) + END, r'\\xff. is not a size'),
    (member('r/' + FILE) + END + b'more', 'its end is marked there, and'),
    (member('r/' + FILE) + b'x' * 512, 'there is no header of a member'),
    (b'x' + member('r/' + FILE)[1:], 'there is no header of a member'),
    (END, 'does not hold a plain ResNet'),
  ],
)
def test_a_damaged_tar(tmp_path, content, fault):
  path = tmp_path / 'bad.tar'
  path.write_bytes(member('r', kind=tarfile.DIRTYPE) + content)
  with pytest.raises(errors.UserError, match=fault) as caught:
    load(path)
  assert str(path) in str(caught.value)


@pytest.fixture(scope='module')
def packed(directory):
  """A packed archive of all files; the large ones are cut."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
    for file in sorted(directory.iterdir()):
      data = file.read_bytes()[:2000]
      info = tarfile.TarInfo(f'resnet_18/{file.name}')
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def test_a_cut_or_changed_gzip(tmp_path, packed):
  path = tmp_path / 'bad.tar.gz'
  for length in (len(packed) - 1, len(packed) - 8, len(packed) // 2, 600):
    path.write_bytes(packed[:length])
    with pytest.raises(
      errors.UserError, match=r'bad\.tar\.gz is damaged: it brea'
    ):
      load(path)
  rng = np.random.default_rng(0)
  for bit in rng.integers(8 * 600, 8 * len(packed), 40):
    flipped = bytearray(packed)
    flipped[bit // 8] ^= 1 << int(bit) % 8
    path.write_bytes(flipped)
    # Some flips change a name or size before the checksum is reached.
    with pytest.raises(
      errors.UserError, match=r'bad\.tar\.gz (is (damag|refus)|cannot be used)'
    ):
      load(path)
  flipped = bytearray(packed)
  flipped[-8] ^= 1
  path.write_bytes(flipped)
  with pytest.raises(errors.UserError, match='is damaged: CRC check failed'):
    load(path)
  path.write_bytes(packed + b'garbage')
  with pytest.raises(errors.UserError, match='is damaged: Not a gzipped file'):
    load(path)


@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.XHDTYPE])
def test_a_bomb_is_cut_off_and_takes_no_memory(tmp_path, kind):
  header = tarfile.TarInfo('r/_output.w0')
  header.size, header.type = 2**33 - 1, kind
  path = tmp_path / 'bomb.tar.gz'
  with gzip.open(path, 'wb', compresslevel=1) as file:
    file.write(header.tobuf(tarfile.GNU_FORMAT))
    for _ in range(100):
      file.write(bytes(1 << 20))
  fault = (
    'r/_output.w0 has 8589934591 bytes by its header, and the archive at most'
    if kind == tarfile.REGTYPE
    else 'an extended header claims 8589934591 bytes'
  )
  tracemalloc.start()
  with pytest.raises(errors.UserError, match=fault):
    load(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 16 << 20


def test_a_member_that_is_too_large_is_not_read(tmp_path, directory):
  path = linked(directory, tmp_path / 'w')
  with open(path / 'huge', 'wb') as file:
    file.truncate(64 << 20)
  os.replace(path / 'huge', path / '_conv1_bn.w2')
  packed = pack(tmp_path / 'a', path)
  tracemalloc.start()
  fault = '_conv1_bn.w2: 67108864 bytes, where 272 are expected'
  with pytest.raises(errors.UserError, match=fault):
    load(packed)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 16 << 20


def test_zeros_behind_the_end_are_a_bomb_too(tmp_path):
  path = tmp_path / 'bomb.tar.gz'
  with gzip.open(path, 'wb', compresslevel=1) as file:
    file.write(member('r/' + FILE, b'x'))
    for _ in range(100):
      file.write(bytes(1 << 20))
  with pytest.raises(errors.UserError, match='it unpacks to more than '):
    load(path)


@pytest.mark.parametrize(
  'head',
  [
    b'',
    b'\0' * 512,
    b'\x1f\x8b',
    b'\x1f\x8b\x08' + b'\xff' * 99,
    # Without the time, which two workers would not agree on.
    gzip.compress(b'a pickle, or whatever' * 99, mtime=0),
    b'PK\3\4' + b'\0' * 508,
    member('sys_info', b'x')[:512],  # PyTorch's first format
    member('r/' + FILE)[:511],
  ],
)
def test_other_files_are_not_recognised(tmp_path, head):
  assert not archive.recognise(tmp_path, head)


def test_a_missing_archive(tmp_path):
  with pytest.raises(errors.UserError, match='cannot read'):
    archive.load(tmp_path / 'none', OPTIONS)
