# SPDX-License-Identifier: Apache-2.0
"""The jobs zoo, download, convert, inspect and summary, as a user runs them."""

import http.server
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import threading

import numpy as np
import pytest
from conftest import ROOT
from reference_weights import reference_parameters, write_paddle_directory

from resnet_jax import weights
from resnet_jax.models import names, resnet
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import paddle
from resnet_jax.zoo import lookup

CONFIG = '--config=configs/resnet.py'


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A Paddle directory of ResNet-18, random."""
  path = tmp_path_factory.mktemp('model') / 'resnet_18'
  loaded = weights.untrained(resnet.ResNet(18, 9), 5)
  paddle.write(loaded.parameters, path)
  return path, weights.digest(loaded.parameters)


# ----------------------------------------------------------------------- zoo


def test_zoo_prints_every_checkpoint(run_main):
  done = run_main('--job=zoo', check=0)
  lines = done.stdout.splitlines()
  assert len(lines) == len(lookup.RECORDS) + 1
  (line,) = [x for x in lines if x.startswith('torchvision.v2') and ' 50 ' in x]
  for part in ('80.858 / 95.434', '3x3', 'pad1', 'RGB, 232 to 224', '102.5 MB'):
    assert part in line
  found = json.loads(run_main('--job=zoo', '--config.as_json=1').stdout)['rows']
  assert len(found) == len(lookup.RECORDS)
  assert found[0]['file']['hash']['algorithm'] == 'sha256'


# ------------------------------------------------------------------- convert


def test_convert_there_and_back_keeps_the_digest(run_main, small, tmp_path):
  path, digest = small
  done = run_main(
    CONFIG,
    '--job=convert',
    f'--config.weights={path}',
    '--config.output=w.safetensors',
    '--config.channels=RGB',
    '--config.mean=1.5,2.5,3.5',
    '--config.std=4,5,6',
    '--config.stride_in=3x3',
    '--config.resize=squash',
    check=0,
  )
  assert done.stdout == 'w.safetensors\n'
  assert 'reads back to the digest ' in done.stderr
  again = weights.load(str(tmp_path / 'w.safetensors'))
  assert again.digest == digest
  assert again.module == resnet.ResNet(18, 9, variant=Variant(stride_in='3x3'))
  assert again.preprocess.channels == 'RGB'
  assert again.preprocess.mean == (1.5, 2.5, 3.5)
  assert again.preprocess.resize == 'squash'
  done = run_main(
    CONFIG,
    '--job=convert',
    '--config.weights=w.safetensors',
    '--config.convert_to=paddle',
    '--config.output=back',
    check=0,
  )
  for file in path.iterdir():
    assert (tmp_path / 'back' / file.name).read_bytes() == file.read_bytes()
  back = weights.load(str(tmp_path / 'back'))
  assert (back.module, back.preprocess) == (again.module, again.preprocess)
  assert back.digest == digest
  file = tmp_path / 'back' / 'resnet_jax.json'
  file.write_text(file.read_text().replace('3x3', '1x1'))
  with pytest.raises(errors.UserError, match='the checksum differs'):
    weights.load(str(tmp_path / 'back'))


def test_untrained_weights_stay_untrained_in_every_format(run_main, tmp_path):
  for target, output in (('safetensors', 'w.safetensors'), ('paddle', 'w')):
    run_main(
      f'{CONFIG}:18,weights=random,convert_to={target},output={output}',
      '--job=convert',
      check=0,
    )
    loaded = weights.load(str(tmp_path / output))
    assert not loaded.trained
    assert loaded.warnings[0].startswith('UNTRAINED')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ([], 'no output. Give --config.output=FILE.safetensors'),
    (['output=there.safetensors'], 'exists already; remove it'),
    (['output=new', 'convert_to=onnx'], "unknown convert_to 'onnx'"),
    (['output=new'], "a safetensors file ends with '.safetensors'"),
    (['output=n.safetensors', 'convert_to=paddle'], 'does not match convert'),
    (
      ['output=n.safetensors', 'mean=mean.npz'],
      'a mean image cannot be stored',
    ),
    (
      ['output=file/n.safetensors'],
      'cannot write the weights to file/n.safetensors',
    ),
    (
      ['output=n.safetensors', 'class_names=n'],
      'has 2 names, and the classifier 9',
    ),
  ],
)
def test_convert_refuses(run_main, small, tmp_path, settings, message):
  (tmp_path / 'there.safetensors').mkdir()
  (tmp_path / 'file').write_text('')
  (tmp_path / 'n').write_text('a\nb\n')
  np.savez(tmp_path / 'mean.npz', data_mean=np.zeros((3, 224, 224)))
  before = set(tmp_path.iterdir())
  done = run_main(
    CONFIG,
    '--job=convert',
    f'--config.weights={small[0]}',
    *[f'--config.{setting}' for setting in settings],
    check=1,
  )
  assert message in done.stderr
  assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ('depth', 'published'), [(50, '99M'), (101, '173M'), (152, '234M')]
)
def test_paddle_directories_have_the_published_size(tmp_path, depth, published):
  """By `du -sh`, as the original's page has it."""
  shapes = resnet.parameter_shapes(resnet.ResNet(depth))
  zeros = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
  paddle.write(zeros, tmp_path / 'w')
  # Counted in blocks of 4 KiB, without the folder's own, as file systems
  # differ in these; the README has the difference.
  blocks = sum(-(-f.stat().st_size // 4096) for f in (tmp_path / 'w').iterdir())
  mebibytes = blocks * 4096 / 2**20
  assert abs(mebibytes - int(published[:-1])) < 1.5
  shutil.rmtree(tmp_path / 'w')


# ------------------------------------------------------------------- inspect


def test_inspect_prints_every_parameter(run_main, small):
  path, digest = small
  done = run_main(CONFIG, '--job=inspect', f'--config.weights={path}', check=0)
  lines = done.stdout.splitlines()
  assert len(lines) == 1 + len(names.parameter_names(18))
  (line,) = [x for x in lines if x.startswith('res2_1_branch2a_bn/mean')]
  assert '_res2_1_branch2a_bn.w1' in line
  assert digest in done.stderr


def test_inspect_as_json_has_true_statistics(run_main, small):
  path, digest = small
  done = run_main(
    CONFIG,
    '--job=inspect',
    f'--config.weights={path}',
    '--config.as_json=true',
    check=0,
  )
  found = json.loads(done.stdout)
  assert found['digest'] == digest
  parameters = weights.load(str(path)).parameters
  assert [row['parameter'] for row in found['rows']] == list(parameters)
  for row in found['rows']:
    array = parameters[row['parameter']].astype(np.float64)
    assert row['count'] == array.size
    assert row['non-finite'] == 0
    for key in ('mean', 'std', 'min', 'max'):
      assert row[key] == pytest.approx(getattr(array, key)())


def test_inspect_counts_what_is_not_finite(run_main, small, tmp_path):
  shutil.copytree(small[0], tmp_path / 'w')
  file = tmp_path / 'w' / '_res2_1_branch2a_bn.w1'
  data = bytearray(file.read_bytes())
  data[16:24] = np.float32([np.nan, np.inf]).tobytes()
  file.write_bytes(data)
  done = run_main(
    CONFIG,
    '--job=inspect',
    '--config.weights=w',
    '--config.as_json=true',
    check=0,
  )
  rows = json.loads(done.stdout)['rows']
  bad = {r['parameter']: r['non-finite'] for r in rows if r['non-finite']}
  assert bad == {'res2_1_branch2a_bn/mean': 2}
  done = run_main(
    CONFIG,
    '--job=extract',
    '--config.weights=w',
    f'--config.data={ROOT}/example',
    check=1,
  )
  assert 'not finite' in done.stderr


@pytest.mark.skipif(not shutil.which('od'), reason='there is no od here')
@pytest.mark.parametrize(
  ('name', 'file'),
  [
    ('res2_1_branch2a_bn/var', '_res2_1_branch2a_bn.w2'),
    ('_res2_1_branch2a_bn.w2', '_res2_1_branch2a_bn.w2'),
    ('layer1.0.bn1.running_var', '_res2_1_branch2a_bn.w2'),
    ('conv1_conv', '_conv1_conv.w0'),
    ('fc.bias', '_output.wbias'),
  ],
)
def test_values_are_shown_as_od_shows_them(run_main, small, name, file):
  path, _ = small
  done = run_main(
    CONFIG,
    '--job=inspect',
    f'--config.weights={path}',
    f'--config.parameter={name}',
    check=0,
  )
  command = ['od', '-j', '16', '-f', path / file]
  expected = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout == expected.stdout


@pytest.mark.skipif(not shutil.which('od'), reason='there is no od here')
def test_equal_lines_are_shown_as_od_shows_them(run_main, small, tmp_path):
  shutil.copytree(small[0], tmp_path / 'w')
  file = tmp_path / 'w' / '_res2_1_branch2a_bn.w1'
  values = np.zeros(64, np.float32)
  values[9], values[32:48] = 1, np.nan
  values[48], values[49] = -values[32], -np.inf
  file.write_bytes(file.read_bytes()[:16] + values.tobytes())
  done = run_main(
    CONFIG,
    '--job=inspect',
    '--config.weights=w',
    '--config.parameter=_res2_1_branch2a_bn.w1',
    check=0,
  )
  command = ['od', '-j', '16', '-f', file]
  expected = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout.count('*') == 4
  assert done.stdout == expected.stdout


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('conv1_conv/kernal', "Did you mean 'conv1_conv/kernel'"),
    ('avgpool', "'avgpool' is a layer without parameters"),
    ('layer1.0.relu', 'unknown parameter'),
  ],
)
def test_an_unknown_parameter(run_main, small, name, message):
  done = run_main(
    CONFIG,
    '--job=inspect',
    f'--config.weights={small[0]}',
    f'--config.parameter={name}',
    check=1,
  )
  assert message in done.stderr


# ------------------------------------------------------------------- summary


def test_summary_shows_the_names_of_all_programs_and_the_totals(run_main):
  done = run_main(f'{CONFIG}:101', '--job=summary', check=0)
  lines = done.stdout.splitlines()
  (line,) = [x for x in lines if x.startswith('res4_13_branch2c_conv')]
  assert line.split()[1:6] == [
    *('res4b12_branch2c', 'conv4_block13_3_conv', 'layer3.12.conv3'),
    'resnet.encoder.stages.2.layers.12.layer.2.convolution',
    '1024x14x14',
  ]
  # Between the layers, in a table of its own; of Caffe's sums no name is sure.
  (line,) = [x for x in lines if x.startswith('res2_1_addto_linear')]
  assert line.split()[1:] == [
    *('-', 'conv2_block1_add', 'layer1.0.add', '-', '256x56x56')
  ]
  also = {tuple(x.split()[:2]): x.split()[2:] for x in lines if x}
  names = also['torchvision', 'res2_1_addto']
  assert names == ['layer1.0.relu_2', 'layer1.0.act3']
  assert '44,549,160 learned parameters' in lines[-1]
  assert '7.57 G multiply-adds' in lines[-1]
  assert "the paper's table 1 prints 7.6 G" in lines[-1]


def test_summary_knows_a_checkpoints_variant_without_its_file(run_main):
  done = run_main(
    f'{CONFIG}:50,weights=torchvision.v1',
    '--job=summary',
    '--config.as_json=1',
    env={'RESNET_JAX_OFFLINE': '1'},
    check=0,
  )
  found = json.loads(done.stdout)
  assert found['stride_in'] == '3x3'
  assert round(found['totals']['multiply_adds'] / 1e9, 3) == 4.089
  assert found['rows'][0]['torchvision'] == 'conv1'


def test_summary_of_a_file_is_of_its_network(run_main, small):
  done = run_main(
    CONFIG, '--job=summary', f'--config.weights={small[0]}', check=0
  )
  assert '11,181,129 learned parameters' in done.stdout.splitlines()[-1]
  done = run_main(
    CONFIG,
    '--job=summary',
    f'--config.weights={small[0]}',
    '--config.as_json=true',
    check=0,
  )
  found = json.loads(done.stdout)
  assert found['digest'] == small[1]
  assert found['source'] == f'Paddle directory {small[0]}'


# ------------------------------------------------------------------ download


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    file = self.server.files.get(os.path.basename(self.path))
    if file is None:
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header('Content-Length', str(file.stat().st_size))
    self.end_headers()
    with open(file, 'rb') as opened:
      shutil.copyfileobj(opened, self.wfile)

  def log_message(self, *arguments):
    pass


@pytest.fixture
def mirror():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  server.files = {}
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield server
  server.shutdown()
  server.server_close()


@pytest.fixture
def online(mirror, tmp_path):
  """The environment of a run whose only way out is the mirror."""
  port = mirror.server_address[1]
  # A closed proxy for everybody else: no test leaves this machine.
  closed = 'http://127.0.0.1:9'
  return {
    'RESNET_JAX_MIRROR': f'http://127.0.0.1:{port}/weights',
    'RESNET_JAX_CACHE': str(tmp_path / 'cache'),
    'RESNET_JAX_OFFLINE': '',
    'http_proxy': closed,
    'https_proxy': closed,
    'no_proxy': '127.0.0.1',
  }


def _mean_archive(folder):
  values = np.zeros(3 * 224 * 224, np.float32)
  data = pickle.dumps({'data_mean': values}, protocol=2)
  with tarfile.open(folder / 'mean.tar.gz', 'w:gz') as archive:
    info = tarfile.TarInfo('mean_meta_224/mean.meta')
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
  return folder / 'mean.tar.gz'


def test_download_then_use(run_main, mirror, online, tmp_path):
  """The original's archive; its content is what verifies it."""
  source = tmp_path / 'resnet_50'
  write_paddle_directory(reference_parameters(50, 0), source)
  archive = shutil.make_archive(
    tmp_path / 'served', 'tar', tmp_path, 'resnet_50'
  )
  packed = tmp_path / 'served.gz'
  subprocess.run(['gzip', '-1', '-k', archive], check=True)
  os.replace(f'{archive}.gz', packed)
  mirror.files['resnet_50.tar.gz'] = packed
  mirror.files['mean_meta_224.tar.gz'] = _mean_archive(tmp_path)
  done = run_main(
    f'{CONFIG}:50,weights=paddle', '--job=download', env=online, check=0
  )
  target = tmp_path / 'cache' / 'paddle-50' / 'resnet_50.tar.gz'
  assert done.stdout.splitlines()[0] == str(target)
  digest = weights.load(str(source)).digest
  assert f'paddle-50 holds ResNet-50, digest {digest}' in done.stderr
  assert 'paddle-mean holds a mean file mean_meta_224.tar.gz' in done.stderr
  assert target.read_bytes() == packed.read_bytes()
  mirror.files.clear()
  done = run_main(
    f'{CONFIG}:50,weights=paddle',
    '--job=inspect',
    '--config.parameter=conv1_bn/var',
    env=online | {'RESNET_JAX_OFFLINE': '1'},
    check=0,
  )
  assert digest in done.stderr


def test_a_wrong_file_is_no_checkpoint(run_main, mirror, online, tmp_path):
  wrong = tmp_path / 'wrong'
  wrong.write_bytes(b'<html>not found</html>')
  mirror.files['ResNet-50-model.caffemodel'] = wrong
  done = run_main(
    f'{CONFIG}:50,weights=msra', '--job=download', env=online, check=1
  )
  assert 'files failed, for the reasons above' in done.stderr
  assert 'msra-50' in done.stderr
  assert 'it is not the published file: its sha256 is ' in done.stderr
  left = list((tmp_path / 'cache').rglob('*.caffemodel'))
  assert left == []


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (':50,weights=msro', "unknown checkpoint 'msro'. Did you mean 'msra'?"),
    (':18,weights=msra', 'msra has no ResNet-18'),
    (':weights=', 'names no checkpoint'),
    (':42,weights=all', 'no ResNet has 42 layers'),
  ],
)
def test_download_of_what_there_is_not(run_main, online, settings, message):
  done = run_main(CONFIG + settings, '--job=download', env=online, check=1)
  assert message in done.stderr


def test_offline_several_files_are_one_message(run_main, online, tmp_path):
  done = run_main(
    f'{CONFIG}:weights=all',
    '--job=download',
    env=online
    | {'RESNET_JAX_OFFLINE': '1', 'RESNET_JAX_CACHE': str(tmp_path / 'none')},
    check=1,
  )
  plan, error = done.stderr.splitlines()
  assert plan.startswith('to download, unless they are in the cache: msra-50, ')
  assert 'RESNET_JAX_OFFLINE forbids downloads, and ' in error
  assert f' files are not in {tmp_path / "none"}: msra-50/ResNet-50-m' in error
  assert error.endswith('give weights=PATH of a file that you have.')


def test_offline_and_nothing_there(run_main, online, tmp_path):
  done = run_main(
    f'{CONFIG}:50',
    '--job=extract',
    f'--config.data={tmp_path}',
    env=online | {'RESNET_JAX_OFFLINE': '1'},
  )
  assert done.returncode == 1
  done = run_main(
    f'{CONFIG}:50',
    '--job=inspect',
    env=online | {'RESNET_JAX_OFFLINE': '1'},
    check=1,
  )
  assert 'no weights found: model/resnet_50 does not exist' in done.stderr
  assert 'offline' in done.stderr.lower()
  assert 'give weights=PATH' in done.stderr
