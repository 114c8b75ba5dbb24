# SPDX-License-Identifier: Apache-2.0
"""One set of images in every form of ImageNet, through the whole program."""

import json
import pathlib

import imagenet_forms
import numpy as np
import pytest
from scipy import stats

import resnet_jax

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')

COUNT = 300
SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=64'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """The images; and the root with all of their forms."""
  chosen = imagenet_forms.images(COUNT)
  root = tmp_path_factory.mktemp('forms')
  imagenet_forms.folder(root / 'flat', chosen)
  imagenet_forms.class_folders(root / 'classes', chosen)
  (root / 'list').mkdir()
  imagenet_forms.list_file(root / 'list' / 'all.list', chosen)
  imagenet_forms.tar(root / 'val.tar', chosen)
  imagenet_forms.shards(root / 'shards', chosen, per=90)
  imagenet_forms.parquet(root / 'parquet', chosen, files=2, group=40)
  imagenet_forms.val_txt(root / 'val.txt', chosen)
  (root / 'kit').mkdir()
  imagenet_forms.devkit(root / 'kit', chosen)
  return chosen, root


@pytest.fixture(scope='module')
def expected(photos):
  """The five best of each image by its name, from another way in."""
  chosen, root = photos
  model = resnet_jax.load(
    'resnet18',
    weights='random',
    resize_size=40,
    crop_size=32,
    batch_size=64,
  )
  paths = [root / 'flat' / one.name for one in chosen]
  output = model.features(paths, 'output')[:, :, 0, 0]
  best = np.argsort(-output, axis=1, kind='stable')[:, :5]
  return {one.stem: row.tolist() for one, row in zip(chosen, best, strict=True)}


@pytest.mark.parametrize(
  'form',
  [
    ('flat', 'val.txt'),
    ('flat', 'kit'),
    ('val.tar', 'val.txt'),
    ('list/all.list', ''),
    ('classes', ''),
    ('shards', ''),
    ('parquet', ''),
  ],
)
def test_every_form_gives_the_same_predictions(
  run_main, photos, expected, tmp_path, form
):
  chosen, root = photos
  data, labels = form
  given = ''
  if labels == 'kit':
    (given,) = (p for p in (root / 'kit').rglob('*ground_truth*'))
  elif labels:
    given = root / labels
  run_main(
    f'--config=configs/resnet.py:{SMALL}',
    '--job=evaluate',
    f'--config.data={root / data}',
    f'--config.labels={given}',
    check=0,
  )
  lines = (tmp_path / 'results' / 'predictions.jsonl').read_text().splitlines()
  found = {}
  for line in lines[1:]:
    row = json.loads(line)
    found[pathlib.PurePath(row['key']).stem] = row
  if data == 'parquet':
    # Its keys are rows; their order is that of the names.
    found = dict(zip(expected, found.values(), strict=True))
  assert {
    k: [b['label'] for b in r['best']] for k, r in found.items()
  } == expected
  wrong = sum(expected[one.stem][0] != one.label for one in chosen)
  results = json.loads((tmp_path / 'results' / 'results.json').read_text())
  (counted,) = results['labels'].values()
  assert counted['images'] == COUNT
  assert counted['top1_error']['wrong'] == wrong
  low, high = stats.binomtest(wrong, COUNT).proportion_ci(method='wilson')
  assert counted['top1_error']['low'] == pytest.approx(100 * low, abs=1e-4)
  assert counted['top1_error']['high'] == pytest.approx(100 * high, abs=1e-4)
