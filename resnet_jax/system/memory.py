# SPDX-License-Identifier: Apache-2.0
"""The memory that this process may take, where the system limits it.

Below some of these limits JAX ends the process without a message, so they are
compared with what is needed before it starts.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from resnet_jax.system import errors

# Measured on two cores: the imports; a small network from the start of JAX on;
# and the compiler, besides two copies of the parameters.  Most is address space
# that is reserved and not used.
IMPORTS = 500 << 20
NETWORK = 1800 << 20
COMPILER = 300 << 20

_RAISE = 'Raise the limit (ulimit -v unlimited; in a batch job ask for more)'


def check(needed: int, what: str) -> None:
  """Checks the limits of the process.

  Args:
    needed: bytes, besides what it has taken.
    what: needs them.

  Raises:
    UserError: a limit leaves less.
  """
  limit = _limit()
  if limit is not None and limit - _taken() < needed:
    raise errors.UserError(
      f'there is not enough memory for {what}: it needs about'
      f' {_mb(needed)} MB more, and this process has taken {_mb(_taken())} of'
      f' the {_mb(limit)} MB that it may take. {_RAISE}.'
    )


@contextlib.contextmanager
def starting_threads() -> Iterator[None]:
  """Raises a MemoryError where Python cannot start a thread."""
  try:
    yield
  except RuntimeError as error:
    raise MemoryError(str(error)) from error


def exhausted(error: MemoryError) -> str:
  """The message of a program that has run out of memory."""
  limit = _limit()
  allowed = (
    ''
    if limit is None
    else (
      f' It has taken {_mb(_taken())} of the {_mb(limit)} MB that it may take.'
    )
  )
  why = f' ({error})' if str(error) else ''
  return (
    f'out of memory{why}.{allowed} {_RAISE}, or take a smaller batch_size,'
    ' fewer layers or a smaller crop_size.'
  )


def _limit() -> int | None:
  """Bytes of addresses that the process may have; None: any number."""
  if sys.platform == 'win32':
    return None
  import resource  # noqa: PLC0415 - not on Windows

  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  return None if soft == resource.RLIM_INFINITY else soft


def _taken() -> int:
  """Bytes of addresses that the process has; 0: the system does not say."""
  try:
    with open('/proc/self/statm', encoding='ascii') as file:
      return int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return 0


def _mb(count: int) -> int:
  return count >> 20
