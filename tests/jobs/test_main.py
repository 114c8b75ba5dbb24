# SPDX-License-Identifier: Apache-2.0
"""The command line, as a person types it."""

import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from resnet_jax import configuration, jobs


def test_help_names_jobs_and_settings_and_does_not_import_jax(run_main):
  done = run_main('--help', check=0)
  for name, job in jobs.JOBS.items():
    assert f'{name} {job.summary}' in ' '.join(done.stdout.split())
  assert '--config.KEY=VALUE' in done.stdout
  get_config = runpy.run_path(str(ROOT / configuration.DEFAULT))['get_config']
  for key, value in get_config().items():
    assert f'\n{key} = {value!r}\n' in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80
  code = (
    'import sys, resnet_jax, resnet_jax.main;'
    " sys.exit(bool({'jax', 'flax', 'PIL', 'tensorstore'} & set(sys.modules)))"
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (
      ['--job=extrct'],
      "error: unknown job 'extrct'. Did you mean 'extract'? Allowed: extract,",
    ),
    (
      ['--jop=extract'],
      "Unknown command line flag 'jop'. Did you mean: job ?. --help lists",
    ),
    (['--weights=random'], 'unknown flag --weights. Did you mean --config.we'),
    (
      ['--job=predict'],
      'no data was given, and its default, example/test.list',
    ),
    ([], 'give --job=JOB, one of: extract, status, predict'),
    (
      ['--job=extract', 'photos'],
      "unexpected arguments 'photos': --job=extract takes none",
    ),
    (
      ['--config=configs/resnet.py:50,wieghts=x', '--job=extract'],
      "unknown setting 'wieghts'. Did you mean 'weights'? Allowed: arithmetic,",
    ),
    (
      ['--config=configs/resnet.py:50', '--job=extract', '--config.dato=x'],
      "unknown setting 'dato'. Did you mean 'data'? Allowed: arithmetic,",
    ),
    (
      ['--job=extract', '--config.data.x=3'],
      "unknown setting 'data.x'. Did you mean 'data'?",
    ),
    (
      ['--config=configs/resnet.py:batch_size=many', '--job=extract'],
      "batch_size='many' is not a whole number",
    ),
    (['--config.seed=auto'], "seed='auto' is not a whole number"),
    (['--config.seed=x'], "seed='x' is not a whole number"),
    (
      ['--config=configs/resnet.py:5o', '--job=extract'],
      "'5o' in '5o' is neither a depth (18, 34, 50, 101, 152) nor a network",
    ),
    (
      ['--config=configs/resnet.py:51', '--job=extract'],
      'no ResNet has 51 layers. Allowed: 18, 34, 50, 101, 152',
    ),
    (
      ['--config=configs/resnet.py:multi_crop=maybe', '--job=extract'],
      "multi_crop='maybe' is not true or false",
    ),
    (
      ['--config=configs/resnet.py:seed=1.5', '--job=extract'],
      "seed='1.5' is not a whole number",
    ),
    (
      ['--config=configs/rsnet.py', '--job=extract'],
      "unknown configuration file 'configs/rsnet.py'. Did you mean"
      " 'configs/resnet.py'?",
    ),
  ],
)
def test_a_mistake_gets_one_clear_message(run_main, arguments, expected):
  done = run_main(*arguments)
  assert done.returncode == 1
  assert expected in done.stderr
  assert 'Traceback' not in done.stderr
  assert len(done.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({'layer_num': 42}, 'no ResNet has 42 layers'),
    (
      {'output_layer': 'res5_3_branch2d_bn'},
      "Did you mean 'res5_2_branch2b_bn'?",
    ),
    ({'interpolation': 'lanzcos'}, "Did you mean 'lanczos'?"),
    ({'decode': 'fast'}, "unknown decode 'fast'. Allowed: exact, scaled"),
    ({'resize': 'crop'}, 'Allowed: short_side, squash'),
    ({'dtype': 'float64'}, "Did you mean 'float16'?"),
    ({'pool': 'mean'}, "unknown pool 'mean'. Allowed: none, avg, max"),
    ({'feature_format': 'hdf5'}, 'Allowed: zarr, pickle, text'),
    ({'on_error': 'skip'}, 'Allowed: fail, record'),
    ({'conv_order': 'HWIO'}, 'Allowed: OHWI, OIHW'),
    ({'arithmetic': 'float16'}, "Did you mean 'bfloat16'?"),
    ({'batch_size': -1}, 'batch_size=-1 must be 0 or more'),
    ({'threads': -1}, 'threads=-1 must be 0 or more'),
    ({'data': 'nowhere'}, "data='nowhere': there is no such file or folder"),
    ({'mean': 'nowhere.npz'}, "mean='nowhere.npz': there is no such file"),
    ({'weights': 'nowhere'}, 'nowhere does not exist. Give weights=PATH'),
    ({'use_gpu': 1}, "pip install 'resnet-jax-zoo[cuda12]'"),
  ],
)
def test_a_wrong_value_says_what_is_allowed(
  run_main, image_folder, settings, expected
):
  good = {'data': image_folder, 'weights': 'random', 'layer_num': 18}
  flags = [f'--config.{k}={v}' for k, v in (good | settings).items()]
  # On a machine with a GPU, too, the one setting must be an error.
  done = run_main('--job=extract', *flags, env={'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 1
  assert expected in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (image_folder.parent / 'features').exists()


def test_settings_behind_the_colon_get_the_type_of_the_default():
  get_config = runpy.run_path(str(ROOT / configuration.DEFAULT))['get_config']
  config = get_config('152,weights=a=b,multi_crop=true,batch_size=3, seed=4')
  assert config.layer_num == 152
  assert config.weights == 'a=b'
  assert config.multi_crop is True
  assert (config.batch_size, config.seed) == (3, 4)
  assert get_config('').layer_num == get_config().layer_num == 0


@pytest.mark.parametrize('dashes', ['-', '--'])
def test_auto_is_the_number_that_leaves_it_to_the_program(dashes):
  get_config = runpy.run_path(str(ROOT / configuration.DEFAULT))['get_config']
  assert get_config('50,batch_size=auto,threads=auto').batch_size == 0
  flags = ['main', f'{dashes}config.batch_size=auto', '--config.data=auto']
  resolved = configuration.resolve_flags(flags)
  assert resolved[2:] == [f'{dashes}config.batch_size=0', '--config.data=auto']


def test_every_key_is_in_the_file_once_below_a_comment():
  lines = (ROOT / configuration.DEFAULT).read_text().splitlines()
  keys = [ln.split()[0] for ln in lines if ln.startswith('  config.')]
  assert len(keys) == len(set(keys)) > 20
  first = next(i for i, ln in enumerate(lines) if ln.startswith('  config.'))
  assert lines[first - 1].startswith('  # ')


def test_a_config_of_ones_own_works(run_main, tmp_path, image_folder):
  (tmp_path / 'mine.py').write_text(
    'import runpy\n'
    'from resnet_jax import configuration\n'
    'def get_config(arg="18"):\n'
    '  path = configuration.find(configuration.DEFAULT)\n'
    '  config = runpy.run_path(path)["get_config"](arg)\n'
    '  config.data = "images/a.png"\n'
    '  return config\n'
  )
  flags = ('--config=mine.py:18,weights=random', '--job=predict')
  done = run_main(*flags, check=0)
  assert 'Label of images/a.png is: ' in done.stdout
  done = run_main('--config', 'mine.py:18', '--config.wights=random')
  assert "unknown setting 'wights'. Did you mean 'weights'?" in done.stderr


def test_a_config_of_ones_own_that_lacks_keys_says_so(run_main, tmp_path):
  (tmp_path / 'mine.py').write_text(
    'from ml_collections import ConfigDict\n'
    'def get_config(arg=""):\n'
    '  return ConfigDict({"layer_num": 18})\n'
  )
  done = run_main('--config=mine.py', '--job=predict')
  assert done.returncode == 1
  assert 'the configuration lacks arithmetic, as_json, ' in done.stderr
  assert 'Start from the configuration of configs/resnet.py' in done.stderr
