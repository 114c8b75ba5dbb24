# SPDX-License-Identifier: Apache-2.0
"""A request by HTTP that never waits for long; the only room with sockets.

As in RFC 9110: ranges (section 14), If-Range (13.1.5), redirects (15.4).
"""

import contextlib
import dataclasses
import email.message
import functools
import http
import http.client
import queue
import re
import socket
import ssl
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from resnet_jax.system import version

_SCHEMES = ('http', 'https')
_MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_TRY_AGAIN = {429, 502, 503, 504}
_PAUSE_SECONDS = 1.0
# Less than this in `patience` seconds is a connection that stalls.
_LEAST_BYTES = 1 << 10
_CHUNK_BYTES = 1 << 16
_CHUNKS_AHEAD = 16


class Fault(Exception):
  """What happened at an address.

  Attributes:
    pause: seconds, after which it may be tried again; None: it need not be.
    discard: whether what is there of the file is no good.
  """

  def __init__(
    self, text: str, pause: float | None = None, *, discard: bool = False
  ) -> None:
    super().__init__(text)
    self.pause = pause
    self.discard = discard


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for.

  Attributes:
    address: where.
    offset: bytes of the file that are there already.
    version: the `Answer.version` that they are of.
    patience: seconds to wait for a server that does nothing.
  """

  address: str
  offset: int
  version: str
  patience: float

  @property
  def headers(self) -> dict[str, str]:
    """Those of HTTP."""
    own = {'User-Agent': f'resnet_jax/{version.__version__}'}
    if not self.offset:
      return own
    return own | {'Range': f'bytes={self.offset}-', 'If-Range': self.version}


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server says before the bytes.

  Attributes:
    start: of the bytes that come, in the file.
    total: bytes of the file; None: not stated.
    version: names what the bytes are of; '': nothing does.
    is_page: whether a browser would show it.
  """

  start: int
  total: int | None
  version: str
  is_page: bool


class _Abandoned(Exception):
  """Nobody waits for the answer any more."""


class Exchange:
  """A request.  A thread makes it, so that the caller need not wait for it.

  No timeout of a socket limits the resolution of a name, the number of
  addresses that a name has, or a server that sends a byte now and then.  The
  thread touches no file; abandoned, it loses its socket, and ends.
  """

  def __init__(self, request: Request) -> None:
    self._request = request
    self._queue: queue.Queue[Answer | bytes | Exception | None]
    self._queue = queue.Queue(_CHUNKS_AHEAD)
    self._is_abandoned = threading.Event()
    self._socket: socket.socket | None = None
    self._deadline = time.monotonic() + request.patience
    threading.Thread(target=self._run, name='download', daemon=True).start()

  def answer(self) -> Answer:
    """What the server says, redirects followed.

    Raises:
      Fault: it does not bring the file.
    """
    answer = self._get(f'no answer within {self._request.patience:g} s')
    assert isinstance(answer, Answer)
    return answer

  def chunks(self) -> Iterator[bytes]:
    """The bytes, as they come; a Fault if they stop coming."""
    patience = self._request.patience
    late = f'it stalls: under {_LEAST_BYTES:,} bytes within {patience:g} s'
    self._deadline, count = time.monotonic() + patience, 0
    while chunk := self._get(late):
      assert isinstance(chunk, bytes)
      yield chunk
      count += len(chunk)
      if count >= _LEAST_BYTES:
        self._deadline, count = time.monotonic() + patience, 0

  def close(self) -> None:
    """Ends the thread, or lets it end when it wakes up."""
    self._is_abandoned.set()
    if self._socket is not None:
      with contextlib.suppress(OSError):
        self._socket.shutdown(socket.SHUT_RDWR)

  def _get(self, late: str) -> Answer | bytes | None:
    left = max(0.0, self._deadline - time.monotonic())
    try:
      item = self._queue.get(timeout=left)
    except queue.Empty:
      raise Fault(late) from None
    if isinstance(item, Exception):
      raise _explained(item, self._request.patience)
    return item

  def _put(self, item: Answer | bytes | Exception | None) -> None:
    while not self._is_abandoned.is_set():
      with contextlib.suppress(queue.Full):
        return self._queue.put(item, timeout=0.1)
    raise _Abandoned

  def _run(self) -> None:
    with contextlib.suppress(_Abandoned):
      try:
        self._exchange()
        self._put(None)
      # There is no end to what a server can cause in the libraries; the
      # caller, not a thread's traceback, is to hear of it.
      except Exception as error:
        self._put(error)

  def _exchange(self) -> None:
    with self._open() as response:
      left = response.length
      self._put(_answer(self._request, response.status, response.headers, left))
      # A connection that is kept open has no other end, and not in every
      # Python does read1 count.
      while left is None or left > 0:
        if not (chunk := response.read1(_CHUNK_BYTES)):
          return
        left = None if left is None else left - len(chunk)
        self._put(chunk)

  def _open(self) -> http.client.HTTPResponse:
    """Sends the request, and again where it is redirected to."""
    address = self._request.address
    # Without urllib's own redirects, which read their bodies and allow FTP.
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(_Handler(self._opened))
    opener.add_handler(urllib.request.UnknownHandler())
    for _ in range(_MOST_REDIRECTS + 1):
      sent = urllib.request.Request(address, headers=self._request.headers)
      # Leaves time for a second address of the host.
      response = opener.open(sent, timeout=self._request.patience / 3)
      if response.status not in _REDIRECTS:
        return response
      response.close()
      address = _redirected(address, response.headers.get('Location', ''))
    raise Fault(f'it redirects more than {_MOST_REDIRECTS} times')

  def _opened(self, connected: socket.socket) -> None:
    # The caller's limit comes first.
    connected.settimeout(2 * self._request.patience)
    self._socket = connected
    if self._is_abandoned.is_set():
      raise _Abandoned


class _Connection(http.client.HTTPConnection):
  """Shows its socket."""

  def __init__(
    self, host: str, *, opened: Callable[[socket.socket], None], **options: Any
  ) -> None:
    super().__init__(host, **options)
    self._opened = opened

  def connect(self) -> None:
    """As the base class does; raises what `opened` raises, too."""
    super().connect()
    self._opened(self.sock)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
  """The same with TLS."""


class _Handler(urllib.request.AbstractHTTPHandler):
  """Opens addresses of http and https, and no others."""

  http_request = urllib.request.AbstractHTTPHandler.do_request_
  https_request = urllib.request.AbstractHTTPHandler.do_request_

  def __init__(self, opened: Callable[[socket.socket], None]) -> None:
    super().__init__()
    self._opened = opened

  def http_open(
    self, request: urllib.request.Request
  ) -> http.client.HTTPResponse:
    """As urllib calls it."""
    connection = functools.partial(_Connection, opened=self._opened)
    return self.do_open(connection, request)

  def https_open(
    self, request: urllib.request.Request
  ) -> http.client.HTTPResponse:
    """As urllib calls it."""
    connection = functools.partial(_TlsConnection, opened=self._opened)
    return self.do_open(connection, request)


def split(address: str) -> urllib.parse.SplitResult | None:
  """The parts of an address of http or https; None: it is none."""
  try:
    parts = urllib.parse.urlsplit(address)
    is_whole = parts.hostname and parts.port != 0
  except ValueError:
    return None
  return parts if is_whole and parts.scheme in _SCHEMES else None


def proxy_note(address: str) -> str:
  """What to add to a fault at an address that may be a proxy's."""
  scheme = address.partition(':')[0]
  is_set = scheme in urllib.request.getproxies()
  return f' (the environment sets a proxy for {scheme})' if is_set else ''


def broken(where: str, patience: float) -> Fault:
  """The fault of a connection that ends too early."""
  return Fault(f'the connection broke{where}', min(_PAUSE_SECONDS, patience))


def _redirected(address: str, location: str) -> str:
  """Where a redirect leads."""
  location = urllib.parse.quote(location, safe=string.punctuation)
  with contextlib.suppress(ValueError):
    target = urllib.parse.urljoin(address, location)
    if location and (parts := split(target)):
      if address.startswith('https:') and parts.scheme == 'http':
        raise Fault(f'it redirects to {target[:200]}, without encryption')
      return target
  raise Fault(f"it redirects to '{location[:200]}', not to http or https")


def _answer(
  request: Request,
  status: int,
  headers: email.message.Message,
  length: int | None,
) -> Answer:
  """What an answer says; a Fault if it does not bring the file."""
  start, total, version = 0, length, _version(headers)
  if request.offset and status == http.HTTPStatus.PARTIAL_CONTENT:
    start, total = _range(headers)
    # Not every server that knows ranges knows If-Range.
    if start != request.offset or version not in ('', request.version):
      raise Fault('it sends a part of something else', discard=True)
  elif request.offset and status == 416:
    raise Fault('it has no more bytes than are here', discard=True)
  elif status != http.HTTPStatus.OK:
    raise _refusal(status, headers, request.patience)
  return Answer(start, total, version, headers.get_content_subtype() == 'html')


def _version(headers: email.message.Message) -> str:
  """What If-Range can name the version by; '': nothing."""
  tag = headers.get('ETag', '')
  # Weak tags may stand for different bytes, and If-Range refuses them.
  found = tag if tag.startswith('"') else headers.get('Last-Modified', '')
  return found if found.isascii() and found.isprintable() else ''


def _range(headers: email.message.Message) -> tuple[int, int | None]:
  """First byte and total of a partial answer; (-1, None): not understood."""
  pattern = r'bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)'
  found = re.fullmatch(pattern, headers.get('Content-Range', '').strip())
  if not found:
    return -1, None
  return int(found[1]), None if found[2] == '*' else int(found[2])


def _refusal(
  status: int, headers: email.message.Message, patience: float
) -> Fault:
  """The fault of a status that brings no file."""
  # Not the server's own words, which may hold anything.
  known = {status.value: status.phrase for status in http.HTTPStatus}
  text = f'{status} {known.get(status, "")}'.strip()
  if status not in _TRY_AGAIN:
    return Fault(text)
  asked = headers.get('Retry-After', '').strip()
  if not re.fullmatch('[0-9]{1,9}', asked):
    return Fault(text, min(_PAUSE_SECONDS, patience))
  if int(asked) > patience:
    return Fault(f'{text}, and asks to come again after {int(asked)} s')
  return Fault(text, float(asked))


# The first that fits counts; {} is the error's own text.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
  (socket.gaierror, 'the name of the host cannot be resolved'),
  (TimeoutError, 'the host does not answer'),
  (ConnectionRefusedError, 'connection refused'),
  (
    ssl.SSLCertVerificationError,
    'its certificate is not accepted ({}); SSL_CERT_FILE can name other'
    ' authorities',
  ),
  (OSError, 'no connection ({})'),
  (Exception, 'its answer is not understood ({})'),
)


def _explained(error: Exception, patience: float) -> Fault:
  """The fault that an error in the libraries is."""
  if isinstance(error, Fault):
    return error
  if isinstance(error, urllib.error.URLError) and isinstance(
    error.reason, Exception
  ):
    error = error.reason
  is_refused = isinstance(error, ConnectionRefusedError)
  breaks = (ConnectionError, http.client.IncompleteRead, ssl.SSLEOFError)
  if isinstance(error, breaks) and not is_refused:
    return broken('', patience)
  text = next(text for kind, text in _REASONS if isinstance(error, kind))
  # May hold what the server sent.
  own = f'{type(error).__name__}: {error}'[:200]
  return Fault(text.format(''.join(c if c.isprintable() else '?' for c in own)))
