# SPDX-License-Identifier: Apache-2.0
"""Wide ResNets and ResNeXts: by name and by settings, in every job."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from makers import config_of, user_error

import resnet_jax
from resnet_jax import jobs, weights
from resnet_jax.models import known, resnet
from resnet_jax.system import errors
from resnet_jax.weights import metadata, paddle
from resnet_jax.zoo import lookup, records

NAME = 'resnext50_32x4d'
BY_SETTINGS = '50,inner_width=128,groups=32'
SMALL = 'weights=random,crop_size=64,resize_size=64,batch_size=2'
TITLE = 'ResNeXt-50 32x4d'

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
  """A safetensors file and a Paddle directory, by the job."""
  folder = tmp_path_factory.mktemp('wider')
  for target, output in (('safetensors', 'w.safetensors'), ('paddle', 'w')):
    config = config_of(f'{NAME},weights=random,seed=3,convert_to={target}')
    config.output = str(folder / output)
    assert jobs.run('convert', config) == 0
  yield folder
  (folder / 'w.safetensors').unlink()
  for file in (folder / 'w').iterdir():
    file.unlink()


@pytest.fixture
def run(tmp_path, image_folder, monkeypatch, capsys):
  """Runs a job in a folder with images; returns what it printed."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'one').mkdir()
  (image_folder / 'a.png').rename(tmp_path / 'one' / 'a.png')

  def make(job, argument=f'{BY_SETTINGS},{SMALL}', **settings):
    config = config_of(argument, **{'data': 'one'} | settings)
    assert jobs.run(job, config) == 0
    return capsys.readouterr()

  return make


# ----------------------------------------------------------------- every job


def test_a_name_stands_for_its_settings():
  named = config_of(f'{NAME},weights=random')
  told = {key: named[key] for key in ('layer_num', 'inner_width', 'groups')}
  assert told == {'layer_num': 50, 'inner_width': 128, 'groups': 32}
  assert config_of('Wide ResNet-101-2').layer_num == 101
  message = user_error(config_of, 'resnext50')
  assert 'neither a depth' in message
  assert 'nor a network (such as resnext50_32x4d)' in message


def test_extract_the_same_by_name_settings_and_file(run, converted):
  asked = {'output_layer': 'res2_1_branch2b_conv,avgpool'}
  for argument, folder in (
    (f'{BY_SETTINGS},seed=3,{SMALL}', 'settings'),
    (f'{NAME},seed=3,{SMALL}', 'name'),
    (f'{SMALL},weights={converted / "w.safetensors"}', 'file'),
    (f'{SMALL},weights={converted / "w"}', 'directory'),
  ):
    said = run('extract', argument, output_dir=folder, **asked).err
    assert f'{TITLE}, 1000 classes, stride in 3x3, stem pool pad1' in said
    assert f'  res2_1_branch2b_conv 128x{16}x{16}' in said
  first = resnet_jax.load_features('settings')
  assert first['avgpool'][:].std() > 0.1
  for folder in ('name', 'file', 'directory'):
    found = resnet_jax.load_features(folder)
    for layer in ('res2_1_branch2b_conv', 'avgpool'):
      np.testing.assert_array_equal(found[layer][:], first[layer][:])


def test_predict_and_evaluate(run, tmp_path):
  assert 'Label of one/a.png is: ' in run('predict').out
  (tmp_path / 'labelled.list').write_text('one/a.png 3\n')
  run('evaluate', data='labelled.list')
  found = json.loads((tmp_path / 'results' / 'results.json').read_text())
  assert found['model'] == TITLE


def test_summary_shows_groups_and_totals(run):
  found = run('summary', f'{NAME},weights=random').out
  assert f'{TITLE} at 224x224: 25,028,904 learned parameters' in found
  assert '4.23 G multiply-adds' in found
  data = json.loads(run('summary', f'{NAME},weights=random,as_json=1').out)
  assert (data['groups'], data['inner_width']) == (32, 128)
  groups = {row['layer']: row['groups'] for row in data['rows']}
  assert groups['res5_3_branch2b_conv'] == 32
  assert set(groups.values()) == {1, 32}
  data = json.loads(run('summary', '50,weights=random,as_json=1').out)
  assert 'groups' not in data['rows'][0]


@pytest.mark.parametrize(
  ('level', 'shown'),
  [
    ('layers', 'convolution 3x3, stride 2, 32 groups, linear'),
    ('blocks', '3x3, 256, stride 2, 32 groups, ReLU'),
    ('stages', '1x1, 256 - 3x3, 256, 32 groups - 1x1, 512'),
  ],
)
def test_diagram_shows_groups(run, level, shown):
  dot = run('diagram', diagram_level=level).out
  assert dot.startswith(f'digraph "{TITLE}, 1000 classes')
  assert shown in dot
  assert resnet_jax.diagram(NAME, level=level, crop_size=64).dot == dot
  by_widths = resnet_jax.diagram(
    50, level=level, inner_width=128, groups=32, crop_size=64
  )
  assert by_widths.dot == dot
  assert 'groups' not in resnet_jax.diagram(50, level=level).dot


def test_visualize(run):
  run('visualize', map_layers='res2_1_branch2b_bn', map_count=1)
  with open('report/report.html') as file:
    assert f'{TITLE} on 1 image' in file.read()


def test_converted_files_read_back(converted, run):
  digests = set()
  for name in ('w.safetensors', 'w'):
    loaded = weights.load(str(converted / name))
    named = weights.Options(50, {'groups': 32, 'inner_width': 128})
    assert weights.load(str(converted / name), named).module == loaded.module
    assert resnet.title(loaded.module) == TITLE
    assert loaded.module == resnet.published(50, named.variant)
    digests.add(loaded.digest)
    out = run('inspect', weights=str(converted / name), layer_num=0).out
    (line,) = (x for x in out.splitlines() if 'res2_1_branch2b_conv/k' in x)
    assert '3x3x4x128' in line
  assert len(digests) == 1


def test_grad_cam_and_features_in_python():
  model = resnet_jax.load(
    NAME, weights='random', crop_size=64, resize_size=64, batch_size=1
  )
  assert repr(model).startswith(f'{TITLE}, weights: random')
  image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
  found = model.grad_cam(image, label=3)
  assert found.shape == (1, 2, 2)
  assert found.max() > 0


# --------------------------------------------------------------- the zoo


def test_zoo_and_download_of_a_network(run, monkeypatch, tmp_path):
  lines = run('zoo', NAME).out.splitlines()[1:]
  assert lines
  assert all(NAME in line for line in lines)
  (line,) = run('zoo', f'weights=torchvision.{NAME}.v2').out.splitlines()[1:]
  assert '81.198 / 95.34' in line
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  for argument, wanted in (
    (NAME, f'torchvision.{NAME}.v1-50'),
    ('weights=torchvision.resnext101_64x4d.v1', '64x4d.v1-101'),
  ):
    with pytest.raises(errors.UserError, match=wanted):
      jobs.run('download', config_of(argument))


@pytest.fixture
def published(converted, tmp_path, monkeypatch):
  """Puts the file into the cache as the checkpoint that `auto` means."""
  file = converted / 'w.safetensors'
  record = lookup.find(lookup.USUAL[NAME])
  digits = hashlib.sha256(file.read_bytes()).hexdigest()
  changed = dataclasses.replace(
    record,
    file=records.File(record.file.urls, records.Hash('sha256', digits), None),
  )
  others = tuple(r for r in lookup.RECORDS if r is not record)
  monkeypatch.setattr(lookup, 'RECORDS', (*others, changed))
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  place = tmp_path / 'cache' / record.name / record.file.name
  place.parent.mkdir(parents=True)
  place.symlink_to(file)
  return record


def test_auto_and_a_family_of_one_depth_take_the_checkpoint(
  published, capsys, tmp_path
):
  for name, asked in ((NAME, 'auto'), (None, published.family)):
    loaded = resnet_jax.load(name, weights=asked).weights
    assert f'{published.name} of the zoo' in loaded.source
    assert loaded.module.variant == published.variant
    assert loaded.preprocess == published.preprocess
  assert jobs.run('download', config_of(f'weights={published.family}')) == 0
  assert f'{published.name} holds {TITLE}, digest' in capsys.readouterr().err
  # A folder of one's own comes first.
  own = tmp_path / 'model' / NAME
  own.parent.mkdir()
  own.symlink_to(tmp_path, target_is_directory=True)
  with pytest.raises(errors.UserError, match=f'model/{NAME}'):
    resnet_jax.load(NAME)


def test_summary_of_a_family_of_one_depth_needs_no_depth(run):
  found = run('summary', 'weights=torchvision.resnext101_64x4d.v1').out
  assert 'ResNeXt-101 64x4d at 224x224: 83,455,272 learned' in found


# ------------------------------------------------------------ contradictions


@pytest.mark.parametrize(
  ('name', 'settings', 'message'),
  [
    (NAME, {'groups': 8}, f'{NAME} has groups=32, which groups=8 contradicts'),
    ('wide_resnet50_2', {'groups': 32}, 'wide_resnet50_2 has groups=1, which'),
    ('resnext52', {}, "unknown network 'resnext52'. Allowed: resnet18"),
    (18, {'groups': 32}, 'groups=32 are of bottleneck blocks, which ResNet-18'),
    (34, {'inner_width': 128}, 'inner_width=128 and groups=1 are of bottle'),
    (50, {'groups': 3}, 'inner_width=64 is no multiple of groups=3. Change'),
    (50, {'stem_width': 256}, 'stem_width=256 must differ from 256'),
    (50, {'groups': -1}, 'groups=-1 is not between 1 and 4096'),
  ],
)
def test_settings_that_no_network_has(name, settings, message):
  found = user_error(resnet_jax.load, name, weights='random', **settings)
  assert message in found
  assert message in user_error(resnet_jax.diagram, name, **settings)


@pytest.mark.parametrize(
  ('family', 'name', 'message'),
  [
    (
      'torchvision.v2',
      NAME,
      'torchvision.v2-50 is ResNet-50, which inner_width=128, groups=32'
      f' contradicts. Leave that out; or take one of {TITLE}:'
      f' torchvision.{NAME}.v1',
    ),
    (
      f'torchvision.{NAME}.v1',
      'wide_resnet50_2',
      f'is {TITLE}, which groups=1 contradicts',
    ),
    (f'torchvision.{NAME}.v1', 101, 'has no ResNet-101, only 50'),
  ],
)
def test_a_checkpoint_of_another_network_is_not_downloaded(
  family, name, message
):
  assert message in user_error(resnet_jax.load, name, weights=family)
  depth, fields = known.asked(name, {})
  settings = {'layer_num': depth, 'weights': family, **fields}
  for job in ('summary', 'diagram', 'download'):
    found = user_error(jobs.run, job, config_of(**settings))
    assert message in found


@pytest.mark.parametrize('groups', [1, 32])
def test_a_file_of_another_network_names_the_setting(
  tmp_path, converted, groups
):
  path = converted / 'w.safetensors'
  given = {'groups': 1}
  if groups == 1:
    path, given = tmp_path / 'plain', {'groups': 32}
    paddle.write(weights.untrained(resnet.published(50)).parameters, path)
  message = user_error(weights.load, str(path), weights.Options(50, given))
  assert f'which groups={given["groups"]} contradicts' in message
  # What is usual may be given, too.
  weights.load(str(path), weights.Options(50, {'width': 64, 'stem_width': 64}))


def test_metadata_of_other_widths_is_damage(converted):
  file = converted / 'w' / 'resnet_jax.json'
  before = file.read_text()
  stated = json.loads(before)
  stated.pop('checksum')
  stated['groups'] = 16
  checksum = metadata.checksum(stated)
  file.write_text(json.dumps(stated | {'checksum': checksum}))
  message = user_error(weights.load, str(converted / 'w'))
  file.write_text(before)
  assert 'it states other widths than the parameters have' in message
