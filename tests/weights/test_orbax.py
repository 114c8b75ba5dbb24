# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints, written by Orbax itself."""

import json
import os
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from makers import contents, user_error

from resnet_jax import weights
from resnet_jax.data import presets
from resnet_jax.models import resnet, variables
from resnet_jax.models.variant import Variant
from resnet_jax.weights import orbax as orbax_lib
from resnet_jax.weights import saving


@pytest.fixture(scope='module')
def loaded():
  return weights.untrained(resnet.ResNet(20, 7), 3)


@pytest.fixture(scope='module')
def tree(loaded):
  return variables.tree(loaded.parameters)


def save(path, tree, **options):
  handler = orbax.checkpoint.PyTreeCheckpointHandler(**options)
  with orbax.checkpoint.Checkpointer(handler) as checkpointer:
    checkpointer.save(path, tree)


def assert_same(path, loaded):
  found = weights.load(str(path))
  assert found.digest == weights.digest(loaded.parameters)
  assert found.module == loaded.module
  return found


@pytest.mark.parametrize('zarr3', [False, True])
@pytest.mark.parametrize('ocdbt', [False, True])
def test_every_storage_is_read(tmp_path, loaded, tree, ocdbt, zarr3):
  save(tmp_path / 'here', tree, use_ocdbt=ocdbt, use_zarr3=zarr3)
  found = assert_same(tmp_path / 'here', loaded)
  assert found.loaded.format == 'Orbax checkpoint'
  assert any('states no variant' in note for note in found.notes)
  assert found.preprocess == presets.CIFAR
  origin = found.loaded.origins['conv1_bn/mean']
  assert origin.name == 'batch_stats/conv1_bn/mean'
  assert (origin.shape, origin.dtype) == ((16,), 'float32')


def test_a_network_is_found_in_what_training_keeps(tmp_path, loaded, tree):
  state = {
    'step': 3,
    'ema': {'params': tree['params']},
    'model': tree,
    'optimizer': optax.adam(1e-3).init(tree['params']),
  }
  options = orbax.checkpoint.CheckpointManagerOptions(max_to_keep=2)
  manager = orbax.checkpoint.CheckpointManager(
    tmp_path / 'run', options=options
  )
  for step in (10, 20):
    manager.save(step, args=orbax.checkpoint.args.StandardSave(state))
  manager.close()
  message = user_error(weights.load, str(tmp_path / 'run'))
  assert 'holds 2 checkpoints' in message
  assert 'run/10/default' in message
  for path in ('run/20', 'run/20/default'):
    found = assert_same(tmp_path / path, loaded)
    (note,) = [n for n in found.notes if 'left out' in n]
    assert 'ema.params.conv1_bn.bias' in note
  shutil.rmtree(tmp_path / 'run' / '10')
  assert_same(tmp_path / 'run', loaded)


def test_half_precision_is_read(tmp_path, tree):
  half = {
    name: {
      layer: {leaf: jnp.asarray(v, jnp.bfloat16) for leaf, v in leaves.items()}
      for layer, leaves in layers.items()
    }
    for name, layers in tree.items()
  }
  save(tmp_path / 'half', half)
  found = weights.load(str(tmp_path / 'half'))
  kernel = half['params']['conv1_conv']['kernel']
  np.testing.assert_array_equal(
    found.parameters['conv1_conv/kernel'], np.asarray(kernel, np.float32)
  )


def test_orbax_reads_what_convert_writes(run_main, tmp_path, loaded, tree):
  names = [f'kind {n}' for n in range(7)]
  own = weights.Weights(loaded, 'made here')
  saving.save(tmp_path / 'w.safetensors', own, presets.CIFAR, names)
  (tmp_path / 'w').mkdir()
  settings = 'weights=w.safetensors,convert_to=orbax,stride_in=3x3'
  for output, message in (
    ('n.safetensors', 'does not match convert_to=orbax'),
    ('w', 'exists already'),
  ):
    done = run_main(
      f'--config=configs/resnet.py:{settings},output={output}',
      '--job=convert',
      check=1,
    )
    assert message in done.stderr
  (tmp_path / 'w').rmdir()
  run_main(
    f'--config=configs/resnet.py:{settings},output=w', '--job=convert', check=0
  )
  with orbax.checkpoint.StandardCheckpointer() as checkpointer:
    theirs = checkpointer.restore(tmp_path / 'w')
  ours = variables.flat(tree)
  assert variables.flat(theirs).keys() == ours.keys()
  for name, value in variables.flat(theirs).items():
    np.testing.assert_array_equal(value, ours[name])
  again = weights.load(str(tmp_path / 'w'))
  assert again.digest == own.digest
  assert again.module.variant == Variant(stride_in='3x3')
  assert again.preprocess == presets.CIFAR
  assert not again.trained
  assert not [n for n in again.notes if 'states no variant' in n]


def test_a_folder_is_whole_or_not_there(tmp_path, loaded, monkeypatch):
  (tmp_path / 'w.part').mkdir()
  (tmp_path / 'w.part' / 'left').write_bytes(b'by a crash')
  orbax_lib.write(tmp_path / 'w', loaded.parameters, '{}')
  assert not (tmp_path / 'w.part').exists()
  assert 'left' not in contents(tmp_path / 'w')
  monkeypatch.setitem(sys.modules, 'orbax.checkpoint', None)
  message = user_error(orbax_lib.write, tmp_path / 'x', loaded.parameters, '{}')
  assert "pip install 'resnet-jax-zoo[orbax]'" in message
  assert not list(tmp_path.glob('x*'))


def test_faults_are_named(tmp_path, tree):
  def refused():
    return user_error(weights.load, str(tmp_path / 'bad'))

  def fresh(tree, **options):
    shutil.rmtree(tmp_path / 'bad', ignore_errors=True)
    save(tmp_path / 'bad', tree, **options)

  metadata = tmp_path / 'bad' / '_METADATA'
  fresh({'params': tree['params']})
  assert 'holds 0 networks' in refused()
  fresh({'a': tree, 'b': tree})
  assert "holds 2 networks ('a', 'b')" in refused()
  stats = dict(tree['batch_stats'])
  del stats['conv1_bn']
  fresh({'params': tree['params'], 'batch_stats': stats})
  assert '2 names are missing (batch_stats/conv1_bn/mean' in refused()
  wide = {**tree['params'], 'conv1_conv': {'kernel': np.zeros((5, 5, 3, 16))}}
  fresh({**tree, 'params': wide})
  assert 'has the shape (5, 5, 3, 16)' in refused()
  fresh(tree, use_ocdbt=False)
  shutil.rmtree(tmp_path / 'bad' / 'params.conv1_conv.kernel')
  assert 'params.conv1_conv.kernel cannot be opened' in refused()
  fresh(tree)
  for text in ('', '[]', '{"tree_metadata": {"a": 3}}', '{' * 9999):
    metadata.write_text(text)
    assert '_METADATA is damaged' in refused()
  fresh(tree)
  (tmp_path / 'bad' / 'resnet_jax.json').write_text('{"checksum": "0"}')
  assert 'the checksum differs' in refused()


def test_an_array_does_not_leave_its_folder(tmp_path, tree):
  """A name in the tree becomes a part of a path."""
  save(tmp_path / 'x', {'y': tree}, use_ocdbt=False)
  save(tmp_path / 'bad', tree, use_ocdbt=False)
  metadata = tmp_path / 'bad' / '_METADATA'
  stated = json.loads(metadata.read_text())
  for entry in stated['tree_metadata'].values():
    outside = {'key': '../x/y', 'key_type': 2}
    entry['key_metadata'] = [outside, *entry['key_metadata']]
  metadata.write_text(json.dumps(stated))
  assert (tmp_path / 'bad/../x/y.params.conv1_conv.kernel').is_dir()
  message = user_error(weights.load, str(tmp_path / 'bad'))
  assert '_METADATA is damaged: ValueError: a name is a path' in message


def test_an_array_of_few_bytes_is_not_allocated(tmp_path, tree):
  """It says that it is stored in one piece of a terabyte."""
  save(tmp_path / 'bad', tree, use_ocdbt=False)
  path = tmp_path / 'bad' / 'params.conv1_conv.kernel' / '.zarray'
  stated = json.loads(path.read_text())
  stated['chunks'] = [1 << 10, 1 << 10, 1 << 10, 1 << 8]
  path.write_text(json.dumps(stated))
  message = user_error(weights.load, str(tmp_path / 'bad'))
  assert 'stored in pieces of 274877906944 values' in message


@pytest.mark.parametrize('ocdbt', [False, True])
def test_a_pipe_does_not_hang(tmp_path, tree, ocdbt):
  save(tmp_path / 'bad', tree, use_ocdbt=ocdbt)
  pattern = 'd/*' if ocdbt else '*.conv1_conv.kernel/.zarray'
  for path in (
    next((tmp_path / 'bad').glob(pattern)),
    *([tmp_path / 'bad' / 'manifest.ocdbt'] if ocdbt else ()),
    tmp_path / 'bad' / '_METADATA',
  ):
    kept = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    message = user_error(weights.load, str(tmp_path / 'bad'))
    assert path.name in message
    assert 'a pipe' in message
    path.unlink()
    path.write_bytes(kept)
  if ocdbt:
    (tmp_path / 'bad' / 'd').rename(tmp_path / 'd')
    (tmp_path / 'bad' / 'd').symlink_to(tmp_path / 'd')
    message = user_error(weights.load, str(tmp_path / 'bad'))
    assert 'a link to a folder' in message


@pytest.mark.parametrize('zarr3', [False, True])
def test_metadata_are_checked_before_they_are_used(tmp_path, tree, zarr3):
  save(tmp_path / 'bad', tree, use_ocdbt=False, use_zarr3=zarr3)
  name = 'zarr.json' if zarr3 else '.zarray'
  path = tmp_path / 'bad' / 'params.conv1_conv.kernel' / name
  stated = json.loads(path.read_text())
  dtype = 'data_type' if zarr3 else 'dtype'
  texts = [
    ('[' * 100_000, 'nested too deeply'),
    ('[' * 100_000 + ']' * 100_000, 'nested too deeply'),
    (' ' * (2 << 20), 'more than 1048576'),
    ('3', 'does not state'),
    (json.dumps({**stated, dtype: [['x', '<f4']]}), 'the data type'),
    (json.dumps({**stated, dtype: '<U9'}), 'the data type'),
    (json.dumps({**stated, 'shape': [1 << 40] * 4}), 'values'),
    (json.dumps({**stated, 'shape': [-1, 3, 3, 16]}), 'whole numbers'),
    (json.dumps({**stated, 'shape': [3]}), 'in pieces of'),
  ]
  if zarr3:
    shards = json.loads(path.read_text())
    shards['chunk_grid']['configuration']['chunk_shape'] = [1 << 14, 1 << 14]
    shards['shape'] = [3, 3]
    shards['codecs'][0]['configuration']['chunk_shape'] = [1, 1]
    texts.append((json.dumps(shards), 'more than 1048576 pieces'))
  for text, expected in texts:
    path.write_text(text)
    message = user_error(weights.load, str(tmp_path / 'bad'))
    assert expected in message
    assert f'params.conv1_conv.kernel cannot be opened: {name}' in message
