# SPDX-License-Identifier: Apache-2.0
"""Compiled programs that are kept: used again, bounded, never in the way."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from resnet_jax.engine import compilation


def lowered(number):
  """A program of its own for each number."""
  function = jax.jit(lambda x: x @ x + number)
  return function.lower(jax.ShapeDtypeStruct((16, 16), jnp.float32))


def entries(folder, name='jit__lambda'):
  return sorted(folder.glob(f'{name}-*-cache'))


def compiled(number):
  """Compiles; returns the program's value, and what was said."""
  said = []
  program = compilation.compiled(lowered(number), said.append, {})
  return float(program(np.ones((16, 16), np.float32))[0, 0]), said


SETTINGS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
  'jax_raise_persistent_cache_errors',
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """An application's folder; JAX's settings are put back."""
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / 'kept'))
  compilation.keep_programs(True, pytest.fail, application=True)
  yield tmp_path / 'kept'
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def events():
  """JAX's own count of what came from the cache."""
  found = []

  def listen(event, **details):
    del details
    found.append(event.rsplit('/', 1)[-1])

  # It stays: JAX 0.7 has no public way to take it back.
  jax.monitoring.register_event_listener(listen)
  return found


def test_a_program_is_kept_and_found_again(kept, events):
  assert compiled(1) == (17, [])
  [entry] = entries(kept)
  assert 'cache_hits' not in events
  assert compiled(1) == (17, [])
  assert events.count('cache_hits') == 1
  assert entries(kept) == [entry]


def test_settings_of_the_users_own_stay(tmp_path, kept, monkeypatch):
  theirs = tmp_path / 'theirs'
  jax.config.update('jax_compilation_cache_dir', str(theirs))
  compilation_cache.reset_cache()
  compilation.keep_programs(True, pytest.fail, application=True)
  assert jax.config.jax_compilation_cache_dir == str(theirs)
  assert compiled(2) == (18, [])
  assert entries(theirs)
  assert not entries(kept)


def test_in_a_notebook_jaxs_own_thresholds_stay(tmp_path, kept, monkeypatch):
  for name in SETTINGS:
    value = {'jax_persistent_cache_min_compile_time_secs': 3.5}.get(name)
    jax.config.update(name, value if name != SETTINGS[3] else False)
  jax.config.update(SETTINGS[2], 5)
  compilation.keep_programs(True, pytest.fail, application=False)
  assert [getattr(jax.config, name) for name in SETTINGS] == [
    str(kept),
    3.5,
    5,
    False,
  ]


def test_a_damaged_program_is_compiled_again(kept):
  compiled(3)
  [entry] = entries(kept)
  entry.write_bytes(b'no program')
  value, said = compiled(3)
  assert value == 19
  assert len(said) == 1
  assert said[0].startswith(
    f'NOTE: the compiled programs in {kept} could not be used, and were'
    ' removed: '
  )
  assert compiled(3) == (19, [])
  assert len(entries(kept)) == 1
  assert compiled(3) == (19, [])


def test_a_program_that_cannot_be_compiled_is_the_compilers_error(kept):
  class Broken:
    """A program that never compiles."""

    def compile(self, options):
      """Fails."""
      raise ValueError('of the compiler')

  compiled(4)
  with pytest.raises(ValueError, match='of the compiler'):
    compilation.compiled(Broken(), pytest.fail, {})
  assert entries(kept)


def test_the_oldest_go_when_there_is_no_room(tmp_path, monkeypatch):
  monkeypatch.setenv(compilation.VARIABLE, str(tmp_path))
  for number in range(4):
    path = tmp_path / 'deep' / f'{number}-cache'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1000 * (4 - number),) * 2)
  monkeypatch.setattr(compilation, 'MAX_BYTES', 250)
  assert compilation.folder(True, pytest.fail) == tmp_path
  assert [f.name for f in sorted((tmp_path / 'deep').iterdir())] == [
    '0-cache',
    '1-cache',
  ]


def test_where_it_is(tmp_path, monkeypatch):
  monkeypatch.delenv(compilation.VARIABLE)
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  found = compilation.folder(True, pytest.fail)
  assert found == tmp_path / 'cache' / 'compiled'
  assert found.stat().st_mode & 0o777 == 0o700
  assert compilation.folder(False, pytest.fail) is None
  for no in ('0', 'false', 'NO'):
    monkeypatch.setenv(compilation.VARIABLE, no)
    assert compilation.folder(True, pytest.fail) is None
  monkeypatch.setenv(compilation.VARIABLE, '1')
  assert compilation.folder(True, pytest.fail) == found


def file_in_the_way(path):
  path.write_text('a file')


def open_to_all(path):
  path.mkdir()
  path.chmod(0o777)


@pytest.mark.parametrize(
  ('prepare', 'reason'),
  [(file_in_the_way, 'File exists'), (open_to_all, 'others can write there')],
)
def test_a_folder_that_is_no_good_is_said_and_not_used(
  tmp_path, monkeypatch, prepare, reason
):
  place, said = tmp_path / 'place', []
  prepare(place)
  monkeypatch.setenv(compilation.VARIABLE, str(place))
  assert compilation.folder(True, said.append) is None
  assert said == [f'NOTE: compiled programs are not kept: {reason} ({place})']


def test_no_home_is_no_error(monkeypatch):
  said = []
  monkeypatch.delenv(compilation.VARIABLE)
  monkeypatch.delenv('RESNET_JAX_CACHE', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  assert compilation.folder(True, said.append) is None
  assert 'there is no home directory' in said[0]


SCRIPT = """
import jax
jax.monitoring.register_event_listener(lambda event, **_: print(event))
from resnet_jax import main
main.run()
"""


def test_the_second_run_compiles_nothing(tmp_path, image_folder):
  del image_folder
  (tmp_path / 'script.py').write_text(SCRIPT)
  kept = tmp_path / 'kept'

  def run(output, *settings):
    done = subprocess.run(
      [
        *(sys.executable, 'script.py', '--job=extract'),
        '--config=configs/resnet.py:18,weights=random,crop_size=32',
        *('--config.resize_size=32', '--config.data=images'),
        *(f'--config.output_dir={output}', '--config.output_layer=pool1'),
        *settings,
      ],
      cwd=tmp_path,
      env=os.environ
      | {
        'PYTHONPATH': os.pathsep.join(sys.path),
        compilation.VARIABLE: str(kept),
      },
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split().count('/jax/compilation_cache/cache_hits')

  assert run('off', '--config.compilation_cache=false') == 0
  assert not kept.exists()
  assert run('first') == 0
  assert len(entries(kept, 'jit_run')) == 1
  assert run('second') == 1
  assert len(entries(kept, 'jit_run')) == 1
  a, b = ((tmp_path / n / 'pool1').rglob('*') for n in ('first', 'second'))
  for ours, theirs in zip(sorted(a), sorted(b), strict=True):
    assert ours.is_dir() or ours.read_bytes() == theirs.read_bytes()
