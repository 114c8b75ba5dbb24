# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at a server: tried again, or said in one message.

An exception's type, its status (RFC 9110) and its code (S3's "Error
Responses") decide, its words never do.
"""

import dataclasses
import enum
import http
import random
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from resnet_jax.data import decoding
from resnet_jax.system import errors

TRIES = 4
# Seconds before the second try; before each other one twice as many.
WAIT = 0.5

_T = TypeVar('_T')


class GoneError(Exception):
  """There is no such file or folder."""


class Kind(enum.Enum):
  """What to do about a fault, for the message."""

  GONE = ''
  PASSING = (
    'Start the same command again when the server answers; a run resumes'
  )
  EXPIRED = 'Renew them and start the same command again; a run resumes'
  NO_CREDENTIALS = (
    'Give them as the library of that protocol takes them (for s3://'
    ' AWS_PROFILE, or AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY)'
  )
  DENIED = (
    'Check that the address is right, and that these credentials may read and'
    ' list it and have not expired'
  )
  OTHER = 'Check the address'


@dataclasses.dataclass(frozen=True)
class Fault:
  """What went wrong.

  Attributes:
    kind: which decides what is done.
    what: for the message.
  """

  kind: Kind
  what: str


class CutError(ConnectionError):
  """Fewer bytes came than the server has."""


class AnswerError(Exception):
  """An answer that no other try makes better; the message says which."""


_CODES = {
  **dict.fromkeys(
    (
      *('ExpiredToken', 'ExpiredTokenException', 'TokenRefreshRequired'),
      *('RequestExpired', 'InvalidToken'),
    ),
    Kind.EXPIRED,
  ),
  # S3 states some of these with 400.
  **dict.fromkeys(
    (
      *('RequestTimeout', 'SlowDown', 'Throttling', 'ThrottlingException'),
      *('RequestLimitExceeded', 'TooManyRequestsException', 'InternalError'),
      *('ServiceUnavailable', 'BandwidthLimitExceeded', 'IncompleteBody'),
    ),
    Kind.PASSING,
  ),
  **dict.fromkeys(
    (
      *('AccessDenied', 'InvalidAccessKeyId', 'SignatureDoesNotMatch'),
      *('AllAccessDisabled', 'AccountProblem', 'InvalidObjectState'),
      'RequestTimeTooSkewed',
    ),
    Kind.DENIED,
  ),
  **dict.fromkeys(('NoSuchKey', 'NoSuchBucket'), Kind.GONE),
}
_STATUS = {
  401: Kind.DENIED,
  403: Kind.DENIED,
  404: Kind.GONE,
  408: Kind.PASSING,
  410: Kind.GONE,
  425: Kind.PASSING,
  429: Kind.PASSING,
}
# By the types' packages and names, so that nothing is imported for them.
_TYPES = {
  'botocore.NoCredentialsError': (
    Kind.NO_CREDENTIALS,
    'there are no credentials',
  ),
  'botocore.PartialCredentialsError': (
    Kind.NO_CREDENTIALS,
    'the credentials are incomplete',
  ),
  **dict.fromkeys(
    (
      'botocore.SSOError',
      'botocore.TokenRetrievalError',
      'botocore.CredentialRetrievalError',
      'google.RefreshError',
    ),
    (Kind.EXPIRED, 'the credentials have expired'),
  ),
  'aiohttp.ClientSSLError': (
    Kind.OTHER,
    'no secure connection can be made; SSL_CERT_FILE can name authorities',
  ),
  **dict.fromkeys(
    (
      'aiohttp.ClientConnectionError',
      'aiohttp.ClientPayloadError',
      'botocore.HTTPClientError',
      'botocore.ConnectionError',
      'botocore.IncompleteReadError',
      'botocore.ResponseParserError',
      'httpx.TransportError',
      'httpx2.TransportError',
    ),
    (Kind.PASSING, 'the connection broke, or there is none'),
  ),
}
_BUILT_IN = (
  (FileNotFoundError, Kind.GONE, 'there is no such file'),
  (NotADirectoryError, Kind.GONE, 'there is no such file'),
  (PermissionError, Kind.DENIED, 'access is refused'),
  (TimeoutError, Kind.PASSING, 'the server does not answer in time'),
  (ConnectionError, Kind.PASSING, 'the connection broke'),
)
_DEEPEST = 10


def tried(name: object, call: Callable[[], _T]) -> _T:
  """The result of a call, up to four times while what fails may pass.

  Args:
    name: of the object, for the message.
    call: reads it; raises whatever its library does.

  Raises:
    GoneError: there is no such object.
    UserError: it cannot be read.
  """
  for number in range(TRIES):
    try:
      return call()
    except (errors.UserError, decoding.ImageError, GoneError):
      raise
    except Exception as error:
      fault = of(error)
      if fault.kind is Kind.GONE:
        raise GoneError(f'{name}') from None
      passes = fault.kind is Kind.PASSING
      if not passes or number == TRIES - 1:
        tries = f' ({TRIES} tries)' if passes else ''
        raise errors.UserError(
          f'cannot read {name}: {fault.what}{tries}. {fault.kind.value}.'
        ) from error
    # Not all at once: workers that failed together come back one by one.
    time.sleep(WAIT * 2**number * random.uniform(0.5, 1.5))
  raise AssertionError


def of(error: BaseException) -> Fault:
  """What an exception, or one that caused it, means."""
  chain = list(_chain(error))
  for one in chain:
    if isinstance(one, ssl.SSLCertVerificationError):
      return Fault(
        Kind.OTHER,
        "the server's certificate is not trusted; SSL_CERT_FILE can name other"
        ' authorities',
      )
  for one in chain:
    if fault := _stated(one):
      return fault
  for one in chain:
    if isinstance(one, AnswerError):
      return Fault(Kind.OTHER, str(one))
    for base in type(one).__mro__:
      package = base.__module__.partition('.')[0]
      if known := _TYPES.get(f'{package}.{base.__qualname__}'):
        return Fault(*known)
    for type_, kind, what in _BUILT_IN:
      if isinstance(one, type_):
        return Fault(kind, what)
  text = (str(error) or type(error).__name__).partition('\n')[0]
  return Fault(Kind.OTHER, text[:300].removesuffix('.'))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  for _ in range(_DEEPEST):
    if error is None:
      return
    yield error
    error = error.__cause__ or error.__context__


def _stated(error: BaseException) -> Fault | None:
  """The fault that a server's answer states, if this is of an answer."""
  response = getattr(error, 'response', None)
  status, code = 0, ''
  if isinstance(response, dict):
    # botocore's, of S3.
    code = str(response.get('Error', {}).get('Code', ''))
    status = response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0)
  else:
    # Others have a code, too, that no server has stated.
    is_gcs = type(error).__module__.startswith('gcsfs.')
    stated = (
      getattr(response, 'status_code', None),
      getattr(error, 'code' if is_gcs else 'status', None),
    )
    status = next((n for n in stated if isinstance(n, int)), 0)
  if not 400 <= status < 600 and code not in _CODES:
    return None
  kind = Kind.PASSING if status >= 500 else Kind.OTHER
  # A code says more than a status: S3 has 400 for what has expired.
  kind = _CODES.get(code) or _STATUS.get(status) or kind
  phrase = http.HTTPStatus(status).phrase if status in _PHRASES else ''
  facts = [f'{status} {phrase}'.strip(), code if code in _CODES else '']
  what = f'the server answers {", ".join(filter(None, facts))}'
  if kind is Kind.EXPIRED:
    what += ': the credentials have expired'
  return Fault(kind, what)


_PHRASES = frozenset(status.value for status in http.HTTPStatus)
