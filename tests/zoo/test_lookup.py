# SPDX-License-Identifier: Apache-2.0
"""The published checkpoints: every record complete, and true of its network."""

import dataclasses
import hashlib
import re
import urllib.parse

import pytest

from resnet_jax.models import known, resnet, structure
from resnet_jax.system import errors
from resnet_jax.weights import formats
from resnet_jax.zoo import download, lookup, records

_PUBLISHED = {
  'msra': (50, 101, 152),
  'paddle': (50, 101, 152),
  'keras': (50, 101, 152),
  'torchvision.v1': (18, 34, 50, 101, 152),
  'torchvision.v2': (50, 101, 152),
  'timm.a1_in1k': (18, 34, 50, 101, 152),
  'torchvision.wide_resnet50_2.v1': (50,),
  'torchvision.wide_resnet50_2.v2': (50,),
  'torchvision.wide_resnet101_2.v1': (101,),
  'torchvision.wide_resnet101_2.v2': (101,),
  'torchvision.resnext50_32x4d.v1': (50,),
  'torchvision.resnext50_32x4d.v2': (50,),
  'torchvision.resnext101_32x8d.v1': (101,),
  'torchvision.resnext101_32x8d.v2': (101,),
  'torchvision.resnext101_64x4d.v1': (101,),
  'timm.wide_resnet50_2.racm_in1k': (50,),
  'timm.resnext50_32x4d.a1h_in1k': (50,),
  'timm.resnext50_32x4d.a1_in1k': (50,),
  'timm.resnext50_32x4d.a2_in1k': (50,),
  'timm.resnext50_32x4d.a3_in1k': (50,),
  'timm.resnext50_32x4d.ra_in1k': (50,),
  'timm.resnext50_32x4d.gluon_in1k': (50,),
  'timm.resnext101_64x4d.c1_in1k': (101,),
  'timm.resnext101_64x4d.gluon_in1k': (101,),
  'cifar10': (20,),
}
# In the package.
_EMBEDDED = lookup.find('cifar10')


def _each(*but):
  return [
    pytest.param(record, id=record.name)
    for record in lookup.RECORDS
    if record not in but
  ]


def test_every_published_checkpoint_is_there_once():
  found = [(record.family, record.depth) for record in lookup.RECORDS]
  assert len(set(found)) == len(found)
  assert set(found) == {(f, d) for f, ds in _PUBLISHED.items() for d in ds}
  assert set(lookup.FAMILIES) == set(_PUBLISHED)
  plain = {f'resnet{depth}' for depth in (20, *structure.IMAGENET)}
  assert set(lookup.USUAL) == plain | {n.name for n in known.NETWORKS}
  for network in known.NETWORKS:
    found = lookup.find(lookup.USUAL[network.name])
    assert (found.depth, found.variant) == (network.depth, network.variant)


@pytest.mark.parametrize('record', _each(_EMBEDDED))
def test_a_record_is_complete(record):
  assert record.format in formats.FORMATS
  assert record.licence in ('MIT', 'BSD-3-Clause', 'Apache-2.0', 'not stated')
  assert record.licence_source
  assert record.variant.epsilon < 1e-4
  assert record.accuracies
  for accuracy in record.accuracies:
    assert (accuracy.top1, accuracy.top5) != (None, None)
    assert 50 < (accuracy.top1 or 51) < 90
    assert (accuracy.top1 or 90) < (accuracy.top5 or 91) < 100
    assert accuracy.protocol.describe()
    assert accuracy.source
    assert accuracy.images == 50_000
  preprocess = record.preprocess
  assert preprocess.channels in ('BGR', 'RGB')
  assert 200 <= preprocess.crop_size <= preprocess.resize_size <= 300
  _check_file(record.file)
  if record.file.size is not None:
    # Four bytes a parameter, two in torchvision's first wide networks, the
    # statistics, and the format's own.
    width = 2 if 'half' in record.note else 4
    assert 1 < record.file.size / (width * record.parameters) < 1.02


def test_the_embedded_file_is_the_one_that_is_stated(tmp_path, monkeypatch):
  """It needs no network and no cache, and a changed one is refused."""
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  file = _EMBEDDED.file

  def fetch(file):
    return download.fetch(file, _EMBEDDED.name, report=None, say=print)

  path = fetch(file)
  assert path.stat().st_size == file.size < 600_000
  digits = hashlib.sha256(path.read_bytes()).hexdigest()
  assert file.hash == records.Hash('sha256', digits)
  assert not (tmp_path / 'cache').exists()
  assert lookup.identify(path, 20) is _EMBEDDED
  assert [row['verified by'] for row in lookup.table([_EMBEDDED])] == [
    'in the package'
  ]
  other = dataclasses.replace(file, hash=records.Hash('sha256', '0' * 64))
  with pytest.raises(errors.UserError, match='is not the file of this package'):
    fetch(other)
  missing = dataclasses.replace(file, embedded='none.safetensors')
  with pytest.raises(errors.UserError, match=r'missing\. Install it again'):
    fetch(missing)


@pytest.mark.parametrize('file', lookup.MEANS.values(), ids=lookup.MEANS)
def test_a_mean_file_is_complete(file):
  _check_file(file)


def _check_file(file):
  assert file.urls
  assert len(set(file.urls)) == len(file.urls)
  for url in file.urls:
    parts = urllib.parse.urlsplit(url)
    assert parts.scheme in ('http', 'https')
    assert parts.hostname
  assert re.fullmatch(r'[\w.-]+', file.name)
  if file.hash:
    whole = records.ALGORITHMS[file.hash.algorithm]
    assert re.fullmatch(r'[0-9a-f]+', file.hash.digits)
    assert len(file.hash.digits) in (8, whole)
  else:
    assert 'paddle' in file.urls[0]


@pytest.mark.parametrize('record', _each())
def test_a_record_builds_the_network_it_states(record):
  model = resnet.published(record.depth).clone(variant=record.variant)
  shapes = resnet.parameter_shapes(model)
  assert resnet.learned_count(shapes) == record.parameters


@pytest.mark.parametrize(
  ('record', 'part'), [(r, r.file.hash) for r in lookup.RECORDS if r.file.hash]
)
def test_torch_files_carry_their_hash_in_their_name(record, part):
  if record.format == 'torch':
    assert record.file.name.endswith(f'-{part.digits[:8]}.pth')


def test_a_hash_says_when_it_is_a_prefix():
  whole = records.Hash('md5', 'ab' * 16)
  assert str(whole) == f'md5 {"ab" * 16}'
  part = records.Hash('sha256', 'f82ba261')
  assert not part.is_full
  assert str(part) == 'sha256 f82ba261 (first 8 digits)'


def test_an_unknown_checkpoint_and_depth_name_what_there_is():
  with pytest.raises(errors.UserError, match=r"Did you mean 'torchvision\.v2'"):
    lookup.find('torchvision.v3', 50)
  with pytest.raises(errors.UserError) as caught:
    lookup.find('msra', 18)
  assert 'msra has no ResNet-18, only 50, 101, 152' in str(caught.value)
  assert 'is in torchvision.v1, timm.a1_in1k' in str(caught.value)
  with pytest.raises(
    errors.UserError, match='cifar10 has no ResNet-56'
  ) as caught:
    lookup.find('cifar10', 56)
  assert 'is in none; give a file of weights' in str(caught.value)


def test_a_file_is_identified_by_its_hash(tmp_path, monkeypatch):
  data = b'weights'
  digits = hashlib.md5(data).hexdigest()
  record = lookup.find('keras', 50)
  file = records.File(('http://a/b.h5',), records.Hash('md5', digits), 7)
  changed = records.Record(**(vars(record) | {'file': file}))
  monkeypatch.setattr(lookup, 'RECORDS', (*lookup.RECORDS, changed))
  (tmp_path / 'renamed').write_bytes(data)
  assert lookup.identify(tmp_path / 'renamed', 50) is changed
  assert lookup.identify(tmp_path / 'renamed', 101) is None
  assert lookup.identify(tmp_path, 50) is None
  (tmp_path / 'other').write_bytes(b'weightz')
  assert lookup.identify(tmp_path / 'other', 50) is None
