# SPDX-License-Identifier: Apache-2.0
"""Parts of files at http and https addresses, bounded.

On aiohttp and fsspec's session, whose settings thus hold; fsspec's own reading
takes whatever a server sends.  Source: RFC 9110, sections 14 and 15.4.
"""

import dataclasses
import re
from typing import Any

from resnet_jax.data import remote_faults

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_BYTES_PER_SECOND = 10_000
_CONTENT_RANGE = re.compile(r'bytes (?:([0-9]{1,15})-[0-9]{1,15}|\*)/(.+)')
_SIZE = re.compile(r'[0-9]{1,15}')


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer to a range of a file.

  Attributes:
    body: the bytes, no more than were asked for.
    size: of the file; None: not stated.
    version: the file's, '' if none is stated.
  """

  body: bytes
  size: int | None
  version: str


async def get(system: Any, url: str, span: range, wait: float) -> Answer:
  """A range of a file.

  Args:
    system: fsspec's of the protocol.
    url: the address.
    span: the bytes.
    wait: seconds that the server may be silent.

  Raises:
    AnswerError: the answer is none to this.
    Exception: whatever aiohttp raises.
  """
  import aiohttp  # noqa: PLC0415 - of the extra

  start, end = span.start, span.stop

  limit = aiohttp.ClientTimeout(
    total=2 * wait + (end - start) / _BYTES_PER_SECOND,
    sock_connect=wait,
    sock_read=wait,
  )
  session = await system.set_session()
  # What the user's settings give each call.
  own = system.kwargs
  headers = {
    **own.get('headers', {}),
    'Range': f'bytes={start}-{end - 1}',
    # A range of what is packed is none of the file.
    'Accept-Encoding': 'identity',
  }
  more = {k: v for k, v in own.items() if k != 'headers'}
  for _ in range(_MOST_REDIRECTS + 1):
    sent = session.get(
      url, **more, headers=headers, timeout=limit, allow_redirects=False
    )
    async with sent as response:
      if response.status not in _REDIRECTS:
        return await _answer(response, start, end)
      url = _target(response)
  raise remote_faults.AnswerError(
    f'it is redirected more than {_MOST_REDIRECTS} times'
  )


def _target(response: Any) -> Any:
  """Where a redirect leads: to https, or from http to http."""
  import yarl  # noqa: PLC0415 - aiohttp brings it

  try:
    target = response.url.join(yarl.URL(response.headers.get('Location', '')))
  except ValueError as error:
    raise remote_faults.AnswerError('it is redirected nowhere') from error
  if target.scheme not in ('https', response.url.scheme):
    raise remote_faults.AnswerError(
      'it is redirected to another protocol than https'
    )
  return target


async def _answer(response: Any, start: int, end: int) -> Answer:
  headers = response.headers
  stated = _CONTENT_RANGE.fullmatch(headers.get('Content-Range', ''))
  version = headers.get('ETag', '') or headers.get('Last-Modified', '')
  if response.status == 416:
    # Of an empty file there is no first byte.
    return Answer(b'', _number(stated[2] if stated else ''), version)
  response.raise_for_status()
  if headers.get('Content-Encoding', 'identity') != 'identity':
    raise remote_faults.AnswerError(
      'the server packs it on the way, so its parts cannot be read'
    )
  size = _number(headers.get('Content-Length', ''))
  if response.status == 206:
    if not stated or stated[1] is None or int(stated[1]) != start:
      raise remote_faults.AnswerError(
        'the server sends another part than it was asked for'
      )
    size = _number(stated[2])
  elif response.status != 200 or start:
    raise remote_faults.AnswerError(
      'the server does not send parts of files; download it and give the path'
    )
  if response.content_type == 'text/html':
    raise remote_faults.AnswerError(
      'it is a web page, perhaps of a folder, and not a file; folders cannot be'
      ' listed here, so give a list file or shards by their numbers'
    )
  body = bytearray()
  while len(body) < end - start:
    chunk = await response.content.read(end - start - len(body))
    if not chunk:
      break
    body += chunk
  return Answer(bytes(body), size, version)


def _number(text: str) -> int | None:
  return int(text) if _SIZE.fullmatch(text) else None
