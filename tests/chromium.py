# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium for tests, driven through a pipe (DevTools protocol).

No driver program, no port and no network: the browser reads commands from file
descriptor 3 and writes answers to 4.
"""

import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from makers import HANGS

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
_KEYS = {
  'Tab': 9,
  'Enter': 13,
  'End': 35,
  'Home': 36,
  'ArrowLeft': 37,
  'ArrowUp': 38,
  'ArrowRight': 39,
  'ArrowDown': 40,
}
_FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-dev-shm-usage',
  '--remote-debugging-pipe',
)


def program() -> str | None:
  """The path of Chromium; None where it is not installed."""
  return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def opened() -> Iterator['Browser']:
  """A browser with a fresh profile, ended afterwards."""
  to_read, commands = os.pipe()
  answers, to_write = os.pipe()
  path = program()
  assert path
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    # The shell gives the pipes the numbers that the browser expects.
    process = subprocess.Popen(
      [
        *('bash', '-c'),
        f'exec 3<&{to_read} 4>&{to_write}; exec "$@"',
        'chromium',
        path,
        *_FLAGS,
        f'--user-data-dir={profile}',
        'about:blank',
      ],
      pass_fds=(to_read, to_write),
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
      yield Browser(commands, answers)
    finally:
      os.close(commands)
      os.close(answers)
      process.kill()
      process.wait()


class Browser:
  """One page.

  Attributes:
    complaints: what the console said, and requests that left the page.
  """

  def __init__(self, commands: int, answers: int) -> None:
    self.complaints: list[str] = []
    self._commands, self._answers = commands, answers
    self._buffer = b''
    self._number = 0
    self._session: str | None = None
    self._loaded = False
    target = self._send('Target.createTarget', url='about:blank')
    attached = self._send(
      'Target.attachToTarget', targetId=target['targetId'], flatten=True
    )
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self._send(f'{domain}.enable')

  def open(self, path: pathlib.Path, width: int = 1280) -> None:
    """Loads a file and waits until it is complete."""
    self._send(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=900,
      deviceScaleFactor=1,
      mobile=False,
    )
    self._loaded = False
    self._send('Page.navigate', url=path.resolve().as_uri())
    while not self._loaded:
      self._receive()

  def value(self, script: str) -> Any:
    """What a script's expression is."""
    result = self._send(
      'Runtime.evaluate',
      expression=script,
      returnByValue=True,
      awaitPromise=True,
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def wait(self, script: str) -> None:
    """Waits until an expression is true."""
    end = time.monotonic() + HANGS
    while not self.value(script):
      assert time.monotonic() < end, f'never true: {script}'
      time.sleep(0.02)

  def click(self, selector: str) -> None:
    """Clicks in the middle of an element, with the mouse."""
    x, y = self.value(
      f'(() => {{ const e = document.querySelector({json.dumps(selector)});'
      " e.scrollIntoView({block: 'center'});"
      ' const r = e.getBoundingClientRect();'
      ' return [r.x + r.width / 2, r.y + r.height / 2]; })()'
    )
    for kind in ('mousePressed', 'mouseReleased'):
      self._send(
        'Input.dispatchMouseEvent',
        type=kind,
        x=x,
        y=y,
        button='left',
        clickCount=1,
      )

  def press(self, key: str, shift: bool = False) -> None:
    """Presses a key."""
    for kind in ('keyDown', 'keyUp'):
      self._send(
        'Input.dispatchKeyEvent',
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=_KEYS[key],
        modifiers=8 if shift else 0,
        **({'text': '\r'} if key == 'Enter' and kind == 'keyDown' else {}),
      )

  def type(self, text: str) -> None:
    """Types into what has the focus."""
    self._send('Input.insertText', text=text)

  def prefer(self, scheme: str) -> None:
    """As a person sees it who prefers dark pages, or light ones."""
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    self._send('Emulation.setEmulatedMedia', features=[feature])

  def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    data = memoryview(json.dumps(message).encode() + b'\0')
    while data:
      data = data[os.write(self._commands, data) :]
    while True:
      answer = self._receive()
      if answer.get('id') == self._number:
        assert 'error' not in answer, answer
        return answer['result']

  def _receive(self) -> dict[str, Any]:
    while b'\0' not in self._buffer:
      ready, _, _ = select.select([self._answers], [], [], HANGS)
      assert ready, 'Chromium does not answer'
      data = os.read(self._answers, 1 << 20)
      assert data, 'Chromium ended'
      self._buffer += data
    text, _, self._buffer = self._buffer.partition(b'\0')
    message = json.loads(text)
    self._note(message.get('method', ''), message.get('params', {}))
    return message

  def _note(self, event: str, said: dict[str, Any]) -> None:
    match event:
      case 'Page.loadEventFired':
        self._loaded = True
      case 'Runtime.exceptionThrown' | 'Runtime.consoleAPICalled':
        self.complaints.append(json.dumps(said))
      case 'Log.entryAdded' | 'Page.javascriptDialogOpening':
        self.complaints.append(json.dumps(said))
      case 'Network.requestWillBeSent':
        url = said['request']['url']
        if not url.startswith(('file:', 'data:', 'about:')):
          self.complaints.append(f'a request to {url}')
