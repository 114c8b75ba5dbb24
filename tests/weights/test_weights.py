# SPDX-License-Identifier: Apache-2.0
"""Untrained weights, and Paddle's directories."""

import hashlib
import struct

import numpy as np
import pytest
from reference_weights import reference_parameters, write_paddle_directory
from scipy import ndimage

from resnet_jax import weights
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import runner
from resnet_jax.models import aliases, names, resnet
from resnet_jax.system import errors
from resnet_jax.weights import assemble, paddle, random

MODEL = resnet.ResNet(18)
SHAPES = resnet.parameter_shapes(MODEL)
UNCHANGED = Preprocess((0.0, 0.0, 0.0))


@pytest.fixture(scope='module')
def untrained():
  return random.initialise(MODEL, 0)


# ------------------------------------------------------------------ random


def test_a_seed_gives_the_same_bytes_everywhere(untrained):
  total = hashlib.sha256()
  for name in names.parameter_names(18):
    total.update(untrained[name].astype('<f4').tobytes())
  assert total.hexdigest()[:16] == '62d648149aea3ef2'
  again = random.initialise(MODEL, 0)
  other = random.initialise(MODEL, 1)
  name = 'res3_1_branch2a_conv/kernel'
  assert again[name].tobytes() == untrained[name].tobytes()
  assert other[name].tobytes() != untrained[name].tobytes()


def test_kernels_are_he_normal_and_batch_norm_starts_as_identity(untrained):
  for name, array in untrained.items():
    assert array.dtype == np.float32
    assert array.shape == SHAPES[name]
    if name.endswith('kernel'):
      expected = np.sqrt(2 / np.prod(array.shape[:-1]))
      assert array.std() == pytest.approx(expected, rel=0.02), name
      # Of a normal distribution 68.3 % lie within one standard deviation.
      within = np.mean(np.abs(array) < expected)
      assert within == pytest.approx(0.683, abs=0.02), name
    elif name.endswith('bias'):
      assert not array.any()
    elif name.endswith('scale') and 'branch2b' not in name:
      assert (array == 1).all()


@pytest.mark.parametrize(
  ('depth', 'widths'),
  [
    (18, {}),
    (152, {}),
    (50, {'inner_width': 128}),
    (50, {'inner_width': 128, 'groups': 32}),
    (50, {'inner_width': 256, 'groups': 64}),
    (50, {'width': 32}),
  ],
)
def test_features_of_untrained_networks_are_not_degenerate(depth, widths):
  model = resnet.published(depth, widths)
  parameters = random.initialise(model, 0)
  layers = [n for n in names.layer_names(depth) if n.endswith(('addto', 'put'))]
  # Smooth, as photographs are.
  noise = np.random.default_rng(0).normal(0, 1, (6, 96, 96, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 4, 4, 0))
  images = np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)
  run = runner.Runner(
    model,
    parameters,
    layers,
    Preprocess((128.0, 128.0, 128.0)),
    # Winograd's kernels are four times as large.
    execution=runner.Execution(arithmetic='direct'),
  )
  values = run.fetch(run(images[:, None]))
  probabilities = values.pop('output').reshape(6, -1)
  for name, value in values.items():
    assert np.isfinite(value).all()
    assert 0.2 < np.sqrt(np.mean(value**2)) < 10, name
    assert 0.3 < np.mean(value > 0) < 0.95, name
    alike = np.corrcoef(value.reshape(6, -1))[np.triu_indices(6, 1)]
    assert alike.mean() < 0.6, name
  assert probabilities.max(axis=1).min() > 0.001
  assert probabilities.max() < 0.2
  assert len(set(probabilities.argmax(axis=1))) > 1


def test_random_weights_say_loudly_that_they_are():
  loaded = weights.load('random', weights.Options(18, seed=7))
  assert not loaded.trained
  assert loaded.source == 'random, seed 7'
  assert loaded.warnings[0].startswith('UNTRAINED')
  with pytest.raises(errors.UserError, match='seed=-1 is not between 0'):
    weights.Options(seed=-1)


def test_the_digest_changes_with_any_bit_and_not_with_the_order(untrained):
  turned = dict(reversed(untrained.items()))
  assert weights.digest(turned) == weights.digest(untrained)
  changed = dict(untrained)
  changed['logits/bias'] = changed['logits/bias'].copy()
  changed['logits/bias'][7] = 1e-30
  assert weights.digest(changed) != weights.digest(untrained)


# ------------------------------------------------------------------ Paddle


@pytest.mark.parametrize('order', assemble.CONV_ORDERS)
def test_the_references_own_directory_reads_in_both_orders(tmp_path, order):
  # ResNet-50, written by the independent program.
  stored = reference_parameters(50, seed=0)
  directory = tmp_path / 'resnet_50'
  write_paddle_directory(stored, str(directory), order)
  options = assemble.Options(conv_order=order)
  got = paddle.load(directory, options).parameters
  for name, array in got.items():
    expected = stored[aliases.paddle_parameter(name)]
    if array.ndim == 4:
      expected = expected.transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(array, expected)
  paddle.write(got, tmp_path / 'again', order)
  for file in directory.iterdir():
    assert (tmp_path / 'again' / file.name).read_bytes() == file.read_bytes()


def test_write_read_run_is_exact(tmp_path, untrained):
  images = np.random.default_rng(0).integers(
    0, 256, (2, 1, 40, 40, 3), np.uint8
  )
  run = runner.Runner(MODEL, untrained, ['output'], UNCHANGED)
  before = run.fetch(run(images))['output']
  for order in assemble.CONV_ORDERS:
    path = tmp_path / order
    paddle.write(untrained, path, order)
    loaded = weights.load(str(path), weights.Options(conv_order=order))
    assert loaded.trained
    assert loaded.digest == weights.digest(untrained)
    run = runner.Runner(MODEL, loaded.parameters, ['output'], UNCHANGED)
    np.testing.assert_array_equal(run.fetch(run(images))['output'], before)


def test_files_are_as_documented(tmp_path, untrained):
  paddle.write(untrained, tmp_path / 'w')
  data = (tmp_path / 'w' / '_res2_1_branch2a_bn.w2').read_bytes()
  assert data[:16] == struct.pack('<iIQ', 0, 4, 64)
  expected = untrained['res2_1_branch2a_bn/var']
  np.testing.assert_array_equal(np.frombuffer(data[16:], '<f4'), expected)
  names_there = {p.name for p in (tmp_path / 'w').iterdir()}
  assert {
    '_conv1_conv.w0',
    '_conv1_bn.wbias',
    '_output.w0',
    '_output.wbias',
  } < (names_there)
  # The document: 2-D, (Co * ky * kx, Ci); 16 bytes of header.
  data = (tmp_path / 'w' / '_conv1_conv.w0').read_bytes()
  first_pixel = np.frombuffer(data[16:28], '<f4')
  np.testing.assert_array_equal(
    first_pixel, untrained['conv1_conv/kernel'][0, 0, :, 0]
  )


def test_an_existing_directory_is_not_written_over(tmp_path, untrained):
  with pytest.raises(errors.UserError, match='exists already'):
    paddle.write(untrained, tmp_path)


def _smooth(parameters):
  """The same filters, blurred: as neighbouring taps of trained ones are."""
  return {
    name: ndimage.gaussian_filter(a, (0.8, 0.8, 0, 0)) if a.ndim == 4 else a
    for name, a in parameters.items()
  }


@pytest.mark.parametrize(
  ('written', 'read'), [('OIHW', 'OHWI'), ('OHWI', 'OIHW')]
)
def test_smooth_filters_in_the_other_order_warn(
  tmp_path, untrained, written, read
):
  paddle.write(_smooth(untrained), tmp_path / 'w', written)
  loaded = weights.load(str(tmp_path / 'w'), weights.Options(conv_order=read))
  assert len(loaded.warnings) == 1
  assert f'Set conv_order={written}' in loaded.warnings[0]
  right = weights.load(str(tmp_path / 'w'), weights.Options(conv_order=written))
  assert right.warnings == ()


def test_unsmooth_filters_do_not_warn_in_either_order(tmp_path, untrained):
  paddle.write(untrained, tmp_path / 'w')
  for order in assemble.CONV_ORDERS:
    loaded = weights.load(
      str(tmp_path / 'w'), weights.Options(conv_order=order)
    )
    assert loaded.warnings == ()


def test_missing_and_surplus_files_are_named_in_one_error(tmp_path, untrained):
  path = tmp_path / 'w'
  paddle.write(untrained, path)
  (path / '_conv1_bn.w1').unlink()
  (path / '_output.wbias').unlink()
  (path / 'notes.txt').write_text('mine')
  with pytest.raises(errors.UserError) as caught:
    weights.load(str(path))
  message = str(caught.value)
  assert '2 names are missing (_conv1_bn.w1, _output.wbias)' in message
  assert '1 names are unknown (notes.txt)' in message


def test_another_depth_is_recognised(tmp_path, untrained):
  paddle.write(untrained, tmp_path / 'w')
  with pytest.raises(
    errors.UserError, match='holds ResNet-18, not ResNet-34: set layer_num=18'
  ):
    weights.load(str(tmp_path / 'w'), weights.Options(depth=34))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda d: d[:-4], '268 bytes, where 272 are expected'),
    (lambda d: d + b'1234', '276 bytes, where 272'),
    (lambda d: b'', '0 bytes, where 272'),
    (lambda d: struct.pack('<i', 1) + d[4:], 'its header (version'),
    (lambda d: d[:4] + struct.pack('<I', 8) + d[8:], 'its header (version'),
    (
      lambda d: d[:8] + struct.pack('<Q', 2**60) + d[16:],
      'its header (version, bytes per value, values) is (0, 4, 11529215046',
    ),
  ],
)
def test_a_damaged_file_is_named_with_its_fault(
  tmp_path, untrained, damage, message
):
  path = tmp_path / 'w'
  paddle.write(untrained, path)
  file = path / '_res2_1_branch2a_bn.w2'
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(errors.UserError) as caught:
    weights.load(str(path))
  assert f'_res2_1_branch2a_bn.w2: {message}' in str(caught.value)
  assert 'Get it again' in str(caught.value)


def test_without_weights_the_ways_out_are_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('RESNET_JAX_OFFLINE', '1')
  with pytest.raises(errors.UserError) as caught:
    weights.load('auto', weights.Options(18))
  message = str(caught.value)
  assert 'model/resnet_18 does not exist' in message
  assert 'torchvision.v1-18 is not in the cache' in message
  assert 'RESNET_JAX_OFFLINE forbids' in message
  assert 'give weights=PATH' in message
  assert 'weights=random' in message
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='file is empty'):
    weights.load('file')


def test_auto_finds_the_model_directory(tmp_path, monkeypatch, untrained):
  monkeypatch.chdir(tmp_path)
  paddle.write(untrained, tmp_path / 'model' / 'resnet_18')
  loaded = weights.load('auto', weights.Options(18))
  assert 'model/resnet_18' in loaded.source
  assert loaded.digest == weights.digest(untrained)


def test_a_layer_of_zeros_does_not_hide_the_order(tmp_path, untrained):
  parameters = _smooth(untrained)
  name = 'res2_1_branch2a_conv/kernel'
  parameters[name] = np.zeros_like(parameters[name])
  paddle.write(parameters, tmp_path / 'w', 'OIHW')
  loaded = weights.load(str(tmp_path / 'w'))
  assert 'Set conv_order=OIHW' in loaded.warnings[0]


def test_no_name_is_no_directory():
  with pytest.raises(errors.UserError, match="weights='': "):
    weights.load('', MODEL)
