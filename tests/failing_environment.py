# SPDX-License-Identifier: Apache-2.0
"""A hostile environment and hostile files: one message each, and no hang."""

import json
import multiprocessing
import os
import pathlib
import pickle
import shlex
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
import zlib

import feature_runs
import numpy as np
import pytest
import safetensors.numpy
from conftest import make_image_folder
from makers import HANGS, ROOT, config_of, raw_tar, run_program, user_error

import resnet_jax
from resnet_jax import features, jobs, weights
from resnet_jax.codecs.zarr import chunks
from resnet_jax.data import labels, sources
from resnet_jax.data.truth import devkit
from resnet_jax.evaluation import (
  evidence,
  prediction_file,
  prediction_record,
)
from resnet_jax.system import console, errors, files, memory, settings
from resnet_jax.weights import metadata

SMALL = {'weights': 'random', 'crop_size': 32, 'resize_size': 32}
SETTINGS = [f'--config.{key}={value}' for key, value in SMALL.items()]
ARGUMENTS = ('--config=configs/resnet.py:18', *SETTINGS)
PREDICT = ('--job=predict', '--config.data=images', *ARGUMENTS)

HEADER = prediction_record.Header({'classes': 9}, {}, {})
# What the weights here are.
untrained = pytest.mark.filterwarnings('ignore:UNTRAINED')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='only on Linux')


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
  """A workplace with `images`, one of whose names no small encoding has."""
  path = tmp_path_factory.mktemp('environment')
  images = make_image_folder(path)
  (images / 'f.png').rename(images / 'f\u2192.png')
  return path


def in_shell(workplace, arguments, streams, before=''):
  """Runs the program from a shell; returns what it did."""
  program = shlex.join([sys.executable, '-m', 'resnet_jax.main', *arguments])
  done = subprocess.run(
    ['bash', '-c', f'{before} {program} {streams}'],
    cwd=workplace,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=HANGS,
    check=False,
  )
  assert 'Traceback' not in done.stderr
  assert 'Exception ignored' not in done.stderr
  return done


# ------------------------------------------------------ tracebacks and hangs


@pytest.mark.parametrize('platform', ['cuda', 'rocm', 'nonsense'])
def test_platforms_that_cannot_start(workplace, platform):
  env = {'JAX_PLATFORMS': platform, 'CUDA_VISIBLE_DEVICES': ''}
  done = run_program(workplace, *PREDICT, check=1, env=env)
  assert f'finds no device of JAX_PLATFORMS={platform}' in done.stderr
  assert 'Unset JAX_PLATFORMS to run on what is there' in done.stderr


@pytest.mark.parametrize(
  ('variable', 'value', 'expected'),
  [
    ('JAX_DISABLE_JIT', '1', 'JAX_DISABLE_JIT is set, and networks are compi'),
    ('JAX_DISABLE_JIT', 'maybe', 'JAX does not start: invalid truth value'),
    ('JAX_DEFAULT_MATMUL_PRECISION', 'x', 'for it: JAX_DEFAULT_MATMUL_PRECIS'),
  ],
)
def test_settings_of_jax(workplace, variable, value, expected):
  done = run_program(workplace, *PREDICT, check=1, env={variable: value})
  assert expected in done.stderr
  # At the start.
  assert 'images:' not in done.stderr


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_an_encoding_that_lacks_a_letter(workplace, encoding):
  env = {'PYTHONIOENCODING': encoding}
  done = run_program(workplace, *PREDICT, check=0, env=env)
  assert f'Label of images{os.sep}f\\u2192.png is: ' in done.stdout


@linux
@pytest.mark.parametrize(
  'arguments',
  [PREDICT, ['--job=zoo'], ['--help'], ['--helpxml'], ['--job=diagram']],
  ids=lambda arguments: arguments[0],
)
def test_streams_that_are_full_closed_or_left(workplace, arguments):
  done = in_shell(workplace, arguments, '> /dev/full')
  assert done.returncode == 1
  expected = 'error: cannot write to standard output: No space left on device.'
  assert done.stderr.splitlines()[-1].startswith(expected)
  for streams in ('>&-', '2>&-', '<&- >&- 2>&-'):
    assert in_shell(workplace, arguments, streams).returncode == 0
  done = in_shell(workplace, arguments, '> /dev/full 2>&1')
  assert (done.returncode, done.stderr) == (1, '')
  done = in_shell(workplace, arguments, '| true; exit ${PIPESTATUS[0]}')
  assert done.returncode == 141
  assert 'error' not in done.stderr


def _forked(work):
  """What `work` returns, or its error, in a fork of this process."""

  def run(end):
    try:
      end.send(work())
    except errors.UserError as error:
      end.send(str(error))

  context = multiprocessing.get_context('fork')
  ours, theirs = context.Pipe()
  with warnings.catch_warnings():
    # Of forks in processes with threads.
    warnings.simplefilter('ignore')
    process = context.Process(target=run, args=(theirs,))
    process.start()
  assert ours.poll(HANGS)
  found = ours.recv()
  process.join()
  return found


@untrained
@linux
def test_a_model_belongs_to_its_process(workplace):
  model = resnet_jax.load(18, **SMALL)
  image = str(workplace / 'images' / 'a.png')
  begun = iter(model.stream([image] * 9, 'avgpool'))
  for work in (
    lambda: model.features(image, 'avgpool'),
    lambda: model.predict(image),
    lambda: next(model.stream(image, 'avgpool')),
    lambda: model.grad_cam(image),
    lambda: list(begun),
    lambda: resnet_jax.load(18, **SMALL),
  ):
    message = _forked(work)
    assert 'the model belongs to another process' in message
    assert "multiprocessing.get_context('spawn')" in message
  # What needs no network works.
  assert _forked(lambda: model.crops(image).shape) == (1, 32, 32, 3)
  assert len(list(begun)) == 1
  message = user_error(pickle.dumps, model)
  assert message.startswith('a model cannot be pickled or copied')
  assert "get_context('spawn')) load it in each" in message


# -------------------------------------------------------------- under faults


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A list of images, and the predictions of the first four of them."""
  path = tmp_path_factory.mktemp('stopped')
  images = sorted(make_image_folder(path).glob('*.png'))
  lines = [f'images/{each.name} {row}\n' for row, each in enumerate(images)]
  (path / 'list.txt').write_text(''.join(lines))
  for names in ('ours', 'others'):
    text = ''.join(f'{names} {number}\n' for number in range(1000))
    (path / f'{names}.txt').write_text(text)
  _predict(path)
  whole = (path / 'p.jsonl').read_bytes()
  (path / 'p.jsonl').unlink()
  kept = b''.join(whole.splitlines(keepends=True)[:3])
  return path, kept, whole


def _predict(path, **changed):
  given = SMALL | {
    'batch_size': 2,
    'compilation_cache': False,
    'data': str(path / 'list.txt'),
    'predictions': str(path / 'p.jsonl'),
    'class_names': str(path / 'ours.txt'),
  }
  return jobs.run('predict', config_of('18', **given | changed))


@pytest.mark.parametrize(
  ('changed', 'expected'),
  [
    ({'epsilon': 0.01}, 'epsilon is 1e-05 there, 0.01 now.'),
    ({'stride_in': '3x3'}, "stride_in is '1x1' there, '3x3' now."),
    ({'batch_size': 1}, 'batch_size is 2 there, 1 now.'),
    ({'class_names': 'others.txt'}, 'the SHA-256 of class_names is '),
    ({'data': 'other.txt'}, "the SHA-256 of the images' labels is "),
  ],
)
def test_predictions_of_another_run_are_not_continued(
  stopped, changed, expected
):
  path, kept, whole = stopped
  text = (path / 'list.txt').read_text()
  (path / 'other.txt').write_text(text.replace('a.png 0', 'a.png 7'))
  part = files.part(path / 'p.jsonl')
  part.write_bytes(kept)
  changed = {
    key: str(path / value) if str(value).endswith('.txt') else value
    for key, value in changed.items()
  }
  message = user_error(_predict, path, **changed)
  assert f'holds predictions with other settings: {expected}' in message
  assert part.read_bytes() == kept
  assert _predict(path) == 0
  assert (path / 'p.jsonl').read_bytes() == whole
  (path / 'p.jsonl').unlink()


def test_a_file_without_later_settings_is_still_used(stopped):
  path, _, whole = stopped
  first, *images = whole.splitlines(keepends=True)
  header = json.loads(first)
  header['settings'].pop('class_names_sha256')
  header['run'].pop('labels_sha256')
  text = json.dumps(header).encode() + b'\n' + b''.join(images)
  (path / 'p.jsonl').write_bytes(text)
  assert _predict(path) == 0
  assert (path / 'p.jsonl').read_bytes() == text
  (path / 'p.jsonl').unlink()


@pytest.mark.parametrize('name', ['circle', 'x' * 300, 'x' * 253])
@pytest.mark.parametrize(
  ('job', 'setting'),
  [
    ('extract', 'output_dir'),
    ('predict', 'predictions'),
    ('evaluate', 'results'),
    ('visualize', 'report'),
    ('convert', 'output'),
  ],
)
def test_outputs_that_no_file_system_takes(
  tmp_path, workplace, job, setting, name
):
  place = tmp_path / name
  if name == 'circle':
    place.symlink_to(place)
  given = SMALL | {'data': str(workplace / 'images'), 'convert_to': 'paddle'}
  config = config_of('18', compilation_cache=False, **given)
  config[setting] = str(place)
  message = user_error(jobs.run, job, config)
  assert message.startswith(f'{setting}={place}'[:100])
  assert 'cannot be used: ' in message
  assert 'Choose another; a name may have 240 bytes.' in message


@linux
@pytest.mark.parametrize('limit', [300_000, 1_000_000, 2_000_000])
def test_too_little_memory_is_said_before_it_is_taken(workplace, limit):
  done = in_shell(workplace, PREDICT, '', f'ulimit -v {limit};')
  assert done.returncode == 1
  message = done.stderr.splitlines()[-1]
  assert message.startswith('error: there is not enough memory for ')
  assert f' of the {limit >> 10} MB that it may take. Raise ' in message


def test_memory_that_runs_out_later_is_one_message(
  workplace, monkeypatch, capsys
):
  from resnet_jax import main  # noqa: PLC0415 - defines flags

  def exhausted(*_, **__):
    with memory.starting_threads():
      raise RuntimeError("can't start new thread")

  monkeypatch.setattr(main.app, 'run', exhausted)
  monkeypatch.setattr(main.console, 'prepare', lambda: None)
  monkeypatch.setattr(main.signal, 'signal', lambda *_: None)
  monkeypatch.setattr(sys, 'argv', ['main', '--job=zoo'])
  with pytest.raises(SystemExit) as caught:
    main.run()
  assert caught.value.code == 1
  said = capsys.readouterr().err
  assert said.startswith("error: out of memory (can't start new thread).")
  assert 'take a smaller batch_size' in said


def _metadata(path, extra=None, **changed):
  """A file of weights with our metadata, changed and consistent."""
  made = weights.load('random', weights.Options(20))
  text = metadata.written(made.loaded, 'x', made.digest)
  stated = json.loads(text) | changed
  stated.pop('checksum')
  stated['checksum'] = metadata.checksum(stated)
  tensors = made.parameters | (extra or {})
  about = {'resnet_jax': json.dumps(stated)}
  safetensors.numpy.save_file(tensors, path, about)
  return path


@untrained
def test_control_characters_are_escaped_wherever_they_are_printed(
  tmp_path, workplace, capsys
):
  hostile = '\x1b[31m\x0e\x9b'
  escaped = '\\x1b[31m\\x0e\\x9b'
  # Class names, in a notebook and by the program.
  names = [f'{hostile} {number}' for number in range(10)]
  path = _metadata(tmp_path / 'a.safetensors', class_names=names)
  model = resnet_jax.load(weights=path, resize='squash')
  prediction = model.predict(str(workplace / 'images' / 'a.png'))
  assert escaped in str(prediction)
  assert '\x1b' not in str(prediction) + repr(model)
  console.result(prediction.best[0].name)
  # Notes and warnings, and names in errors.
  path = _metadata(tmp_path / 'b.safetensors', notes=[hostile])
  assert weights.load(str(path)).notes == (hostile,)
  assert resnet_jax.load(weights=path).weights.notes == (hostile,)
  (tmp_path / 'list.txt').write_text(f'{hostile}.png')
  message = user_error(sources.open_source, str(tmp_path / 'list.txt'))
  assert f'{escaped}.png' in message
  found = capsys.readouterr()
  assert escaped in found.out
  assert f'NOTE: {escaped}' in found.err
  assert '\x1b' not in found.out + found.err + message


@pytest.mark.parametrize(
  'changed',
  [
    {'epsilon': 10**4000},
    {'epsilon': float('inf')},
    {'preprocessing': {'mean': [10**400] * 3}},
    {'preprocessing': {'crop_size': float('inf')}},
    {'class_names': ['\ud800'] * 10},
    {'class_names': [['x'] * 9] * 99_999},
    {'notes': json.loads('[' * 300 + ']' * 300)},
  ],
  ids=str,
)
def test_metadata_of_impossible_values(tmp_path, changed):
  if 'preprocessing' in changed:
    (tmp_path / 'x').mkdir()
    path = _metadata(tmp_path / 'x' / 'a.safetensors')
    with safetensors.safe_open(path, 'numpy') as file:
      usual = json.loads(file.metadata()['resnet_jax'])['preprocessing']
    changed = {'preprocessing': usual | changed['preprocessing']}
  path = _metadata(tmp_path / 'a.safetensors', **changed)
  message = user_error(weights.load, str(path))
  assert message.startswith(f'{path} is damaged: the metadata that --job=')
  assert len(message) < 1000


def test_metadata_that_is_a_huge_integer(tmp_path):
  path = tmp_path / 'a.safetensors'
  text = '{"checksum": ' + '9' * 5000 + '}'
  parameters = weights.load('random', weights.Options(20)).parameters
  safetensors.numpy.save_file(dict(parameters), path, {'resnet_jax': text})
  assert 'is damaged' in user_error(weights.load, str(path))


def _field(number, data):
  """A field of a protocol buffer, of bytes."""

  def varint(value):
    more = [128 | value >> shift & 127 for shift in range(0, 28, 7)]
    return bytes([*more, value >> 28])

  return varint(number << 3 | 2) + varint(len(data)) + data


def test_long_lists_of_names_are_shortened(tmp_path):
  one = _field(7, b'\x08\x01')
  blob = _field(7, one + _field(5, struct.pack('<f', 1)))
  layers = b''.join(
    _field(
      100, _field(1, f'strange_{n}'.encode()) + _field(2, b'Convolution') + blob
    )
    for n in range(400)
  )
  path = tmp_path / 'a.caffemodel'
  path.write_bytes(b'\x0a\x01n' + layers)
  message = user_error(weights.load, str(path))
  assert 'strange_0' in message
  assert len(message) < 700
  extra = {f'strange_{n}/kernel': np.zeros(1, np.float32) for n in range(400)}
  path = _metadata(tmp_path / 'a.safetensors', extra)
  message = user_error(weights.load, str(path))
  assert '400 names are unknown (strange_0/kernel, ' in message
  assert ' and 394 more)' in message
  # Whatever the message: its beginning, and its end, which says what to do.
  message = str(errors.UserError('x' * 9999 + '. Do this.'))
  assert message.endswith('. Do this.')
  assert ' ... (8009 letters) ... ' in message
  assert len(message) < 2100
  assert settings.shown('x' * 9999) < 'x' * 300


def _sparse(path):
  """A file of 64 GB, of which hardly a byte is stored."""
  path.write_bytes(b'\x89HDF\r\n\x1a\n')
  os.truncate(path, 64 << 30)
  return path


@linux
def test_a_file_that_is_one_hole(tmp_path):
  path = _sparse(tmp_path / 'x.h5')
  message = user_error(weights.load, str(path))
  assert message.startswith(f'cannot read the weights {path}: of its 687194767')
  for name in ('a.tar', 'list.txt'):
    message = user_error(sources.open_source, str(_sparse(tmp_path / name)))
    assert 'are stored, as in a download that was not finished' in message


def _store(path):
  feature_runs.write('zarr', path, feature_runs.plan_of())
  return path


def _fifo(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)
  os.mkfifo(path)
  return path


@linux
@pytest.mark.parametrize(
  ('name', 'read'),
  [
    ('x.h5', lambda path: weights.load(str(path))),
    ('x.tar', lambda path: sources.open_source(str(path.parent))),
    ('x.txt', lambda path: labels.classes(3, str(path))),
    ('meta.mat', lambda path: devkit.label_of_id(path, ['a'])),
    ('x.jsonl', evidence.read),
    ('x.jsonl', prediction_file.PredictionReader),
    (
      'x.jsonl.part',
      lambda path: prediction_file.PredictionWriter(
        path.with_suffix(''), HEADER, 1
      ),
    ),
    ('batch_0', lambda path: features.load_feature_py(path.parent)),
    ('rank-00000', features.load_feature_c),
    ('zarr.json', lambda path: features.load_features(path.parent)),
    ('keys/c/0', lambda path: features.load_features(path.parents[2])),
    ('labels/c/0', lambda path: features.load_features(path.parents[2])),
    ('wide/c/0/0/0/0', lambda path: features.load_features(path.parents[5])),
  ],
)
def test_pipes_in_the_place_of_files(tmp_path, name, read):
  root = tmp_path / 'out'
  if '/' in name:
    _store(root)
  message = user_error(read, _fifo(root / name))
  assert 'is a pipe or a device' in message or 'No such device' in message


def test_a_pipe_is_no_configuration(tmp_path):
  os.mkfifo(tmp_path / 'x.conf')
  done = run_program(tmp_path, '--config=x.conf', '--job=zoo', check=1)
  assert "unknown configuration file 'x.conf'" in done.stderr


@pytest.mark.parametrize('array', ['wide', 'labels', 'status'])
@pytest.mark.parametrize(
  'damage',
  [
    lambda stated: json.dumps(_with_chunk(stated, 2**40)),
    lambda stated: json.dumps(_with_chunk(stated, 2**40, 2**40)),
    lambda stated: json.dumps(stated | {'shape': [2**40] * 99}),
    lambda stated: json.dumps(stated | {'shape': [10**400]}),
    lambda stated: json.dumps(stated | {'codecs': [{'name': 'zstd'}]}),
    lambda stated: json.dumps(stated | {'data_type': 'float64'}),
    lambda stated: json.dumps(stated | {'chunk_grid': [[]]}),
    lambda _: '[' * 100_000 + ']' * 100_000,
    lambda _: '{"shape":' * 100_000 + '1' + '}' * 100_000,
  ],
)
def test_a_store_is_checked_before_tensorstore_opens_it(
  tmp_path, array, damage
):
  out = _store(tmp_path / 'out')
  path = out / array / 'zarr.json'
  path.write_text(damage(json.loads(path.read_text())))
  message = user_error(features.load_features, out)
  assert message.startswith(f'{out} is not a feature store, or is damaged: ')
  if array != 'labels':
    plan = feature_runs.plan_of()
    message = user_error(features.FORMATS['zarr'].writer, out, plan)
    assert message.startswith(f'{out} is damaged: ')


def _with_chunk(stated, rows, shape=None):
  rest = stated['shape'][1:]
  grid = {'chunk_shape': [rows, *rest]}
  return stated | {
    'chunk_grid': {'name': 'regular', 'configuration': grid},
    'shape': [shape or stated['shape'][0], *rest],
  }


def test_a_chunk_of_a_store_is_not_larger_than_stated(tmp_path):
  out = _store(tmp_path / 'out')
  with open(out / 'wide' / 'c' / '0' / '0' / '0' / '0', 'ab') as file:
    file.write(b'x')
  message = user_error(features.load_features, out)
  assert 'wide/c/0/0/0/0 has 149 bytes, and a chunk 148' in message
  assert chunks.read(out / 'wide') == chunks.Grid(
    (8, 3, 2, 2), (3, 3, 2, 2), 'float32'
  )


def _gnu_sparse(path):
  # Its map goes on in a block of its own.
  first = tarfile.TarInfo('r/_conv1_conv.w0')
  first.type, first.size = b'S', 512
  header = bytearray(first.tobuf(tarfile.GNU_FORMAT))
  header[482] = 1
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  body = bytes(header) + bytes(512) + bytes(512)
  last = tarfile.TarInfo('r/_conv1_bn.w0').tobuf(tarfile.GNU_FORMAT)
  path.write_bytes(body + last + bytes(1024))
  return path


def _pax_sparse(path):
  info = tarfile.TarInfo('r/GNUSparseFile.7/_conv1_conv.w0')
  info.size = 512
  info.pax_headers = {
    'GNU.sparse.major': '1',
    'GNU.sparse.minor': '0',
    'GNU.sparse.name': 'r/_conv1_conv.w0',
    'GNU.sparse.realsize': str(1 << 40),
  }
  path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(512 + 1024))
  return path


@pytest.mark.parametrize('make', [_gnu_sparse, _pax_sparse])
def test_sparse_members_are_refused_by_name(tmp_path, make):
  path = make(tmp_path / 'a.tar')
  packed = tmp_path / 'a.tar.gz'
  compressor = zlib.compressobj(wbits=31)
  packed.write_bytes(
    compressor.compress(path.read_bytes()) + compressor.flush()
  )
  for archive in (path, packed):
    assert user_error(weights.load, str(archive)) == (
      f'{archive} is refused: it holds r/_conv1_conv.w0, a link, a device or a'
      ' sparse file.'
    )
  # Where it is no image, it is passed over, and what follows is found.
  image = raw_tar(tmp_path / 'b.tar', ({'name': 'r/a.png'}, b'x'), end=0)
  whole = path.read_bytes() if make is _pax_sparse else path.read_bytes()[:2048]
  both = whole.removesuffix(bytes(1024)) + image.read_bytes() + bytes(1024)
  path.write_bytes(both)
  source = sources.open_source(str(path))
  assert [item.key for item in source.items] == ['r/a.png']


def _meta_mat(*, nested=0, elements=0):
  """A meta.mat of cells in cells, or of many empty ones."""

  def element(kind, data):
    return struct.pack('<II', kind, len(data)) + data + bytes(-len(data) % 8)

  def cell(count, name, inner):
    head = element(6, struct.pack('<II', 1, 0))
    head += element(5, struct.pack('<ii', count, 1)) + element(1, name)
    return element(14, head + inner)

  empty = struct.pack('<II', 14, 0)
  inner = cell(elements, b'', empty * elements)
  for _ in range(nested):
    inner = cell(1, b'', inner)
  packed = zlib.compress(cell(1, b'synsets', inner))
  head = b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack('<H', 256) + b'IM'
  return head + struct.pack('<II', 15, len(packed)) + packed


@pytest.mark.parametrize(
  ('made', 'expected'),
  [
    ({'elements': 4_000_000}, 'unpacks to more than 16777216 bytes'),
    ({'elements': 1_000_000}, 'it has no synsets with'),
    # A reader that descends overflows its stack.
    ({'nested': 5000}, 'it has no synsets with'),
  ],
)
def test_a_meta_mat_is_bounded(tmp_path, made, expected):
  path = pathlib.Path(tmp_path / 'meta.mat')
  path.write_bytes(_meta_mat(**made))
  assert path.stat().st_size < 1 << 20
  tracemalloc.start()
  message = user_error(devkit.label_of_id, path, ['a'])
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert expected in message
  assert peak < 100 << 20


def test_json_has_limits(tmp_path):
  path = tmp_path / 'a.json'
  for text, expected in (
    ('[' * 101 + ']' * 101, 'nested too deeply'),
    ('{"a":' * 99_999 + '1' + '}' * 99_999, 'nested too deeply'),
    ('"\\ud800"', 'surrogates not allowed'),
    ('9' * 5000, 'limit'),
  ):
    path.write_text(text)
    for source in (path, text, text.encode()):
      with pytest.raises(ValueError, match=expected):
        files.read_json(source)
  path.write_text('["\\ud83d\\ude00"]')
  assert files.read_json(path) == ['😀']
