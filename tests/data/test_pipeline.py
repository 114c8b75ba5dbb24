# SPDX-License-Identifier: Apache-2.0
"""Batches: order, padding, failures, threads and memory."""

import io
import threading
import time

import numpy as np
import pytest
from makers import HANGS, encoded, run_python, user_error, wait_until
from PIL import Image

from resnet_jax.data import crops, pipeline, preprocess, sources
from resnet_jax.system import cores, errors, timing

MEAN = (1.0, 2.0, 3.0)
HOW = preprocess.Preprocess(MEAN, resize_size=36, crop_size=32)
TEN = preprocess.Preprocess(MEAN, resize_size=36, crop_size=32, multi_crop=True)


def png(seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
  return encoded(pixels, 'PNG')


def item(number, data):
  def read():
    # So that images are not ready in the order in which they are wanted.
    time.sleep(0.002 * (-number % 4))
    if isinstance(data, Exception):
      raise data
    return data

  return sources.Item(f'{number}.png', f'in/{number}.png', number, read)


def items_of(*contents):
  return [item(number, data) for number, data in enumerate(contents)]


def decoders():
  return [t for t in threading.enumerate() if t.name.startswith('decode')]


def wait_for_no_decoder():
  wait_until(lambda: not decoders())


@pytest.mark.parametrize('threads', [1, 2, 8])
@pytest.mark.parametrize('how', [HOW, TEN])
def test_order_and_bytes_do_not_depend_on_threads(threads, how):
  contents = [png(seed) for seed in range(11)]
  expected = [crops.cut(Image.open(io.BytesIO(data)), how) for data in contents]
  items = items_of(*contents)
  found = list(pipeline.batches(items, how, rows=4, threads=threads))
  assert [batch.start for batch in found] == [0, 4, 8]
  assert [i for batch in found for i in batch.items] == items
  images = np.concatenate([batch.images[batch.mask] for batch in found])
  assert images.dtype == np.uint8
  assert images.shape == (11, how.cuts, 32, 32, 3)
  assert images.tobytes() == np.stack(expected).tobytes()


def test_the_last_batch_is_smaller():
  items = items_of(*[png(seed) for seed in range(5)])
  first, last = pipeline.batches(items, HOW, rows=4)
  assert first.mask.tolist() == [True] * 4
  assert first.images.shape == (4, 1, 32, 32, 3)
  assert last.images.shape == (1, 1, 32, 32, 3)
  assert repr(last) == (
    'Batch(start=4, 1 image, 4.png to 4.png, images: (1, 1, 32, 32, 3))'
  )
  assert last.images.any()
  assert last.mask.tolist() == [True]
  assert list(last.items) == items[4:]
  assert list(last.reasons) == ['']


@pytest.mark.parametrize(
  ('start', 'labels'),
  [(0, [[0, 1, 2], [3, 4, 5], [6]]), (2, [[2, 3, 4], [5, 6]]), (7, [])],
)
def test_start_skips_what_was_done(start, labels):
  items = items_of(*[png(seed) for seed in range(7)])
  found = list(pipeline.batches(items, HOW, rows=3, start=start))
  assert [[i.label for i in batch.items] for batch in found] == labels
  assert [b.start for b in found] == list(range(start, 7, 3))
  for batch in found:
    for row, image in enumerate(batch.items):
      [expected] = crops.cut(Image.open(io.BytesIO(png(image.label))), HOW)
      np.testing.assert_array_equal(batch.images[row, 0], expected)


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'', 'the file is empty'),
    (b'hello', 'it is in none of the formats JPEG, PNG'),
    (FileNotFoundError(2, 'No such file or directory'), 'No such file or di'),
    (OSError('the disk is gone'), 'the disk is gone'),
  ],
)
def test_fail_names_the_file_and_the_reason_and_what_to_do(data, reason):
  items = items_of(png(0), png(1), data, png(3))
  message = user_error(list, pipeline.batches(items, HOW, rows=2))
  assert message.startswith(f'cannot read the image in/2.png: {reason}')
  assert 'leave it out' in message
  assert 'on_error=record' in message


def test_record_gives_reasons_and_zeros():
  gone = FileNotFoundError(2, 'No such file or directory')
  items = items_of(png(0), b'', gone, png(3), b'text')
  first, last = pipeline.batches(items, HOW, rows=3, on_error='record')
  assert first.mask.tolist() == [True, False, False]
  assert list(first.reasons) == [
    '',
    'the file is empty',
    'No such file or directory',
  ]
  assert first.images[0].any()
  assert not first.images[1:].any()
  assert last.mask.tolist() == [True, False]
  assert last.reasons[0] == ''
  assert last.reasons[1].startswith('it is in none of the formats')
  assert not last.images[1:].any()


def test_unknown_on_error_is_refused_with_a_near_match():
  found = pipeline.batches([], HOW, rows=3, on_error='recrod')
  with pytest.raises(errors.UserError, match=r"'recrod'.*'record'.*fail, rec"):
    next(found)


@pytest.mark.parametrize('error', [None, RuntimeError('a fault of the code')])
def test_no_thread_outlives_the_batches(error):
  wait_for_no_decoder()
  contents = [*map(png, range(9)), error or png(9), *map(png, range(30))]
  found = pipeline.batches(items_of(*contents), HOW, rows=2, threads=4)
  next(found)
  assert len(decoders()) == 4
  if error:
    with pytest.raises(RuntimeError, match='a fault of the code') as caught:
      list(found)
    assert caught.value.__notes__ == ['It was at the image in/9.png.']
  else:
    # What the caller does who stops in the middle.
    found.close()
  wait_for_no_decoder()


def test_an_error_waits_for_no_other_image():
  """Nor for those before it: the first one here comes only at the end."""
  go_on, read = threading.Event(), []

  def item_of(number):
    def read_it():
      read.append(number)
      if number == 0:
        assert go_on.wait(HANGS)
      if number == 3:
        raise FileNotFoundError(2, 'No such file or directory')
      return png(number)

    return sources.Item(str(number), f'in/{number}.png', 0, read_it)

  items = [item_of(number) for number in range(40)]
  with pytest.raises(errors.UserError, match=r'image in/3\.png: No such file'):
    next(pipeline.batches(items, HOW, rows=8, threads=2))
  go_on.set()
  wait_for_no_decoder()
  # What was queued behind it was not read, save for an image or two.
  assert len(read) < 8


def test_an_error_ends_the_program_though_an_image_is_being_read(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
    'import time\n'
    'from resnet_jax.data import pipeline, preprocess, sources\n'
    'def item(read):\n'
    "  return sources.Item('key', 'name.png', 0, read)\n"
    'items = [item(lambda: time.sleep(9999)), item(lambda: b"")]\n'
    'how = preprocess.Preprocess((1, 2, 3), crop_size=32)\n'
    'list(pipeline.batches(items, how, rows=2))\n'
  )
  done = run_python(tmp_path, script)
  assert done.returncode == 1
  assert 'cannot read the image name.png: the file is empty' in done.stderr


def test_every_thread_has_an_image_though_batches_are_small():
  together = threading.Barrier(6)

  def read():
    together.wait(HANGS)
    return png(0)

  items = [sources.Item('key', 'name', 0, read) for _ in range(12)]
  assert len(list(pipeline.batches(items, HOW, rows=1, threads=6))) == 12


def test_every_core_decodes_unless_told_otherwise(monkeypatch):
  monkeypatch.setattr(cores, 'count', lambda: 5)
  together = threading.Barrier(5)

  def read():
    together.wait(HANGS)
    return png(0)

  items = [sources.Item('key', 'name', 0, read) for _ in range(10)]
  assert len(list(pipeline.batches(items, HOW, rows=10))) == 1


def test_a_single_image_starts_no_thread():
  found = []

  def read():
    found.append(threading.current_thread())
    return png(0)

  items = [sources.Item('key', 'name', 0, read)] * 3
  [batch] = pipeline.batches(items, HOW, rows=2, start=2, threads=4)
  assert batch.mask.tolist() == [True]
  assert found == [threading.main_thread()]
  [broken] = pipeline.batches(
    items_of(b'no image'), HOW, rows=2, on_error='record'
  )
  assert broken.mask.tolist() == [False]
  assert 'cannot read the image in/0.png' in user_error(
    list, pipeline.batches(items_of(b'no image'), HOW, rows=2)
  )


def test_the_clock_is_told_of_reading_and_decoding():
  def read():
    time.sleep(0.02)
    return png(0)

  items = [sources.Item('key', 'name', 0, read) for _ in range(12)]
  clock = timing.Clock()
  list(pipeline.batches(items, HOW, rows=4, threads=4, clock=clock))
  rates = clock.rates()
  assert list(rates) == ['read', 'decode']
  # Four at once, each 50 a second at most.
  assert 0 < rates['read'] <= 200
  assert rates['decode'] > 0


def test_at_most_two_batches_are_read_ahead():
  data, lock, read = png(0), threading.Lock(), []

  def item_of(number):
    def read_it():
      with lock:
        read.append(number)
      return data

    return sources.Item(str(number), str(number), 0, read_it)

  rows = 5
  items = [item_of(number) for number in range(60)]
  found = pipeline.batches(items, HOW, rows=rows, threads=8)
  assert read == []
  for count, _ in enumerate(found, 1):
    # Time enough to read everything, were it not held back.
    time.sleep(0.02)
    with lock:
      assert count * rows <= len(read) <= (count + 2) * rows
  assert sorted(read) == list(range(60))


def test_images_that_nobody_waits_for_are_not_read():
  data, read, go_on = png(0), [], threading.Event()

  def item_of(number):
    def read_it():
      read.append(number)
      if number == 20:
        assert go_on.wait(HANGS)
      return data

    return sources.Item(str(number), str(number), 0, read_it)

  items = [item_of(number) for number in range(60)]
  found = pipeline.batches(items, HOW, rows=20, threads=1)
  next(found)
  found.close()
  go_on.set()
  wait_for_no_decoder()
  # Sixty were asked for by then.
  assert read in (list(range(20)), list(range(21)))
