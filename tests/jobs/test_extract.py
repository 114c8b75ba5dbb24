# SPDX-License-Identifier: Apache-2.0
"""The job `extract`, run as a user runs it, on real files."""

import functools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr
from conftest import ROOT, make_image_folder
from makers import Started, config_of, contents, run_program
from PIL import Image

import resnet_jax
from resnet_jax import features as feature_lib
from resnet_jax import jobs
from resnet_jax.data import crops, preprocess
from resnet_jax.engine import runner
from resnet_jax.models import resnet
from resnet_jax.weights import random

SMALL = '18,weights=random,resize_size=72,crop_size=64,batch_size=2'
LAYERS = ('res5_2_branch2b_conv', 'res5_2_branch2b_bn')
# What a run ends with.
STAGES = re.compile(
  r'^7 images in [\d.]+ s, [\d.]+ images/s\n'
  r'stages, images/s: read [\d.]+, decode [\d.]+, transfer [\d.]+, compute'
  r' [\d.]+, write [\d.]+; bound by \w+ \(\d+% of the time\)$',
  re.M,
)
KEYS = ['a.png', 'b.jpg', 'c d.png', 'e.png', 'f.png', 'x/a.png', 'x/g.png']


def flags(
  *settings,
  output='out',
):
  return [
    '--job=extract',
    f'--config=configs/resnet.py:{SMALL},data=images',
    f'--config.output_layer={",".join(LAYERS)}',
    f'--config.output_dir={output}',
    *(f'--config.{setting}' for setting in settings),
  ]


@pytest.fixture(scope='module')
def parameters():
  return random.initialise(resnet.ResNet(18), 0)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nothing disturbed, by its format: its folder, and what it said.

  The tests that compare with it share it, and only read it.
  """

  @functools.cache
  def run(form):
    folder = tmp_path_factory.mktemp(form)
    make_image_folder(folder)
    done = run_program(folder, *flags(f'feature_format={form}'), check=0)
    return folder / 'out', done.stderr

  return run


def expected_values(parameters, paths, multi_crop=False):
  """By hand, without pipeline, job and store: one image after another."""
  own = preprocess.Preprocess(
    resize_size=72, crop_size=64, multi_crop=multi_crop
  )
  run = runner.Runner(resnet.ResNet(18), parameters, LAYERS, own)
  rows = []
  for path in paths:
    cuts = crops.cut(Image.open(path).convert('RGB'), own)
    rows.append(run.fetch(run(cuts[None])))
  return {k: np.concatenate([row[k] for row in rows]) for k in LAYERS}


def test_the_store_holds_the_values_in_order(run_main, whole, parameters):
  out, said = whole('zarr')
  image_folder = out.parent / 'images'
  assert 'UNTRAINED' in said
  assert '7 images in the folder images' in said
  assert 'to write: 7 rows, at most 133.8 kB, to out' in said
  assert STAGES.search(said)
  features = resnet_jax.load_features(out)
  assert features.rows == KEYS
  assert set(features) == set(LAYERS)
  expected = expected_values(parameters, [image_folder / key for key in KEYS])
  for layer in LAYERS:
    assert features[layer].shape == (7, 512, 2, 2)
    np.testing.assert_allclose(
      features[layer][:], expected[layer], rtol=1e-4, atol=1e-4
    )
    theirs = zarr.open_group(out, mode='r')[layer]
    np.testing.assert_array_equal(theirs[:], features[layer][:])
  assert features.record['trained'] is False
  assert features.record['config']['crop_size'] == 64
  assert 'centre crop 64x64' in features.settings['preprocessing']
  assert len(features.settings['weights_sha256']) == 64

  again = run_main(*flags('feature_format=zarr'), check=0, cwd=out.parent)
  assert 'is finished already; nothing to do' in again.stderr
  assert 'stages' not in again.stderr


def test_multi_crop_is_the_average_over_ten(run_main, image_folder, parameters):
  run_main(*flags('multi_crop=true', 'batch_size=20'), check=0)
  features = resnet_jax.load_features(image_folder.parent / 'out')
  paths = [image_folder / key for key in KEYS]
  expected = expected_values(parameters, paths, multi_crop=True)
  for layer in LAYERS:
    np.testing.assert_allclose(
      features[layer][:], expected[layer], rtol=1e-4, atol=1e-4
    )


def test_the_three_formats_hold_the_same_numbers(whole):
  out = {}
  for form in ('zarr', 'pickle', 'text'):
    out[form], said = whole(form)
    collision = 'keys in batch_N are relative paths' in said
    assert collision == (form == 'pickle')
  store = resnet_jax.load_features(out['zarr'])
  pickled = resnet_jax.load_feature_py(out['pickle'])
  lines = resnet_jax.load_feature_c(out['text'] / 'rank-00000')
  assert list(pickled) == KEYS
  for row, key in enumerate(KEYS):
    for place, layer in enumerate(LAYERS):
      flat = store[layer][row].reshape(1, -1)
      np.testing.assert_array_equal(pickled[key][layer], flat)
      text = np.array(lines[row][place], np.float32)
      np.testing.assert_array_equal(text, flat[0])
  with open(out['pickle'] / 'batch_0', 'rb') as file:
    assert list(pickle.load(file)) == KEYS


def test_pooled_and_half_precision(run_main, image_folder, whole):
  run_main(*flags('pool=max', 'dtype=float16', output='small'), check=0)
  full = resnet_jax.load_features(whole('zarr')[0])
  small = resnet_jax.load_features(image_folder.parent / 'small')
  for layer in LAYERS:
    assert small[layer].shape == (7, 512, 1, 1)
    assert small[layer].dtype == np.float16
    np.testing.assert_allclose(
      small[layer][:], full[layer][:].max((2, 3), keepdims=True), rtol=2e-3
    )


def test_bytes_do_not_depend_on_threads(run_main, image_folder):
  found = {}
  for threads in (1, 2, 8):
    run_main(*flags(f'threads={threads}', output=f't{threads}'), check=0)
    found[threads] = contents(image_folder.parent / f't{threads}')
    # The number of threads and the folder's name are in the run's record.
    group = json.loads(found[threads].pop('zarr.json'))
    for setting in ('threads', 'output_dir'):
      del group['attributes']['record']['config'][setting]
    found[threads]['group'] = group
  assert found[1] == found[2] == found[8]
  assert len(found[1]) > len(LAYERS)


@pytest.mark.parametrize(
  ('form', 'marker'),
  [
    ('zarr', 'status/c/0'),
    ('zarr', 'status/c/2'),
    ('zarr', 'units/000001.json'),
    ('zarr', 'zarr.json'),
    ('pickle', 'batch_0'),
    ('text', 'progress.json'),
  ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
  run_main, image_folder, whole, form, marker
):
  out = image_folder.parent
  arguments = flags(f'feature_format={form}')
  process = Started(out, *arguments)
  process.wait_until((out / 'out.part' / marker).exists)
  process.kill()
  if not (out / 'out').exists():
    # Looking whole would be lying.
    assert (out / 'out.part').exists()
  resumed = run_main(*arguments, check=0)
  assert contents(out / 'out') == contents(whole(form)[0])
  assert not (out / 'out.part').exists()
  assert 'resuming after' in resumed.stderr or 'finished' in resumed.stderr


def test_other_settings_are_refused_and_named(run_main, image_folder):
  (image_folder / 'broken.png').write_bytes(b'not an image')
  stopped = run_main(*flags())
  assert stopped.returncode == 1
  assert 'cannot read the image images/broken.png' in stopped.stderr
  out = image_folder.parent
  assert (out / 'out.part').exists()
  assert not (out / 'out').exists()
  refused = run_main(*flags('pool=avg', 'seed=1'))
  assert refused.returncode == 1
  assert "pool is 'none' there, 'avg' now" in refused.stderr
  assert 'the SHA-256 of the weights is' in refused.stderr
  assert 'dtype' not in refused.stderr
  with pytest.raises(resnet_jax.UserError, match='is not finished'):
    resnet_jax.load_features(out / 'out')
  (image_folder / 'a.png').write_bytes((image_folder / 'e.png').read_bytes())
  refused = run_main(*flags())
  assert 'the SHA-256 of the list of images is' in refused.stderr
  refused = run_main(*flags('feature_format=text'))
  assert "feature_format is 'zarr' there, 'text' now" in refused.stderr


@pytest.fixture
def long_run(image_folder):
  """Flags of a run of a thousand images."""
  (image_folder / 'many.list').write_text('a.png\nb.jpg\n' * 500)
  settings = ('data=images/many.list', 'threads=8', 'pool=avg')
  settings += ('output_layer=pool1', 'batch_size=20')
  return flags(*settings)


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
@pytest.mark.parametrize('moment', ['imports', 'starts', 'begins'])
def test_ctrl_c_ends_the_program_at_once(tmp_path, long_run, moment):
  process = Started(tmp_path, *long_run)
  running = process.wait_until(
    {
      'imports': lambda: process.loads('jaxlib'),
      'starts': lambda: process.said,
      'begins': (tmp_path / 'out.part').exists,
    }[moment]
  )
  assert running
  assert process.interrupt() == -signal.SIGINT
  assert 'Traceback' not in process.said
  assert not (tmp_path / 'out').exists()


def test_ctrl_c_in_the_middle_ends_it_soon_and_the_rest_follows(
  run_main, tmp_path, long_run
):
  out, count, arguments = tmp_path, 1000, long_run
  process = Started(out, *arguments)
  assert process.wait_until((out / 'out.part/units/000001.json').exists)
  assert process.interrupt() == -signal.SIGINT
  assert 'Traceback' not in process.said
  assert not (out / 'out').exists()
  resumed = run_main(*arguments, check=0)
  after = re.search(r'resuming after (\d+) of 1,000', resumed.stderr)
  assert after
  assert 40 <= int(after[1]) < count
  interrupted = contents(out / 'out')
  shutil.rmtree(out / 'out')
  run_main(*arguments, check=0)
  assert interrupted == contents(out / 'out')


@pytest.mark.parametrize('form', feature_lib.FORMATS)
def test_a_broken_image_is_recorded_if_asked(run_main, image_folder, form):
  whole = (image_folder / 'e.png').read_bytes()
  (image_folder / 'e.png').write_bytes(whole[: len(whole) // 2])
  # First refused, then resumed: what was done is kept.
  settings = f'feature_format={form}'
  assert run_main(*flags(settings)).returncode == 1
  done = run_main(*flags(settings, 'on_error=record'))
  assert done.returncode == 3
  assert '1 image could not be read' in done.stderr
  again = run_main(*flags(settings, 'on_error=record'))
  assert again.returncode == 3
  assert 'finished already' in again.stderr
  assert '1 image could not be read' in again.stderr
  out = image_folder.parent / 'out'
  if form == 'zarr':
    features = resnet_jax.load_features(out)
    assert list(features.status) == [1, 1, 1, 2, 1, 1, 1]
    assert 'truncated' in features.reasons[3]
    rows = features[LAYERS[0]][:].reshape(7, -1)
  elif form == 'pickle':
    entries = resnet_jax.load_feature_py(out)
    rows = np.concatenate([entries[key][LAYERS[0]] for key in KEYS])
  else:
    lines = resnet_jax.load_feature_c(out / 'rank-00000')
    rows = np.array([line[0] for line in lines])
  assert np.isnan(rows[3]).all()
  assert np.isfinite(np.delete(rows, 3, axis=0)).all()


def test_a_list_with_a_missing_image_is_refused_before_the_start(
  run_main, image_folder
):
  (image_folder / 'all.list').write_text('a.png 3\nmissing.png 4\nc d.png 5\n')
  done = run_main(*flags('data=images/all.list'))
  assert done.returncode == 1
  assert '1 of 3 images listed in images/all.list does not exist' in done.stderr
  assert 'images/missing.png' in done.stderr
  done = run_main(*flags('data=images/all.list', 'on_error=record'))
  assert done.returncode == 3
  features = resnet_jax.load_features(image_folder.parent / 'out')
  assert list(features.labels) == [3, 4, 5]
  assert features.rows == ['a.png', 'missing.png', 'c d.png']
  assert features.reasons[1] == 'No such file or directory'


def test_places_that_cannot_be_written_to(run_main, image_folder):
  (image_folder.parent / 'file').write_text('')
  # An empty folder that no run left is in nobody's way.
  (image_folder.parent / 'fine.part').mkdir()
  run_main(*flags(output='fine'), check=0)
  done = run_main(*flags(output='file/out'))
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert 'file/out' in done.stderr
  done = run_main(*flags(output='images'))
  assert 'images holds something that is not a run' in done.stderr


def test_a_full_disk_is_said_before_the_run(image_folder, monkeypatch, capsys):
  out = str(image_folder.parent / 'out')
  config = config_of(SMALL, data=str(image_folder), output_dir=out)
  usage = shutil.disk_usage(image_folder)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=99))
  with pytest.raises(resnet_jax.UserError, match='99 are free there'):
    jobs.run('extract', config)
  assert not (image_folder.parent / 'out').exists()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
  Image.effect_noise((40, 40), 90).convert('RGB').save(tmp_path / 'p.jpg')

  def peak(count):
    (tmp_path / f'{count}.list').write_text('p.jpg\n' * count)
    code = (
      'import resource\n'
      'from resnet_jax import main\n'
      'try: main.run()\n'
      'except SystemExit as end: assert not end.code, end.code\n'
      'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    )
    settings = (
      f'18,weights=random,resize_size=32,crop_size=32,data={count}.list'
    )
    done = subprocess.run(
      [
        sys.executable,
        '-c',
        code,
        f'--config=configs/resnet.py:{settings},output_dir=o{count}',
        '--job=extract',
        '--config.output_layer=res2_1_addto',
      ],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=True,
    )
    return int(done.stdout.split()[-1])

  # 200 and 5000 rows of 16 kB, 80 MB of them: kept, they would show.
  assert peak(5000) < 1.1 * peak(200)
