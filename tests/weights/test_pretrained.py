# SPDX-License-Identifier: Apache-2.0
"""Published weights, where a user has some.

  pytest -m pretrained --weights-dir=DIR [--images-dir=DIR] -n 0

DIR holds checkpoints as `--job=download` stores them (`msra-50/...`; the cache
is such a folder), or the files themselves, or Paddle's unpacked directories
(`resnet_50`).  The document's values need its images, dog.jpg and cat.jpg.
"""

import functools
import pathlib

import numpy as np
import pytest
from conftest import ROOT

import resnet_jax
from resnet_jax import weights
from resnet_jax.zoo import cache, lookup

pytestmark = [
  pytest.mark.pretrained,
  pytest.mark.filterwarnings('ignore:the file tells neither'),
]

# PaddlePaddle, "Model Zoo - ImageNet": the first and last three values that
# the page prints for ResNet-50, images squashed to 224x224, minus the mean
# file; and the labels, of ten crops.
PUBLISHED = {
  'dog.jpg': {
    'res5_3_branch2c_conv': (
      *(-0.11531784, -0.10835785, -0.08809858),
      *(0.0055237, 0.01505112, -0.08788397),
    ),
    'res5_3_branch2c_bn': (
      *(-1.27663755, -1.18272924, -0.90937918),
      *(-1.25178063, -1.11515927, -2.59122872),
    ),
  },
  'cat.jpg': {
    'res5_3_branch2c_conv': (
      *(-0.12638293, -0.116248, -0.11883899),
      *(-0.00895038, 0.01994277, -0.00534909),
    ),
    'res5_3_branch2c_bn': (
      *(-1.42593431, -1.28918779, -1.32414699),
      *(-1.45933616, -1.04501402, -1.40769434),
    ),
  },
}
LABELS = {'dog.jpg': 156, 'cat.jpg': 282}
# Decoders and resizers differ: a run of 2016 that a reader of the page
# published is 0.0016 from its first value.  A wrong order of channels, grid or
# filter is further away by far.
TOLERANCE = {'res5_3_branch2c_conv': 0.01, 'res5_3_branch2c_bn': 0.1}
CATS = range(281, 286)


@pytest.fixture
def directory(request):
  given = request.config.getoption('--weights-dir')
  if not given:
    pytest.skip('no weights: name a folder by --weights-dir=DIR')
  path = pathlib.Path(given).expanduser()
  assert path.is_dir(), f'--weights-dir={path} is no folder'
  return path


def _find(directory, record):
  for path in (
    directory / record.name / record.file.name,
    directory / record.file.name,
  ):
    if path.is_file():
      return path
  unpacked = directory / f'resnet_{record.depth}'
  if record.family == 'paddle' and unpacked.is_dir():
    return unpacked
  pytest.skip(f'{record.name} ({record.file.name}) is not in {directory}')
  return None


def _records():
  return [
    pytest.param(record, id=record.name)
    for record in lookup.RECORDS
    if not record.file.embedded
  ]


@functools.lru_cache(maxsize=2)
def _load(path):
  return weights.load(str(path))


@pytest.mark.parametrize('record', _records())
def test_the_file_is_the_published_one(directory, record, capsys):
  path = _find(directory, record)
  if path.is_file():
    assert not record.file.hash or not cache.fault(path, record.file.hash)
  loaded = _load(path)
  with capsys.disabled():
    print(f'\n{record.name}: digest {loaded.digest}')
  if record.file.hash:
    assert lookup.identify(path, record.depth) == record
  assert loaded.preprocess == record.preprocess


@pytest.mark.parametrize('record', _records())
def test_a_cat_is_a_cat(directory, record):
  path = _find(directory, record)
  model = resnet_jax.load(weights=path)
  found = model.predict(ROOT / 'example' / 'chelsea.png')
  assert found.label in CATS, found


@pytest.mark.parametrize('family', ['paddle', 'keras'])
@pytest.mark.parametrize('depth', [50, 101, 152])
def test_copies_of_the_authors_weights_are_equal(
  directory, family, depth, capsys
):
  original = _load(_find(directory, lookup.find('msra', depth)))
  copy = _load(_find(directory, lookup.find(family, depth)))
  equal = 'equal' if original.digest == copy.digest else 'not the same bits'
  with capsys.disabled():
    print(f'\nmsra-{depth} and {family}-{depth}: {equal}')
  for name, array in original.parameters.items():
    size = np.sqrt(np.mean(array.astype(np.float64) ** 2))
    assert np.abs(array - copy.parameters[name]).max() <= 1e-5 * size, name


def _originals(directory):
  """ResNet-50 as the document ran it: Paddle's copy, or the authors'."""
  found = [directory / 'resnet_50']
  for family in ('paddle', 'msra'):
    record = lookup.find(family, 50)
    found += [directory / record.name / record.file.name]
    found += [directory / record.file.name]
  for path in found:
    if path.exists():
      return path
  pytest.skip(f'no ResNet-50 of Paddle or the authors in {directory}')
  return None


def _image(request, name):
  given = request.config.getoption('--images-dir')
  if not given:
    pytest.skip("no images: name the document's by --images-dir=DIR")
  path = pathlib.Path(given).expanduser() / name
  if not path.is_file():
    pytest.skip(f'{path} is not there')
  return path


def _mean(directory):
  for path in (
    directory / 'mean_meta_224' / 'mean.meta',
    directory / 'paddle-mean' / 'mean_meta_224.tar.gz',
    directory / 'mean_meta_224.tar.gz',
    directory / 'msra-mean' / 'ResNet_mean.binaryproto',
    directory / 'ResNet_mean.binaryproto',
  ):
    if path.is_file():
      return path
  pytest.skip(f'no mean file in {directory}, as the document used')
  return None


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_documents_features(directory, request, name):
  path, image = _originals(directory), _image(request, name)
  model = resnet_jax.load(weights=path, mean=_mean(directory), resize='squash')
  found = model.features(image, list(PUBLISHED[name]))
  for layer, published in PUBLISHED[name].items():
    values = found[layer].ravel()
    shown = np.concatenate([values[:3], values[-3:]])
    np.testing.assert_allclose(shown, published, atol=TOLERANCE[layer])


@pytest.mark.parametrize('name', LABELS)
def test_the_documents_labels(directory, request, name):
  path, image = _originals(directory), _image(request, name)
  model = resnet_jax.load(weights=path, mean=_mean(directory), multi_crop=True)
  assert model.predict(image).label == LABELS[name]
