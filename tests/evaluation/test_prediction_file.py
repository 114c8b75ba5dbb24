# SPDX-License-Identifier: Apache-2.0
"""The file of predictions: written, resumed, read, and of earlier versions."""

import dataclasses
import json

import numpy as np
import pytest

from resnet_jax.evaluation import prediction_file, prediction_record
from resnet_jax.evaluation.prediction import ClassScore
from resnet_jax.system import errors, files

HEADER = prediction_record.Header(
  {'model': 'x', 'classes': 9, 'images': 5, 'images_sha256': 'ff'},
  {'rows': 2},
  {'labels': {'own': 'a list'}},
)
BEST = (ClassScore(1, 'n1', 'öne', 0.5), ClassScore(2, 'n2', 'two', 0.25))


def _image(key, best=BEST, failed=''):
  return prediction_record.ImagePrediction(
    key, f'photos/{key}', {'own': (1,)}, best, failed
  )


def _write(path, count=5):
  with prediction_file.PredictionWriter(path, HEADER, 2) as writer:
    writer.write([_image(f'ü {row}') for row in range(count - 1)])
    writer.write([_image('last', (), 'it is\nbroken')])
    writer.publish()


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / 'p.jsonl'
  _write(path)
  keys = [*(f'ü {row}' for row in range(4)), 'last']
  found = list(prediction_file.images(path, keys))
  assert found[:4] == [_image(key) for key in keys[:4]]
  assert found[4] == _image('last', (), 'it is\nbroken')
  assert prediction_file.is_finished(path, HEADER)
  assert not prediction_file.is_finished(tmp_path / 'other', HEADER)


@pytest.mark.parametrize(
  ('keys', 'expected'),
  [
    (['a'], 'image 0, is ü 0, and should be a'),
    (['ü 0', 'ü 1', 'ü 2', 'ü 3'], 'image 4, is last, and should be none'),
    (
      ['ü 0', 'ü 1', 'ü 2', 'ü 3', 'last', 'z'],
      'image 5, is missing, and should be z',
    ),
  ],
)
def test_other_images_are_an_error(tmp_path, keys, expected):
  _write(tmp_path / 'p.jsonl')
  with pytest.raises(errors.UserError, match=expected):
    list(prediction_file.images(tmp_path / 'p.jsonl', keys))


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (b'{"key": "a"', 'breaks off'),
    (b'nonsense\n', 'not JSON'),
    (b'\xff\xfe\n', 'not JSON'),
    (b'[' * 100_000 + b'\n', 'not JSON'),
    (b'[1]\n', 'not a JSON object'),
    (b'{"labels": {}, "failed": "x"}\n', 'key is missing'),
    (b'{"key": "a", "labels": {"v": [-1]}, "failed": "x"}\n', 'not lists'),
    (b'{"key": "a", "labels": {"v": [true]}, "failed": "x"}\n', 'not lists'),
    (b'{"key": "a", "labels": [], "failed": "x"}\n', 'not lists'),
    (b'{"key": "a", "labels": {}}\n', 'neither predictions nor a reason'),
    *(
      (b'{"key": "a", "labels": {}, "best": %s}\n' % best, 'labels of 0 to 8')
      for best in (
        b'3',
        b'[1]',
        b'[[1, 0.5]]',
        b'[{"label": 1, "probability": 0.5}]',
        b'[{"label": -1, "wnid": "", "name": "", "probability": 0.5}]',
        b'[{"label": 9, "wnid": "", "name": "", "probability": 0.5}]',
        b'[{"label": true, "wnid": "", "name": "", "probability": 0.5}]',
        b'[{"label": 1, "wnid": 2, "name": "", "probability": 0.5}]',
        b'[{"label": 1, "wnid": "", "name": "", "probability": NaN}]',
        b'[{"label": 1, "wnid": "", "name": "", "probability": "1"}]',
      )
    ),
    (
      b'{"key": "a", "labels": {}, "failed": "x", "best":'
      b' [{"label": 1, "wnid": "", "name": "", "probability": 0.5}]}\n',
      'or both',
    ),
  ],
)
def test_a_damaged_line_is_named(tmp_path, line, expected):
  path = tmp_path / 'p.jsonl'
  _write(path)
  path.write_bytes(path.read_bytes() + line)
  message = f'p.jsonl, line 7, is damaged: .*{expected}'
  with pytest.raises(errors.UserError, match=message):
    list(prediction_file.PredictionReader(path))


@pytest.mark.parametrize(
  'first',
  [
    b'',
    b'{}\n',
    b'{"format": "resnet_jax predictions 2"}\n',
    b'{"format": "resnet_jax predictions 2", "settings": {}, "run": {},'
    b' "record": {}}\n',
    b'{"format": "resnet_jax predictions 2", "settings": [], "run": {},'
    b' "record": {}}\n',
    b'{"format": "resnet_jax predictions 3", "settings": {"classes": 9},'
    b' "run": {}, "record": {}}\n',
    b'{"key": "a.png", "predicted": 3}\n',
    b'\x89PNG',
  ],
)
def test_another_file_is_none_of_predictions(tmp_path, first):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(first)
  with pytest.raises(errors.UserError, match='is not a prediction file'):
    prediction_file.PredictionReader(path)
  if first:
    # Somebody's file under the name of ours in the making stays as it is.
    part = files.part(path)
    part.write_bytes(first)
    with pytest.raises(errors.UserError, match='is not a prediction file'):
      prediction_file.PredictionWriter(path, HEADER, 2)
    assert part.read_bytes() == first


def test_two_processes_do_not_write_one_file(tmp_path):
  path = tmp_path / 'p.jsonl'
  with (
    prediction_file.PredictionWriter(path, HEADER, 2),
    pytest.raises(errors.UserError, match='another process is at work'),
  ):
    prediction_file.PredictionWriter(path, HEADER, 2)
  with prediction_file.PredictionWriter(path, HEADER, 2) as writer:
    assert writer.done == 0


def test_a_run_that_stopped_before_its_first_batch_starts_over(tmp_path):
  path = tmp_path / 'p.jsonl'
  with prediction_file.PredictionWriter(path, HEADER, 2):
    pass
  other = dataclasses.replace(HEADER, settings={**HEADER.settings, 'x': 1})
  with prediction_file.PredictionWriter(path, other, 2) as writer:
    assert writer.done == 0
    writer.publish()
  assert prediction_file.PredictionReader(path).header == other


def test_a_damaged_line_is_found_before_a_run_resumes(tmp_path):
  path = tmp_path / 'p.jsonl'
  _write(path)
  part = files.part(path)
  part.write_bytes(path.read_bytes().replace(b'"best"', b'"bets"', 1))
  with pytest.raises(errors.UserError, match='line 2, is damaged'):
    prediction_file.PredictionWriter(path, HEADER, 2)


# ------------------------------------------------------------------ its fields


def test_three_lines_read_it(tmp_path):
  _write(tmp_path / 'p.jsonl')
  with open(tmp_path / 'p.jsonl', encoding='utf-8') as file:
    header, *images = map(json.loads, file)
  assert header['format'] == 'resnet_jax predictions 2'
  assert list(header) == ['format', 'settings', 'run', 'record']
  assert list(images[0].items()) == [
    ('key', 'ü 0'),
    ('path', 'photos/ü 0'),
    ('labels', {'own': [1]}),
    ('predicted', 1),
    (
      'best',
      [
        {'label': 1, 'wnid': 'n1', 'name': 'öne', 'probability': 0.5},
        {'label': 2, 'wnid': 'n2', 'name': 'two', 'probability': 0.25},
      ],
    ),
  ]
  assert images[4] == {
    'key': 'last',
    'path': 'photos/last',
    'labels': {'own': [1]},
    'failed': 'it is\nbroken',
  }


def test_probabilities_have_no_more_digits_than_a_float32():
  for value in np.random.default_rng(0).random(200, np.float32):
    score = ClassScore(1, '', '', float(value))
    short = prediction_record.shortened(score).probability
    assert np.float32(short) == value
    assert len(repr(short)) <= 15


@pytest.mark.parametrize(
  ('lines', 'done'), [(0, 0), (1, 0), (2, 0), (3, 2), (4, 2), (5, 4), (6, 5)]
)
def test_whole_batches_are_kept(tmp_path, lines, done):
  path = tmp_path / 'p.jsonl'
  _write(path)
  text = path.read_bytes()
  left = b''.join(text.splitlines(keepends=True)[:lines])
  for torn in (b'', b'{"key": "torn'):
    files.part(path).write_bytes(left + (torn if lines else b''))
    with prediction_file.PredictionWriter(path, HEADER, 2) as writer:
      assert writer.done == done
      writer.write([_image(f'ü {row}') for row in range(done, 4)])
      if done < 5:
        writer.write([_image('last', (), 'it is\nbroken')])
      writer.publish()
    assert path.read_bytes() == text


def test_other_labels_and_the_same_predictions(tmp_path):
  path = tmp_path / 'p.jsonl'
  _write(path)
  keys = [*(f'ü {row}' for row in range(4)), 'last']
  labels = [{'own': (row,), 'real': (row, 7)} for row in range(5)]
  before = list(prediction_file.images(path, keys))
  prediction_file.relabel(path, keys, labels, {'labels': 'others'})
  after = list(prediction_file.images(path, keys))
  assert [image.labels for image in after] == labels
  assert [i.best for i in after] == [i.best for i in before]
  header = prediction_file.PredictionReader(path).header
  assert header.record == {'labels': 'others'}
  assert header.settings == HEADER.settings


# -------------------------------------------------------- of earlier versions

NAMES = [f'name {label}' for label in range(9)]
FORMAT_1 = (
  {
    'format': 'resnet_jax predictions 1',
    'settings': {
      'model': 'x',
      'classes': 9,
      'pictures': 5,
      'pictures_sha256': 'ff',
    },
    'run': {'rows': 2},
    'record': {'class_names': NAMES},
  },
  {'key': 'a', 'labels': {'own': [1]}, 'best': [[3, 0.75], [1, 0.125]]},
  {'key': 'b', 'labels': {'own': []}, 'failed': 'broken'},
)


def _format_1(lines=FORMAT_1):
  return ''.join(json.dumps(line) + '\n' for line in lines).encode()


def test_a_file_of_format_1_is_read_and_gets_names(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(_format_1())
  assert prediction_file.is_finished(path, HEADER)
  found = list(prediction_file.images(path, ['a', 'b']))
  best = (ClassScore(3, '', 'name 3', 0.75), ClassScore(1, '', 'name 1', 0.125))
  image = prediction_record.ImagePrediction('a', 'a', {'own': (1,)}, best)
  assert found[0] == image
  assert found[1].failed == 'broken'
  labels = [{'real': (2,)}, {'real': ()}]
  prediction_file.relabel(path, ['a', 'b'], labels, {})
  reader = prediction_file.PredictionReader(path)
  assert reader.format == 2
  assert reader.header.settings == HEADER.settings
  assert [i.best for i in reader] == [best, ()]


@pytest.mark.parametrize(
  'best', [[[9, 0.5]], [[-1, 0.5]], [[1]], [1], [['1', 1]]]
)
def test_a_damaged_line_of_format_1_is_named(tmp_path, best):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(_format_1([*FORMAT_1, FORMAT_1[1] | {'best': best}]))
  with pytest.raises(errors.UserError, match='line 4, is damaged: its best'):
    list(prediction_file.PredictionReader(path))


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (_format_1(), 'was begun by an earlier version of this program. Finish'),
    (
      b'{"key": "a", "predicted": 3, "best": [], "weights_sha256": "ff"}\n',
      'it has no header; --job=predict of an earlier version wrote it. Choose',
    ),
  ],
)
def test_an_unfinished_file_of_an_earlier_version_stays(
  tmp_path, text, expected
):
  path = tmp_path / 'p.jsonl'
  files.part(path).write_bytes(text)
  with pytest.raises(errors.UserError, match=expected):
    prediction_file.PredictionWriter(path, HEADER, 2)
  assert files.part(path).read_bytes() == text
