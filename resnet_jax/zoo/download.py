# SPDX-License-Identifier: Apache-2.0
"""Downloads of published files: verified, resumed, from mirrors in turn.

Ranges and validators are as in RFC 9110, sections 8.8, 13.1.5 and 14.
"""

import contextlib
import dataclasses
import functools
import http.client
import os
import pathlib
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from resnet_jax.system import errors, files, version
from resnet_jax.zoo import cache, records

Say = Callable[[str], None]
Report = Callable[[int, int | None], None]

_TRIES = 3
_CHUNK_BYTES = 1 << 16
_BYTES_PER_SECOND = 10_000
# The largest file that is accepted where the publisher states no exact size.
_MAX_BYTES = 2 << 30


def fetch(
  file: records.File,
  name: str,
  *,
  report: Report | None,
  say: Say,
  timeout: float = 15.0,
  grace: float = 60.0,
) -> pathlib.Path:
  """Returns the verified file of a checkpoint, downloaded if not cached.

  Args:
    file: its addresses, hash and size.
    name: its folder in the cache, such as `msra-50`.
    report: called with the bytes so far and in all; None: not known.
    say: called with each line of the log.
    timeout: seconds that a host may be silent.
    grace: seconds for a whole transfer, plus one for each 10 kB received.

  Raises:
    UserError: no address delivers it; gives the reason at each.
  """
  if file.embedded:
    return cache.embedded(file, name)
  if found := cache.cached(file, name):
    return found
  path = cache.place(file, name)
  # Without a hash, a file put there by hand cannot be verified.
  put = f', put it at {path}' if file.hash else ''
  instead = (
    f'give weights=PATH of a file that you have{put} or name in'
    f' RESNET_JAX_MIRROR the address of a folder that has {file.name}.'
  )
  if cache.is_offline():
    raise errors.UserError(
      f'{name} is not in the cache, and RESNET_JAX_OFFLINE forbids downloads.'
      f' Unset it; or {instead}'
    )
  addresses = (*_own_mirror(file), *file.urls)
  waiting = f'waiting for another process that is downloading {path.name}'
  with files.writing('a download (see RESNET_JAX_CACHE)', path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.writable(path.with_name(f'{path.name}.lock'), 'ab') as lock:
      # Some network file systems have no locks.  The hash finds what two
      # processes garble.
      with contextlib.suppress(OSError):
        files.hold(lock, lambda: say(waiting))
      # Another process may have downloaded it meanwhile.
      if found := cache.cached(file, name):
        return found
      report = report or (lambda *_: None)
      run = _Download(file, path, report, say, timeout, grace)
      if failures := run.try_all(addresses):
        raise errors.UserError(
          f'{file.name} could not be downloaded:{failures}\nTry again later;'
          f' or {instead}'
        )
  return path


def _own_mirror(file: records.File) -> tuple[str, ...]:
  """The address at the user's own mirror, if one is set."""
  base = os.environ.get('RESNET_JAX_MIRROR', '').strip().rstrip('/')
  if base and not re.fullmatch(r'https?://[^/@?#\s]+(/[^?#\s]*)?', base):
    raise errors.UserError(
      'RESNET_JAX_MIRROR must be an http or https address such as'
      ' https://host/folder, without a password or a query.'
    )
  return (f'{base}/{file.name}',) if base else ()


class _Failure(Exception):
  """Why an address does not deliver the file."""


class _WrongFile(_Failure):
  """The bytes are not those of the published file."""


@dataclasses.dataclass(frozen=True)
class _Download:
  """A file on its way into the cache: `NAME.part` until it is verified.

  `NAME.part.json` holds the address and the version that its bytes are of.
  """

  file: records.File
  path: pathlib.Path
  report: Report
  say: Say
  timeout: float
  grace: float

  @property
  def part(self) -> pathlib.Path:
    return self.path.with_name(self.path.name + files.PART)

  def try_all(self, addresses: tuple[str, ...]) -> str:
    """Downloads from the first address that delivers; else the failures."""
    failures = ''
    for address in addresses:
      try:
        self._try(address)
        return ''
      except _Failure as failure:
        self.say(f'{address}: {failure}')
        failures += f'\n  {address}: {failure}'
    if any(self._resumable(address)[0] for address in addresses):
      failures += f'\n{self.part} is kept: the next download resumes it.'
    return failures

  def _try(self, address: str) -> None:
    """Downloads from one address, again where the last try got further."""
    for left in reversed(range(_TRIES)):
      offset, validator = self._resumable(address)
      start = f', from byte {offset:,}' if offset else ''
      self.say(f'downloading {address}{start}')
      try:
        with self._request(address, offset, validator) as response:
          self._append(address, offset, response)
        return self._publish(address)
      except _Failure as failure:
        if isinstance(failure, _WrongFile):
          self._discard()
        if not left or self._resumable(address)[0] == offset:
          raise
        self.say(f'{address}: {failure}; trying again')

  def _request(self, address: str, offset: int, validator: str) -> Any:
    """Requests the file from `offset` on, or all of it if it has changed."""
    sent = urllib.request.Request(address)
    sent.add_header('User-Agent', f'resnet_jax/{version.__version__}')
    if offset:
      sent.add_header('Range', f'bytes={offset}-')
      sent.add_header('If-Range', validator)
    opener = urllib.request.build_opener(_Redirects, *_handlers(self.grace))
    with _failures():
      try:
        response = opener.open(sent, timeout=self.timeout)
      except urllib.error.HTTPError as error:
        # It is the response.
        response = error
    status, headers = response.status, response.headers
    is_rest = (
      headers.get('Content-Range', '').startswith(f'bytes {offset}-')
      # Some servers know ranges, but not If-Range.
      and _validator(headers) in ('', validator)
    )
    if status == 200 or (status == 206 and offset and is_rest):
      return response
    response.close()
    if offset and status in (206, 416):
      raise _WrongFile('it does not have the rest of this file')
    # The standard's phrase: the server's own may hold anything.
    text = f'{status} {http.client.responses.get(status, "")}'.strip()
    if 300 <= status < 400:
      text += ': it redirects in circles, or not to https or http'
    raise _Failure(text)

  def _resumable(self, address: str) -> tuple[int, str]:
    """The bytes of the part and their validator; 0: not of this address."""
    origin = cache.read_json(self.part, 'version')
    if origin.get('address') != address or not self.part.exists():
      return 0, ''
    return self.part.stat().st_size, origin['version']

  def _discard(self) -> None:
    # In this order: a part without an origin is never resumed.
    self.part.with_name(f'{self.part.name}.json').unlink(missing_ok=True)
    self.part.unlink(missing_ok=True)

  def _append(self, address: str, offset: int, response: Any) -> None:
    """Appends the bytes of a response to the part, or starts it over."""
    done = first = offset if response.status == 206 else 0
    total = None if response.length is None else done + response.length
    limit = (self.file.exact and self.file.size) or _MAX_BYTES
    if not self.file.hash and 'html' in response.headers.get_content_type():
      raise _WrongFile('it has a web page, not a file')
    if not done:
      self._discard()
      if validator := _validator(response.headers):
        origin = {'address': address, 'version': validator}
        cache.write_json(self.part, origin)
    start = time.monotonic()
    self.report(done, total or self.file.size)
    with files.writable(self.part, 'ab') as part:
      # A connection that is kept open has no other end than `total`.
      while done != total and (chunk := _read(response, self.grace)):
        done += len(chunk)
        if done > limit:
          raise _WrongFile(f'it has more than {limit:,} bytes')
        part.write(chunk)
        self.report(done, total or self.file.size)
        seconds, came = time.monotonic() - start, done - first
        if seconds > self.grace + came / _BYTES_PER_SECOND:
          raise _Failure(f'it is too slow: {came:,} bytes in {seconds:.0f} s')
      part.flush()
      os.fsync(part.fileno())
    if done < (total or 1):
      raise _Failure(f'the connection broke after {done:,} bytes')

  def _publish(self, address: str) -> None:
    """Verifies the part, then gives it its name."""
    if self.file.hash and (wrong := cache.fault(self.part, self.file.hash)):
      raise _WrongFile(f'it is not the published file: {wrong}')
    os.replace(self.part, self.path)
    self._discard()
    cache.write_receipt(self.path, self.file, address)
    verified = 'NOT verified: no hash is published'
    if self.file.hash:
      verified = f'verified: {self.file.hash}'
    self.say(f'{self.path}: {verified}')


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to https, and from http to http."""

  def redirect_request(self, req: Any, fp: Any, *more: Any) -> Any:
    # urllib would read the body to its end.
    fp.close()
    new = super().redirect_request(req, fp, *more)
    allowed = ('https', req.full_url.split(':')[0])
    return new if new and new.type in allowed else None


@contextlib.contextmanager
def _within(seconds: float, sock: socket.socket) -> Iterator[None]:
  """Ends a connection whose server drips bytes that complete nothing."""
  late = threading.Event()

  def end() -> None:
    late.set()
    # The server may have ended it.
    with contextlib.suppress(OSError):
      sock.shutdown(socket.SHUT_RDWR)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  except Exception:
    if not late.is_set():
      raise
  finally:
    timer.cancel()
  # What has come until then may look whole.
  if late.is_set():
    raise TimeoutError


class _Response(http.client.HTTPResponse):
  """A response whose header has to come within some seconds."""

  def __init__(self, seconds: float, sock: socket.socket, **more: Any) -> None:
    super().__init__(sock, **more)
    self.sock = sock
    self._seconds = seconds

  def begin(self) -> None:
    with _within(self._seconds, self.sock):
      super().begin()


def _handlers(seconds: float) -> Iterator[urllib.request.BaseHandler]:
  """Handlers of http and https, with a limit for the header."""

  def limited(kind: Any, host: str, **more: Any) -> Any:
    connection = kind(host, **more)
    connection.response_class = functools.partial(_Response, seconds)
    return connection

  for kind, handler, name in (
    (http.client.HTTPConnection, urllib.request.HTTPHandler(), 'http_open'),
    (http.client.HTTPSConnection, urllib.request.HTTPSHandler(), 'https_open'),
  ):
    made: Any = handler
    open_ = functools.partial(made.do_open, functools.partial(limited, kind))
    setattr(made, name, open_)
    yield made


def _validator(headers: Any) -> str:
  """What If-Range can name the file's version by; '': nothing."""
  tag = headers.get('ETag', '')
  # Weak tags may stand for different bytes.
  return tag if tag.startswith('"') else headers.get('Last-Modified', '')


def _read(response: Any, seconds: float) -> bytes:
  # Only the line of a chunk's size can drip: any other byte is returned.
  limit = _within(seconds, response.sock) if response.chunked else None
  with _failures(), limit or contextlib.nullcontext():
    # Unlike `read`, this does not wait until the buffer is full.
    return response.read1(_CHUNK_BYTES)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
  """Turns the errors of urllib, sockets and TLS into a _Failure."""
  try:
    yield
  # What a server sends can cause any.
  except Exception as error:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = f'no connection ({getattr(reason, "strerror", 0) or reason})'[:200]
    if isinstance(reason, TimeoutError):
      text = 'the host does not answer in time'
    elif isinstance(reason, ssl.SSLCertVerificationError):
      text += '; SSL_CERT_FILE can name other authorities'
    raise _Failure(text) from None
