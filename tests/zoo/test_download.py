# SPDX-License-Identifier: Apache-2.0
"""Downloads against a server of the test's own: all that goes wrong there."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from conftest import ROOT
from makers import HANGS, wait_until

import resnet_jax
from resnet_jax.system import errors
from resnet_jax.zoo import cache, download, records

DATA = np.random.default_rng(0).bytes(300_000)
SIZE = len(DATA)
OTHER = np.random.default_rng(1).bytes(SIZE)
HALF = SIZE // 2
NAME = 'weights.bin'
LATE = 'the host does not answer in time'
SHA256 = hashlib.sha256(DATA).hexdigest()
SURE = records.Hash('sha256', SHA256)


class Site:
  """A server on the loopback that does what a script says.

  Attributes:
    steps: what the next requests get, one each; then the whole file.
    asked: path and headers of each request so far.
    sent: bytes of files so far.
    released: set when stalled requests may end.
  """

  def __init__(self, data=DATA, context=None):
    self.data, self.tag = data, '"1"'
    self.steps, self.asked, self.sent = [], [], 0
    self.released = threading.Event()
    site = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        site.asked.append((self.path, dict(self.headers)))
        step = site.steps.pop(0) if site.steps else whole()
        # Whoever hangs up has heard enough.
        with contextlib.suppress(ConnectionError):
          step(self, site)

      def log_message(self, *args):
        pass

    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    # Closing waits for the connections: whoever holds one fails the test.
    self.server.daemon_threads = False
    if context:
      self.server.socket = context.wrap_socket(
        self.server.socket, server_side=True
      )
    port = self.server.server_address[1]
    self.address = f'http{"s" * bool(context)}://127.0.0.1:{port}'
    self.thread = threading.Thread(
      target=self.server.serve_forever, args=(0.01,)
    )
    self.thread.start()

  @property
  def ranges(self):
    """What was asked for of the file, a request each."""
    return [headers.get('Range') for _, headers in self.asked]

  def file(self, hash=SURE, size=SIZE, exact=True):
    """The file as it is published."""
    return records.File((f'{self.address}/{NAME}',), hash, size, exact)

  def stop(self):
    """Ends it, when every client has hung up."""
    self.released.set()
    self.server.shutdown()
    self.server.server_close()
    self.thread.join()


# ------------------------------------------------------------ what a site does


def _head(handler, status, length, **headers):
  handler.send_response(status)
  for name, value in headers.items():
    handler.send_header(name.replace('_', '-'), value)
  if length is not None:
    handler.send_header('Content-Length', str(length))
  handler.end_headers()


def _body(handler, site, data):
  for start in range(0, len(data), 10_000):
    piece = data[start : start + 10_000]
    handler.wfile.write(piece)
    site.sent += len(piece)


def whole(data=None, ranges=True, if_range=True, **headers):
  """The file, or the range of it that is asked for."""

  def step(handler, site):
    content = site.data if data is None else data
    tag = {'ETag': site.tag} if site.tag else {}
    asked = handler.headers.get('Range')
    same = handler.headers.get('If-Range') == site.tag or not if_range
    if not (asked and same and ranges):
      _head(handler, 200, len(content), **(tag | headers))
      return _body(handler, site, content)
    start = int(asked.removeprefix('bytes=').removesuffix('-'))
    if start >= len(content):
      return _head(handler, 416, 0, Content_Range=f'bytes */{len(content)}')
    place = f'bytes {start}-{len(content) - 1}/{len(content)}'
    tag = {'Content-Range': place} | tag | headers
    _head(handler, 206, len(content) - start, **tag)
    _body(handler, site, content[start:])

  return step


def second_half(**headers):
  """Status 206, said to be what `headers` say."""

  def step(handler, site):
    _head(handler, 206, len(site.data) - HALF, **headers)
    _body(handler, site, site.data[HALF:])

  return step


def cut(count=HALF, **headers):
  """The whole length is stated, and `count` bytes come."""

  def step(handler, site):
    _head(handler, 200, len(site.data), **({'ETag': site.tag} | headers))
    _body(handler, site, site.data[:count])

  return step


def cut_chunk(handler, site):
  handler.protocol_version = 'HTTP/1.1'
  _head(handler, 200, None, Transfer_Encoding='chunked')
  handler.wfile.write(b'5\r\nhello\r\nffff\r\nworld')


def stall(handler, site):
  site.released.wait()


def stall_at_half(handler, site):
  cut()(handler, site)
  site.released.wait()


def drip(handler, site):
  _head(handler, 200, len(site.data), ETag=site.tag)
  while not site.released.wait(0.02):
    handler.wfile.write(b'x')


def drip_header(handler, site):
  handler.wfile.write(b'HTTP/1.1 200 OK\r\nX: ')
  while not site.released.wait(0.02):
    handler.wfile.write(b'x')


def drip_chunk_size(handler, site):
  handler.protocol_version = 'HTTP/1.1'
  _head(handler, 200, None, **{'Transfer-Encoding': 'chunked'})
  while not site.released.wait(0.02):
    handler.wfile.write(b'0')


def stay_connected(handler, site):
  handler.protocol_version = 'HTTP/1.1'
  _head(handler, 200, len(site.data))
  _body(handler, site, site.data)
  site.released.wait()


def status(code, **headers):
  return lambda handler, site: _head(handler, code, 0, **headers)


def redirect(to, code=302):
  return status(code, Location=to)


def endless(code=200, **headers):
  """A body without an end."""

  def step(handler, site):
    _head(handler, code, None, **headers)
    while not site.released.is_set():
      handler.wfile.write(bytes(10_000))

  return step


def raw(data):
  return lambda handler, site: handler.wfile.write(data)


def hang_up(handler, site):
  handler.connection.shutdown(socket.SHUT_RDWR)


# -------------------------------------------------------------------- fixtures


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
  """No variable of the user's counts."""
  for name in list(os.environ):
    if name.lower().endswith('_proxy') or name.startswith('RESNET_JAX_'):
      monkeypatch.delenv(name)
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def new_site():
  """Makes sites, and stops them."""
  with contextlib.ExitStack() as stack:

    def make(**options):
      site = Site(**options)
      stack.callback(site.stop)
      return site

    yield make


@pytest.fixture
def site(new_site):
  return new_site()


@pytest.fixture
def closed_port():
  """An address at which nobody listens."""
  with socket.socket() as taken:
    # Bound, it is given to nobody else; not listening, it refuses.
    taken.bind(('127.0.0.1', 0))
    yield f'http://127.0.0.1:{taken.getsockname()[1]}'


@pytest.fixture
def tls(new_site, tmp_path):
  """A site with a certificate, and the path of its certificate."""
  if not shutil.which('openssl'):
    pytest.skip('openssl makes the certificate')
  key, path = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
  subprocess.run(
    [
      *('openssl', 'req', '-x509', '-nodes', '-days', '2'),
      *('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'),
      *('-subj', '/CN=test', '-addext', 'subjectAltName=IP:127.0.0.1'),
      *('-keyout', key, '-out', path),
    ],
    check=True,
    capture_output=True,
  )
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(path, key)
  return new_site(context=context), path


def fetch(file, said=None, **options):
  """Downloads a file; `said` gets the log."""
  say = ([] if said is None else said).append
  options = {'report': None, 'timeout': HANGS, 'grace': HANGS} | options
  return download.fetch(file, 'test-50', say=say, **options)


def fail(file, **options):
  """The lines of the error, a dictionary from address to what happened."""
  with pytest.raises(errors.UserError) as caught:
    fetch(file, **options)
  assert not cache.place(file, 'test-50').exists()
  lines = str(caught.value).splitlines()
  return dict(
    line.strip().split(': ', 1) for line in lines if line.startswith('  ')
  )


def fault(file, **options):
  """What happened at the only address."""
  (text,) = fail(file, **options).values()
  return text


def folder():
  return pathlib.Path(os.environ['RESNET_JAX_CACHE']) / 'test-50'


def in_folder():
  return {path.name for path in folder().iterdir()} - {f'{NAME}.lock'}


def receipt():
  return json.loads((folder() / f'{NAME}.json').read_text())


def start_part(site):
  """Leaves the first half of the file as a part of a transfer."""
  site.steps = [cut(), status(404)]
  assert '404' in fault(site.file())
  assert (folder() / f'{NAME}.part').read_bytes() == DATA[:HALF]
  site.asked.clear()
  site.sent = 0


# ------------------------------------------------------------- what goes right


def test_a_file_is_downloaded_once_with_a_receipt(site):
  said, reported = [], []
  path = fetch(
    site.file(), said, report=lambda done, total: reported.append((done, total))
  )
  assert path == folder() / NAME
  assert path.read_bytes() == DATA
  assert in_folder() == {NAME, f'{NAME}.json'}
  written = receipt()
  date = written.pop('date')
  assert date.endswith('+00:00')
  assert written == {
    'address': f'{site.address}/{NAME}',
    'bytes': SIZE,
    'sha256': SHA256,
    'verified': f'sha256 {SHA256}',
  }
  assert said == [
    f'downloading {site.address}/{NAME}',
    f'{path}: verified: sha256 {SHA256}',
  ]
  assert reported[0] == (0, SIZE)
  assert reported[-1] == (SIZE, SIZE)
  assert reported == sorted(reported)
  assert fetch(site.file(), said) == path
  assert cache.cached(site.file(), 'test-50') == path
  assert len(site.asked) == 1
  headers = site.asked[0][1]
  assert headers['User-Agent'] == f'resnet_jax/{resnet_jax.__version__}'
  assert headers['Accept-Encoding'] == 'identity'


@pytest.mark.parametrize('algorithm', ['sha256', 'sha1', 'md5'])
@pytest.mark.parametrize('digits', [None, 8])
def test_the_recorded_hash_is_compared(site, algorithm, digits):
  known = hashlib.new(algorithm, DATA).hexdigest()[:digits]
  said = []
  fetch(site.file(records.Hash(algorithm, known)), said)
  part = ' (first 8 digits)' if digits else ''
  assert said[-1] == f'{folder() / NAME}: verified: {algorithm} {known}{part}'
  assert receipt()['verified'] == f'{algorithm} {known}{part}'


def test_without_a_hash_it_says_so(site):
  said = []
  path = fetch(site.file(None, None), said)
  assert said[-1] == f'{path}: NOT verified: no hash is published'
  assert receipt()['verified'] == 'nothing'
  assert receipt()['sha256'] == SHA256
  assert fetch(site.file(None, None)) == path
  assert len(site.asked) == 1


@pytest.mark.parametrize('step', [stay_connected, endless(302, Location='/b')])
def test_nothing_is_read_beyond_its_end(site, step):
  site.steps = [step]
  fetch(site.file())


def test_a_length_that_is_not_known(site):
  """Neither from the server, nor exactly from the publisher."""

  def step(handler, site):
    _head(handler, 200, None)
    _body(handler, site, DATA)

  site.steps = [step]
  file = site.file(size=HALF, exact=False)
  assert fetch(file).read_bytes() == DATA
  assert len(site.asked) == 1


@pytest.mark.parametrize('code', [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, new_site, code):
  other = new_site()
  site.steps = [redirect('/a b'), redirect(f'{other.address}/c?d=e', code)]
  fetch(site.file())
  assert [path for path, _ in site.asked] == [f'/{NAME}', '/a%20b']
  assert [path for path, _ in other.asked] == ['/c?d=e']
  # Where it led to may hold a key that is valid for a while.
  assert receipt()['address'] == f'{site.address}/{NAME}'


def test_proxies_of_the_environment_are_used(site, monkeypatch):
  monkeypatch.setenv('http_proxy', site.address)
  address = f'http://published.invalid/{NAME}'
  file = records.File((address,), SURE, SIZE)
  fetch(file)
  assert site.asked[0][0] == address
  shutil.rmtree(folder())
  monkeypatch.setenv('http_proxy', 'socks5://127.0.0.1:1')
  assert 'unknown url type: socks5' in fault(file)


# ------------------------------------------------------------- what goes wrong

REDIRECTS = ': it redirects in circles, or not to https or http'


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    (status(404), '404 Not Found'),
    (status(204), '204 No Content'),
    (status(206), '206 Partial Content'),
    (status(416), '416 '),
    (status(503), '503 Service Unavailable'),
    (status(599), '599'),
    (hang_up, 'no connection ('),
    (cut(0), 'the connection broke after 0 bytes'),
    (whole(b''), 'the connection broke after 0 bytes'),
    (cut_chunk, 'no connection ('),
    (redirect(f'/{NAME}'), f'302 Found{REDIRECTS}'),
    (redirect('file:///etc/passwd', 307), '307 Temporary Redirect: it'),
    (redirect('ftp://x/y'), f'302 Found{REDIRECTS}'),
    (redirect('http://127.0.0.1:99999/'), 'no connection ('),
    (redirect('http://:80/'), 'no connection ('),
    (status(302), f'302 Found{REDIRECTS}'),
    (whole(DATA[:-1]), 'it is not the published file: its sha256 is '),
    (whole(DATA + b'x'), 'it has more than 300,000 bytes'),
    (endless(), 'it has more than 300,000 bytes'),
    (
      whole(OTHER),
      f'it is not the published file: its sha256 is'
      f' {hashlib.sha256(OTHER).hexdigest()}, not {SHA256}',
    ),
    (raw(b'\x1b[31mHello\r\n\r\n'), 'no connection (\\x1b[31mHello'),
    (
      raw(b'HTTP/1.0 200 OK\r\nX: ' + b'x' * 70_000 + b'\r\n\r\n'),
      'no connection (got more than 65536 bytes when reading header line)',
    ),
    (
      raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'),
      'no connection (',
    ),
  ],
)
def test_what_happened_is_said(site, step, expected):
  site.steps = [step] * 12
  said = []
  text = fault(site.file(), said=said)
  assert text.startswith(expected)
  assert len(said) == 2
  assert not in_folder() & {NAME, f'{NAME}.json'}
  site.steps = []
  assert fetch(site.file()).read_bytes() == DATA


def test_a_silent_server_is_one_message(site):
  site.steps = [stall]
  assert fault(site.file(), timeout=0.2) == LATE
  assert in_folder() == set()
  # The server still keeps the connection, the client does not.
  site.steps = []
  assert fetch(site.file()).read_bytes() == DATA


def test_what_came_before_a_server_fell_silent_is_kept(site):
  part = folder() / f'{NAME}.part'
  # A slow machine may not answer in time either.
  for timeout in (0.2, 2, 20, 200):
    site.steps = [stall_at_half] * 3
    assert fault(site.file(), timeout=timeout) == LATE
    if part.exists() and part.stat().st_size == HALF:
      break
  site.steps = []
  site.asked.clear()
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [f'bytes={HALF}-']


@pytest.fixture
def now(monkeypatch):
  """A clock that stands still until it is moved; limits of waits are real."""
  clock = types.SimpleNamespace(value=0.0)
  monkeypatch.setattr(
    download, 'time', types.SimpleNamespace(monotonic=lambda: clock.value)
  )
  return clock


def test_a_server_that_drips_is_one_message(site, now):
  def report(done, total):
    now.value += 2 * HANGS

  site.steps = [drip] * 3
  text = fault(site.file(), report=report)
  assert text.startswith('it is too slow: ')
  assert not (folder() / NAME).exists()
  site.steps = []
  assert fetch(site.file()).read_bytes() == DATA


@pytest.mark.parametrize('drips', [drip_header, drip_chunk_size])
def test_a_server_that_drips_what_completes_nothing_is_one_message(site, drips):
  site.steps = [drips] * 3
  assert fault(site.file(), grace=0.2) == LATE
  assert not (folder() / NAME).exists()


def test_a_slow_server_is_waited_for(site, now):
  """For longer than `grace`, as long as it sends enough."""

  def report(done, total):
    now.value = HANGS - 1 + done / 10_000

  fetch(site.file(), report=report)
  assert now.value > HANGS + 20
  assert len(site.asked) == 1


def test_the_error_names_the_ways_out(site):
  site.steps = [status(404)]
  with pytest.raises(errors.UserError) as caught:
    fetch(site.file())
  assert str(caught.value) == (
    f'{NAME} could not be downloaded:\n'
    f'  {site.address}/{NAME}: 404 Not Found\n'
    'Try again later; or give weights=PATH of a file that you have, put it at'
    f' {folder() / NAME} or name in RESNET_JAX_MIRROR the address of a folder'
    f' that has {NAME}.'
  )
  site.steps = [status(404)]
  with pytest.raises(errors.UserError) as caught:
    fetch(site.file(hash=None))
  assert 'put it at' not in str(caught.value)


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    (endless(), 'it has more than 50,000 bytes'),
    (
      whole(b'<html>', Content_Type='text/html; charset=utf-8'),
      'it has a web page, not a file',
    ),
  ],
)
def test_a_file_of_unknown_hash_and_size(site, monkeypatch, step, expected):
  monkeypatch.setattr(download, '_MAX_BYTES', 50_000)
  site.steps = [step]
  assert fault(site.file(None, None)) == expected
  assert in_folder() == set()


# ------------------------------------------------------------------------- TLS


def test_tls_needs_a_certificate_and_no_redirect_leads_out(
  tls, site, monkeypatch
):
  secure, certificate = tls
  text = fault(secure.file())
  assert 'certificate verify failed' in text
  assert text.endswith('; SSL_CERT_FILE can name other authorities')
  monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
  secure.steps = [redirect(f'{site.address}/x')]
  assert fault(secure.file()) == f'302 Found{REDIRECTS}'
  assert not site.asked
  site.steps = [redirect(f'{secure.address}/x')]
  assert fetch(site.file()).read_bytes() == DATA


def test_a_host_that_is_silent_in_tls(site):
  with socket.create_server(('127.0.0.1', 0)) as silent:
    file = records.File(
      (f'https://127.0.0.1:{silent.getsockname()[1]}/{NAME}',), SURE, None
    )
    assert fault(file, timeout=0.2) == LATE
  address = site.address.replace('http:', 'https:')
  file = records.File((f'{address}/{NAME}',), SURE, None)
  assert fault(file).startswith('no connection ([SSL: ')


# ---------------------------------------------------------------------- resume


def test_a_broken_transfer_is_resumed(site):
  site.steps = [cut()]
  reported, said = [], []
  path = fetch(
    site.file(), said, report=lambda done, total: reported.append(done)
  )
  assert path.read_bytes() == DATA
  assert said[1:3] == [
    f'{site.address}/{NAME}: the connection broke after 150,000 bytes; trying'
    ' again',
    f'downloading {site.address}/{NAME}, from byte 150,000',
  ]
  assert site.ranges == [None, f'bytes={HALF}-']
  assert site.asked[1][1]['If-Range'] == '"1"'
  assert site.sent == SIZE
  assert reported.count(0) == 1
  assert reported == sorted(reported)
  assert in_folder() == {NAME, f'{NAME}.json'}


def test_a_part_is_kept_for_the_next_run_and_not_for_other_addresses(
  site, new_site
):
  site.steps = [cut(), status(503)]
  with pytest.raises(
    errors.UserError, match=r'bin\.part is kept: the next download resumes it'
  ):
    fetch(site.file())
  site.asked.clear()
  fetch(site.file())
  assert site.ranges == [f'bytes={HALF}-']
  shutil.rmtree(folder())
  start_part(site)
  other = new_site()
  assert fetch(other.file()).read_bytes() == DATA
  assert other.ranges == [None]


def test_a_connection_that_always_breaks_is_given_up(site):
  def crumb(handler, site):
    start = int(handler.headers.get('Range', 'bytes=0-')[6:-1])
    place = f'bytes {start}-{SIZE - 1}/{SIZE}'
    code = 206 if start else 200
    tags = {'ETag': site.tag, 'Content-Range': place}
    _head(handler, code, SIZE - start, **tags)
    _body(handler, site, DATA[start : start + 1000])

  site.steps = [crumb] * 9
  assert fault(site.file()) == 'the connection broke after 3,000 bytes'
  assert site.ranges == [None, 'bytes=1000-', 'bytes=2000-']


DATE = 'Tue, 24 Nov 2026 12:00:00 GMT'
HALVES = f'bytes {HALF}-{SIZE - 1}/{SIZE}'


@pytest.mark.parametrize(
  ('steps', 'tries'),
  [
    ([cut(), redirect('/elsewhere')], 'first rest rest'),
    # A date serves where no strong tag is.
    (
      [
        cut(ETag='W/"1"', Last_Modified=DATE),
        second_half(Last_Modified=DATE, Content_Range=HALVES),
      ],
      'first rest',
    ),
    ([cut(), whole(ranges=False)], 'first rest'),
    ([cut(), status(416)], 'first rest first'),
    ([cut(), second_half()], 'first rest first'),
    ([cut(), second_half(Content_Range='bytes')], 'first rest first'),
    (
      [cut(), second_half(Content_Range=f'bytes 9-{HALF + 8}/{SIZE}')],
      'first rest first',
    ),
    (
      [cut(), second_half(Content_Range=HALVES, ETag='"2"')],
      'first rest first',
    ),
    ([cut(), whole(OTHER)], 'first rest first'),
  ],
)
def test_what_follows_a_broken_transfer(site, steps, tries):
  site.steps = list(steps)
  assert fetch(site.file()).read_bytes() == DATA
  ranges = {'first': None, 'rest': f'bytes={HALF}-'}
  assert site.ranges == [ranges[word] for word in tries.split()]


def test_a_wrong_part_is_tried_afresh_once(site):
  site.steps = [cut(), whole(OTHER), whole(OTHER)]
  assert 'it is not the published file' in fault(site.file())
  assert site.ranges == [None, f'bytes={HALF}-', None]
  assert in_folder() == set()


def test_an_interrupted_transfer_is_resumed(site):
  def interrupt(done, total):
    if done > HALF:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fetch(site.file(), report=interrupt)
  there = (folder() / f'{NAME}.part').stat().st_size
  assert there > HALF
  site.asked.clear()
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [f'bytes={there}-']


def test_without_tag_and_date_it_starts_over(site):
  site.tag = 'W/"weak"'
  site.steps = [cut()]
  assert fault(site.file()) == 'the connection broke after 150,000 bytes'
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [None, None]


@pytest.mark.parametrize('if_range', [True, False])
@pytest.mark.parametrize('known', [SURE, None])
def test_two_versions_are_never_glued(site, if_range, known):
  """Also where the server does not compare them, or nothing is published."""
  site.data = OTHER
  site.steps = [cut(), status(404)]
  fail(site.file())
  site.data, site.tag = DATA, '"2"'
  site.steps = [whole(if_range=if_range)]
  assert fetch(site.file(known)).read_bytes() == DATA
  assert site.ranges[2:] == [f'bytes={HALF}-', None][: 2 - if_range]


def test_a_dead_mirror_does_not_cost_the_part(site, closed_port):
  start_part(site)
  urls = (f'{closed_port}/{NAME}', f'{site.address}/{NAME}')
  fetch(records.File(urls, SURE, SIZE))
  assert site.ranges == [f'bytes={HALF}-']


@pytest.mark.parametrize('damage', ['', '[]', '{"address": 1}'])
def test_a_part_of_unknown_origin_is_not_resumed(site, damage):
  start_part(site)
  (folder() / f'{NAME}.part.json').write_text(damage)
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [None]


# --------------------------------------------------------------------- mirrors


def test_mirrors_are_tried_in_turn(site, new_site, closed_port):
  wrong, broken = new_site(data=OTHER), new_site()
  broken.steps = [cut(), cut(0), cut(0)]
  urls = [wrong.address, broken.address, closed_port, site.address]
  file = records.File(tuple(f'{u}/{NAME}' for u in urls), SURE, SIZE)
  said = []
  assert fetch(file, said).read_bytes() == DATA
  assert receipt()['address'] == f'{site.address}/{NAME}'
  assert [len(s.asked) for s in (wrong, broken, site)] == [1, 3, 1]
  assert f'{closed_port}/{NAME}: no connection (Connection refused)' in said
  shutil.rmtree(folder())
  site.steps, broken.steps = [status(404)], [status(410)]
  found = fail(file)
  assert list(found) == list(file.urls)
  assert [text[:19] for text in found.values()] == [
    'it is not the publi',
    '410 Gone',
    'no connection (Conn',
    '404 Not Found',
  ]


@pytest.mark.parametrize('end', ['', '/'])
def test_an_own_mirror_comes_first(site, new_site, monkeypatch, end):
  own = new_site()
  monkeypatch.setenv('RESNET_JAX_MIRROR', f'{own.address}/a/b{end}')
  fetch(site.file())
  assert not site.asked
  assert own.asked[0][0] == f'/a/b/{NAME}'
  assert receipt()['address'] == f'{own.address}/a/b/{NAME}'
  shutil.rmtree(folder())
  own.data = OTHER
  fetch(site.file())
  assert receipt()['address'] == f'{site.address}/{NAME}'


@pytest.mark.parametrize(
  'mirror',
  [
    'file:///mnt',
    '/mnt/weights',
    'ftp://host/x',
    'host/x',
    'https://',
    'https://user:secret@host/x',
    'https://host/x?key=secret',
  ],
)
def test_a_mirror_that_is_none(site, monkeypatch, mirror):
  monkeypatch.setenv('RESNET_JAX_MIRROR', mirror)
  with pytest.raises(errors.UserError, match=r'^RESNET_JAX_MIRROR must') as e:
    fetch(site.file())
  assert 'secret' not in str(e.value)
  assert not site.asked


# ------------------------------------------------------------------- the cache


@pytest.mark.parametrize('value', ['1', 'true', 'YES'])
def test_offline_sends_no_request(site, monkeypatch, value):
  monkeypatch.setenv('RESNET_JAX_OFFLINE', value)
  with pytest.raises(
    errors.UserError,
    match=r'^test-50 is not in the cache, and RESNET_JAX_OFFLINE forbids'
    ' downloads',
  ):
    fetch(site.file())
  assert not site.asked
  assert not folder().exists()
  folder().mkdir(parents=True)
  (folder() / NAME).write_bytes(DATA)
  assert fetch(site.file()) == folder() / NAME
  monkeypatch.setenv('RESNET_JAX_OFFLINE', 'maybe')
  with pytest.raises(errors.UserError, match="RESNET_JAX_OFFLINE='maybe'"):
    cache.is_offline()


@pytest.mark.parametrize('value', ['', '0', 'false', 'No', ' '])
def test_what_allows_downloads(monkeypatch, value):
  monkeypatch.setenv('RESNET_JAX_OFFLINE', value)
  assert not cache.is_offline()


@pytest.mark.parametrize('data', [DATA[:-1], OTHER])
@pytest.mark.parametrize('known', [SURE, None])
def test_a_file_that_changed_is_not_used(site, data, known):
  path = fetch(site.file(known))
  path.write_bytes(data)
  with pytest.raises(
    errors.UserError,
    match=f'{path} is not the published file: its sha256 is'
    f' {hashlib.sha256(data).hexdigest()}, not {SHA256}. Remove it to download'
    f' it again, or give weights={path} to use it as it is',
  ):
    fetch(site.file(known))
  path.unlink()
  assert fetch(site.file(known)).read_bytes() == DATA


def test_a_hash_that_was_published_since_is_compared(site):
  path = fetch(site.file(None))
  assert fetch(site.file()) == path
  with pytest.raises(errors.UserError, match=r'its md5 is .*, not 0123\. Rem'):
    fetch(site.file(records.Hash('md5', '0123')))


@pytest.mark.parametrize('damage', [None, '', '[]', '{"bytes": 3}'])
def test_a_file_without_a_receipt(site, damage):
  """Put there by hand: the hash verifies it, or nothing does."""
  path = folder() / NAME
  path.parent.mkdir(parents=True)
  path.write_bytes(DATA)
  if damage is not None:
    (folder() / f'{NAME}.json').write_text(damage)
  with pytest.raises(errors.UserError, match='it has no receipt and no pub'):
    fetch(site.file(None))
  assert fetch(site.file()) == path
  assert not site.asked
  assert receipt()['address'] is None
  assert receipt()['sha256'] == SHA256
  path.with_name(f'{NAME}.json').unlink()
  path.write_bytes(OTHER)
  with pytest.raises(errors.UserError, match='is not the published file'):
    fetch(site.file())


def test_a_shared_cache_needs_no_writing(site, monkeypatch):
  path = fetch(site.file())
  path.with_name(f'{NAME}.json').unlink()

  def refuse(*args):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(cache.files, 'write_atomically', refuse)
  assert fetch(site.file()) == path


def test_a_folder_in_its_place(site):
  (folder() / NAME).mkdir(parents=True)
  with pytest.raises(errors.UserError, match=r'cannot read .*: Is a directory'):
    fetch(site.file())


def test_a_cache_that_cannot_be_written(site, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('mine')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'file'))
  with pytest.raises(
    errors.UserError,
    match=r'^cannot write a download .*file/test-50: Not a directory',
  ):
    fetch(site.file())
  assert not site.asked


def test_a_disk_that_is_full(site):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
  try:
    with pytest.raises(errors.UserError, match=r'cannot write .* File'):
      fetch(site.file())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not (folder() / NAME).exists()
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [None, f'bytes={HALF}-']


# --------------------------------------------------------------- two at a time


def _other_process(site):
  """Another process that fetches the file."""
  code = (
    'from resnet_jax.zoo import download, records\n'
    f'file = records.File({site.file().urls}, None, {SIZE})\n'
    "print(download.fetch(file, 'test-50', report=None, say=print,"
    f' timeout={HANGS}, grace={HANGS}))'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize('killed', [True, False])
def test_two_processes(site, killed):
  """The second finds what the first got, or resumes where it was killed."""
  stalls = threading.Event()

  def step(handler, site):
    cut()(handler, site)
    stalls.set()
    site.released.wait()
    with contextlib.suppress(ConnectionError):
      _body(handler, site, DATA[HALF:])

  site.steps = [step]
  with _other_process(site) as other:
    assert stalls.wait(HANGS)
    part = folder() / f'{NAME}.part'
    wait_until(lambda: part.exists() and part.stat().st_size)

    def say(text):
      if text.startswith('waiting'):
        if killed:
          other.send_signal(signal.SIGKILL)
        site.released.set()

    path = download.fetch(
      site.file(), 'test-50', report=None, say=say, timeout=HANGS, grace=HANGS
    )
    output, _ = other.communicate()
  assert path.read_bytes() == DATA
  assert len(site.asked) == 1 + killed
  assert (site.ranges[-1] is not None) == killed
  assert (str(path) in output) == (not killed)


def test_a_file_system_without_locks(site, monkeypatch):
  def refuse(*args):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(download.files, 'hold', refuse)
  assert fetch(site.file()).read_bytes() == DATA
