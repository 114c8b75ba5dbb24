# SPDX-License-Identifier: Apache-2.0
"""Images, files and programs that several test files make."""

import binascii
import io
import json
import os
import pathlib
import runpy
import signal
import struct
import subprocess
import sys
import tarfile
import time

import pytest
from PIL import Image

from resnet_jax.data import sources
from resnet_jax.system import errors

ROOT = pathlib.Path(__file__).parent.parent

# Only so that a hang ends: a slow machine does not come near.
HANGS = 600


def contents(directory):
  """Every file below a directory, by its path there.

  Of a unit's mark, what does not depend on who made it, and when.
  """
  return {
    path.relative_to(directory).as_posix(): _content(path)
    for path in directory.rglob('*')
    if path.is_file()
  }


def _content(path):
  data = path.read_bytes()
  if path.parent.name == 'units' and path.stem.isdigit():
    mark = json.loads(data)
    for key in ('host', 'pid', 'begun', 'ended'):
      del mark[key]
    return json.dumps(mark).encode()
  return data


def encoded(image, form, **options):
  """An image, or an array of one, as the bytes of a file."""
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def user_error(function, *arguments, **options):
  """The message of the UserError that a call raises."""
  with pytest.raises(errors.UserError) as caught:
    function(*arguments, **options)
  return str(caught.value)


def raw_tar(path, *members, end=1024):
  """An archive of (TarInfo attributes, bytes), as the members say."""
  with open(path, 'wb') as file:
    for attributes, data in members:
      info = tarfile.TarInfo()
      for name, value in ({'size': len(data)} | attributes).items():
        setattr(info, name, value)
      file.write(info.tobuf(tarfile.GNU_FORMAT))
      file.write(data + bytes(-len(data) % 512))
    file.write(bytes(end))
  return path


def zip_of(members, damage=None, method=0, wide=False, flags=0):
  """A zip of members as they are.

  Args:
    members: names and bytes.
    damage: fields of the directory's entries, by the member's name.
    method: of compression, that the archive states.
    wide: with the numbers of zip64.
    flags: of each member.
  """
  body, directory = b'', b''
  for name, data in members:
    fields = {
      'name': name.encode(),
      'crc': binascii.crc32(data),
      'size': len(data),
      'packed': len(data),
      'header': len(body),
      'method': method,
      'flags': flags,
    }
    body += struct.pack(
      '<4s5H3L2H', b'PK\3\4', 0, flags, method, *(0,) * 5, len(name), 0
    )
    body += name.encode() + data
    fields |= (damage or {}).get(name, {})
    extra = b''
    numbers = [fields[key] for key in ('packed', 'size', 'header')]
    if wide:
      extra = (
        struct.pack('<2H', 9, 1)
        + b'x'
        + struct.pack('<2H3Q', 1, 24, *(numbers[1], numbers[0], numbers[2]))
      )
      numbers = [0xFFFFFFFF] * 3
    directory += struct.pack(
      '<4s6H3L5H2L',
      *(b'PK\1\2', 0, 0, fields['flags'], fields['method'], 0, 0),
      *(fields['crc'], *numbers[:2], len(fields['name']), len(extra)),
      *(0, 0, 0, 0, numbers[2]),
    )
    directory += fields['name'] + extra
  start, count, end = len(body), len(members), b''
  if wide:
    end = struct.pack(
      '<4sQ2H2L4Q',
      b'PK\6\6',
      44,
      0,
      0,
      0,
      0,
      *(count, count, len(directory), start),
    )
    end += struct.pack('<4sLQL', b'PK\6\7', 0, start + len(directory), 1)
  numbers = (
    [0xFFFF] * 2 + [0xFFFFFFFF] * 2
    if wide
    else (count, count, len(directory), start)
  )
  return (
    body
    + directory
    + end
    + struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, *numbers, 0)
  )


def refusal(load, path, data=None):
  """The short error of a file, which begins with its name.

  Args:
    load: reads a path.
    path: of the file.
    data: its bytes, to be written first.
  """
  if data is not None:
    path.write_bytes(data)
  message = user_error(load, path)
  assert message.startswith((str(path), f'cannot read {path}'))
  assert len(message) < 10_000
  return message


def source_error(data):
  """The error of a source of images."""
  return user_error(sources.open_source, str(data))


def _environment(env=None):
  return os.environ | {'PYTHONPATH': str(ROOT)} | (env or {})


def run_python(folder, *arguments, check=None, env=None):
  """Runs Python in a folder, to its end; returns what it did."""
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=folder,
    env=_environment(env),
    capture_output=True,
    text=True,
    timeout=HANGS,
    check=False,
  )
  if check is not None:
    assert done.returncode == check, done.stderr
    assert 'Traceback' not in done.stderr
  return done


def run_program(folder, *arguments, **keywords):
  """The same for the program, as a user runs it."""
  return run_python(folder, '-m', 'resnet_jax.main', *arguments, **keywords)


def config_of(argument='', file='resnet', **settings):
  """The settings of `configs/`, with some of them changed."""
  path = ROOT / 'configs' / f'{file}.py'
  config = runpy.run_path(str(path))['get_config'](argument)
  config.update(settings)
  return config


class Started:
  """The program, running in a folder, where `said.txt` takes its stderr."""

  def __init__(self, folder, *arguments):
    self._said = folder / 'said.txt'
    with open(self._said, 'w') as said:
      self._process = subprocess.Popen(
        [sys.executable, '-m', 'resnet_jax.main', *map(str, arguments)],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=said,
      )

  @property
  def said(self):
    """What it has said until now."""
    return self._said.read_text()

  def loads(self, library):
    """Whether it has a library of that name in its memory (Linux)."""
    maps = pathlib.Path(f'/proc/{self._process.pid}/maps')
    return library in maps.read_text()

  def wait_until(self, event):
    """Waits for an event while it runs; returns whether it still does."""
    wait_until(lambda: event() or self._process.poll() is not None)
    return self._process.poll() is None

  def kill(self):
    """Ends it as a crash would."""
    self._process.kill()
    self._process.wait()

  def wait(self):
    """Returns the exit status, once it has ended."""
    return self._process.wait(HANGS)

  def interrupt(self):
    """Ctrl-C: returns the exit status."""
    self._process.send_signal(signal.SIGINT)
    return self._process.wait(HANGS)


def wait_until(event):
  """Waits for an event, however slow the machine."""
  limit = time.monotonic() + HANGS
  while not event():
    assert time.monotonic() < limit
    time.sleep(0.001)
