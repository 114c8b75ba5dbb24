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

# A room, and whom it may import; the first match counts.  FOR_ALL may be
# imported by all.
ALLOWED = {
  'resnet_jax.models': {'models'},
  'resnet_jax.data.mean': set(),
  'resnet_jax.data.decoding': set(),
  'resnet_jax.data.preprocess': {'data.mean', 'data.decoding'},
  'resnet_jax.data.sources': {'data.decoding', 'data.labels', 'data.sources'},
  'resnet_jax.data.truth': {'data.sources', 'data.truth'},
  'resnet_jax.data.labels': set(),
  'resnet_jax.features': {'features'},
  'resnet_jax.weights.random': set(),
  'resnet_jax.weights': {'models', 'weights'},
  'resnet_jax.inputs': {'data', 'weights'},
  'resnet_jax.data.pipeline': {'data'},
  'resnet_jax.evaluation.prediction': {'data.labels'},
  'resnet_jax.engine.compilation': {'weights.cache'},
  'resnet_jax.engine.devices': set(),
  'resnet_jax.engine.transposes': set(),
  'resnet_jax.engine.runner': {
    *('models', 'data.preprocess', 'compilation', 'devices', 'gradcam'),
    'transposes',
  },
  'resnet_jax.engine.sizing': {'devices', 'runner'},
  'resnet_jax.evaluation': {'evaluation', 'data', 'models', 'weights'},
  'resnet_jax.views': {'views', 'models', 'weights.paddle'},
  'resnet_jax.engine.gradcam': {'models'},
  'resnet_jax.model': {
    *('models', 'weights', 'data', 'inputs', 'runner', 'prediction', 'views'),
    *('gradcam', 'sizing'),
  },
  'resnet_jax.api': {
    *('model', 'models', 'weights', 'data', 'inputs', 'runner', 'views'),
    *('compilation', 'devices'),
  },
  'resnet_jax.jobs': {
    *('models', 'weights', 'data', 'inputs', 'features', 'runner'),
    *('prediction', 'evaluation', 'jobs', 'views'),
    *('compilation', 'devices', 'gradcam', 'sizing'),
  },
  'resnet_jax.main': {'jobs', 'configuration'},
  'resnet_jax': set(),
}
FOR_ALL = {
  *(
    'errors',
    'files',
    'pickles',
    'protobuf',
    'binaryproto',
    'terminal',
    'stages',
    'cores',
  ),
}
# Modules for all may use one another.
ALLOWED |= {f'resnet_jax.{name}': set() for name in FOR_ALL}


def _modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    yield '.'.join(parts).removesuffix('.__init__'), path


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        yield f'{node.module}.{alias.name}'
    elif isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name


@pytest.mark.parametrize(
  ('module', 'path'), [pytest.param(m, p, id=m) for m, p in _modules()]
)
def test_imports_flow_one_way(module, path):
  if module == 'resnet_jax':
    # The package's front door imports lazily, for type checkers at most.
    return
  room = next(r for r in ALLOWED if module == r or module.startswith(f'{r}.'))
  allowed = ALLOWED[room] | FOR_ALL
  for name in _imports(path):
    if name.startswith('resnet_jax.'):
      target = name.removeprefix('resnet_jax.')
      assert any(target == a or target.startswith(f'{a}.') for a in allowed), (
        f'{module} imports {target}'
      )


@pytest.mark.parametrize(
  ('pattern', 'rooms'),
  [
    (r'flags\.DEFINE|DEFINE_config', {'resnet_jax.main'}),
    (r'jax\.jit\(|device_put\(', {'resnet_jax.engine.runner'}),
    (
      r'\bsocket\b|urllib\.request|http\.client|requests',
      {'resnet_jax.zoo.download'},
    ),
    (r'ConfigDict', {'resnet_jax.configuration', 'resnet_jax.jobs'}),
    (r'pickle\.Unpickler|pickle\.load', {'resnet_jax.codecs.pickles'}),
  ],
)
def test_some_things_are_done_in_one_room_only(pattern, rooms):
  for module, path in _modules():
    if re.search(pattern, path.read_text()):
      assert any(module.startswith(room) for room in rooms), module


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
  # As installed, from elsewhere: the path of the README works.
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'resnet_jax.main',
      '--config=configs/resnet.py:50,data=nowhere,weights=random',
      '--job=extract',
    ],
    cwd=tmp_path,
    env={'PYTHONPATH': str(tmp_path / 'installed')},
    capture_output=True,
    text=True,
    check=False,
  )
  assert "data='nowhere': there is no such file" in done.stderr


def test_a_cpu_machine_never_downloads_cuda():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert not any('cuda' in line for line in project['dependencies'])
  assert project['optional-dependencies']['cuda12'] == ['jax[cuda12]']
  assert project['optional-dependencies']['cuda13'] == ['jax[cuda13]']
