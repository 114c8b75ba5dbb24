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
