# SPDX-License-Identifier: Apache-2.0
"""Images at addresses: the same as on the disk, whatever a server does."""

import concurrent.futures
import importlib.util
import json
import subprocess
import sys

import imagenet_forms as forms
import numpy as np
import pytest
import remote_servers
from makers import (
  ROOT,
  Started,
  config_of,
  contents,
  run_program,
  user_error,
)

from resnet_jax import jobs
from resnet_jax.data import (
  ahead,
  decoding,
  pipeline,
  places,
  preprocess,
  remote_faults,
  remote_stores,
  sources,
)
from resnet_jax.system import errors

pytestmark = pytest.mark.skipif(
  any(
    importlib.util.find_spec(name) is None
    for name in ('s3fs', 'aiohttp', 'moto', 'flask_cors')
  ),
  reason='s3fs or moto is not installed',
)
fsspec = pytest.importorskip('fsspec')

IMAGES = forms.images(8)


def facts(source):
  return [
    (item.key, item.label, item.size, item.named, item.read())
    for item in source.items
  ]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Waits that a test does not notice."""
  monkeypatch.setattr(remote_faults, 'WAIT', 0.001)


@pytest.fixture(scope='module')
def s3_server():
  """Moto behind faults; its address and the faults."""
  faulty = remote_servers.Faulty(remote_servers.s3_application())
  with (
    pytest.MonkeyPatch.context() as patch,
    remote_servers.serving(faulty) as address,
  ):
    patch.setenv('AWS_ENDPOINT_URL', address)
    patch.setenv('AWS_ACCESS_KEY_ID', 'of-a-test')
    patch.setenv('AWS_SECRET_ACCESS_KEY', 'of-a-test')
    patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    patch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    system = fsspec.filesystem('s3', skip_instance_cache=True)
    system.mkdir('bucket')
    yield faulty, system


@pytest.fixture
def s3(s3_server):
  """The faults of an empty bucket, and what uploads a folder to it."""
  faulty, system = s3_server
  faulty.clear()

  def put(root):
    names = contents(root)
    system.pipe({f'bucket/{name}': data for name, data in names.items()})
    faulty.clear()
    return 's3://bucket'

  yield faulty, put
  faulty.clear()
  system.invalidate_cache()
  if found := system.find('bucket'):
    system.rm(found)


@pytest.fixture
def memory():
  """Uploads a folder to memory://."""
  system = fsspec.filesystem('memory')

  def put(root):
    for name, data in contents(root).items():
      system.pipe_file(f'/m/{name}', data)
    return 'memory://m'

  yield put
  if system.exists('/m'):
    system.rm('/m', recursive=True)


@pytest.fixture
def web():
  """The files of a server, its faults and its address."""
  files = remote_servers.Files()
  faulty = remote_servers.Faulty(files)
  with remote_servers.serving(faulty) as address:

    def put(root):
      files.files |= {f'/{n}': data for n, data in contents(root).items()}
      return address

    yield files, faulty, put


def tree(root):
  """A folder with every form that images have."""
  forms.class_folders(root / 'folder', IMAGES)
  (root / 'folder' / '.hidden').mkdir()
  (root / 'folder' / '.hidden' / 'a.jpg').write_bytes(b'-')
  (root / 'folder' / 'read.md').write_bytes(b'-')
  forms.list_file(root / 'list' / 'val.txt', IMAGES)
  (root / 'list' / 'up.txt').write_text('../one/ü 50%#.jpg 3\n')
  forms.shards(root / 'shards', IMAGES, per=3)
  forms.tar(root / 'one' / 'all.tar', IMAGES)
  forms.parquet(root / 'parquet', IMAGES)
  (root / 'one' / 'ü 50%#.jpg').write_bytes(IMAGES[0].data)
  return root


FORMS = (
  'folder',
  'list/val.txt',
  'list/up.txt',
  'shards',
  'shards/val-{000..002}.tar',
  'shards/val-*.tar',
  'one/all.tar',
  'parquet',
  'parquet/*.parquet',
)


def same(root, address, form):
  here = sources.open_source(f'{root}/{form}')
  there = sources.open_source(f'{address}/{form}')
  expected = facts(here)
  assert facts(there) == expected
  assert there.description == here.description.replace(str(root), address)


@pytest.mark.parametrize('form', FORMS)
def test_an_address_gives_what_the_disk_gives(tmp_path, memory, form):
  root = tree(tmp_path)
  same(root, memory(root), form)


def test_s3_gives_what_the_disk_gives(tmp_path, s3):
  root = tree(tmp_path)
  address = s3[1](root)
  for form in FORMS:
    same(root, address, form)


def test_https_gives_what_the_disk_gives(tmp_path, web):
  root = tree(tmp_path)
  address = web[2](root)
  for form in FORMS:
    if form in ('folder', 'shards', 'parquet') or '*' in form:
      message = user_error(sources.open_source, f'{address}/{form}/')
      assert 'cannot be listed' in message
    else:
      same(root, address, form)
  # A token in the query is used, and never shown.
  (item,) = sources.open_source(f'{address}/one/%C3%BC 50%25%23.jpg?t=1').items
  assert (item.key, item.read()) == ('ü 50%#.jpg', IMAGES[0].data)
  assert 't=1' not in item.name


# --------------------------------------------------------- ranges and bounds


def large(tmp_path, count=40, size=200_000):
  """A tar of large members, no images for the tests' speed."""
  random = np.random.default_rng(0)
  chosen = [
    forms.Sample(f'{n:03d}.jpg', random.bytes(size), 0) for n in range(count)
  ]
  forms.tar(tmp_path / 'large.tar', chosen)
  return chosen


def test_a_tar_is_indexed_by_its_headers_and_read_by_ranges(tmp_path, s3):
  faulty, put = s3
  chosen = large(tmp_path)
  items = sources.open_source(f'{put(tmp_path)}/large.tar').items
  total = sum(len(one.data) for one in chosen)
  assert faulty.sent < total / 8
  assert {asked[0] for asked in faulty.asked} == {'HEAD', 'GET'}
  assert all(
    asked[2]
    for asked in faulty.asked
    if asked[1].endswith('.tar') and asked[0] == 'GET'
  )
  faulty.clear()
  assert [item.read() for item in items] == [one.data for one in chosen]
  # Neighbours come together: 4 MiB have some twenty of these.
  ranges = [asked for asked in faulty.asked if asked[0] == 'GET']
  assert len(ranges) == 2
  faulty.clear()
  assert items[20].read() == chosen[20].data


def test_what_is_read_ahead_is_bounded(tmp_path, memory, monkeypatch):
  monkeypatch.setattr(ahead, 'AHEAD_BYTES', 1 << 20)
  monkeypatch.setattr(ahead, '_JOINED_BYTES', 1 << 18)
  most = 0

  class Spied(ahead._Ahead):
    def _hold(self, number):
      nonlocal most
      fetch = super()._hold(number)
      most = max(most, self._bytes)
      return fetch

  monkeypatch.setattr(ahead, '_Ahead', Spied)
  chosen = large(tmp_path)
  items = sources.open_source(f'{memory(tmp_path)}/large.tar').items
  assert [item.read() for item in items] == [one.data for one in chosen]
  assert 500_000 < most <= 1 << 20
  for row in np.random.default_rng(1).permutation(len(items)):
    assert items[row].read() == chosen[row].data
  assert most <= 1 << 20


def test_threads_that_read_in_turn_fetch_nothing_twice(tmp_path, web):
  _, faulty, put = web
  images = forms.images(120)
  forms.list_file(tmp_path / 'val.txt', images)
  items = sources.open_source(f'{put(tmp_path)}/val.txt').items
  faulty.clear()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda item: item.read(), items))
  assert found == [one.data for one in images]
  assert len(faulty.asked) == len({path for _, path, _ in faulty.asked}) == 120


# -------------------------------------------------------------------- faults


def test_nothing_is_lost_where_a_server_fails_now_and_then(
  tmp_path, s3, monkeypatch
):
  monkeypatch.setattr(remote_stores, 'WAIT', 3)
  faulty, put = s3
  root = tree(tmp_path)
  address = put(root)
  for form in ('list/val.txt', 'one/all.tar', 'parquet'):
    expected = facts(sources.open_source(f'{root}/{form}'))
    faulty.faults = ['503', '500', '429']
    source = sources.open_source(f'{address}/{form}')
    faulty.faults = ['500', 'cut', 'slow' if form == 'list/val.txt' else '502']
    assert facts(source) == expected
    assert not faulty.faults


@pytest.mark.parametrize(
  ('fault', 'said'),
  [
    ('500', 'answers 500 Internal Server Error (4 tries). Start the same'),
    ('cut', 'connection broke'),
    ('expired', 'ExpiredToken: the credentials have expired. Renew them and'),
    ('403', 'answers 403 Forbidden. Check that'),
  ],
)
def test_one_message_names_the_object(tmp_path, s3, fault, said):
  faulty, put = s3
  items = sources.open_source(f'{put(tree(tmp_path))}/one/all.tar').items
  faulty.clear()
  faulty.faults = [fault] * 9
  faulty.only = 'all.tar'
  if fault in ('expired', 'cut'):
    # What a server says to HEAD has no body.
    faulty.faults = ['', *faulty.faults]
  message = user_error(items[0].read)
  assert message.startswith('cannot read s3://bucket/one/all.tar: ')
  assert said in message
  passes = fault in ('500', 'cut')
  tries = len(faulty.asked)
  assert (tries > 3) == passes


def test_an_outage_ends_a_run_and_a_broken_image_is_recorded(tmp_path, web):
  files, faulty, put = web
  root = tree(tmp_path)
  source = sources.open_source(f'{put(root)}/list/val.txt')
  gone, broken = (f'/list/{IMAGES[row].name}' for row in (2, 4))
  del files.files[gone]
  files.files[broken] = b'-' * len(files.files[broken])
  shape = preprocess.Preprocess(resize_size=40, crop_size=32)
  (batch,) = pipeline.batches(
    source.items, shape, rows=9, threads=2, on_error='record'
  )
  assert batch.mask.tolist() == [row not in (2, 4) for row in range(8)]
  assert 'no such file' in batch.reasons[2]
  faulty.faults = ['500'] * 99
  with pytest.raises(errors.UserError, match='4 tries'):
    list(pipeline.batches(source.items, shape, rows=9, on_error='record'))


def test_a_file_that_changes_is_noticed(tmp_path, web, memory):
  root, changed = tree(tmp_path / 'a'), tmp_path / 'b'
  forms.tar(changed / 'one' / 'all.tar', IMAGES[::-1])
  name = IMAGES[0].name
  (changed / 'list').mkdir()
  (changed / 'list' / name).write_bytes(IMAGES[0].data + b'-')
  for put in (web[2], memory):
    address = put(root)
    tar = sources.open_source(f'{address}/one/all.tar').items[0]
    image = sources.open_source(f'{address}/list/val.txt').items[0]
    put(changed)
    with pytest.raises(decoding.ImageError, match='was changed while'):
      tar.read()
    with pytest.raises(decoding.ImageError, match='size has changed'):
      image.read()


# ------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
  'name',
  [
    '/etc/passwd.jpg',
    'file:///etc/a.jpg',
    's3://other/a.jpg',
    'simplecache::file:///etc/a.jpg',
    'C:\\a.jpg',
    '../../a.jpg',
    'x/../../../other/a.jpg',
    '\\\\host\\a.jpg',
  ],
)
def test_a_list_names_nothing_elsewhere(memory, tmp_path, name):
  (tmp_path / 'l').mkdir()
  (tmp_path / 'l' / 'list.txt').write_text(f'"{name}" 3\n')
  message = user_error(sources.open_source, f'{memory(tmp_path)}/l/list.txt')
  assert 'names paths relative to it' in message


@pytest.mark.parametrize(
  'data',
  [
    'file:///etc/passwd',
    'simplecache::file:///etc/passwd',
    'filecache::s3://bucket/x',
    'zip://a.jpg::https://host/a.zip',
    'local:///etc/passwd',
  ],
)
def test_addresses_of_this_machine_and_chains_are_refused(data):
  assert 'is no protocol of a server' in user_error(sources.open_source, data)


def test_what_is_not_there_or_not_known(memory, tmp_path, web):
  address = web[2](tree(tmp_path))
  memory(tmp_path)
  for data in ('memory://m/nothing', f'{address}/nothing'):
    assert 'there is no such file' in user_error(sources.open_source, data)
  message = user_error(sources.open_source, 'memory://m/shards/{0..1}.tar')
  assert '2 of the files' in message
  assert 'no protocol' in user_error(sources.open_source, 'nonesuch://a/b')
  for data in ('https://', 'http://[::1/x'):
    assert 'is not an address' in user_error(sources.open_source, data)
  message = user_error(sources.open_source, f'{address}/shards/*.tar?key=1')
  assert 'cannot be listed' in message
  assert 'key=1' not in message


def test_a_server_that_misbehaves(tmp_path, web):
  files, _, put = web
  address = put(tree(tmp_path))
  port = address.rpartition(':')[2]
  files.moved = {
    '/moved.tar': '/one/all.tar',
    '/circle': '/circle',
    '/local': 'file:///etc/passwd',
    '/ftp': f'ftp://127.0.0.1:{port}/one/all.tar',
  }
  assert len(sources.open_source(f'{address}/moved.tar').items) == 8
  message = user_error(sources.open_source, f'{address}/circle')
  assert 'redirected more than 5 times' in message
  for name in ('local', 'ftp'):
    message = user_error(sources.open_source, f'{address}/{name}')
    assert 'redirected to another protocol' in message
  files.ranges = False
  message = user_error(sources.open_source, f'{address}/one/all.tar')
  assert 'does not send parts of files' in message


def test_too_large_a_file_is_not_fetched(memory, tmp_path, monkeypatch):
  address = memory(tree(tmp_path))
  monkeypatch.setattr(places, 'MAX_BYTES', 100)
  item = sources.open_source(f'{address}/list/val.txt').items[0]
  with pytest.raises(decoding.ImageError, match='are more than 100'):
    item.read()


def test_a_local_path_imports_no_fsspec_and_the_extra_is_named(tmp_path):
  forms.list_file(tmp_path / 'val.txt', IMAGES[:2])
  code = (
    'import sys\n'
    'from resnet_jax.data import sources\n'
    f'sources.open_source({str(tmp_path / "val.txt")!r}).items[0].read()\n'
    'assert not {"fsspec", "aiohttp"} & set(sys.modules)\n'
    'sys.modules["fsspec"] = None\n'
    'try: sources.open_source("s3://bucket/a.jpg")\n'
    'except Exception as error: print(error)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "pip install 'resnet-jax-zoo[remote]'" in done.stdout


# ----------------------------------------------------------------- the program


SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=3'


def extracted(data, out):
  """The features of images, and what determines them."""
  config = config_of(SMALL, data=str(data), output_dir=str(out))
  assert jobs.run('extract', config) == 0
  files = contents(out)
  group = json.loads(files.pop('zarr.json'))
  return files, group['attributes']['settings']


@pytest.mark.filterwarnings('ignore:UNTRAINED')
def test_expired_credentials_end_a_run_and_new_ones_resume_it(tmp_path, s3):
  faulty, put = s3
  images = forms.images(24)
  forms.list_file(tmp_path / 'list' / 'val.txt', images)
  address = put(tmp_path)
  expected = extracted(tmp_path / 'list' / 'val.txt', tmp_path / 'local')
  faulty.only, faulty.faults = images[20].name, ['', *['expired'] * 99]
  out = tmp_path / 'remote'
  message = user_error(extracted, f'{address}/list/val.txt', out)
  assert message.startswith(
    f'cannot read s3://bucket/list/{images[20].name}: the server answers 403'
  )
  assert 'a run resumes' in message
  assert (tmp_path / 'remote.part').exists()
  assert not out.exists()
  faulty.clear()
  assert extracted(f'{address}/list/val.txt', out) == expected
  # What was done is not read again.
  read = {path for method, path, _ in faulty.asked if method == 'GET'}
  assert f'/bucket/list/{IMAGES[0].name}' not in read


def test_a_killed_run_resumes_to_the_bytes_of_a_local_one(tmp_path, s3):
  put = s3[1]
  forms.tar(tmp_path / 'all.tar', IMAGES)
  address = put(tmp_path)
  arguments = (
    '--job=crop',
    f'--config=configs/resnet.py:{SMALL},data={address}/all.tar,threads=1',
  )
  process = Started(tmp_path, *arguments)
  part = tmp_path / 'crops.zarr.part'
  process.wait_until((part / 'zarr.json').exists)
  process.kill()
  run_program(tmp_path, *arguments, check=0)
  data = str(tmp_path / 'all.tar')
  local = config_of(SMALL, data=data, crops=str(tmp_path / 'local.zarr'))
  assert jobs.run('crop', local) == 0
  found, expected = (
    contents(tmp_path / name) for name in ('crops.zarr', 'local.zarr')
  )
  for files in (found, expected):
    # Besides the settings it has the run's own record.
    group = json.loads(files.pop('zarr.json'))
    files['settings'] = group['attributes']['settings']
  assert found == expected
