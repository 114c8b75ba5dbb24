# SPDX-License-Identifier: Apache-2.0
"""The job `evaluate`, run as a user runs it."""

import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import reproduce
import tables
import targets
from makers import Started, config_of, run_program
from PIL import Image
from scipy import stats

import resnet_jax
from resnet_jax import jobs
from resnet_jax import weights as weights_lib
from resnet_jax.data import labels as label_lib
from resnet_jax.evaluation import evidence, metrics, published, report
from resnet_jax.system import errors
from resnet_jax.zoo import lookup

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')

COUNT = 41
SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=4'


def _flags(*settings, output='results'):
  return [
    '--job=evaluate',
    f'--config=configs/resnet.py:{SMALL},data=photos/all.list',
    f'--config.results={output}',
    *(f'--config.{setting}' for setting in settings),
  ]


def _make_photos(folder):
  """41 small JPEGs; 8 have the label that is predicted, 4 the fourth best."""
  generator = np.random.default_rng(0)
  paths = []
  folder.mkdir()
  for row in range(COUNT):
    coarse = generator.integers(0, 256, (4, 5, 3), np.uint8)
    path = folder / f'photo {row:02}.jpg'
    Image.fromarray(coarse).resize((50, 44)).save(path)
    paths.append(path)
  model = resnet_jax.load(
    'resnet18', weights='random', resize_size=40, crop_size=32
  )
  output = model.features(paths, 'output')[:, :, 0, 0].astype(np.float64)
  order = np.argsort(-output, axis=1, kind='stable')
  labels = generator.integers(0, 1000, COUNT)
  labels[5:13] = order[5:13, 0]
  labels[13:17] = order[13:17, 3]
  lines = []
  for row, path in enumerate(paths):
    lines.append(f'"{path.name}" {labels[row]}\n')
  classes = label_lib.imagenet_classes()
  text = ''.join(f'{classes[label].wnid}\n' for label in labels)
  (folder / 'labels.txt').write_text(text)
  (folder / 'all.list').write_text(''.join(lines))
  return output, order, labels


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photographs') / 'photos'
  return folder, *_make_photos(folder)


@pytest.fixture
def photos(photographs, tmp_path):
  """The images in `tmp_path`, where the program runs."""
  shutil.copytree(photographs[0], tmp_path / 'photos')
  return tmp_path / 'photos'


@pytest.fixture(scope='module')
def finished(photographs, tmp_path_factory):
  """A folder with an uninterrupted run, `results`, and what it said."""
  folder = tmp_path_factory.mktemp('finished')
  shutil.copytree(photographs[0], folder / 'photos')
  done = run_program(folder, *_flags('record=all.jsonl'), check=0)
  return folder, done


def _config(*settings):
  given = dict(setting.split('=', 1) for setting in settings)
  return config_of(SMALL, **{'data': 'photos/all.list'} | given)


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _results(folder):
  return json.loads((folder / 'results.json').read_text())


def _the_one(results):
  (found,) = results['labels'].values()
  return found


def _damage(folder):
  """Other pixels under the same names and sizes: whoever reads them fails."""
  for path in folder.glob('*.jpg'):
    path.write_bytes(bytes(path.stat().st_size))


# ------------------------------------------------------------------ one run


def test_the_predictions_and_the_errors(finished, photographs):
  folder, done = finished
  _, output, order, labels = photographs
  header, *images = _lines(folder / 'results' / 'predictions.jsonl')
  assert header['settings']['images'] == COUNT == len(images)
  for row, image in enumerate(images):
    assert image['key'] == f'photo {row:02}.jpg'
    (answers,) = image['labels'].values()
    assert answers == [labels[row]]
    assert image['path'] == f'photos/photo {row:02}.jpg'
    assert image['predicted'] == order[row, 0]
    assert [score['label'] for score in image['best']] == list(order[row, :5])
    for score in image['best']:
      expected = pytest.approx(output[row, score['label']], rel=1e-3)
      assert score['probability'] == expected

  for key, k in (('top1_error', 1), ('top5_error', 5)):
    wrong = sum(labels[row] not in order[row, :k] for row in range(COUNT))
    figure = _the_one(_results(folder / 'results'))[key]
    assert figure['wrong'] == wrong
    assert figure['percent'] == pytest.approx(100 * wrong / COUNT, abs=1e-5)
    low, high = stats.binomtest(wrong, COUNT).proportion_ci(0.95, 'wilson')
    assert figure['low'] == pytest.approx(100 * low, abs=1e-5)
    assert figure['high'] == pytest.approx(100 * high, abs=1e-5)
    assert f'{figure["low"]:.3f} to {figure["high"]:.3f}' in done.stdout
  found = _the_one(_results(folder / 'results'))
  assert (found['images'], found['unlabelled']) == (COUNT, 0)
  assert found['not_published'] == report.NO_CHECKPOINT
  assert sum(row['images'] for row in found['classes']) == COUNT
  assert 'most errors' in done.stdout
  assert 'taken for' in done.stdout


def test_the_results_say_how_to_find_them_again(finished, photographs):
  folder, done = finished
  results = _results(folder / 'results')
  assert 'resnet_jax.main --job=evaluate' in results['command']
  assert results['config']['crop_size'] == 32
  assert results['trained'] is False
  assert 'UNTRAINED' in done.stderr
  assert f'digest {results["weights_sha256"]}' in done.stderr
  sizes = [
    [
      f'photo {row:02}.jpg',
      (folder / f'photos/photo {row:02}.jpg').stat().st_size,
    ]
    for row in range(COUNT)
  ]
  digest = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
  assert results['images_sha256'] == digest
  file = (folder / 'results' / 'predictions.jsonl').read_bytes()
  assert results['predictions_sha256'] == hashlib.sha256(file).hexdigest()
  assert re.fullmatch(r'cpu( x \d+)?', results['device'])
  assert results['versions']['jax']
  answers = json.dumps([[int(label)] for label in photographs[3]]).encode()
  digest = hashlib.sha256(answers).hexdigest()
  assert _the_one(results)['labels_sha256'] == digest
  assert results['date'].endswith('+00:00')

  (line,) = _lines(folder / 'all.jsonl')
  assert line['top1_error'] == _the_one(results)['top1_error']
  assert line['labels'] == next(iter(results['labels']))
  for key in ('command', 'config', 'weights_sha256', 'device', 'date'):
    assert line[key] == results[key]
  assert 'confusions' not in line


# -------------------------------------------------------- killed, and resumed


def _killed(folder, *settings):
  """Starts a run and kills it when some images are written."""
  process = Started(folder, *_flags(*settings))
  part = folder / 'results' / 'predictions.jsonl.part'
  process.wait_until(
    lambda: part.exists() and part.read_bytes().count(b'\n') > 9
  )
  process.kill()
  return part


def test_a_killed_run_resumes_to_the_same_bytes(
  run_main, photos, tmp_path, finished
):
  expected = (finished[0] / 'results' / 'predictions.jsonl').read_bytes()
  part = _killed(tmp_path)
  # A run that was faster than the kill is made one that was not.
  whole = tmp_path / 'results' / 'predictions.jsonl'
  text = part.read_bytes() if part.exists() else whole.read_bytes()
  whole.unlink(missing_ok=True)
  assert expected.startswith(text)
  # The kill may come in the middle of a line, and of a batch of four.
  lines = text.splitlines(keepends=True)[:12]
  part.write_bytes(b''.join(lines[:-1]) + lines[-1][:-9])
  done = run_main(*_flags(), check=0)
  kept = (len(lines) - 2) // 4 * 4
  assert f'resuming after {kept} of 41 images' in done.stderr
  assert kept > 0
  assert whole.read_bytes() == expected
  assert not part.exists()


def test_a_run_killed_before_its_first_line_starts_over(
  run_main, photos, tmp_path, finished
):
  expected = (finished[0] / 'results' / 'predictions.jsonl').read_bytes()
  (tmp_path / 'results').mkdir()
  part = tmp_path / 'results' / 'predictions.jsonl.part'
  part.write_bytes(expected[:20])
  run_main(*_flags(), check=0)
  whole = tmp_path / 'results' / 'predictions.jsonl'
  assert whole.read_bytes() == expected


def test_a_finished_file_needs_no_network_and_takes_other_labels(
  run_main, tmp_path, finished
):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  _damage(tmp_path / 'photos')
  done = run_main(*_flags('record=all.jsonl', 'threads=1'), check=0)
  assert 'is finished already; the network is not run' in done.stderr
  before, after = (
    _results(folder / 'results') for folder in (finished[0], tmp_path)
  )
  assert before['labels'] == after['labels']
  assert before['predictions_sha256'] == after['predictions_sha256']
  # The same result is no new evidence.
  assert '0 new results are in all.jsonl' in done.stderr
  assert len(_lines(tmp_path / 'all.jsonl')) == 1

  _, *images = _lines(tmp_path / 'results' / 'predictions.jsonl')
  several = [
    [p['predicted'], p['best'][2]['label']] if row % 2 else []
    for row, p in enumerate(images)
  ]
  (tmp_path / 'real.json').write_text(json.dumps(several))
  done = run_main(
    *_flags('labels=,real.json', 'record=all.jsonl'),
    check=0,
  )
  assert 'has the labels of this run now' in done.stderr
  own, real = _results(tmp_path / 'results')['labels'].values()
  assert own['top1_error'] == _the_one(before)['top1_error']
  assert (real['images'], real['unlabelled']) == (20, 21)
  assert 'labels real: 21 images without a label left out' in done.stdout
  assert real['top1_error']['wrong'] == 0
  assert real['not_published'] == report.NOT_THESE
  _, *again = _lines(tmp_path / 'results' / 'predictions.jsonl')
  for row, (old, new) in enumerate(zip(images, again, strict=True)):
    assert new['best'] == old['best']
    assert list(new['labels'].values())[1] == sorted(several[row])
  # The same two sets in the other order of one run: nothing is written anew.
  done = run_main(*_flags('labels=,real.json'), check=0)
  assert 'has the labels of this run now' not in done.stderr


def test_other_settings_are_refused_and_named(run_main, tmp_path, finished):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  refused = run_main(*_flags('seed=1', 'crop_size=36'), check=1)
  assert 'predictions.jsonl holds predictions with other' in refused.stderr
  assert 'the SHA-256 of the weights is ' in refused.stderr
  assert "preprocessing is 'shorter side to 40" in refused.stderr
  assert 'list of images' not in refused.stderr.split('other settings')[1]
  # The batch is no setting of what is finished; of what is not, it is.
  run_main(*_flags('batch_size=8'), check=0)
  results = tmp_path / 'results'
  part = results / 'predictions.jsonl.part'
  (results / 'predictions.jsonl').rename(part)
  refused = run_main(*_flags('batch_size=8'), check=1)
  assert 'batch_size is 4 there, 8 now' in refused.stderr
  with (tmp_path / 'photos' / 'photo 07.jpg').open('ab') as file:
    file.write(b'more')
  refused = run_main(*_flags(), check=1)
  assert 'the SHA-256 of the list of images is ' in refused.stderr
  assert 'batch_size is' not in refused.stderr


def test_a_wrong_order_of_labels_is_named(
  tmp_path, finished, monkeypatch, capsys
):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  _, *images = _lines(tmp_path / 'results' / 'predictions.jsonl')
  text = ''.join(
    f'"{p["key"]}" {(p["predicted"] + 1) % 1000}\n' for p in images
  )
  (tmp_path / 'photos' / 'one.list').write_text(text)
  # Of an untrained network nothing else is to be expected.
  settings = ('data=photos/one.list', 'checkpoint=torchvision.v1-18')
  assert jobs.run('evaluate', _config(*settings)) == 0
  found = _the_one(_results(tmp_path / 'results'))
  assert found['top1_error']['percent'] == 100
  assert 'diagnosis' not in found
  assert found['published'] is None
  assert found['not_published'] == (
    f'{report.NO_PROTOCOL} (run with resize 40 for 256, crop 32 for 224)'
  )
  monkeypatch.setattr(weights_lib.Weights, 'trained', True)
  capsys.readouterr()
  assert jobs.run('evaluate', _config(*settings)) == 0
  found = _the_one(_results(tmp_path / 'results'))
  assert 'counted from 1' in found['diagnosis']
  assert found['diagnosis'] in capsys.readouterr().out


# ------------------------------------------------------------ what can be wrong


def test_a_truncated_image_fails_or_counts_as_wrong(
  run_main, photos, tmp_path, finished
):
  broken = photos / 'photo 06.jpg'
  broken.write_bytes(broken.read_bytes()[:300])
  stopped = run_main(*_flags(), check=1)
  assert 'cannot read the image photos/photo 06.jpg: ' in stopped.stderr
  assert not (tmp_path / 'results' / 'predictions.jsonl').exists()
  assert not (tmp_path / 'results' / 'results.json').exists()
  done = run_main(*_flags('on_error=record'))
  assert done.returncode == 3
  assert '1 image could not be read, counted as wrong' in done.stderr
  assert 'labels: 1 image could not be read, counted as wrong' in done.stdout
  found = _the_one(_results(tmp_path / 'results'))
  whole = _the_one(_results(finished[0] / 'results'))
  assert found['images'] == whole['images']
  assert found['failed'] == 1
  # Its label was predicted.
  for key in ('top1_error', 'top5_error'):
    assert found[key]['wrong'] == whole[key]['wrong'] + 1
  _, *images = _lines(tmp_path / 'results' / 'predictions.jsonl')
  assert 'best' not in images[6]
  assert 'truncated' in images[6]['failed'].lower()
  # Finished it stays, and is said again.
  again = run_main(*_flags())
  assert again.returncode == 3
  assert 'the network is not run' in again.stderr


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    (['results='], "results='': name a folder"),
    (['results=photos/all.list'], 'is a file; name a folder'),
    (['predictions=photos'], 'predictions=photos is a folder; name a file'),
    (['record=photos'], 'record=photos is a folder; name a file'),
    (
      ['record=photos/all.list'],
      'record=photos/all.list is not a file of JSON',
    ),
    (['labels=a.txt,a.txt'], "labels='a.txt,a.txt' names a label set twice"),
    (['checkpoint=msra-5'], "unknown checkpoint 'msra-5'. Did you mean 'msra-"),
    (['data=photos'], '41 of 41 images have no label in the data'),
    (['labels=,photos/labels.txt'], "two of these are called 'labels'"),
  ],
)
def test_a_mistake_is_said_before_anything_is_written(
  photographs, tmp_path, monkeypatch, settings, expected
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').symlink_to(photographs[0])
  with pytest.raises(errors.UserError, match=re.escape(expected)):
    jobs.run('evaluate', _config(*settings))
  assert [path.name for path in tmp_path.iterdir()] == ['photos']


def test_a_label_beyond_the_classes_is_said_at_once(run_main, photos, tmp_path):
  (photos / 'all.list').write_text('"photo 01.jpg" 1000\n')
  done = run_main(*_flags(), check=1)
  assert '1000' in done.stderr
  assert not (tmp_path / 'results').exists()


# ------------------------------------------------------------------ the report


def _tally(wrong, total, several=False):
  tally = metrics.Tally(10)
  for row in range(total):
    tally.add({1, 2} if several else {1}, [0 if row < wrong else 1, 3, 4, 5, 6])
  return tally


def test_the_published_figure_stands_beside_the_measured():
  record = lookup.find('paddle', 50)
  against = published.Standard(
    'paddle-50', record.accuracies[0], changes=('rounding x',)
  )
  found = report.figures(_tally(25, 100), against)
  assert found['top1_error']['published'] == 24.9
  assert found['top1_error']['difference'] == pytest.approx(0.1)
  assert found['top1_error']['inside'] is True
  # The document gives no top-5.
  assert 'published' not in found['top5_error']
  assert found['published']['notes'] == [
    'run with rounding x',
    'of 50000 images; these are 100',
  ]
  first, second = report.rows('val', found)
  assert first['published'] == '24.9'
  assert first['difference'] == '+0.100'
  assert first['published is'] == 'inside the interval'
  assert second['published'] == '-'
  far = report.figures(_tally(60, 100), against)
  assert report.rows('val', far)[0]['published is'] == 'outside the interval'
  none = report.figures(_tally(25, 100), published.Standard('paddle-50'))
  assert none['not_published'] == report.NO_PROTOCOL
  several = report.figures(_tally(25, 100, True), against)
  assert several['not_published'] == report.NOT_THESE
  assert report.remarks('v', several | {'diagnosis': 'wrong order'})[-1] == (
    'labels v: wrong order'
  )


def test_evidence_is_added_once(tmp_path):
  path = tmp_path / 'new' / 'evidence.jsonl'
  line = {'date': '1', 'command': 'a', 'percent': 24.9}
  assert evidence.append(path, [line]) == [line]
  assert evidence.append(path, [line | {'date': '2', 'command': 'b'}]) == []
  other = line | {'percent': 25}
  assert evidence.append(path, [line, other]) == [other]
  assert evidence.read(path) == [line, other]
  path.write_text('{"percent": 1}')
  with pytest.raises(errors.UserError, match='its last line breaks off'):
    evidence.append(path, [line])


# ------------------------------------------------------- the published tables


def test_every_published_figure_of_the_two_pages_is_a_target():
  found = [(t.name, t.published) for t in targets.TARGETS]
  assert found == [
    ('paddle-50-one', 24.9),
    ('paddle-101-one', 23.7),
    ('paddle-152-one', 23.2),
    ('msra-50-one', 24.7),
    ('msra-101-one', 23.6),
    ('msra-152-one', 23.0),
    ('msra-50-ten', 22.9),
    ('msra-101-ten', 21.8),
    ('msra-152-ten', 21.4),
  ]


def test_evidence_is_of_all_images_and_the_last_counts(tmp_path, monkeypatch):
  target = targets.TARGETS[8]
  of = {
    'checkpoint': 'msra-152',
    'protocol': target.accuracy.protocol.describe(),
    'notes': [],
  }
  line = {
    'published': of,
    'trained': True,
    'images': 50_000,
    'top1_error': {'percent': 21.5, 'low': 21.1, 'high': 21.9},
    'device': 'gpu H200',
    'date': '2026-11-24T00:00:00+00:00',
  }
  path = tmp_path / 'accuracy.jsonl'
  monkeypatch.setattr(tables, 'RESULTS', tmp_path)
  empty = tables.results_table()
  assert empty.count('not measured') == 9
  for no in (
    {'images': 100},
    {'trained': False},
    {'published': None, 'not_published': report.NO_PROTOCOL},
    # As earlier versions wrote it.
    {'published': report.NO_PROTOCOL},
    {'published': of | {'checkpoint': 'keras-152'}},
    {'published': of | {'notes': ['run with channels RGB for BGR']}},
  ):
    evidence.append(path, [line | no])
  assert targets.measured(path) == {}
  new = line | {'top1_error': {'percent': 21.4, 'low': 21.0, 'high': 21.8}}
  evidence.append(path, [line, new])
  assert targets.measured(path) == {target: new}
  rows = tables.results_table().splitlines()
  assert rows[-1].endswith(
    '| 21.4 | 21.40 | 21.00 to 21.80 | 50000 | gpu H200 | 2026-11-24 |'
  )
  assert rows[2:-1] == empty.splitlines()[2:-1]


def test_what_has_weights_is_run(tmp_path, monkeypatch, capsys):
  commands = []

  def run(command, check):
    assert not check
    commands.append(command)
    return subprocess.CompletedProcess(command, len(commands) - 1)

  monkeypatch.setattr(reproduce.subprocess, 'run', run)
  monkeypatch.setattr(tables, 'main', lambda: None)
  (tmp_path / 'resnet_50').mkdir()
  caffe = tmp_path / 'ResNet-101-model.caffemodel'
  caffe.write_bytes(b'')
  failed = reproduce.main(
    ['--data=val.tar', '--labels=val.txt', f'--weights={tmp_path}']
  )
  assert failed == 2
  assert capsys.readouterr().out.count(': its weights are not in') == 6
  assert [command[4] for command in commands] == [
    f'--config=configs/resnet.py:{depth}' for depth in (50, 101, 101)
  ]
  assert '--config.checkpoint=paddle-50' in commands[0]
  assert f'--config.weights={tmp_path / "resnet_50"}' in commands[0]
  assert '--config.multi_crop=false' in commands[1]
  assert '--config.multi_crop=true' in commands[2]
  assert f'--config.weights={caffe}' in commands[2]
