# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, and says what it cannot measure; never how fast it is."""

import importlib.util
import json

import pytest
import speed
from conftest import ROOT
from makers import run_python


def _benchmark(folder, *arguments):
  script = ROOT / 'experiments/benchmark.py'
  done = run_python(folder, script, *arguments, check=0)
  text = (folder / 'experiments/results/benchmark.jsonl').read_text()
  return done.stdout, [json.loads(line) for line in text.splitlines()]


def test_contenders_take_turns_and_what_is_missing_is_said(tmp_path):
  said, lines = _benchmark(
    tmp_path,
    *('compute', '--depths', '18', '--batches', '1', '2', '--rounds', '2'),
    *('--seconds', '0.01', '--contenders', 'resnet_jax', 'ONNX Runtime'),
  )
  ours, theirs = lines
  assert ours['contender'] == 'resnet_jax'
  assert set(ours['all']) == {'1', '2'}
  assert ours['least'] <= ours['images_per_second'] <= ours['most']
  # The network's own multiply-adds (docs/which_resnet.md), and both bounds.
  assert round(ours['multiply_adds'] / 1e9, 2) == 1.81
  assert ours['fraction_of_peak'] == pytest.approx(
    ours['images_per_second']
    * ours['multiply_adds']
    / ours['peak_multiply_adds_per_second']
  )
  assert ours['fraction_of_memory'] > 0
  assert {'jax', 'flax'} <= set(ours['peer']['versions'])
  if not importlib.util.find_spec('onnxruntime'):
    assert theirs['images_per_second'] is None
    assert 'ONNX Runtime: not installed: onnxruntime' in said


def test_each_arithmetic_is_compared_on_the_same_images(tmp_path):
  (tmp_path / 'example').symlink_to(ROOT / 'example')
  _, lines = _benchmark(
    tmp_path, 'arithmetic', '--depths', '18', '--count', '2'
  )
  found = {line['arithmetic']: line for line in lines}
  assert set(found) == {'float32', 'tf32', 'bfloat16'}
  assert 0 < found['float32']['largest']['res5_2_addto'] < 5e-4
  # Eight bits of a mantissa: measured 0.02.
  assert 1e-3 < found['bfloat16']['rms']['res5_2_addto'] < 0.1
  assert all(line['images'] == 2 for line in lines)


@pytest.mark.parametrize(
  'table',
  [
    speed.compute,
    speed.files,
    speed.end_to_end,
    speed.decode,
    speed.workers,
    speed.arithmetic,
    speed.start,
    speed.growth,
    speed.layers,
  ],
)
def test_tables_have_as_many_cells_as_columns(table):
  columns, rows = table()
  assert rows
  assert all(len(row) == len(columns) for row in rows)
