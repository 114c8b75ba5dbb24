# SPDX-License-Identifier: Apache-2.0
"""What holds the project together: who imports whom, what is installed."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'resnet_jax'

# The packages from the top down.  One imports those below its own level, and
# itself; the modules beside `main` stand alone.
LEVELS = (
  {'main'},
  {'jobs', 'configuration'},
  {'loading'},
  {'model'},
  {'weights', 'evaluation'},
  {'engine', 'zoo'},
  {'data', 'features', 'views'},
  {'models', 'codecs'},
  {'system'},
)
LEVEL = {name: number for number, level in enumerate(LEVELS) for name in level}


def _modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    yield '.'.join(parts).removesuffix('.__init__'), path


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield f'{node.module}.{alias.name}'
    elif isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name


@pytest.mark.parametrize(
  ('module', 'path'), [pytest.param(m, p, id=m) for m, p in _modules()]
)
def test_imports_run_downward(module, path):
  if module == 'resnet_jax':
    # The front door imports lazily; for type checkers it names what it has.
    return
  package = module.split('.')[1]
  for name in _imports(path):
    if name.split('.')[0] != 'resnet_jax':
      continue
    target = name.partition('.')[2].partition('.')[0]
    if target == '__version__':
      continue
    assert target, f'{module} imports resnet_jax, which imports it'
    assert target == package or LEVEL[package] < LEVEL[target], (
      f'{module} imports {name}, which is not below it'
    )


def test_no_import_is_relative():
  """The levels of relative imports are not checked above."""
  for folder in (PACKAGE, ROOT / 'tests', ROOT / 'experiments'):
    for path in folder.rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        level = getattr(node, 'level', 0)
        assert level == 0, f'{path}:{node.lineno} imports relatively'


def test_the_front_door_imports_nothing():
  code = (
    'import sys; before = set(sys.modules); import resnet_jax;'
    ' print(*sorted(set(sys.modules) - before))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert not {'jax', 'flax', 'numpy', 'PIL'} & set(done.stdout.split())
  assert 'resnet_jax.model' not in done.stdout


def test_every_package_has_a_level():
  found = {name.split('.')[1] for name, _ in _modules() if '.' in name}
  assert found == set(LEVEL)


@pytest.mark.parametrize(
  ('pattern', 'places'),
  [
    (r'flags\.DEFINE|DEFINE_config', {'resnet_jax.main'}),
    (r'jax\.jit\(|device_put\(', {'resnet_jax.engine'}),
    (
      r'\bsocket\b|urllib\.request|http\.client|requests',
      {'resnet_jax.zoo.download'},
    ),
    (r'ConfigDict', {'resnet_jax.configuration', 'resnet_jax.jobs'}),
    (r'pickle\.Unpickler|pickle\.load', {'resnet_jax.codecs.pickles'}),
  ],
)
def test_some_things_are_done_in_one_place_only(pattern, places):
  for module, path in _modules():
    if re.search(pattern, path.read_text()):
      assert any(module.startswith(place) for place in places), module


def test_only_the_console_prints():
  """Others could print control characters that a file holds."""
  for module, path in _modules():
    calls = [
      node.func.id
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert module == 'resnet_jax.system.console' or 'print' not in calls, module


def test_no_module_is_long():
  for module, path in _modules():
    assert len(path.read_text().splitlines()) <= 400, module


def test_the_wheel_has_the_config_and_the_class_names(tmp_path):
  pytest.importorskip('hatchling')
  subprocess.run(
    [sys.executable, '-m', 'hatchling', 'build', '-t', 'wheel', '-d', tmp_path],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
  (wheel,) = tmp_path.glob('resnet_jax_zoo-*.whl')
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    assert 'resnet_jax/configs/resnet.py' in names
    assert 'resnet_jax/data/imagenet_classes.tsv' in names
    assert 'resnet_jax/example/chelsea.png' in names
    assert not any(name.startswith('tests') for name in names)
    archive.extractall(tmp_path / 'installed')

  # As installed, from elsewhere: the paths of the README work.
  def run(*flags):
    return subprocess.run(
      [sys.executable, '-m', 'resnet_jax.main', *flags],
      cwd=tmp_path,
      env={
        'PYTHONPATH': str(tmp_path / 'installed'),
        'JAX_PLATFORMS': 'cpu',
        'RESNET_JAX_OFFLINE': '1',
      },
      capture_output=True,
      text=True,
      check=False,
    )

  settings = '50,data=nowhere,weights=random'
  done = run(f'--config=configs/resnet.py:{settings}', '--job=extract')
  assert "data='nowhere': there is no such file" in done.stderr
  data = 'installed/resnet_jax/example/cifar10.list'
  done = run(f'--config=configs/cifar.py:data={data}', '--job=predict')
  assert 'cat.jpg is: 3' in done.stdout


def test_a_cpu_machine_never_downloads_cuda():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert not any('cuda' in line for line in project['dependencies'])
  assert project['optional-dependencies']['cuda12'] == ['jax[cuda12]']
  assert project['optional-dependencies']['cuda13'] == ['jax[cuda13]']
