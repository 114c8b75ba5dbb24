# SPDX-License-Identifier: Apache-2.0
"""The tour: it runs, it is stored without outputs, and plots by our views."""

import collections
import sys

import nbformat
import pytest
from conftest import ROOT
from makers import HANGS

PATH = ROOT / 'notebooks' / 'tour.ipynb'


@pytest.fixture
def tour():
  return nbformat.read(PATH, nbformat.NO_CONVERT)


def _code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_the_tour_is_stored_without_outputs(tour):
  nbformat.validate(tour)
  for cell in _code(tour):
    assert not cell.outputs
    assert cell.execution_count is None
    assert not cell.metadata


def test_the_tours_plots_are_those_of_the_views(tour):
  source = '\n'.join(cell.source for cell in _code(tour))
  assert 'matplotlib' not in source
  for plot in ('bars', 'filters', 'feature_maps', 'grad_cam', 'neighbours'):
    assert f'views.{plot}(' in source


# Of Jupyter, whose kernel here listens on the loopback only.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_tour_runs_without_a_network(tour, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  # Not where the person who runs the tests has settings.
  monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
  where = {'metadata': {'path': tmp_path}}
  nbclient.NotebookClient(tour, timeout=HANGS, resources=where).execute()
  kinds = collections.Counter(
    kind
    for cell in _code(tour)
    for output in cell.outputs
    for kind in output.get('data', {})
  )
  assert kinds['image/png'] == 6
  said = ''.join(
    output.text
    for cell in _code(tour)
    for output in cell.outputs
    if output.output_type == 'stream'
  )
  assert 'torchvision.v1-50 is not in the cache' in said
  assert 'UNTRAINED: random weights' in said
  assert '(5, 64, 1, 1) float32' in said
  assert '(1, 2048, 7, 7)' in said
  assert 'cat.jpg: cat, ' in said
  assert 'horse.png: horse, ' in said
  assert 'folders  top-1  0.000' in said
  assert 'results are in results/results.json' in said
  assert 'RuntimeWarning' not in said
  assert sys.executable not in said
