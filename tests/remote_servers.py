# SPDX-License-Identifier: Apache-2.0
"""Loopback servers of files, https-like and S3's, that fail as they are told.

They record each question, so that tests count what is read of a file.
"""

import contextlib
import re
import threading
import time

EXPIRED = (
  b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
  b'<Message>The provided token has expired.</Message></Error>'
)


class Faulty:
  """A WSGI application before another: counts, and injects faults.

  Attributes:
    faults: names of FAULTS, one for each of the next questions that match.
    only: a regular expression of the paths that faults are for.
    asked: (method, path, range) of each question.
    sent: bytes of all answers.
  """

  def __init__(self, app):
    self._app = app
    self._lock = threading.Lock()
    self.clear()

  def clear(self):
    """Forgets the questions and the faults."""
    self.faults = []
    self.only = ''
    self.asked = []
    self.sent = 0

  def __call__(self, environ, start_response):
    """Answers a question."""
    path = environ['PATH_INFO'].encode('latin-1').decode()
    asked = environ['REQUEST_METHOD'], path, environ.get('HTTP_RANGE', '')
    with self._lock:
      self.asked.append(asked)
      concerned = self.faults and re.search(self.only, path)
      fault = self.faults.pop(0) if concerned else ''
    if fault == 'slow':
      # Until the client has given up.
      time.sleep(4)
    if fault.isdigit():
      start_response(f'{fault} x', [('Content-Length', '0')])
      return [b'']
    if fault == 'expired':
      head = [
        ('Content-Type', 'application/xml'),
        ('Content-Length', str(len(EXPIRED))),
      ]
      start_response('403 x', head)
      return [b'' if asked[0] == 'HEAD' else EXPIRED]
    body = b''.join(self._app(environ, start_response))
    self.sent += len(body)
    # The server closes the connection before all has come.
    return [body[: len(body) // 2] if fault == 'cut' else body]


class Files:
  """A WSGI application that serves the bytes of a dict, with ranges.

  Attributes:
    files: bytes, by path.
    moved: where paths redirect to.
    ranges: whether it knows ranges.
  """

  def __init__(self):
    self.files = {}
    self.moved = {}
    self.ranges = True

  def __call__(self, environ, start_response):
    """Answers a question."""
    path = environ['PATH_INFO'].encode('latin-1').decode()
    if path in self.moved:
      start_response('302 x', [('Location', self.moved[path])])
      return [b'']
    if path not in self.files:
      start_response('404 x', [('Content-Length', '0')])
      return [b'']
    data = self.files[path]
    match = re.fullmatch(r'bytes=(\d+)-(\d+)', environ.get('HTTP_RANGE', ''))
    status, head = '200 OK', [('ETag', f'"{hash(data)}"')]
    if match and self.ranges:
      start, last = int(match[1]), min(int(match[2]), len(data) - 1)
      status = '206 x' if start < len(data) else '416 x'
      where = f'{start}-{last}' if start < len(data) else '*'
      head.append(('Content-Range', f'bytes {where}/{len(data)}'))
      data = data[start : last + 1]
    head.append(('Content-Length', str(len(data))))
    head.append(('Content-Type', 'application/octet-stream'))
    start_response(status, head)
    return [data]


@contextlib.contextmanager
def serving(app):
  """Serves an application; gives its address."""
  from werkzeug import serving as werkzeug  # noqa: PLC0415

  class Quiet(werkzeug.WSGIRequestHandler):
    def log(self, *_, **__):
      pass

  server = werkzeug.make_server(
    '127.0.0.1', 0, app, threaded=True, request_handler=Quiet
  )
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.port}'
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def s3_application():
  """Moto's S3."""
  from moto import server  # noqa: PLC0415

  return server.DomainDispatcherApplication(server.create_backend_app)
