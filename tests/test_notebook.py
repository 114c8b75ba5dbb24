# SPDX-License-Identifier: Apache-2.0
"""The notebooks: they run, and are stored without outputs."""

import collections
import json
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from makers import HANGS

import resnet_jax

NAMES = ('tour', 'transfer')


def _read(name):
  path = ROOT / 'notebooks' / f'{name}.ipynb'
  return nbformat.read(path, nbformat.NO_CONVERT)


def _code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def _executed(name, folder, monkeypatch):
  """What a notebook printed, and the kinds of what it displayed."""
  nbclient = pytest.importorskip('nbclient')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(folder / 'cache'))
  # Not where the person who runs the tests has settings.
  monkeypatch.setenv('IPYTHONDIR', str(folder / 'ipython'))
  notebook, where = _read(name), {'metadata': {'path': folder}}
  nbclient.NotebookClient(notebook, timeout=HANGS, resources=where).execute()
  outputs = [output for cell in _code(notebook) for output in cell.outputs]
  kinds = collections.Counter(
    kind for output in outputs for kind in output.get('data', {})
  )
  said = ''.join(
    output.text for output in outputs if output.output_type == 'stream'
  )
  assert 'RuntimeWarning' not in said
  assert sys.executable not in said
  return said, kinds


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_is_stored_without_outputs(name):
  notebook = _read(name)
  nbformat.validate(notebook)
  for cell in _code(notebook):
    assert not cell.outputs
    assert cell.execution_count is None
    assert not cell.metadata


def test_every_notebook_is_tested():
  found = (ROOT / 'notebooks').glob('*.ipynb')
  assert sorted(path.stem for path in found) == sorted(NAMES)


def test_the_tours_plots_are_those_of_the_views():
  source = '\n'.join(cell.source for cell in _code(_read('tour')))
  assert 'matplotlib' not in source
  for plot in ('bars', 'filters', 'feature_maps', 'grad_cam', 'neighbours'):
    assert f'views.{plot}(' in source


# Of Jupyter, whose kernel here listens on the loopback only.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_tour_runs_without_a_network(tmp_path, monkeypatch):
  said, kinds = _executed('tour', tmp_path, monkeypatch)
  assert kinds['image/png'] == 6
  assert 'torchvision.v1-50 is not in the cache' in said
  assert 'UNTRAINED: random weights' in said
  assert '(5, 64, 1, 1) float32' in said
  assert '(1, 2048, 7, 7)' in said
  assert 'cat.jpg: cat, ' in said
  assert 'horse.png: horse, ' in said
  assert 'folders  top-1  0.000' in said
  assert 'results are in results/results.json' in said


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_network_is_transferred_without_a_network(tmp_path, monkeypatch):
  """Its figures, and that of the saved file on the held-out images."""
  said, kinds = _executed('transfer', tmp_path, monkeypatch)
  assert 'torchvision.v1-18 is not in the cache' in said
  assert 'Network: the embedded ResNet-20 trained on CIFAR-10.' in said
  assert kinds['image/png'] == 2
  table = re.findall(r'^(.+?) +(\d+) of 445 +([\d.]+)  \d', said, re.MULTILINE)
  right = {what: int(count) for what, count, _ in table}
  assert list(right) == [
    'probe by scikit-learn',
    'linear_probe',
    'before fine-tuning',
    'after fine-tuning',
    'loaded',
    '--job=evaluate',
  ]
  for _, count, percent in table:
    assert percent == f'{100 * int(count) / 445:.1f}'
  # A tenth would be chance.
  assert min(right['probe by scikit-learn'], right['linear_probe']) > 0.8 * 445
  # The classifier at the start is scikit-learn's; rounding may move an image.
  difference = right['before fine-tuning'] - right['probe by scikit-learn']
  assert abs(difference) <= 1
  assert right['after fine-tuning'] > right['before fine-tuning']
  (work,) = tmp_path.glob('transfer-*')
  results = json.loads((work / 'results' / 'results.json').read_text())
  wrong = results['labels']['folders']['top1_error']['wrong']
  held = sorted((work / 'held_out').glob('*/*'))
  model = resnet_jax.load(weights=work / 'fine_tuned.safetensors')
  count = sum(
    prediction.best[0].name == path.parent.name
    for path, prediction in zip(held, model.predict(held), strict=True)
  )
  assert len(held) - wrong == count == right['after fine-tuning']
