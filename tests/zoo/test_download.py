# SPDX-License-Identifier: Apache-2.0
"""Downloads against a server of the test's own: all that goes wrong there."""

import contextlib
import functools
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
import time
import types

import numpy as np
import pytest
from conftest import ROOT

import resnet_jax
from resnet_jax.system import errors
from resnet_jax.zoo import cache, download, records, transfer

DATA = np.random.default_rng(0).bytes(300_000)
SIZE = len(DATA)
OTHER = np.random.default_rng(1).bytes(SIZE)
HALF = SIZE // 2
NAME = 'weights.bin'
TIMEOUT = 60
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
    self.address = f'http{"s" * bool(context)}://127.0.0.1:{self.port}'
    self.thread = threading.Thread(
      target=self.server.serve_forever, args=(0.01,)
    )
    self.thread.start()

  @property
  def port(self):
    """Where it listens."""
    return self.server.server_address[1]

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


def whole(data=None, knows_if_range=True, **headers):
  """The file, or the range of it that is asked for."""

  def step(handler, site):
    content = site.data if data is None else data
    tag = {'ETag': site.tag} if site.tag else {}
    asked = handler.headers.get('Range')
    same = handler.headers.get('If-Range') == site.tag or not knows_if_range
    if not (asked and same):
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


def without_ranges(handler, site):
  _head(handler, 200, len(site.data))
  _body(handler, site, site.data)


def part_of(status=206, **headers):
  """The second half, said to be what `headers` say."""

  def step(handler, site):
    _head(handler, status, len(site.data) - HALF, **headers)
    _body(handler, site, site.data[HALF:])

  return step


def cut(count=HALF, **headers):
  """The whole length is stated, and `count` bytes come."""

  def step(handler, site):
    headers.setdefault('ETag', site.tag)
    _head(handler, 200, len(site.data), **headers)
    _body(handler, site, site.data[:count])

  return step


def cut_chunk(handler, site):
  handler.protocol_version = 'HTTP/1.1'
  _head(handler, 200, None, Transfer_Encoding='chunked')
  handler.wfile.write(b'5\r\nhello\r\nffff\r\nworld')


def stall(handler, site):
  site.released.wait()


def stall_after(count=HALF):
  def step(handler, site):
    cut(count)(handler, site)
    site.released.wait()

  return step


def _drip(handler, site):
  while not site.released.wait(0.02):
    handler.wfile.write(b'x')


def trickle(handler, site):
  _head(handler, 200, len(site.data))
  _drip(handler, site)


def trickle_chunk_size(handler, site):
  handler.protocol_version = 'HTTP/1.1'
  _head(handler, 200, None, Transfer_Encoding='chunked')
  _drip(handler, site)


def trickle_headers(handler, site):
  handler.wfile.write(b'HTTP/1.0 200 OK\r\nX: ')
  _drip(handler, site)


def stay_connected(handler, site):
  handler.protocol_version = 'HTTP/1.1'
  without_ranges(handler, site)
  site.released.wait()


def status(code, **headers):
  return lambda handler, site: _head(handler, code, 0, **headers)


def redirect(to, code=302):
  return status(code, Location=to)


def endless_redirect(handler, site):
  _head(handler, 302, None, Location=f'{site.address}/b')
  while not site.released.is_set():
    handler.wfile.write(bytes(10_000))


def endless(handler, site):
  _head(handler, 200, None)
  while not site.released.is_set():
    handler.wfile.write(bytes(10_000))


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
  monkeypatch.setattr(transfer, '_PAUSE_SECONDS', 0.01)


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
def certificate(tmp_path):
  """Of 127.0.0.1, signed by itself."""
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
  return key, path


@pytest.fixture
def tls_site(new_site, certificate):
  key, path = certificate
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(path, key)
  return new_site(context=context)


def fetch(file, said=None, report=None, timeout=TIMEOUT):
  said = [] if said is None else said
  return download.fetch(
    file, 'test-50', report=report, say=said.append, timeout=timeout
  )


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
  expected = (
    f'verified as far as is published, {algorithm} {known} (first 8 digits)'
    if digits
    else f'verified: {algorithm} {known}'
  )
  assert said[-1] == f'{folder() / NAME}: {expected}'
  assert receipt()['verified'] in said[-1]


@pytest.mark.parametrize(
  ('size', 'said', 'written'),
  [(None, '', 'nothing'), (SIZE, ' (its size fits)', 'its size')],
)
def test_without_a_hash_it_says_so(site, size, said, written):
  heard = []
  fetch(site.file(None, size), heard)
  assert heard[-1] == (
    f'{folder() / NAME}: NOT verified: no hash of it is published{said}; its'
    f' SHA-256 is {SHA256}'
  )
  assert receipt()['verified'] == written
  assert cache.cached(site.file(None, size), 'test-50')


def test_a_slow_server_is_waited_for(site, monkeypatch):
  """For longer than the time-out, as long as it sends enough."""
  now = [0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(transfer, 'time', clock)

  # A chunk of 64 KiB takes 0.9 of the time-out.
  def report(done, total):
    now[0] = 4 * TIMEOUT * done / total

  fetch(site.file(), report=report)
  assert now[0] == 4 * TIMEOUT
  assert len(site.asked) == 1


def test_a_server_that_stays_connected_is_not_waited_for(site):
  site.steps = [stay_connected]
  fetch(site.file())
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


def test_the_body_of_a_redirect_is_not_read(site):
  site.steps = [endless_redirect]
  fetch(site.file())


def test_proxies_of_the_environment_are_used(site, closed_port, monkeypatch):
  monkeypatch.setenv('http_proxy', site.address)
  address = f'http://published.invalid/{NAME}'
  file = records.File((address,), SURE, SIZE)
  fetch(file)
  assert site.asked[0][0] == address
  shutil.rmtree(folder())
  monkeypatch.setenv('http_proxy', closed_port)
  assert fault(file) == (
    'connection refused (the environment sets a proxy for http)'
  )
  monkeypatch.setenv('http_proxy', 'socks5://127.0.0.1:1')
  assert 'unknown url type: socks5' in fault(file)


# ------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
  ('step', 'expected', 'requests'),
  [
    (status(404), '404 Not Found', 1),
    (status(403), '403 Forbidden', 1),
    (status(204), '204 No Content', 1),
    (status(206), '206 Partial Content', 1),
    (status(416), '416 ', 1),
    (status(599), '599', 1),
    (status(503), '503 Service Unavailable', 2),
    (status(429), '429 Too Many Requests', 2),
    (status(503, Retry_After='0'), '503 Service Unavailable', 2),
    (status(503, Retry_After='soon'), '503 Service Unavailable', 2),
    (
      status(503, Retry_After='120'),
      '503 Service Unavailable, and asks to come again after 120 s',
      1,
    ),
    (hang_up, 'the connection broke', 2),
    (cut(0), 'the connection broke after 0 of 300,000 bytes', 2),
    (cut_chunk, 'the connection broke', 2),
    (redirect('/x'), 'it redirects more than 5 times', 6),
    (redirect('file:///etc/passwd'), "it redirects to 'file:///etc/passwd'", 1),
    (redirect('ftp://x/y'), "it redirects to 'ftp://x/y', not to http or", 1),
    (redirect('http://[x'), "it redirects to 'http://[x'", 1),
    (redirect('http://x:99999/'), "it redirects to 'http://x:99999/'", 1),
    (redirect('http://x:y@'), "it redirects to 'http://x:y@'", 1),
    (status(302), "it redirects to ''", 1),
    (whole(DATA[:-1]), 'it has 299,999 bytes, where 300,000 are published', 1),
    (whole(DATA + b'x'), 'it has 300,001 bytes, where 300,000 are', 1),
    (whole(b''), 'it has 0 bytes, where 300,000 are published', 1),
    (endless, 'it sends more than 300,000 bytes', 1),
    (
      whole(OTHER),
      f'it is not the published file: its sha256 is'
      f' {hashlib.sha256(OTHER).hexdigest()}, published is sha256 {SHA256}',
      1,
    ),
    (raw(b'\x1b[31mHello\r\n\r\n'), 'its answer is not understood', 1),
    (
      raw(b'HTTP/1.0 200 OK\r\nX: ' + b'x' * 70_000 + b'\r\n\r\n'),
      'its answer is not understood (LineTooLong',
      1,
    ),
    (
      raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'),
      'the connection broke',
      2,
    ),
  ],
)
def test_what_happened_is_said(site, step, expected, requests):
  site.steps = [step] * 6
  said = []
  text = fault(site.file(), said=said)
  assert text.startswith(expected)
  assert text.isprintable()
  assert len(site.asked) == requests
  assert f'{site.address}/{NAME}: {text}' in said
  assert in_folder() == set()
  site.steps = []
  assert fetch(site.file()).read_bytes() == DATA


STALLS = 'it stalls: under 1,024 bytes within {timeout:g} s'


@pytest.mark.parametrize(
  ('step', 'expected', 'left'),
  [
    (stall, LATE, set()),
    (trickle_headers, LATE, set()),
    (trickle, STALLS, set()),
    (trickle_chunk_size, STALLS, set()),
    # What can be resumed is kept.
    (stall_after(HALF), STALLS, {f'{NAME}.part', f'{NAME}.part.json'}),
  ],
)
def test_a_server_that_stalls(site, step, expected, left):
  # A slow machine may not answer in time either.
  for timeout in (0.2, 1, 5, 25):
    site.steps = [step]
    if (text := fault(site.file(), timeout=timeout)) != LATE:
      break
    if expected == LATE:
      break
  assert text == expected.format(timeout=timeout)
  assert in_folder() == left
  # The server still keeps the connection, the client does not.
  site.steps = []
  assert fetch(site.file()).read_bytes() == DATA


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
  ('size', 'exact', 'data', 'expected'),
  [
    (None, True, b'', 'it has 0 bytes, where 1 to 2,147,483,648 are accepted'),
    (100_000, False, bytes(102_001), 'where about 100,000 are published'),
    (100_000, False, bytes(97_999), 'where about 100,000 are published'),
    (100_000, False, bytes(102_000), None),
    (100_000, False, bytes(98_000), None),
    (None, True, b'x', None),
  ],
)
def test_sizes_that_are_rounded_or_unknown(site, size, exact, data, expected):
  site.data = data
  file = site.file(None, size, exact)
  if expected:
    assert expected in fault(file)
  else:
    assert fetch(file).read_bytes() == data


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    (endless, 'it sends more than 50,000 bytes'),
    (
      whole(b'<html>', Content_Type='text/html; charset=utf-8'),
      'it has a web page, not a file',
    ),
  ],
)
def test_a_file_of_unknown_hash_and_size(site, monkeypatch, step, expected):
  monkeypatch.setattr(cache, '_MAX_BYTES', 50_000)
  site.steps = [step]
  assert fault(site.file(None, None)) == expected
  assert in_folder() == set()


def test_a_refused_connection_is_said(closed_port):
  file = records.File((f'{closed_port}/{NAME}',), SURE, None)
  assert fault(file) == 'connection refused'


def test_a_name_that_nobody_resolves(monkeypatch):
  def resolve(*args, **kwargs):
    raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

  monkeypatch.setattr(socket, 'getaddrinfo', resolve)
  file = records.File((f'http://host.invalid/{NAME}',), SURE, None)
  assert fault(file) == 'the name of the host cannot be resolved'


def _dead_host(stack):
  """A port that takes no connection and refuses none: its queue is full."""
  server = stack.enter_context(socket.socket())
  server.bind(('127.0.0.1', 0))
  server.listen(0)
  for _ in range(4):
    client = stack.enter_context(socket.socket())
    client.setblocking(False)
    client.connect_ex(server.getsockname())
  return server.getsockname()


@pytest.mark.skipif(sys.platform != 'linux', reason='drops what finds no room')
@pytest.mark.parametrize('dead', [1, 3])
def test_addresses_that_do_not_answer(monkeypatch, dead):
  with contextlib.ExitStack() as stack:
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, '', _dead_host(stack))
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *a, **k: [place] * dead)
    file = records.File((f'http://host.invalid/{NAME}',), SURE, None)
    assert fault(file, timeout=0.2) == LATE


@pytest.mark.skipif(sys.platform != 'linux', reason='drops what finds no room')
def test_a_second_address_of_the_host_is_tried(site, monkeypatch):
  with contextlib.ExitStack() as stack:
    places = [
      (socket.AF_INET, socket.SOCK_STREAM, 6, '', place)
      for place in (_dead_host(stack), ('127.0.0.1', site.port))
    ]
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *a, **k: places)
    file = records.File((f'http://host.invalid/{NAME}',), SURE, None)
    said = []
    # A slow machine may not answer in time either.
    for timeout in (0.5, 5, 50):
      with contextlib.suppress(errors.UserError):
        assert fetch(file, said, timeout=timeout).read_bytes() == DATA
        break
    else:
      pytest.fail(str(said))


# ------------------------------------------------------------------------- TLS


def test_tls_and_certificates(tls_site, certificate, monkeypatch):
  assert 'its certificate is not accepted' in fault(tls_site.file())
  monkeypatch.setenv('SSL_CERT_FILE', str(certificate[1]))
  assert fetch(tls_site.file()).read_bytes() == DATA


def test_no_redirect_gives_up_encryption(
  tls_site, site, certificate, monkeypatch
):
  monkeypatch.setenv('SSL_CERT_FILE', str(certificate[1]))
  tls_site.steps = [redirect(f'{site.address}/x')]
  assert fault(tls_site.file()) == (
    f'it redirects to {site.address}/x, without encryption'
  )
  assert not site.asked
  site.steps = [redirect(f'{tls_site.address}/x')]
  assert fetch(site.file()).read_bytes() == DATA


def test_a_host_that_is_silent_in_tls(site):
  with socket.create_server(('127.0.0.1', 0)) as silent:
    file = records.File(
      (f'https://127.0.0.1:{silent.getsockname()[1]}/{NAME}',), SURE, None
    )
    assert fault(file, timeout=0.2) == LATE
  address = site.address.replace('http:', 'https:')
  assert fault(records.File((f'{address}/{NAME}',), SURE, None)).startswith(
    'no connection (SSLError: [SSL: '
  )


# ---------------------------------------------------------------------- again


def test_503_then_200(site, monkeypatch):
  """After as many seconds as the server asks for."""
  waited, said = [], []
  monkeypatch.setattr(time, 'sleep', waited.append)
  site.steps = [status(503, Retry_After='3')]
  assert fetch(site.file(), said).read_bytes() == DATA
  assert waited == [3]
  assert said[1] == (
    f'{site.address}/{NAME}: 503 Service Unavailable; trying again'
  )


def test_a_broken_transfer_is_resumed(site):
  site.steps = [cut()]
  reported = []
  path = fetch(site.file(), report=lambda done, total: reported.append(done))
  assert path.read_bytes() == DATA
  assert site.ranges == [None, f'bytes={HALF}-']
  assert site.asked[1][1]['If-Range'] == '"1"'
  assert site.sent == SIZE
  assert reported.count(0) == 1
  assert reported == sorted(reported)
  assert in_folder() == {NAME, f'{NAME}.json'}


def test_a_later_run_resumes_through_a_redirect(site):
  start_part(site)
  site.steps = [redirect('/elsewhere')]
  fetch(site.file())
  assert site.ranges == [f'bytes={HALF}-'] * 2
  assert site.sent == SIZE - HALF


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


def test_the_date_serves_where_no_strong_tag_is(site):
  date = 'Tue, 24 Nov 2026 12:00:00 GMT'
  site.tag = 'W/"weak"'
  site.steps = [
    cut(Last_Modified=date),
    part_of(
      Last_Modified=date,
      Content_Range=f'bytes {HALF}-{SIZE - 1}/{SIZE}',
    ),
  ]
  assert fetch(site.file()).read_bytes() == DATA
  assert site.asked[1][1]['If-Range'] == date


def test_without_tag_and_date_it_starts_over(site):
  site.tag = 'W/"weak"'
  site.steps = [cut()]
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [None, None]


def test_a_server_without_ranges_starts_over(site):
  start_part(site)
  site.steps = [without_ranges]
  reported = []
  path = fetch(site.file(), report=lambda done, total: reported.append(done))
  assert path.read_bytes() == DATA
  assert site.ranges == [f'bytes={HALF}-']
  assert reported[0] == 0


@pytest.mark.parametrize('knows_if_range', [True, False])
@pytest.mark.parametrize('known', [SURE, None])
def test_two_versions_are_never_glued(site, knows_if_range, known):
  """Also where the server does not compare them, or nothing is published."""
  site.data = OTHER
  site.steps = [cut(), status(404)]
  fail(site.file())
  site.data, site.tag = DATA, '"2"'
  site.steps = [whole(knows_if_range=knows_if_range)]
  assert fetch(site.file(known)).read_bytes() == DATA
  assert site.ranges[2:] == [f'bytes={HALF}-', None][: 2 - knows_if_range]


@pytest.mark.parametrize(
  'step',
  [
    part_of(Content_Range=f'bytes {HALF - 1}-{SIZE - 2}/{SIZE}'),
    part_of(Content_Range=f'bytes {HALF}-{SIZE - 1}/{SIZE + 1}'),
    part_of(Content_Range='bytes'),
    part_of(),
    status(416),
    whole(OTHER),
  ],
)
def test_a_wrong_part_is_discarded_and_tried_afresh(site, step):
  start_part(site)
  site.steps = [step]
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [f'bytes={HALF}-', None]


def test_afresh_is_tried_once(site):
  start_part(site)
  site.steps = [whole(OTHER), whole(OTHER)]
  assert 'it is not the published file' in fault(site.file())
  assert site.ranges == [f'bytes={HALF}-', None]
  assert in_folder() == set()


def test_a_part_is_not_another_addresses(site, new_site):
  start_part(site)
  other = new_site()
  assert fetch(other.file()).read_bytes() == DATA
  assert other.ranges == [None]


def test_a_dead_mirror_does_not_cost_the_part(site, closed_port):
  start_part(site)
  urls = (f'{closed_port}/{NAME}', f'{site.address}/{NAME}')
  fetch(records.File(urls, SURE, SIZE))
  assert site.ranges == [f'bytes={HALF}-']


@pytest.mark.parametrize('damage', ['', '[]', '{"address": 1}', '[' * 100_000])
def test_a_part_of_unknown_origin_is_not_resumed(site, damage):
  start_part(site)
  (folder() / f'{NAME}.part.json').write_text(damage)
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [None]


@pytest.mark.parametrize('data', [DATA, OTHER])
def test_a_part_that_is_whole_is_verified(site, data):
  start_part(site)
  (folder() / f'{NAME}.part').write_bytes(data)
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == ([] if data == DATA else [None])


# --------------------------------------------------------------------- mirrors


def test_mirrors_are_tried_in_turn(site, new_site, closed_port):
  wrong, broken = new_site(data=OTHER), new_site()
  broken.steps = [cut(), cut(0)]
  urls = [wrong.address, broken.address, closed_port, site.address]
  file = records.File(tuple(f'{u}/{NAME}' for u in urls), SURE, SIZE)
  said = []
  assert fetch(file, said).read_bytes() == DATA
  assert receipt()['address'] == f'{site.address}/{NAME}'
  assert [len(s.asked) for s in (wrong, broken, site)] == [1, 2, 1]
  assert f'{closed_port}/{NAME}: connection refused' in said
  shutil.rmtree(folder())
  site.steps, broken.steps = [status(404)], [status(410)]
  found = fail(file)
  assert list(found) == list(file.urls)
  assert [text[:19] for text in found.values()] == [
    'it is not the publi',
    '410 Gone',
    'connection refused',
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
    'https://[host/x',
    'https://host:port/x',
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
def test_offline_opens_no_socket(site, monkeypatch, value):
  monkeypatch.setenv('RESNET_JAX_OFFLINE', value)
  monkeypatch.setattr(transfer, 'request', None)
  with pytest.raises(
    errors.UserError,
    match=r'^test-50 is not in the cache, and RESNET_JAX_OFFLINE forbids'
    ' downloads',
  ):
    fetch(site.file())
  assert not folder().exists()
  folder().mkdir(parents=True)
  (folder() / NAME).write_bytes(DATA)
  assert fetch(site.file()) == folder() / NAME


def test_offline_or_not_must_be_clear(monkeypatch):
  for value in ('', '0', 'false', 'No', ' '):
    monkeypatch.setenv('RESNET_JAX_OFFLINE', value)
    assert not cache.is_offline()
  monkeypatch.setenv('RESNET_JAX_OFFLINE', 'maybe')
  with pytest.raises(errors.UserError, match="RESNET_JAX_OFFLINE='maybe'"):
    cache.is_offline()


@pytest.mark.parametrize('data', [DATA[:-1], OTHER])
@pytest.mark.parametrize('known', [SURE, None])
def test_a_file_that_changed_is_not_used(site, data, known):
  path = fetch(site.file(known))
  path.write_bytes(data)
  with pytest.raises(
    errors.UserError,
    match=rf'has changed since its receipt was written \(.*\): it has'
    rf' {len(data)} bytes and SHA-256 {hashlib.sha256(data).hexdigest()}, and'
    rf' had {SIZE} and {SHA256}. Remove it to download it again, or give'
    f' weights={path} to use it as it is',
  ):
    fetch(site.file(known))
  path.unlink()
  assert fetch(site.file(known)).read_bytes() == DATA


def test_a_hash_that_was_published_since_is_compared(site):
  path = fetch(site.file(None))
  assert fetch(site.file()) == path
  with pytest.raises(
    errors.UserError,
    match=r'its md5 is .*, published is md5 0123 \(first 4 digits\)',
  ):
    fetch(site.file(records.Hash('md5', '0123')))


@pytest.mark.parametrize('damage', [None, '', '[]', '{"bytes": 3}'])
def test_a_file_without_a_receipt(site, damage):
  """Put there by hand: the hash verifies it, or nothing does."""
  path = folder() / NAME
  path.parent.mkdir(parents=True)
  path.write_bytes(DATA)
  if damage is not None:
    (folder() / f'{NAME}.json').write_text(damage)
  with pytest.raises(
    errors.UserError, match=f'has no receipt .* or give weights={path} if it is'
  ):
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
  with pytest.raises(errors.UserError, match=r'is not a file. Remove it.'):
    fetch(site.file())


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read(site):
  fetch(site.file()).chmod(0)
  with pytest.raises(errors.UserError, match=r'cannot read .*: Permission'):
    fetch(site.file())


def test_a_cache_that_cannot_be_written(site, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('mine')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'file'))
  with pytest.raises(
    errors.UserError,
    match=r'^cannot keep a download in .*file/test-50: Not a directory. Make'
    ' room .* name another folder in RESNET_JAX_CACHE.$',
  ):
    fetch(site.file())
  assert not site.asked


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_cache_that_may_not_be_written(site, tmp_path):
  (tmp_path / 'cache').mkdir(mode=0o500)
  with pytest.raises(
    errors.UserError, match=r'test-50: Permission denied. Make'
  ):
    fetch(site.file())
  assert not site.asked


@pytest.mark.parametrize('known', [SIZE, None])
def test_the_room_is_looked_at_first(site, monkeypatch, known):
  usage = shutil.disk_usage('/')._replace(free=SIZE - 1)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(
    errors.UserError,
    match=r'the download needs 300,000 bytes in .* and 299,999 are free',
  ):
    fetch(site.file(size=known))
  assert in_folder() == set()


def test_what_is_there_needs_no_room(site, monkeypatch):
  start_part(site)
  usage = shutil.disk_usage('/')._replace(free=HALF)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  fetch(site.file())


def test_a_disk_that_is_full(site):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
  try:
    with pytest.raises(
      errors.UserError, match=r'cannot keep a download .* File'
    ):
      fetch(site.file())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not (folder() / NAME).exists()
  assert fetch(site.file()).read_bytes() == DATA
  assert site.ranges == [None, f'bytes={HALF}-']


# --------------------------------------------------------------- two at a time


def test_two_threads_download_once(site):
  waits = threading.Event()

  def release(handler, site):
    waits.wait()
    whole()(handler, site)

  site.steps = [release]
  said, found = [], []

  def say(text):
    said.append(text)
    if text.startswith('waiting'):
      waits.set()

  one = functools.partial(
    download.fetch,
    site.file(),
    'test-50',
    report=None,
    say=say,
    timeout=TIMEOUT,
  )
  threads = [
    threading.Thread(target=lambda: found.append(one())) for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [folder() / NAME] * 2
  assert len(site.asked) == 1
  assert f'waiting for another process that is downloading {NAME}' in said


def _other_process(site):
  """Another process that fetches the file."""
  code = (
    'from resnet_jax.zoo import download, records\n'
    f'file = records.File({site.file().urls}, None, {SIZE})\n'
    "print(download.fetch(file, 'test-50', report=None, say=print,"
    f' timeout={TIMEOUT}))'
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
    stalls.wait()
    part = folder() / f'{NAME}.part'
    while not (part.exists() and part.stat().st_size == HALF):
      time.sleep(0.01)

    def say(text):
      if text.startswith('waiting'):
        if killed:
          other.send_signal(signal.SIGKILL)
        site.released.set()

    path = download.fetch(site.file(), 'test-50', report=None, say=say)
    output, _ = other.communicate()
  assert path.read_bytes() == DATA
  assert site.ranges == [None, f'bytes={HALF}-'][: 1 + killed]
  assert (str(path) in output) == (not killed)


def test_a_file_system_without_locks(site, monkeypatch):
  fcntl = pytest.importorskip('fcntl')

  def refuse(*args):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  said = []
  assert fetch(site.file(), said).read_bytes() == DATA
  assert (
    said[0] == f'{folder()} cannot be locked: download to it from one process'
  )


def test_a_platform_without_locks(site, monkeypatch):
  monkeypatch.setitem(sys.modules, 'fcntl', None)
  assert fetch(site.file()).read_bytes() == DATA
