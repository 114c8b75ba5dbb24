# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's preprocessing, and what the user changes of it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax import inputs
from resnet_jax.data import preprocess, recipe
from resnet_jax.system import errors
from resnet_jax.zoo import lookup


def test_the_checkpoint_says_how_where_the_user_does_not():
  how = inputs.preprocess_for(inputs.Wishes(), recipe.TORCHVISION)
  assert how.channels == 'RGB'
  assert how.std == (58.395, 57.12, 57.375)
  assert (how.resize_size, how.crop_size) == (256, 224)
  assert (how.interpolation, how.rounding) == ('bilinear', 'torchvision')
  assert how.describe() == (
    'shorter side to 256 (bilinear), centre crop 224x224 (torchvision'
    ' rounding), RGB, minus (123.675, 116.28, 103.53), over (58.395, 57.12,'
    ' 57.375)'
  )
  v2 = inputs.preprocess_for(
    inputs.Wishes(), lookup.find('torchvision.v2', 50).recipe
  )
  assert v2.resize_size == 232


def test_the_user_can_change_all_of_it():
  wishes = inputs.Wishes(
    mean='1,2,3',
    std='4,5,6',
    channels='RGB',
    resize_size=300,
    crop_size=288,
    interpolation='bicubic',
    rounding='torchvision',
  )
  how = inputs.preprocess_for(wishes, recipe.CAFFE)
  assert how.mean.values.ravel().tolist() == [1, 2, 3]
  assert how.std == (4, 5, 6)
  assert (how.channels, how.resize_size, how.crop_size) == ('RGB', 300, 288)
  assert (how.interpolation, how.rounding) == ('bicubic', 'torchvision')


@pytest.mark.parametrize(
  ('wishes', 'message'),
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
def test_wrong_wishes(wishes, message):
  if message is None:
    inputs.preprocess_for(inputs.Wishes(**wishes), recipe.CAFFE)
    return
  with pytest.raises(errors.UserError, match=message):
    inputs.preprocess_for(inputs.Wishes(**wishes), recipe.CAFFE)


def test_a_mean_image_is_for_bgr(tmp_path):
  path = tmp_path / 'mean.npz'
  np.savez(path, data_mean=np.zeros(3 * 224 * 224, np.float32))
  with pytest.raises(errors.UserError, match='a mean file is in BGR order'):
    inputs.preprocess_for(inputs.Wishes(mean=str(path)), recipe.TORCHVISION)


@pytest.mark.parametrize('numpy', [np, jnp])
def test_rgb_with_mean_and_std_is_torchvisions_arithmetic(numpy):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 5, 3), np.uint8)
  mean = np.float32(recipe.TORCHVISION.mean).reshape(3, 1, 1)
  found = preprocess.normalise(
    pixels, mean, False, numpy, channels='RGB', std=recipe.TORCHVISION.std
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
  cut = preprocess.cut(Image.fromarray(pixels), how)
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
  base = inputs.preprocess_for(
    inputs.Wishes(resize_size=33, crop_size=32), recipe.CAFFE
  )
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
    how = inputs.preprocess_for(inputs.Wishes(rounding=rounding), recipe.CAFFE)
    [found] = preprocess.cut(image, how)
    np.testing.assert_array_equal(found, expected)
