# SPDX-License-Identifier: Apache-2.0
"""The script that trains the CIFAR networks, on a few images."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import train_cifar
from makers import user_error
from PIL import Image

import resnet_jax
from resnet_jax.data import crops
from resnet_jax.engine import runner

RECIPE = train_cifar.Recipe(epochs=2, more=0, held_out=2, batch=16, seed=7)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Two classes of 26 images: reddish and bluish ones."""
  folder = tmp_path_factory.mktemp('data')
  random = np.random.default_rng(0)
  for name, channel in (('blue', 2), ('red', 0)):
    (folder / 'train' / name).mkdir(parents=True)
    for number in range(26):
      pixels = random.integers(0, 100, (32, 32, 3), np.uint8)
      pixels[..., channel] += 120
      path = folder / 'train' / name / f'{number:04}.png'
      Image.fromarray(pixels).save(path)
  return str(folder)


@pytest.fixture(scope='module')
def images(data):
  # Compiled programs are kept for the next training.
  runner.start(False, 'float32', True, print, application=True)
  return train_cifar.load(data)[0]


def equal(one, other):
  return all(
    jax.tree.leaves(
      jax.tree.map(
        lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other
      )
    )
  )


def test_training_resumes_to_the_same_bits(images, tmp_path, monkeypatch):
  whole = train_cifar.train(tmp_path / 'whole', RECIPE, images)
  augmented, calls = train_cifar.augmented, []

  def interrupted(*arguments):
    calls.append(arguments)
    if len(calls) in (2, 5):
      raise KeyboardInterrupt
    return augmented(*arguments)

  monkeypatch.setattr(train_cifar, 'augmented', interrupted)
  said = []
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      train_cifar.train(
        tmp_path / 'parts', RECIPE, images, save_every=0, say=said.append
      )
  parts = train_cifar.train(tmp_path / 'parts', RECIPE, images, say=said.append)
  assert [line for line in said if 'from step' in line] == [
    f'{tmp_path / "parts" / "checkpoint.safetensors"}: from step {step}'
    for step in (1, 3)
  ]
  assert int(whole['step']) == 6
  assert equal(whole, parts)
  lines = (tmp_path / 'whole' / 'epochs.jsonl').read_text()
  assert (tmp_path / 'parts' / 'epochs.jsonl').read_text() == lines
  assert [json.loads(line)['step'] for line in lines.splitlines()] == [3, 6]
  other = dataclasses.replace(RECIPE, epochs=3, seed=8)
  message = user_error(train_cifar.train, tmp_path / 'parts', other, images)
  assert "'epochs': (2, 3), 'seed': (7, 8)" in message
  # Finished: nothing is trained, and the files are written.
  again = train_cifar.train(tmp_path / 'parts', RECIPE, images)
  assert equal(again, whole)
  path = train_cifar.export(tmp_path, RECIPE, again, ['blue', 'red'])
  model = resnet_jax.load(weights=path, batch_size=4)
  assert [c.name for c in model.classes] == ['blue', 'red']
  assert model.preprocess == train_cifar.PREPROCESS
  kernel = np.asarray(whole['params']['logits']['kernel'])
  np.testing.assert_array_equal(
    model.variables['params']['logits']['kernel'], kernel.astype(np.float16)
  )
  # Half precision takes two bytes a number.
  assert path.stat().st_size < 2.2 * 270_000
  with Image.open(train_cifar.plot(tmp_path / 'whole')) as plot:
    assert plot.size == (720, 480)


def test_images_are_moved_mirrored_and_split_by_the_seed(images):
  trained, held_out = train_cifar.split(images, RECIPE)
  assert np.bincount(held_out.labels).tolist() == [2, 2]
  assert np.bincount(trained.labels).tolist() == [24, 24]
  everything = np.concatenate([trained.pixels, held_out.pixels])
  assert len(np.unique(everything.reshape(52, -1), axis=0)) == 52
  moved = train_cifar.augmented(trained, 7, 3)
  again = train_cifar.augmented(trained, 7, 3)
  np.testing.assert_array_equal(moved.pixels, again.pixels)
  assert (moved.pixels != train_cifar.augmented(trained, 7, 4).pixels).any()
  # Each is a window of its image in a border of the mean colour.
  mean = np.array([125, 123, 114], np.uint8)
  places = set()
  for crop, image in zip(moved.pixels, trained.pixels, strict=True):
    padded = np.tile(mean, (40, 40, 1))
    padded[4:-4, 4:-4] = image
    places |= {
      (top, left, mirror)
      for top in range(9)
      for left in range(9)
      for mirror in (1, -1)
      if (padded[top : top + 32, left : left + 32][:, ::mirror] == crop).all()
    }
  assert len(places) > 30
  assert {mirror for *_, mirror in places} == {1, -1}
  assert {top for top, *_ in places} == set(range(9))


def test_the_rate_rises_and_falls_on_straight_lines():
  recipe = train_cifar.Recipe(
    epochs=10, rate=0.2, warm_up=0.2, more=4, more_rate=0.1
  )
  rate = train_cifar.Training(recipe, 10, 5).rate
  found = [float(rate(step)) for step in range(71)]
  expected = np.interp(range(71), [0, 10, 50, 54, 70], [0, 0.2, 0, 0.1, 0])
  np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_network_sees_what_the_program_shows_it(images):
  """The embedded preprocessing is that of training."""
  x = crops.network_input(images.pixels[:2], train_cifar.PREPROCESS, np)
  mean, std = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
  np.testing.assert_allclose(x, (images.pixels[:2] - mean) / std, atol=1e-5)


def test_images_of_another_size_are_refused(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
    Image.new('RGB', (33, 32)).save(tmp_path / name / '1.png')
  assert '1.png is not 32x32' in user_error(train_cifar.load, str(tmp_path))


def test_classes_and_enough_images_are_needed(tmp_path):
  (tmp_path / 'a').mkdir()
  Image.new('RGB', (32, 32)).save(tmp_path / 'a' / '1.png')
  message = user_error(train_cifar.load, str(tmp_path))
  assert 'has its images in one folder' in message
  (tmp_path / 'b').mkdir()
  Image.new('RGB', (32, 32)).save(tmp_path / 'b' / '1.png')
  images, _ = train_cifar.load(str(tmp_path))
  recipe = train_cifar.Recipe(held_out=0)
  message = user_error(train_cifar.train, tmp_path / 'run', recipe, images)
  assert '2 images to train on are fewer than a batch of 128' in message
  assert not (tmp_path / 'run').exists()
