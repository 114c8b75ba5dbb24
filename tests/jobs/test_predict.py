# SPDX-License-Identifier: Apache-2.0
"""The job `predict`, run as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, make_image_folder, run_program
from makers import Started
from PIL import Image

import resnet_jax
from resnet_jax.data import crops, labels

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')

FLAGS = (
  '--job=predict',
  '--config=configs/resnet.py:18,weights=random,data=images',
)


def _records(path):
  header, *images = map(json.loads, path.read_text().splitlines())
  assert header['format'] == 'resnet_jax predictions 2'
  return images


def test_the_originals_line_and_the_five_best(run_main, image_folder):
  (image_folder / 'all.list').write_text('c d.png 7\nx/g.png\n')
  flags = (
    '--config.data=images/all.list',
    '--config.predictions=new/predictions.jsonl',
  )
  done = run_main(*FLAGS, *flags, check=0)
  assert done.stderr.count('UNTRAINED') == 2
  assert 'stages, images/s: read ' in done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 12

  model = resnet_jax.load('resnet18', weights='random')
  paths = [image_folder / 'c d.png', image_folder / 'x' / 'g.png']
  logits = model.features(paths, 'logits')[:, :, 0, 0].astype(np.float64)
  records = _records(image_folder.parent / 'new/predictions.jsonl')
  for row, name in enumerate(['c d.png', 'x/g.png']):
    powers = np.exp(logits[row] - logits[row].max())
    probabilities = powers / powers.sum()
    best = np.argsort(-probabilities)[:5]
    first, *scores = lines[6 * row : 6 * row + 6]
    assert first == f'Label of images/{name} is: {best[0]}'
    record = records[row]
    assert record['key'] == name
    assert record['path'] == f'images/{name}'
    assert record['predicted'] == best[0]
    assert record['labels'] == ({'labels': [7]} if row == 0 else {})
    for label, score, entry in zip(best, scores, record['best'], strict=True):
      probability, index, wnid, words = score.split(maxsplit=3)
      assert int(index) == entry['label'] == label
      known = labels.imagenet_classes()[label]
      assert wnid == entry['wnid'] == known.wnid
      assert words == entry['name'] == known.name
      assert float(probability) == pytest.approx(probabilities[label], abs=1e-4)
      assert entry['probability'] == pytest.approx(
        probabilities[label], rel=1e-3
      )


def test_ten_crops_average_probabilities_not_logits(run_main, image_folder):
  done = run_main(
    *FLAGS,
    '--config.multi_crop=true',
    '--config.data=images/b.jpg',
    '--config.predictions=p.jsonl',
    check=0,
  )
  assert 'ten crops of 224x224 averaged' in done.stderr
  single = resnet_jax.load('resnet18', weights='random')
  many = resnet_jax.load('resnet18', weights='random', multi_crop=True)
  cuts = crops.cut(
    Image.open(image_folder / 'b.jpg').convert('RGB'), many.preprocess
  )
  ten = np.concatenate([cuts, cuts[:, :, ::-1]])
  expected = single.features(ten, 'output').mean(axis=0).ravel()
  (record,) = _records(image_folder.parent / 'p.jsonl')
  assert record['predicted'] == expected.argmax()
  for entry in record['best']:
    assert entry['probability'] == pytest.approx(
      expected[entry['label']], rel=1e-4
    )


def test_a_broken_image_fails_or_is_recorded(run_main, image_folder):
  (image_folder / 'c d.png').write_bytes(b'\x89PNG broken')
  flags = (*FLAGS, '--config.predictions=p.jsonl')
  done = run_main(*flags)
  assert done.returncode == 1
  assert 'cannot read the image images/c d.png' in done.stderr
  assert not (image_folder.parent / 'p.jsonl').exists()
  done = run_main(*flags, '--config.on_error=record')
  assert done.returncode == 3
  assert 'FAILED: images/c d.png: ' in done.stderr
  assert done.stdout.count('Label of ') == 6
  records = _records(image_folder.parent / 'p.jsonl')
  assert len(records) == 7
  assert 'predicted' not in records[2]
  assert 'formats JPEG' in records[2]['failed']


SMALL = (
  '--job=predict',
  '--config=configs/resnet.py:18,weights=random,resize_size=40,crop_size=32,'
  'batch_size=2,data=images,predictions=p.jsonl',
)


def test_an_interrupted_run_resumes_to_the_same_bytes(run_main, image_folder):
  (image_folder / 'a.png').write_bytes(b'broken')
  flags = (*SMALL, '--config.on_error=record')
  whole = run_main(*flags, check=3)
  path = image_folder.parent / 'p.jsonl'
  part = image_folder.parent / 'p.jsonl.part'
  text = path.read_bytes()
  lines = text.splitlines(keepends=True)
  assert len(lines) == 8
  # In the middle of a line and of a batch; in the first line; at the end.
  for left, kept in (
    (b''.join(lines[:6]) + lines[6][:-9], 4),
    (lines[0][:5], 0),
    (text, 7),
  ):
    path.unlink()
    part.write_bytes(left)
    again = run_main(*flags, check=3)
    said = f'resuming after {kept} of 7 images'
    assert (said in again.stderr) == bool(kept)
    assert path.read_bytes() == text
    assert again.stdout == whole.stdout
    assert 'FAILED: images/a.png' in again.stderr
    assert not part.exists()


@pytest.mark.parametrize(
  ('change', 'settings', 'expected'),
  [
    (
      lambda text: text,
      ['multi_crop=true'],
      "preprocessing is 'shorter side to 40 (lanczos), centre crop",
    ),
    (
      lambda text: text,
      ['data=images/x'],
      'the number of images is 7 there, 2 now',
    ),
    (lambda text: text, ['batch_size=3'], 'batch_size is 2 there, 3 now'),
    (lambda text: b'{}\n' + text, [], 'its first line does not say'),
    (lambda text: text.split(b'\n', 1)[1], [], 'its first line does not say'),
    (lambda text: b'my notes\n', [], 'it is not JSON'),
    (lambda text: b'my notes', [], 'it breaks off'),
    (
      lambda text: text.replace(b'"best"', b'"bets"', 1),
      [],
      'line 2, is damaged: it has neither predictions nor a reason',
    ),
  ],
)
def test_what_is_not_of_this_run_stays(
  finished, run_main, change, settings, expected
):
  part = finished.parent / 'p.jsonl.part'
  text = change(finished.read_bytes())
  finished.unlink()
  part.write_bytes(text)
  flags = [f'--config.{setting}' for setting in settings]
  refused = run_main(*SMALL, *flags, check=1)
  assert 'p.jsonl.part' in refused.stderr
  assert expected in refused.stderr
  assert part.read_bytes() == text
  assert not finished.exists()


@pytest.fixture(scope='module')
def predicted(tmp_path_factory):
  """A folder with images, and their predictions in `p.jsonl`."""
  folder = tmp_path_factory.mktemp('predicted')
  make_image_folder(folder)
  run_program(folder, *SMALL, check=0)
  return folder


@pytest.fixture
def finished(predicted, tmp_path):
  """`p.jsonl` beside its images in `tmp_path`, where the program runs."""
  shutil.copytree(predicted, tmp_path, dirs_exist_ok=True)
  return tmp_path / 'p.jsonl'


def test_a_finished_file_is_shown_and_never_replaced(finished, run_main):
  text = finished.read_bytes()
  done = run_main(*SMALL, check=0)
  assert 'p.jsonl is finished already; the network is not run' in done.stderr
  assert done.stdout.count('Label of ') == 7
  refused = run_main(*SMALL, '--config.crop_size=36', check=1)
  assert 'p.jsonl holds predictions with other settings: prep' in refused.stderr
  finished.write_bytes(b'{"key": "a.png", "weights_sha256": "ff"}\n')
  refused = run_main(*SMALL, check=1)
  assert 'p.jsonl is not a prediction file: it has no header' in refused.stderr
  assert finished.read_bytes() == b'{"key": "a.png", "weights_sha256": "ff"}\n'
  finished.write_bytes(text)


EVALUATE = ('--job=evaluate', SMALL[1])


@pytest.mark.parametrize('kept', [4, 7])
def test_evaluate_takes_the_predictions_over(finished, run_main, kept):
  lines = finished.read_bytes().splitlines(keepends=True)
  keys = [record['key'] for record in _records(finished)]
  labels = ''.join(f'{key}\t{row}\n' for row, key in enumerate(keys))
  (finished.parent / 'own.txt').write_text(labels.replace('\t', ' '))
  if kept < 7:
    finished.unlink()
    part = finished.parent / 'p.jsonl.part'
    part.write_bytes(b''.join(lines[: 1 + kept]))
  done = run_main(*EVALUATE, '--config.labels=own.txt', check=0)
  said = 'resuming after 4 of 7' if kept < 7 else 'the network is not run'
  assert said in done.stderr
  assert 'p.jsonl has the labels of this run now' in done.stderr
  before = [json.loads(line) for line in lines[1:]]
  assert _records(finished) == [
    image | {'labels': {'own': [row]}} for row, image in enumerate(before)
  ]


@pytest.mark.parametrize('kept', [4, 7])
def test_predict_takes_an_evaluation_over(finished, run_main, kept):
  expected = finished.read_bytes()
  keys = [record['key'] for record in _records(finished)]
  finished.unlink()
  labels = ''.join(f'{key} {row}\n' for row, key in enumerate(keys))
  (finished.parent / 'own.txt').write_text(labels)
  run_main(*EVALUATE, '--config.labels=own.txt', check=0)
  evaluated = finished.read_bytes()
  if kept == 7:
    run_main(*SMALL, check=0)
    assert finished.read_bytes() == evaluated
    return
  part = finished.parent / 'p.jsonl.part'
  finished.unlink()
  part.write_bytes(b''.join(evaluated.splitlines(keepends=True)[: 1 + kept]))
  done = run_main(*SMALL, check=0)
  assert 'resuming after 4 of 7' in done.stderr
  # No image has labels of two kinds.
  assert finished.read_bytes() == expected


def test_ctrl_c_ends_a_run_that_resumes(run_main, image_folder):
  out, count = image_folder.parent, 240
  (image_folder / 'many.list').write_text('a.png\nb.jpg\n' * (count // 2))
  flags = (*SMALL, '--config.data=images/many.list')
  process = Started(out, *flags)
  part = out / 'p.jsonl.part'
  # The header, and a batch.
  assert process.wait_until(
    lambda: part.exists() and part.read_bytes().count(b'\n') > 2
  )
  assert process.interrupt() == -signal.SIGINT
  assert 'Traceback' not in process.said
  assert not (out / 'p.jsonl').exists()
  resumed = run_main(*flags, check=0)
  after = re.search(r'resuming after (\d+) of 240', resumed.stderr)
  assert after
  assert 2 <= int(after[1]) < count
  records = _records(out / 'p.jsonl')
  assert [record['key'] for record in records] == ['a.png', 'b.jpg'] * 120
  assert all(record == records[row % 2] for row, record in enumerate(records))


def test_a_folder_is_no_place_for_predictions(run_main, image_folder):
  done = run_main(*FLAGS, '--config.predictions=images')
  assert done.returncode == 1
  assert 'predictions=images is a folder; name a file' in done.stderr


def test_reading_the_output_to_its_head_only_is_no_crash(image_folder):
  command = [sys.executable, '-m', 'resnet_jax.main', *FLAGS]
  text = ' '.join(f"'{part}'" for part in command) + ' | head -1'
  done = subprocess.run(
    text,
    shell=True,
    cwd=image_folder.parent,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.count('Label of') == 1
  assert 'Traceback' not in done.stderr


def test_a_full_disk_is_one_message(image_folder):
  command = [sys.executable, '-m', 'resnet_jax.main', *FLAGS]
  text = ' '.join(f"'{part}'" for part in command)
  done = subprocess.run(
    f'ulimit -f 1; trap "" XFSZ; {text} --config.predictions=p.jsonl',
    shell=True,
    cwd=image_folder.parent,
    # Python would leave its own compiled files cut off, beside the sources; and
    # programs that cannot be kept are not what is tested.
    env=os.environ
    | {
      'PYTHONPATH': str(ROOT),
      'PYTHONDONTWRITEBYTECODE': '1',
      'RESNET_JAX_COMPILATION_CACHE': '0',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert 'cannot write predictions to p.jsonl: File too large' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (image_folder.parent / 'p.jsonl').exists()
