# SPDX-License-Identifier: Apache-2.0
"""One HTTP request by urllib, bounded in time; the only module with sockets.

As in RFC 9110: ranges (section 14), If-Range (13.1.5), redirects (15.4).
"""

import contextlib
import functools
import http.client
import io
import re
import socket
import ssl
import string
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from resnet_jax.system import version

_MAX_REDIRECTS = 5
_PAUSE_SECONDS = 1.0
# A server that sends less within the time-out stalls.
_MIN_BYTES = 1 << 10
_CHUNK_BYTES = 1 << 16


class Failure(Exception):
  """Why an address did not deliver the file.

  Attributes:
    pause: seconds after which a retry may help; None: none does.
    discard: whether the partial file that is here is no good.
  """

  def __init__(
    self, text: str, pause: float | None = None, *, discard: bool = False
  ) -> None:
    super().__init__(text)
    self.pause, self.discard = pause, discard


class _Reader(io.RawIOBase):
  """A socket's bytes; a TimeoutError `seconds` after the last `restart`.

  The time-out of the socket alone starts anew with every byte: a server that
  drips would hold us forever.
  """

  def __init__(self, raw: Any, sock: socket.socket, seconds: float) -> None:
    self._raw, self._socket, self._seconds = raw, sock, seconds
    self.restart()

  def restart(self) -> None:
    self._end = time.monotonic() + self._seconds

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int | None:
    if (left := self._end - time.monotonic()) <= 0:
      raise TimeoutError
    self._socket.settimeout(left)
    return self._raw.readinto(buffer)

  def close(self) -> None:
    self._raw.close()
    super().close()


class Response(http.client.HTTPResponse):
  """A response that must arrive in time."""

  def __init__(
    self, sock: socket.socket, *, seconds: float, **options: Any
  ) -> None:
    super().__init__(sock, **options)
    self._seconds = seconds
    self._reader = _Reader(self.fp.detach(), sock, seconds)
    self.fp = io.BufferedReader(self._reader)

  @property
  def validator(self) -> str:
    """What If-Range can name the file's version by; '': nothing."""
    tag = self.headers.get('ETag', '')
    # Weak tags may stand for different bytes, and If-Range refuses them.
    if not tag.startswith('"'):
      tag = self.headers.get('Last-Modified', '')
    return tag if tag.isascii() and tag.isprintable() else ''

  @property
  def total(self) -> int | None:
    """Bytes of the whole file; None: not stated."""
    if self.status == http.HTTPStatus.OK:
      return self.length
    total = self.headers.get('Content-Range', '').strip().rpartition('/')[2]
    return None if total == '*' else int(total)

  def chunks(self) -> Iterator[bytes]:
    """Yields the bytes as they come; a Failure if they stall."""
    within = f'under {_MIN_BYTES:,} bytes within {self._seconds:g} s'
    left, count = self.length, _MIN_BYTES
    # A connection that is kept open has no other end than `left`, and not in
    # every Python does read1 count it.
    while left is None or left > 0:
      if count >= _MIN_BYTES:
        self._reader.restart()
        count = 0
      with _failures(f'it stalls: {within}'):
        chunk = self.read1(_CHUNK_BYTES)
      if not chunk:
        return
      count += len(chunk)
      left = None if left is None else left - len(chunk)
      yield chunk


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
  """urllib's handlers of https and http, for a `Response`."""

  def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
    """As urllib calls it, with the class of the scheme's connections."""

    def connection(host: str, **more: Any) -> http.client.HTTPConnection:
      # A host may have several addresses.
      made = http_class(host, **(more | {'timeout': req.timeout / 3}))
      made.response_class = functools.partial(Response, seconds=req.timeout)
      return made

    return super().do_open(connection, req, **options)


@contextlib.contextmanager
def request(
  address: str, offset: int, validator: str, timeout: float
) -> Iterator[Response]:
  """Requests a file from byte `offset` on, or all of it if it has changed.

  Args:
    address: of http or https; redirects to these are followed.
    offset: bytes that are here already.
    validator: the `Response.validator` that they are of.
    timeout: seconds for the answer, and then for each _MIN_BYTES.

  Yields:
    A response of status 200 or, from `offset` on, 206.

  Raises:
    Failure: the server does not deliver the file.
  """
  headers = {'User-Agent': f'resnet_jax/{version.__version__}'}
  if offset:
    headers |= {'Range': f'bytes={offset}-', 'If-Range': validator}
  # urllib's own handler of redirects reads their bodies, and allows FTP.
  opener = urllib.request.OpenerDirector()
  opener.add_handler(urllib.request.ProxyHandler())
  opener.add_handler(_Handler())
  opener.add_handler(urllib.request.UnknownHandler())
  for _ in range(_MAX_REDIRECTS + 1):
    with _failures('the host does not answer in time'):
      sent = urllib.request.Request(address, headers=headers)
      response: Response = opener.open(sent, timeout=timeout)
    with contextlib.closing(response):
      if response.status not in (301, 302, 303, 307, 308):
        _check(response, offset, validator, timeout)
        yield response
        return
    address = _redirected(address, response.headers.get('Location', ''))
  raise Failure(f'it redirects more than {_MAX_REDIRECTS} times')


def _redirected(address: str, location: str) -> str:
  """The target of a redirect; a Failure if it is not allowed."""
  location = urllib.parse.quote(location, safe=string.punctuation)
  with contextlib.suppress(ValueError):
    target = urllib.parse.urljoin(address, location)
    if location and split(target):
      if address.startswith('https:') and target.startswith('http:'):
        raise Failure(f'it redirects to {target[:200]}, without encryption')
      return target
  raise Failure(f"it redirects to '{location[:200]}', not to http or https")


def _check(
  response: Response, offset: int, validator: str, timeout: float
) -> None:
  """Raises a Failure unless the body is the file, or its rest."""
  status, headers = response.status, response.headers
  if status == http.HTTPStatus.OK:
    return
  if offset and status in (206, 416):
    pattern = rf'bytes {offset}-[0-9]{{1,18}}/([0-9]{{1,18}}|\*)'
    place = headers.get('Content-Range', '').strip()
    # Some servers know ranges, but not If-Range.
    same = response.validator in ('', validator)
    if status == 206 and same and re.fullmatch(pattern, place):
      return
    raise Failure('it does not have the rest of this file', discard=True)
  # The standard's phrase: the server's own may hold anything.
  text = f'{status} {http.client.responses.get(status, "")}'.strip()
  if status not in (429, 502, 503, 504):
    raise Failure(text)
  asked = headers.get('Retry-After', '')
  pause = int(asked) if re.fullmatch('[0-9]{1,9}', asked) else _PAUSE_SECONDS
  if pause > max(timeout, _PAUSE_SECONDS):
    raise Failure(f'{text}, and asks to come again after {pause} s')
  raise Failure(text, pause)


def split(address: str) -> urllib.parse.SplitResult | None:
  """The parts of an address of http or https; None: it is none."""
  try:
    parts = urllib.parse.urlsplit(address)
    is_whole = parts.hostname and parts.port != 0
  except ValueError:
    return None
  return parts if is_whole and parts.scheme in ('http', 'https') else None


def proxy_note(address: str) -> str:
  """A remark for a failure that may be a proxy's."""
  scheme = address.partition(':')[0]
  is_set = scheme in urllib.request.getproxies()
  return f' (the environment sets a proxy for {scheme})' if is_set else ''


def broken(where: str = '') -> Failure:
  """The failure of a connection that ends too early."""
  return Failure(f'the connection broke{where}', _PAUSE_SECONDS)


@contextlib.contextmanager
def _failures(late: str) -> Iterator[None]:
  """Turns each error of the libraries into a Failure; a time-out is `late`."""
  try:
    yield
  # What a server sends can cause any.
  except Exception as found:
    # urllib wraps what happens before the answer.
    reason = getattr(found, 'reason', None)
    error = reason if isinstance(reason, Exception) else found
    text = f'{type(error).__name__}: {error}'[:200]
    text = ''.join(c if c.isprintable() else '?' for c in text)
    match error:
      case TimeoutError():
        failure = Failure(late)
      case ConnectionRefusedError():
        failure = Failure('connection refused')
      case ConnectionError() | http.client.IncompleteRead() | ssl.SSLEOFError():
        failure = broken()
      case socket.gaierror():
        failure = Failure('the name of the host cannot be resolved')
      case ssl.SSLCertVerificationError():
        failure = Failure(
          f'its certificate is not accepted ({text}); SSL_CERT_FILE can name'
          ' other authorities'
        )
      case OSError():
        failure = Failure(f'no connection ({text})')
      case _:
        failure = Failure(f'its answer is not understood ({text})')
    raise failure from None
