# SPDX-License-Identifier: Apache-2.0
"""Decoding at a fraction of the size: what it gives, and that it is said."""

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.data import crops, decoding, preprocess
from resnet_jax.data import mean as mean_lib

THREE = mean_lib.MEAN_BGR
EXACT = preprocess.Preprocess(THREE, resize_size=72, crop_size=64)
SCALED = dataclasses.replace(EXACT, decode='scaled')
DRIFT = re.compile(
  r'decode=scaled, against decode=exact on the first (\d+) images: pixels'
  r' differ by ([\d.]+) on average, by (\d+) at most; avgpool by ([\d.]+)% of'
  r' its rms'
)


def photo(width, height):
  random = np.random.default_rng(0)
  coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
  return coarse.resize((width, height), Image.Resampling.BICUBIC)


def saved(image, form='JPEG', **options):
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


@pytest.mark.parametrize(
  'size', [(61, 47), (100, 75), (75, 100), (333, 501), (640, 480), (72, 72)]
)
@pytest.mark.parametrize(
  'change',
  [
    {},
    {'multi_crop': True},
    {'resize': 'squash'},
    {'rounding': 'torchvision', 'interpolation': 'bilinear'},
  ],
)
def test_scaled_is_the_same_crop_nearly(size, change):
  data = saved(photo(*size), quality=95)
  exact = crops.crops_of(data, dataclasses.replace(EXACT, **change))
  scaled = crops.crops_of(data, dataclasses.replace(SCALED, **change))
  assert scaled.shape == exact.shape
  assert scaled.dtype == np.uint8
  difference = np.abs(scaled.astype(int) - exact)
  # A crop that is off by a pixel differs by 5 and more.
  assert difference.mean() < 1
  shifted = np.abs(np.roll(exact, 1, axis=2).astype(int) - exact)
  assert shifted.mean() > 5 * difference.mean()


def test_a_large_jpeg_is_decoded_smaller_but_not_below_its_target(monkeypatch):
  images = {
    (height, form): saved(photo(650, height), form)
    for height in (580, 570)
    for form in ('JPEG', 'PNG')
  }
  sizes, resize = [], Image.Image.resize

  def noting(image, *arguments):
    sizes.append(image.size)
    return resize(image, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(Image.Image, 'resize', noting)
    # To 72: an eighth of 580 is 72.5, of 570 it would be 71.25.
    for height, form in ((580, 'JPEG'), (570, 'JPEG'), (580, 'PNG')):
      crops.crops_of(images[height, form], SCALED)
  assert sizes == [(82, 73), (163, 143), (650, 580)]


@pytest.mark.parametrize(
  'image',
  [
    photo(640, 480).convert('L'),
    photo(640, 480).convert('CMYK'),
  ],
)
def test_other_modes_come_as_rgb(image):
  [exact] = crops.crops_of(saved(image), EXACT)
  [scaled] = crops.crops_of(saved(image), SCALED)
  assert np.abs(exact.astype(int) - scaled).mean() < 1


def test_a_pillow_image_and_an_image_as_it_is_are_taken_too():
  image = photo(200, 100)
  [scaled] = crops.crops_of(image, SCALED)
  [exact] = crops.crops_of(image, EXACT)
  assert np.abs(exact.astype(int) - scaled).max() < 32
  none = dataclasses.replace(SCALED, resize='none')
  pixels = crops.crops_of(image.resize((64, 64)), none)
  np.testing.assert_array_equal(pixels[0], np.asarray(image.resize((64, 64))))


@pytest.mark.parametrize('how', [EXACT, SCALED])
@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'', 'the file is empty'),
    (b'hello', 'it is in none of the formats'),
    (saved(photo(640, 480))[:900], 'truncated'),
    (saved(Image.new('RGB', (30000, 2))), 'it would be resized to'),
  ],
)
def test_what_cannot_be_read_says_why(how, data, reason):
  with pytest.raises(decoding.ImageError, match=reason):
    crops.crops_of(data, how)


def test_a_run_says_how_far_it_is_off(run_main, tmp_path):
  (tmp_path / 'photos').mkdir()
  for number in range(3):
    photo(600 + number, 480).save(tmp_path / 'photos' / f'{number}.jpg')
  flags = (
    '--config=configs/resnet.py:18,weights=random,resize_size=72,crop_size=64',
    '--config.data=photos',
    '--job=extract',
  )
  exact = run_main(*flags, '--config.output_dir=exact', check=0)
  # The line of the stages may name it, with a rate or as the slowest.
  timed = r'decode [\d.]+|bound by decode'
  assert 'decode' not in re.sub(timed, '', exact.stderr)
  done = run_main(
    *flags, '--config.decode=scaled', '--config.output_dir=scaled', check=0
  )
  found = DRIFT.search(done.stderr)
  assert found, done.stderr
  assert int(found[1]) == 3
  assert 0 < float(found[2]) < int(found[3])
  a, b = (resnet_jax.load_features(tmp_path / n) for n in ('exact', 'scaled'))
  values = [np.asarray(store['avgpool'], np.float64) for store in (a, b)]
  off = np.sqrt(np.mean((values[0] - values[1]) ** 2) / np.mean(values[0] ** 2))
  assert float(found[4]) == pytest.approx(100 * off, abs=0.006)
  assert b.settings['preprocessing'].endswith('scaled decoding')
  # A run with exact decoding does not resume one with scaled.
  other = run_main(*flags, '--config.output_dir=scaled')
  assert other.returncode == 1
  assert 'preprocessing is ' in other.stderr
