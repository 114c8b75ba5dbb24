# SPDX-License-Identifier: Apache-2.0
"""What all feature formats have in common, and hostile stores."""

import errno
import json
import os

import numpy as np
import pytest
import zarr
from makers import contents

import resnet_jax
from resnet_jax import features
from resnet_jax.features import output, stream, table
from resnet_jax.system import errors

LAYERS = {'b_layer': (3, 2, 2), 'a_layer': (4, 1, 1)}
FACTS = table.Facts({'model': 'x', 'seed': 1}, {'note': 'ü'})
FORMS = tuple(features.FORMATS)


def plan_of(rows, batch=3, dtype='float32', layers=None):
  keys = [f'd{i % 2}/p{i} ü.png' for i in range(rows)]
  return table.FeatureTable(
    keys, list(range(rows)), layers or LAYERS, dtype, batch
  )


def values_of(plan):
  random = np.random.default_rng(0)
  return {
    name: random.normal(size=(plan.rows, *shape)).astype(plan.dtype)
    for name, shape in plan.layers.items()
  }


def write(form, directory, plan, *, stop=None, reasons=None, facts=FACTS):
  """Writes rows from where a run stopped up to `stop`; then publishes."""
  kind = features.FORMATS[form]
  path = output.make_part(directory, lambda p: kind.create(p, plan, facts))
  writer = kind.writer(path, plan)
  values = values_of(plan)
  stop = plan.rows if stop is None else stop
  for start in range(writer.done, stop, plan.batch_rows):
    rows = slice(start, min(start + plan.batch_rows, plan.rows))
    texts = (reasons or [''] * plan.rows)[rows]
    writer.write(start, {k: v[rows] for k, v in values.items()}, texts)
  if stop == plan.rows:
    writer.finish()
    output.publish(directory)
  return writer


# ------------------------------------------------------------- all formats


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('stop', [0, 3, 6])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, form, stop):
  plan = plan_of(8)
  write(form, tmp_path / 'whole', plan)
  write(form, tmp_path / 'halted', plan, stop=stop)
  assert not (tmp_path / 'halted').exists()
  writer = write(form, tmp_path / 'halted', plan)
  assert writer.done == 8
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', FORMS)
def test_a_crash_before_the_progress_is_noted_changes_nothing(
  tmp_path, form, monkeypatch
):
  plan = plan_of(8)
  write(form, tmp_path / 'whole', plan)

  def crash(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  write(form, tmp_path / 'halted', plan, stop=3)
  kind = features.FORMATS[form]
  writer = kind.writer(tmp_path / 'halted.part', plan)
  rows = {k: v[3:6] for k, v in values_of(plan).items()}
  if form == 'zarr':

    class Crashing:
      __getitem__ = crash

    monkeypatch.setitem(writer._arrays, 'status', Crashing())
  else:
    monkeypatch.setattr(stream, '_write_json', crash)
  with pytest.raises(errors.UserError) as caught:
    writer.write(3, rows, [''] * 3)
  assert 'cannot write features to' in str(caught.value)
  assert 'No space left on device' in str(caught.value)
  assert 'make room' in str(caught.value)
  monkeypatch.undo()
  assert kind.writer(tmp_path / 'halted.part', plan).done == 3
  write(form, tmp_path / 'halted', plan)
  assert contents(tmp_path / 'halted') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('form', FORMS)
def test_the_plan_is_an_upper_bound_that_is_near(tmp_path, form):
  plan = plan_of(7, layers={'a': (64, 12, 12), 'b': (500, 1, 1)})
  write(form, tmp_path / 'out', plan)
  written = sum(
    len(data)
    for name, data in contents(tmp_path / 'out').items()
    if not name.endswith('.json')
  )
  planned = features.FORMATS[form].planned_bytes(plan, plan.rows)
  # Text is planned at its longest; the store pads its last batch.
  assert written <= planned < 1.5 * written


@pytest.mark.parametrize('form', FORMS)
def test_settings_are_compared_before_anything_is_written(tmp_path, form):
  directory = tmp_path / 'out'
  read = features.FORMATS[form].read_settings
  assert not output.is_finished(directory, FACTS.settings, read)
  write(form, directory, plan_of(4), stop=3)
  assert not output.is_finished(directory, FACTS.settings, read)
  with pytest.raises(errors.UserError) as caught:
    output.is_finished(directory, {'model': 'y', 'new': 2}, read)
  message = str(caught.value)
  assert "model is 'x' there, 'y' now" in message
  assert 'new is None there, 2 now' in message
  assert 'seed is 1 there, None now' in message
  assert 'Choose another output_dir' in message
  write(form, directory, plan_of(4))
  assert output.is_finished(directory, FACTS.settings, read)


@pytest.mark.parametrize('name', ['.', '..', 'a/..', '/', 'a/../..'])
def test_an_output_directory_needs_a_name(name):
  with pytest.raises(errors.UserError, match='name a folder of its own'):
    output.checked(name)
  assert str(output.checked('new/../out/')) == 'out'


def test_one_process_at_a_time(tmp_path):
  write('zarr', tmp_path / 'out', plan_of(8), stop=3)
  with output.lock(tmp_path / 'out'):
    busy = pytest.raises(errors.UserError, match='another process is at work')
    with busy, output.lock(tmp_path / 'out'):
      pass
  with output.lock(tmp_path / 'out'):
    pass


def test_a_link_to_a_folder_gets_the_features(tmp_path):
  (tmp_path / 'disk' / 'out').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'out')
  write('zarr', output.checked(str(tmp_path / 'link')), plan_of(4))
  assert len(resnet_jax.load_features(tmp_path / 'link').rows) == 4


def test_a_folder_that_cannot_be_replaced_is_said_at_once(
  tmp_path, monkeypatch
):
  (tmp_path / 'out').mkdir()

  def busy(_):
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

  monkeypatch.setattr('pathlib.Path.rmdir', busy)
  with pytest.raises(errors.UserError, match=r'busy\. Choose another place'):
    write('zarr', tmp_path / 'out', plan_of(4))
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_store_of_nothing_but_failures_is_read(tmp_path):
  plan = plan_of(4)
  form = features.FORMATS['zarr']
  path = output.make_part(
    tmp_path / 'out', lambda p: form.create(p, plan, FACTS)
  )
  writer = form.writer(path, plan)
  for start in (0, 3):
    count = min(3, 4 - start)
    nothing = {k: np.full((count, *s), np.nan, 'f4') for k, s in LAYERS.items()}
    writer.write(start, nothing, ['broken'] * count)
  output.publish(tmp_path / 'out')
  store_there = resnet_jax.load_features(tmp_path / 'out')
  assert np.isnan(store_there['a_layer'][:]).all()
  assert list(store_there.status) == [2] * 4


def test_a_run_of_another_format_is_recognised(tmp_path):
  write('zarr', tmp_path / 'out', plan_of(4))
  assert features.read_settings(tmp_path / 'out') == FACTS.settings
  write('text', tmp_path / 'text', plan_of(4))
  assert features.read_settings(tmp_path / 'text') == FACTS.settings
  assert features.read_settings(tmp_path) is None


def test_an_empty_directory_and_a_crash_while_creating_are_fine(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out.part.new').mkdir()
  (tmp_path / 'out.part.new' / 'half').write_text('')
  write('zarr', tmp_path / 'out', plan_of(4))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out']


# ---------------------------------------------------------------- the store


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_the_store_is_read_by_us_and_by_zarr(tmp_path, dtype):
  plan = plan_of(8, dtype=dtype)
  reasons = [''] * 8
  reasons[4] = 'it is brökn'
  writer = write('zarr', tmp_path / 'out', plan, reasons=reasons)
  assert writer.failed == 1
  ours = resnet_jax.load_features(tmp_path / 'out')
  theirs = zarr.open_group(tmp_path / 'out', mode='r')
  values = values_of(plan)
  assert set(ours) == set(LAYERS)
  for name, expected in values.items():
    assert ours[name].shape == theirs[name].shape == expected.shape
    assert ours[name].dtype == theirs[name].dtype == expected.dtype
    np.testing.assert_array_equal(ours[name][:], expected)
    np.testing.assert_array_equal(np.asarray(ours[name]), expected)
    np.testing.assert_array_equal(theirs[name][:], expected)
    for index in (
      *(-1, slice(None, None, -2), [5, 0], (slice(2, 5), 1), (3, -1, 0, 0)),
      *(slice(9, 9), (slice(5, 5), 1), expected[:, 0, 0, 0] > 0, (...,)),
    ):
      np.testing.assert_array_equal(ours[name][index], expected[index])
    for index in (8, -9):
      with pytest.raises(IndexError):
        ours[name][index]
    np.testing.assert_array_equal(ours[name][()], expected)
    for index in ((0, [1]), (..., 0), (None, 0)):
      with pytest.raises(IndexError, match='index the rows first'):
        ours[name][index]
  assert ours.rows == list(plan.keys) == list(theirs['keys'][:])
  assert list(ours.labels) == list(theirs['labels'][:]) == list(range(8))
  assert list(ours.status) == list(theirs['status'][:])
  assert list(ours.status) == [1, 1, 1, 1, 2, 1, 1, 1]
  assert ours.reasons == reasons == list(theirs['reason'][:])
  assert dict(theirs.attrs) == {
    'settings': FACTS.settings,
    'record': FACTS.record,
  }
  assert ours.settings == FACTS.settings
  assert ours.record == FACTS.record


def _edit_json(change):
  def edit(data):
    value = json.loads(data)
    change(value)
    return json.dumps(value).encode()

  return edit


@pytest.mark.parametrize(
  ('file', 'change'),
  [
    ('zarr.json', lambda d: d[:-9]),
    ('zarr.json', lambda d: b'[]'),
    ('keys/c/0', lambda d: d[:-1]),
    ('keys/c/0', lambda d: b'\xff\xff\xff\xff' + d[4:]),
    ('keys/c/0', lambda d: d[:4] + b'\xff\xff\xff\xff' + d[8:]),
    ('keys/zarr.json', _edit_json(lambda v: v.update(shape=[10**12]))),
    ('keys/zarr.json', _edit_json(lambda v: v.update(codecs=[]))),
    ('a_layer/zarr.json', _edit_json(lambda v: v['shape'].insert(0, 10**9))),
    ('a_layer/zarr.json', _edit_json(lambda v: v.update(shape=[8, 4, 9, 9]))),
    (
      'labels/zarr.json',
      _edit_json(lambda v: v.update(shape=[10**12])),
    ),
    ('status/c/0', lambda d: bytes([d[0] ^ 1]) + d[1:]),
  ],
)
def test_a_damaged_store_is_refused(tmp_path, file, change):
  write('zarr', tmp_path / 'out', plan_of(8))
  path = tmp_path / 'out' / file
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(
    errors.UserError, match=r'no feature store, or a damaged|is damaged:'
  ):
    resnet_jax.load_features(tmp_path / 'out')


@pytest.mark.parametrize(
  'change', [lambda d: d[:-3], lambda d: bytes([d[0] ^ 1]) + d[1:]]
)
def test_a_damaged_chunk_is_noticed_when_it_is_read(tmp_path, change):
  write('zarr', tmp_path / 'out', plan_of(8))
  chunk = tmp_path / 'out/a_layer/c/1/0/0/0'
  chunk.write_bytes(change(chunk.read_bytes()))
  layer = resnet_jax.load_features(tmp_path / 'out')['a_layer']
  assert np.isfinite(layer[:3]).all()
  with pytest.raises(errors.UserError, match=r'is damaged: .*Extract the feat'):
    layer[:]
