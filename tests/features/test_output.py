# SPDX-License-Identifier: Apache-2.0
"""The output directory of a run: refused, resumed, full, published."""

import errno
import json
import os
import pathlib
import resource
import shutil

import numpy as np
import pytest
from feature_runs import plan_of, write
from makers import contents

from resnet_jax import features
from resnet_jax.features import output, table
from resnet_jax.system import errors, files

FORMS = tuple(features.FORMATS)
SETTINGS = {'model': 'ResNet-50', 'layers': ['a', 'b'], 'mean': {'x': [1.5]}}
PLAN = table.FeatureTable(
  [f'{i}.png' for i in range(5)], [-1] * 5, {'a': (4, 2, 2)}, 'float32', 2
)
LIMIT = 100


def start(form, directory, settings=None):
  """Makes `.part` unless it is there, and opens it."""
  kind = features.FORMATS[form]
  facts = table.Facts(settings or SETTINGS, {})
  path = output.make_part(directory, lambda p: kind.create(p, PLAN, facts))
  return kind.writer(path, PLAN)


def write_batch(writer, failed=False):
  rows = range(writer.done, min(writer.done + PLAN.batch_rows, PLAN.rows))
  values = np.full((len(rows), 4, 2, 2), 0.1, np.float32)
  writer.write(writer.done, {'a': values}, ['broken' * failed] * len(rows))


def finish(form, directory, failed=False, settings=None):
  writer = start(form, directory, settings)
  while writer.done < PLAN.rows:
    write_batch(writer, failed)
  writer.finish()
  return writer


def is_finished(form, directory, settings=None):
  read = features.FORMATS[form].read_settings
  return output.is_finished(directory, settings or SETTINGS, read)


@pytest.fixture
def small_files():
  """No file may become longer than `LIMIT`: a disk that is full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ------------------------------------------------------ from new to finished


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('failed', [(), (1, 4, 7)], ids=str)
@pytest.mark.parametrize('stop', [0, 3, 6])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, form, failed, stop):
  plan = plan_of()
  write(form, tmp_path / 'whole', plan, failed=failed)
  write(form, tmp_path / 'halted', plan, stop=stop, failed=failed)
  assert not (tmp_path / 'halted').exists()
  write(form, tmp_path / 'halted', plan, done=stop, failed=failed)
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
@pytest.mark.parametrize('there', ['nothing', 'empty', 'empty .part'])
def test_the_name_is_given_to_what_is_whole(tmp_path, form, there):
  out, part = tmp_path / 'to' / 'out', tmp_path / 'to' / 'out.part'
  if there == 'empty':
    out.mkdir(parents=True)
  if there == 'empty .part':
    part.mkdir(parents=True)
  assert files.part(out) == part
  assert not is_finished(form, out)
  for done in (0, 2, 4):
    writer = start(form, out)
    assert writer.done == done
    assert not is_finished(form, out)
    write_batch(writer)
    assert not out.exists() or not any(out.iterdir())
    assert features.FORMATS[form].read_settings(part) == SETTINGS
  writer.finish()
  assert not out.exists() or not any(out.iterdir())
  before = contents(part)
  output.publish(out)
  assert [p.name for p in out.parent.iterdir()] == ['out']
  assert contents(out) == before
  assert not any(name.endswith('.part') for name in before)
  assert is_finished(form, out)
  output.check_finished(out)


@pytest.mark.parametrize('form', FORMS)
def test_what_is_there_is_not_made_again(tmp_path, form):
  write_batch(start(form, tmp_path / 'out'))
  before = contents(tmp_path / 'out.part')

  def create(_):
    raise AssertionError

  path = output.make_part(tmp_path / 'out', create)
  assert path == tmp_path / 'out.part'
  assert contents(path) == before


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('failed', [False, True])
def test_a_run_killed_before_it_got_its_name_is_whole(tmp_path, form, failed):
  finish(form, tmp_path / 'out', failed)
  before = contents(tmp_path / 'out.part')
  assert not is_finished(form, tmp_path / 'out')
  writer = start(form, tmp_path / 'out')
  assert (writer.done, writer.failed) == (5, 5 * failed)
  writer.finish()
  output.publish(tmp_path / 'out')
  assert contents(tmp_path / 'out') == before


@pytest.mark.parametrize('form', FORMS)
def test_a_run_killed_between_the_last_row_and_the_end_is_whole(tmp_path, form):
  finish(form, tmp_path / 'whole', failed=True)
  writer = start(form, tmp_path / 'out')
  while writer.done < PLAN.rows:
    write_batch(writer, failed=True)
  writer = start(form, tmp_path / 'out')
  assert (writer.done, writer.failed) == (5, 5)
  writer.finish()
  whole = contents(tmp_path / 'whole.part')
  assert contents(tmp_path / 'out.part') == whole


def test_check_finished_says_what_to_do(tmp_path):
  output.check_finished(tmp_path / 'out')
  (tmp_path / 'out.part').mkdir()
  with pytest.raises(errors.UserError) as caught:
    output.check_finished(tmp_path / 'out')
  assert str(caught.value) == (
    f'{tmp_path / "out"} is not finished: there is only'
    f' {tmp_path / "out.part"}. Start the same extract job again; it resumes.'
  )
  (tmp_path / 'out').mkdir()
  output.check_finished(tmp_path / 'out')


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize(
  ('changes', 'differences'),
  [
    ({'model': 'ResNet-18'}, ["model is 'ResNet-50' there, 'ResNet-18' now"]),
    (
      {'layers': ['b', 'a'], 'mean': {'x': [1.25]}, 'pool': 'avg'},
      [
        "layers is ['a', 'b'] there, ['b', 'a'] now",
        'x is [1.5] there, [1.25] now',
        "pool is None there, 'avg' now",
      ],
    ),
    ({'mean': None}, ["mean is {'x': [1.5]} there, None now"]),
  ],
)
def test_other_settings_are_named_one_by_one(
  tmp_path, form, published, changes, differences
):
  out = tmp_path / 'out'
  finish(form, out)
  place = files.part(out)
  if published:
    output.publish(out)
    place = out
  before = contents(tmp_path)
  with pytest.raises(errors.UserError) as caught:
    is_finished(form, out, SETTINGS | changes)
  message = str(caught.value)
  assert message.startswith(
    f'{place} holds a run with other settings: {"; ".join(differences)}. '
  )
  assert 'Choose another output_dir' in message
  assert 'use its settings' in message
  assert contents(tmp_path) == before


def test_a_setting_that_is_gone_is_a_difference(tmp_path):
  start('text', tmp_path / 'out', {'model': 'x', 'old': 1})
  with pytest.raises(errors.UserError, match=r'settings: old is 1 there, None'):
    is_finished('text', tmp_path / 'out', {'model': 'x'})


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', ['out', 'out.part'])
@pytest.mark.parametrize('kind', ['file', 'foreign', 'damaged', 'other format'])
def test_what_is_no_run_is_refused_and_left_alone(tmp_path, form, name, kind):
  place = tmp_path / name
  if kind == 'file':
    place.write_text('mine')
  elif kind == 'foreign':
    place.mkdir()
    (place / 'thesis.txt').write_text('mine')
  elif kind == 'damaged':
    place.mkdir()
    for file in ('run.json', 'zarr.json'):
      (place / file).write_text('{"settings": [1], "attributes": 3')
  else:
    finish('text' if form == 'zarr' else 'zarr', tmp_path / 'out')
    if name == 'out':
      output.publish(tmp_path / 'out')
  before = contents(tmp_path)
  assert before
  with pytest.raises(errors.UserError) as caught:
    is_finished(form, tmp_path / 'out')
  message = str(caught.value)
  assert message.startswith(f'{place} holds something that is not a run of ')
  assert 'Choose another output_dir' in message
  assert contents(tmp_path) == before


@pytest.mark.parametrize('form', FORMS)
def test_a_run_of_any_format_is_recognised(tmp_path, form):
  start(form, tmp_path / 'out')
  assert features.read_settings(tmp_path / 'out.part') == SETTINGS
  assert features.read_settings(tmp_path) is None


def test_settings_that_are_no_dict_are_no_run(tmp_path):
  for name, text in [
    ('run.json', '{"settings": [1]}'),
    ('zarr.json', '{"attributes": {"settings": [1]}}'),
  ]:
    (tmp_path / name).write_text(text)
  for kind in features.FORMATS.values():
    assert kind.read_settings(tmp_path) is None


def test_a_run_nested_too_deeply_is_no_run(tmp_path):
  for name in ('run.json', 'zarr.json'):
    (tmp_path / name).write_text('[' * 99_999 + ']' * 99_999)
  for kind in features.FORMATS.values():
    assert kind.read_settings(tmp_path) is None


def test_json_has_a_limit(tmp_path, monkeypatch):
  path = tmp_path / 'file.json'
  path.write_text('[1, 2]')
  assert files.read_json(path) == [1, 2]
  monkeypatch.setattr(files, '_MAX_JSON_BYTES', 5)
  with pytest.raises(ValueError, match='more than 5 bytes'):
    files.read_json(path)


def test_a_place_that_cannot_be_looked_into(tmp_path, monkeypatch):
  (tmp_path / 'out').mkdir()

  def refuse(_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

  monkeypatch.setattr(type(tmp_path), 'iterdir', refuse)
  with pytest.raises(errors.UserError) as caught:
    is_finished('zarr', tmp_path / 'out')
  assert str(caught.value) == (
    f'cannot read {tmp_path / "out"}: Permission denied. Choose another'
    ' output_dir.'
  )


@pytest.mark.parametrize('name', ['', '.', '..', 'a/..', '/', 'a/../..'])
def test_an_output_directory_needs_a_name(name):
  with pytest.raises(errors.UserError, match=r'=.*: name a folder of its own'):
    files.own_folder(name, 'output_dir')
  assert str(files.own_folder('new/../out/', 'output_dir')) == 'out'


def test_one_process_at_a_time(tmp_path):
  start('zarr', tmp_path / 'out')
  with output.lock(tmp_path / 'out'):
    busy = pytest.raises(errors.UserError, match='another process is at work')
    with busy, output.lock(tmp_path / 'out'):
      pass
  with output.lock(tmp_path / 'out'):
    pass


def test_a_link_to_a_folder_gets_the_features(tmp_path):
  (tmp_path / 'disk' / 'out').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'out')
  out = files.own_folder(str(tmp_path / 'link'), 'output_dir')
  finish('zarr', out)
  output.publish(out)
  assert len(features.load_features(tmp_path / 'link').rows) == 5


def test_a_folder_that_cannot_be_replaced_is_said_at_once(
  tmp_path, monkeypatch
):
  (tmp_path / 'out').mkdir()

  def busy(_):
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

  monkeypatch.setattr('pathlib.Path.rmdir', busy)
  with pytest.raises(errors.UserError, match=r'busy\. Choose another place'):
    start('zarr', tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['out']


# ------------------------------------------------- crashes and full disks


@pytest.mark.parametrize('form', FORMS)
def test_a_crash_while_creating_leaves_no_run(tmp_path, form):
  out = tmp_path / 'out'

  def create(path):
    assert path.parent == tmp_path
    assert path.name.startswith('out.part.new')
    (path / 'half').write_text('')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    output.make_part(out, create)
  (left,) = tmp_path.iterdir()
  assert left.name.startswith('out.part.new')
  assert not is_finished(form, out)
  finish(form, out)
  output.publish(out)
  assert [p.name for p in tmp_path.iterdir()] == ['out']
  assert not (out / 'half').exists()


@pytest.mark.usefixtures('small_files')
@pytest.mark.parametrize('form', FORMS)
def test_no_room_while_creating(tmp_path, form):
  with pytest.raises(errors.UserError) as caught:
    start(form, tmp_path / 'out', SETTINGS | {'long': 'x' * LIMIT})
  message = str(caught.value)
  assert message.startswith(
    f'cannot write features to {tmp_path / "out.part"}: '
  )
  assert 'File too large' in message
  assert message.endswith(
    '. Choose another place, or make room, and start again.'
  )
  assert not (tmp_path / 'out.part').exists()


@pytest.mark.parametrize('form', FORMS)
def test_no_room_while_writing(tmp_path, form, request):
  finish(form, tmp_path / 'whole')
  writer = start(form, tmp_path / 'out')
  write_batch(writer)
  request.getfixturevalue('small_files')
  with pytest.raises(errors.UserError) as caught:
    write_batch(writer)
  assert f'cannot write features to {tmp_path / "out.part"}: ' in str(
    caught.value
  )
  assert 'File too large' in str(caught.value)
  assert 'make room, and start again.' in str(caught.value)
  assert start(form, tmp_path / 'out').done == 2


@pytest.mark.parametrize('form', FORMS)
def test_a_run_resumes_when_there_is_room_again(tmp_path, form):
  finish(form, tmp_path / 'whole')
  writer = start(form, tmp_path / 'out')
  write_batch(writer)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
  try:
    with pytest.raises(errors.UserError):
      write_batch(writer)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert finish(form, tmp_path / 'out').done == 5
  whole = contents(tmp_path / 'whole.part')
  assert contents(tmp_path / 'out.part') == whole


def test_a_file_where_a_folder_must_be(tmp_path):
  (tmp_path / 'file').write_text('mine')
  out = tmp_path / 'file' / 'out'
  assert not is_finished('zarr', out)
  with pytest.raises(errors.UserError) as caught:
    start('zarr', out)
  assert str(caught.value) == (
    f'cannot write features to {out}.part: Not a directory. Choose another'
    ' place, or make room, and start again.'
  )
  assert (tmp_path / 'file').read_text() == 'mine'


def test_what_came_into_the_directory_meanwhile_is_left_alone(tmp_path):
  out = tmp_path / 'out'
  finish('text', out)
  out.mkdir()
  (out / 'thesis.txt').write_text('mine')
  before = contents(tmp_path)
  with pytest.raises(errors.UserError) as caught:
    output.publish(out)
  assert str(caught.value) == (
    f'cannot write features to {out}: Directory not empty. Choose another'
    ' place, or make room, and start again.'
  )
  assert contents(tmp_path) == before


@pytest.mark.parametrize('place', ['.', 'not/there/yet', 'file'])
def test_space_is_that_of_the_nearest_folder(tmp_path, monkeypatch, place):
  (tmp_path / 'file').write_text('')
  asked = []
  usage = shutil.disk_usage(tmp_path)._replace(free=1234567)

  def disk_usage(path):
    asked.append(path)
    return usage

  monkeypatch.setattr(shutil, 'disk_usage', disk_usage)
  monkeypatch.chdir(tmp_path)
  out = pathlib.Path(place)
  assert output.check_space(out, 0) == 1234567
  assert output.check_space(out, 1234567) == 1234567
  with pytest.raises(errors.UserError) as caught:
    output.check_space(out, 1234568)
  assert str(caught.value) == (
    f'1,234,568 bytes are to be written to {place}, and 1,234,567 are free'
    ' there. Make room, choose another output_dir, fewer layers, pool=avg or'
    ' dtype=float16.'
  )
  near = tmp_path / 'file' if place == 'file' else tmp_path
  assert asked == [near] * 3


@pytest.mark.parametrize(
  'code', [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT]
)
def test_writing_names_the_place_and_the_cause(tmp_path, code):
  with (
    pytest.raises(errors.UserError) as caught,
    files.writing('a thing', tmp_path / 'x'),
  ):
    raise OSError(code, os.strerror(code))
  assert str(caught.value) == (
    f'cannot write a thing to {tmp_path / "x"}: {os.strerror(code)}. Choose'
    ' another place, or make room, and start again.'
  )
  assert isinstance(caught.value.__cause__, OSError)


def test_writing_passes_other_errors_on():
  with (
    pytest.raises(KeyError, match='mine'),
    files.writing('a thing', pathlib.Path('x')),
  ):
    raise KeyError('mine')
  with (
    pytest.raises(errors.UserError, match=r'to x: told\. Choose'),
    files.writing('a thing', pathlib.Path('x')),
  ):
    raise OSError('told')


@pytest.mark.parametrize('there', [False, True])
@pytest.mark.parametrize('fails', ['write', 'fsync', 'replace'])
def test_an_atomic_write_that_fails_leaves_the_old(
  tmp_path, monkeypatch, request, fails, there
):
  path = tmp_path / 'file.json'
  if there:
    path.write_bytes(b'old')

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    if fails == 'write':
      request.getfixturevalue('small_files')
    else:
      patch.setattr(os, fails, full)
    with pytest.raises(OSError, match=r'No space left|File too large'):
      files.write_atomically(path, b'x' * (LIMIT + 1))
  assert path.exists() == there
  assert not there or path.read_bytes() == b'old'
  # The next write is not disturbed by what the failed one left.
  files.write_atomically(path, b'new')
  assert path.read_bytes() == b'new'
  assert [p.name for p in tmp_path.iterdir()] == ['file.json']


def test_the_settings_are_read_as_they_were_given(tmp_path):
  settings = {'ü': [1, 2.5, None, True], 'nested': {'a': {'b': 'ß'}}}
  for form, kind in features.FORMATS.items():
    start(form, tmp_path / form, settings)
    part = tmp_path / f'{form}.part'
    assert kind.read_settings(part) == settings
    name = 'zarr.json' if form == 'zarr' else 'run.json'
    assert json.loads((part / name).read_bytes())


# ------------------------------------------------------- earlier versions


def give_old_names(form, path):
  """Gives settings the names that they had in earlier versions."""
  file = path / ('zarr.json' if form == 'zarr' else 'run.json')
  text = file.read_text()
  assert '"images": 5' in text
  file.write_text(text.replace('"images', '"pictures'))


@pytest.mark.parametrize('form', FORMS)
def test_a_run_of_an_earlier_version_is_resumed_and_read(form, tmp_path):
  settings = {**SETTINGS, 'images': 5, 'images_sha256': 'ff'}
  write_batch(start(form, tmp_path / 'out', settings))
  part = tmp_path / 'out.part'
  give_old_names(form, part)
  assert not is_finished(form, tmp_path / 'out', settings)
  assert features.read_settings(part) == settings
  with pytest.raises(
    errors.UserError, match='the number of images is 5 there, 6 now'
  ):
    is_finished(form, tmp_path / 'out', settings | {'images': 6})
  writer = finish(form, tmp_path / 'out', settings=settings)
  assert writer.done == 5
  output.publish(tmp_path / 'out')
  assert is_finished(form, tmp_path / 'out', settings)
  if form == 'zarr':
    assert features.load_features(tmp_path / 'out').settings == settings
