# SPDX-License-Identifier: Apache-2.0
"""Settings of runs of earlier versions: the same run, in other words."""

import pytest

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.system import settings

MEAN = 'BGR, minus (103.939, 116.779, 123.68)'


@pytest.mark.parametrize(
  ('resize', 'stored'),
  [
    ('none', f'pictures of 224x224 as they are, {MEAN}'),
    ('squash', f'whole picture resized to 224x224 (lanczos), {MEAN}'),
    (
      'short_side',
      f'shorter side to 256 (lanczos), centre crop 224x224, {MEAN}',
    ),
  ],
)
def test_a_run_described_with_pictures_is_the_same_run(resize, stored):
  wanted = {
    'preprocessing': Preprocess(resize=resize).describe(),
    'images': 3,
    'images_sha256': 'abc',
  }
  before = {
    'preprocessing': stored,
    'pictures': 3,
    'pictures_sha256': 'abc',
  }
  assert settings.current(before) == wanted
  assert settings.differences(settings.current(before), wanted) == ''


def test_differences_are_in_the_words_of_the_user_and_short():
  layers = [f'res2_{block}_addto\x1b' for block in range(30)]
  assert settings.differences(
    {'batch_rows': 2, 'weights_sha256': 'ab' * 32, 'layers': layers},
    {'batch_rows': 3, 'weights_sha256': 'cd' * 32, 'layers': layers[:1]},
  ) == (
    'batch_size is 2 there, 3 now; layers is ['
    + ', '.join(repr(name) for name in layers[:6])
    + f' and 24 more] there, {layers[:1]!r} now; the SHA-256 of the weights is'
    ' abababababab... there, cdcdcdcdcdcd... now'
  )
