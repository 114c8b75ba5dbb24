# SPDX-License-Identifier: Apache-2.0
"""Downloads of published files: verified, resumed, from mirrors in turn."""

import dataclasses
import http
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from resnet_jax.system import errors, files
from resnet_jax.zoo import cache, records, transfer

Say = Callable[[str], None]
Report = Callable[[int, int | None], None]


def fetch(
  file: records.File,
  name: str,
  *,
  report: Report | None,
  say: Say,
  timeout: float = 15.0,
) -> pathlib.Path:
  """Returns the verified file of a checkpoint, downloaded if not cached.

  Args:
    file: its addresses, hash and size.
    name: its folder in the cache, such as `msra-50`.
    report: called with the bytes so far and in all; None: not known.
    say: called with each line of the log.
    timeout: seconds for a server to answer, and then to send 1,024 bytes.

  Raises:
    UserError: no address delivers it; gives the reason at each.
  """
  if found := cache.cached(file, name):
    return found
  path = cache.place(file, name)
  if cache.is_offline():
    raise errors.UserError(
      f'{name} is not in the cache, and RESNET_JAX_OFFLINE forbids downloads.'
      f' Unset it; or {_alternatives(file, path)}.'
    )
  addresses = (*_own_mirror(file), *file.urls)
  waiting = f'waiting for another process that is downloading {path.name}'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f'{path.name}.lock'), 'ab') as lock:
      try:
        files.hold(lock, lambda: say(waiting))
      except OSError:
        # Some network file systems have no locks.  The hash finds what two
        # processes garble.
        say(f'{path.parent} cannot be locked: download to it from one process')
      # Another process may have downloaded it meanwhile.
      if found := cache.cached(file, name):
        return found
      run = _Download(file, path, report or (lambda *_: None), say, timeout)
      run.try_all(addresses)
  except OSError as error:
    # The reader of `say` is gone.
    if isinstance(error, BrokenPipeError):
      raise
    raise errors.UserError(
      f'cannot keep a download in {path.parent}: {error.strerror or error}.'
      ' Make room or make it writable, or name another folder in'
      ' RESNET_JAX_CACHE.'
    ) from error
  return path


def _own_mirror(file: records.File) -> tuple[str, ...]:
  """The address at the user's own mirror, if one is set."""
  base = os.environ.get('RESNET_JAX_MIRROR', '').strip()
  if not base:
    return ()
  parts = transfer.split(base)
  if not parts or parts.username is not None or parts.query or parts.fragment:
    raise errors.UserError(
      'RESNET_JAX_MIRROR must be an http or https address such as'
      ' https://host/folder, without a password or a query.'
    )
  return (f'{base.rstrip("/")}/{file.name}',)


def _alternatives(file: records.File, path: pathlib.Path) -> str:
  # Without a hash, a file put there by hand cannot be verified.
  put = f', put it at {path}' if file.hash else ''
  return (
    f'give weights=PATH of a file that you have{put} or name in'
    f' RESNET_JAX_MIRROR the address of a folder that has {file.name}'
  )


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

  @property
  def part(self) -> pathlib.Path:
    return self.path.with_name(self.path.name + files.PART)

  def try_all(self, addresses: tuple[str, ...]) -> None:
    """Downloads from the first address that delivers the file."""
    failures = []
    for address in addresses:
      try:
        return self._try(address)
      except transfer.Failure as failure:
        note = transfer.proxy_note(address)
        failures.append(f'{address}: {failure}{note}')
        self.say(failures[-1])
    kept = ''
    if self._bytes and self._origin:
      kept = f'\n{self.part} is kept: the next download resumes it.'
    else:
      self._discard()
    raise errors.UserError(
      f'{self.file.name} could not be downloaded:\n  '
      + '\n  '.join(failures)
      + f'{kept}\nTry again later; or {_alternatives(self.file, self.path)}.'
    )

  @property
  def _bytes(self) -> int:
    return self.part.stat().st_size if self.part.exists() else 0

  @property
  def _origin(self) -> dict[str, Any] | None:
    return cache.read_json(self.part, {'address', 'version'})

  def _discard(self) -> None:
    # In this order: a part without an origin is never resumed.
    self.part.with_name(f'{self.part.name}.json').unlink(missing_ok=True)
    self.part.unlink(missing_ok=True)

  def _try(self, address: str) -> None:
    """Downloads from one address, with one retry where that may help."""
    retried = False
    while True:
      origin = self._origin or {'address': None, 'version': ''}
      ours = origin['address'] == address
      validator = str(origin['version']) if ours else ''
      offset = self._bytes if validator else 0
      try:
        # All bytes are here: only the verification is missing.
        sure = self.file.exact and self.file.hash is not None
        if not (offset and sure and offset == self.file.size):
          self._transfer(address, offset, validator)
        return self._publish(address)
      except transfer.Failure as failure:
        if failure.discard:
          self._discard()
        if failure.discard and offset:
          self.say(f'{address}: {failure}; starting over')
          continue
        if failure.pause is None or retried:
          raise
        retried = True
        self.say(f'{address}: {failure}; trying again')
        time.sleep(failure.pause)

  def _transfer(self, address: str, offset: int, validator: str) -> None:
    """Requests the missing bytes, and writes them."""
    start = f', from byte {offset:,}' if offset else ''
    self.say(f'downloading {address}{start}')
    with transfer.request(address, offset, validator, self.timeout) as response:
      done = offset if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
      self._check(response, done)
      if not done:
        self._discard()
        self.part.touch()
        if response.validator:
          origin = {'address': address, 'version': response.validator}
          cache.write_json(self.part, origin)
      self._fill(response, done)

  def _check(self, response: transfer.Response, done: int) -> None:
    """Refuses the wrong file, or a full disk, before a byte is written."""
    wrong, total = None, response.total
    if total is not None:
      wrong = cache.size_fault(total, self.file)
    kind = response.headers.get_content_subtype()
    if self.file.hash is None and kind == 'html':
      wrong = 'a web page, not a file'
    if wrong:
      raise transfer.Failure(f'it has {wrong}', discard=done > 0)
    needed = (total or self.file.size or 0) - self._bytes
    usage = shutil.disk_usage(self.path.parent)
    # Some file systems state no size.
    if usage.total and needed > usage.free:
      raise errors.UserError(
        f'the download needs {needed:,} bytes in {self.path.parent}, and'
        f' {usage.free:,} are free. Make room, or name another folder in'
        ' RESNET_JAX_CACHE.'
      )

  def _fill(self, response: transfer.Response, done: int) -> None:
    """Writes the bytes as they come; a Failure if too many or too few."""
    low, high = cache.size_limits(self.file)
    shown = self.file.size
    if response.total is not None:
      low = high = shown = response.total
    self.report(done, shown)
    with open(self.part, 'ab') as part:
      for chunk in response.chunks():
        done += len(chunk)
        if done > high:
          raise transfer.Failure(
            f'it sends more than {high:,} bytes', discard=True
          )
        part.write(chunk)
        part.flush()
        self.report(done, shown)
    if done < low:
      raise transfer.broken(f' after {done:,} of {low:,} bytes')

  def _publish(self, address: str) -> None:
    """Verifies the part, then gives it its name."""
    found = cache.contents(self.part, self.file)
    if wrong := cache.fault(found, self.file):
      raise transfer.Failure(
        f'it is not the published file: {wrong}', discard=True
      )
    with open(self.part, 'rb+') as part:
      os.fsync(part.fileno())
    # The receipt first: one without a file does no harm.
    cache.write_receipt(self.path, address, found, self.file)
    os.replace(self.part, self.path)
    self._discard()
    self.say(f'{self.path}: {cache.verdict(self.file, found)}')
