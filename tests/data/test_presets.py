# SPDX-License-Identifier: Apache-2.0
"""The publishers' preprocessing, and a user's overrides."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import crops, preprocess, presets
from resnet_jax.system import errors
from resnet_jax.zoo import lookup


def test_auto_and_zero_keep_the_checkpoints_own():
  given = dict.fromkeys(preprocess.FIELDS, 'auto')
  how = presets.TORCHVISION.overridden(**given)
  assert how == presets.TORCHVISION.overridden(crop_size=0, mean=None)
  assert how == presets.TORCHVISION
  assert how.channels == 'RGB'
  assert how.std == (58.395, 57.12, 57.375)
  assert (how.resize_size, how.crop_size) == (256, 224)
  assert (how.interpolation, how.rounding) == ('bilinear', 'torchvision')
  assert how.describe() == (
    'shorter side to 256 (bilinear), centre crop 224x224 (torchvision'
    ' rounding), RGB, minus (123.675, 116.28, 103.53), over (58.395, 57.12,'
    ' 57.375)'
  )
  v2 = lookup.find('torchvision.v2', 50).preprocess
  assert v2.resize_size == 232


def test_the_user_can_change_all_of_it():
  how = presets.CAFFE.overridden(
    mean='1,2,3',
    std='4,5,6',
    channels='RGB',
    resize_size=300,
    crop_size=288,
    interpolation='bicubic',
    rounding='torchvision',
  )
  assert how.mean == (1, 2, 3)
  assert how.std == (4, 5, 6)
  assert (how.channels, how.resize_size, how.crop_size) == ('RGB', 300, 288)
  assert (how.interpolation, how.rounding) == ('bicubic', 'torchvision')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'channels': 'rgb'}, "unknown channels 'rgb'.*Allowed: BGR, RGB, auto"),
    (
      {'channels': 'RGB'},
      'the mean of these weights is in the order BGR. Give',
    ),
    ({'channels': 'RGB', 'mean': '1,2,3'}, None),
    ({'interpolation': 'nearest'}, "unknown interpolation 'nearest'"),
    ({'rounding': 'up'}, "unknown rounding 'up'"),
    ({'std': '1,2'}, "std='1,2' is not three values above 0"),
    ({'std': '1,2,0'}, 'not three values above 0'),
    ({'std': '1,2,nan'}, 'not three values above 0'),
    ({'std': 'x'}, "std='x' is not three values"),
  ],
)
def test_wrong_overrides(given, message):
  if message is None:
    presets.CAFFE.overridden(**given)
    return
  with pytest.raises(errors.UserError, match=message):
    presets.CAFFE.overridden(**given)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'decode': 'quick'}, "unknown decode 'quick'"),
    ({'resize': 'crop'}, "unknown resize 'crop'"),
    ({'mean': 'nowhere.npz'}, 'there is no such file'),
    ({'mean': (0.485, 0.456, 0.406)}, 'Give mean=123.675,116.28,103.53'),
    ({'std': [0, 1, 1]}, 'not three values above 0'),
  ],
)
def test_mistakes_are_found_before_the_weights_are_loaded(given, message):
  with pytest.raises(errors.UserError, match=message):
    preprocess.check_overrides(**given)


@pytest.mark.parametrize(
  'mean', ['1,2.5,3', (1, 2.5, 3), np.array([1, 2.5, 3])]
)
def test_a_mean_may_be_text_or_numbers(mean):
  found = presets.CAFFE.overridden(mean=mean, std=mean)
  assert found.mean == found.std == (1, 2.5, 3)
  assert 'minus (1, 2.5, 3), over (1, 2.5, 3)' in found.describe()


@pytest.mark.parametrize(
  'fields',
  [
    {'mean': (1.0, 2.0)},
    {'mean': (1.0, 2.0, float('nan'))},
    {'mean': (1e60, 0.0, 0.0)},
    {'std': (1.0, 0.0, 1.0)},
    {'std': (1.0, float('inf'), 1.0)},
  ],
)
def test_values_that_are_no_numbers_of_three_channels(fields):
  with pytest.raises(errors.UserError, match='not three'):
    preprocess.Preprocess(**fields)


def test_a_mean_image_is_for_bgr(tmp_path):
  path = tmp_path / 'mean.npz'
  np.savez(path, data_mean=np.zeros(3 * 224 * 224, np.float32))
  with pytest.raises(errors.UserError, match=r'mean file .* is in BGR order'):
    presets.TORCHVISION.overridden(mean=path)


@pytest.mark.parametrize('numpy', [np, jnp])
def test_rgb_with_mean_and_std_is_torchvisions_arithmetic(numpy):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 5, 3), np.uint8)
  mean = np.float32(presets.TORCHVISION.mean).reshape(3, 1, 1)
  found = crops.normalise(
    pixels, mean, False, numpy, channels='RGB', std=presets.TORCHVISION.std
  )
  # As torchvision documents it: to 0..1, less the mean, over the deviation.
  expected = (pixels[:, 0] / 255 - [0.485, 0.456, 0.406]) / [
    0.229,
    0.224,
    0.225,
  ]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def _centre(size, how):
  # An image whose red is the row and whose green the column, so that a crop
  # tells where it was taken; resized to its own size.
  width, height = size
  rows, columns = np.mgrid[:height, :width]
  pixels = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
  cut = crops.cut(Image.fromarray(pixels), how)
  assert cut.shape == (1, 32, 32, 3)
  return int(cut[0, 0, 0, 0]), int(cut[0, 0, 0, 1])


@pytest.mark.parametrize(
  # The shorter side stays 33, so nothing is resized; the offsets are half of
  # 1 above and of what is left of the width.
  ('width', 'nearest', 'torchvision'),
  [(33, 0, 0), (35, 1, 2), (36, 2, 2), (37, 2, 2), (39, 3, 4), (40, 4, 4)],
)
def test_torchvision_rounds_a_crops_offset_half_to_even(
  width, nearest, torchvision
):
  base = preprocess.Preprocess(resize_size=33, crop_size=32)
  assert _centre((width, 33), base) == (0, nearest)
  other = dataclasses.replace(base, rounding='torchvision')
  assert _centre((width, 33), other) == (0, torchvision)


@pytest.mark.parametrize(
  ('size', 'nearest', 'torchvision'),
  [
    # 256 * 500 / 375 = 341.33, 256 * 300 / 200 = 384, 256 * 451 / 300 = 384.85
    ((500, 375), 341, 341),
    ((300, 200), 384, 384),
    ((451, 300), 385, 384),
  ],
)
def test_torchvision_cuts_the_longer_side_off(size, nearest, torchvision):
  image = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
  )
  for rounding, width, middle in (
    ('nearest', nearest, (nearest - 224) // 2),
    ('torchvision', torchvision, round((torchvision - 224) / 2)),
  ):
    across = image.resize((width, size[1]), Image.Resampling.LANCZOS)
    resized = across.resize((width, 256), Image.Resampling.LANCZOS)
    expected = np.asarray(resized)[16:240, middle : middle + 224]
    how = preprocess.Preprocess(rounding=rounding)
    [found] = crops.cut(image, how)
    np.testing.assert_array_equal(found, expected)
