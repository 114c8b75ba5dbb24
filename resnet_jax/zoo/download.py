# SPDX-License-Identifier: Apache-2.0
"""Downloads of published files: verified, resumed, never waiting for long.

The standard library does it: none of requests, pooch and huggingface_hub
resumes a transfer from any server and verifies what comes of it.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable

from resnet_jax.system import errors
from resnet_jax.zoo import cache, records, transfer

Say = Callable[[str], None]
Report = Callable[[int, int | None], None]


def fetch(
  file: records.File,
  name: str,
  *,
  report: Report | None,
  say: Say,
  patience: float = 15.0,
) -> pathlib.Path:
  """The verified file of a checkpoint, from the cache or else downloaded.

  Args:
    file: what is known of it, and where it is.
    name: its folder in the cache, such as `msra-50`.
    report: hears how many bytes are there, of how many (None: not known).
    say: hears what happens, a line each.
    patience: seconds to wait for a server that does nothing.

  Raises:
    UserError: it is not to be had; says what happened at each address.
  """
  if found := cache.cached(file, name):
    return found
  path = cache.place(file, name)
  if cache.is_offline():
    raise errors.UserError(
      f'{name} is not in the cache, and RESNET_JAX_OFFLINE forbids to download'
      f' it. Unset that; or {_ways(file, path)}.'
    )
  addresses = (*_own_mirror(file), *file.urls)
  with cache.writing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    with cache.lock(path, say):
      # Whoever held the lock may have downloaded it.
      if found := cache.cached(file, name):
        return found
      hear = report or (lambda done, total: None)
      _Download(file, cache.Part(path), hear, say, patience).run(addresses)
  return path


def _own_mirror(file: records.File) -> tuple[str, ...]:
  """The address at the user's own mirror, if there is one."""
  base = os.environ.get('RESNET_JAX_MIRROR', '').strip()
  if not base:
    return ()
  parts = transfer.split(base)
  if not parts or parts.username is not None or parts.query or parts.fragment:
    raise errors.UserError(
      'RESNET_JAX_MIRROR must be an address such as https://host/folder, of'
      ' http or https, without a password or a query.'
    )
  return (f'{base.rstrip("/")}/{file.name}',)


def _ways(file: records.File, path: pathlib.Path) -> str:
  ways = [
    'give weights=PATH of a file that you have',
    f'name in RESNET_JAX_MIRROR the address of a folder that has {file.name}',
  ]
  # Without a hash, what is put there could not be verified.
  if file.hash is not None:
    ways.insert(1, f'put it at {path}')
  return f'{", ".join(ways[:-1])} or {ways[-1]}'


@dataclasses.dataclass(frozen=True)
class _Download:
  """One file on its way into the cache."""

  file: records.File
  part: cache.Part
  report: Report
  say: Say
  patience: float

  def run(self, addresses: tuple[str, ...]) -> None:
    """Tries the addresses in turn."""
    failures = []
    for address in addresses:
      try:
        return self._try(address)
      except transfer.Fault as fault:
        note = transfer.proxy_note(address)
        failures.append(f'{address}: {fault}{note}')
        self.say(failures[-1])
    kept = ''
    if self.part.can_be_resumed:
      kept = f'\n{self.part.path} is kept: the next download resumes it.'
    else:
      self.part.discard()
    raise errors.UserError(
      f'{self.file.name} could not be downloaded:\n  '
      + '\n  '.join(failures)
      + f'{kept}\nTry again later; or {_ways(self.file, self.part.whole)}.'
    )

  def _try(self, address: str) -> None:
    """Tries an address; again, if there is hope."""
    hope = True
    while True:
      version = self.part.version(address)
      offset = self.part.bytes if version else 0
      try:
        if not self._is_whole(offset):
          self._transfer(address, offset, version)
        return self._publish(address)
      except transfer.Fault as fault:
        if fault.discard:
          self.part.discard()
        # What was resumed may be at fault; afresh there is nothing to resume.
        if fault.discard and offset:
          self.say(f'{address}: {fault}; starting over')
          continue
        if fault.pause is None or not hope:
          raise
        hope = False
        self.say(f'{address}: {fault}; trying again')
        time.sleep(fault.pause)

  def _is_whole(self, done: int) -> bool:
    """Whether only the verification is missing."""
    size = self.file.size if self.file.exact else None
    return done > 0 and done == size and self.file.hash is not None

  def _transfer(self, address: str, offset: int, version: str) -> None:
    """Asks for what is missing, and writes it."""
    start = f', from byte {offset:,}' if offset else ''
    self.say(f'downloading {address}{start}')
    request = transfer.Request(address, offset, version, self.patience)
    with contextlib.closing(transfer.Exchange(request)) as server:
      answer = server.answer()
      self._check(answer)
      if not answer.start:
        self.part.begin(address, answer.version)
      self._fill(server, answer)

  def _check(self, answer: transfer.Answer) -> None:
    """Refuses what cannot be the file, before a byte is written."""
    wrong = (
      cache.size_fault(answer.total, self.file)
      if answer.total is not None
      else None
    )
    if self.file.hash is None and answer.is_page:
      wrong = 'a web page, not a file'
    if wrong:
      raise transfer.Fault(f'it has {wrong}', discard=answer.start > 0)
    if size := answer.total or self.file.size:
      # What is there already counts: it is kept, or removed.
      cache.check_space(self.part.whole.parent, size - self.part.bytes)

  def _fill(self, server: transfer.Exchange, answer: transfer.Answer) -> None:
    """Writes what comes, if it is neither too much nor too little."""
    least, most = cache.size_limits(self.file)
    if answer.total is not None:
      least = most = answer.total
    shown = self.file.size if answer.total is None else answer.total
    done = answer.start
    self.report(done, shown)
    with open(self.part.path, 'ab') as part:
      for chunk in server.chunks():
        done += len(chunk)
        if done > most:
          raise transfer.Fault(
            f'it sends more than {most:,} bytes', discard=True
          )
        part.write(chunk)
        self.report(done, shown)
    if done < least:
      raise transfer.broken(
        f' after {done:,} of {least:,} bytes', self.patience
      )

  def _publish(self, address: str) -> None:
    """Verifies what there is, then gives it its name."""
    found = cache.contents(self.part.path, self.file)
    if wrong := cache.fault(found, self.file):
      raise transfer.Fault(
        f'it is not the published file: {wrong}', discard=True
      )
    self.part.publish(address, found, self.file)
    self.say(f'{self.part.whole}: {cache.verdict(self.file, found)}')
