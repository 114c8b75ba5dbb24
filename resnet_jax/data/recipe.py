# SPDX-License-Identifier: Apache-2.0
"""How images were prepared for a network: what a checkpoint brings along."""

import dataclasses
import math

from resnet_jax.models import names


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The preprocessing that weights were trained or evaluated with.

  Attributes:
    channels: 'BGR' or 'RGB', the order of `mean`, `std` and the input.
    mean: what is subtracted, on the scale 0 to 255.
    std: what is divided by, on the same scale.
    resize_size: the shorter side, pixels.
    crop_size: the centre crop, pixels.
    interpolation: 'lanczos', 'bilinear' or 'bicubic'.
    rounding: how sizes and offsets become whole: 'nearest', or 'torchvision'.
    resize: 'short_side'; 'squash', the whole image to the crop's size; or
      'none', images of that size as they are.
  """

  channels: str
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  resize_size: int
  crop_size: int
  interpolation: str
  rounding: str
  resize: str = 'short_side'

  def __post_init__(self) -> None:
    """Raises a ValueError if a file made of it what cannot be."""
    fits = (
      self.channels in ('BGR', 'RGB')
      and self.interpolation in ('lanczos', 'bilinear', 'bicubic')
      and self.rounding in ('nearest', 'torchvision')
      and self.resize in ('short_side', 'squash', 'none')
      and len(self.mean) == len(self.std) == 3
      and all(map(math.isfinite, self.mean + self.std))
      and min(self.std) > 0
      and 32 <= self.crop_size <= 4096
      and self.crop_size <= self.resize_size <= 8192
    )
    if not fits:
      raise ValueError(f'an impossible preprocessing: {self}')


# Source: the model zoo's page (the three values) and PaddlePaddle 0.8 to
# 0.10's demo/model_zoo/resnet/classify.py (the rest).
CAFFE = Recipe(
  channels='BGR',
  mean=(103.939, 116.779, 123.68),
  std=(1.0, 1.0, 1.0),
  resize_size=256,
  crop_size=224,
  interpolation='lanczos',
  rounding='nearest',
)
# Source: torchvision 0.29.2, transforms/_presets.py (there on the scale 0 to
# 1: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225).
TORCHVISION = Recipe(
  channels='RGB',
  mean=(123.675, 116.28, 103.53),
  std=(58.395, 57.12, 57.375),
  resize_size=256,
  crop_size=224,
  interpolation='bilinear',
  rounding='torchvision',
)
# Source: Transformers 5.23, image_processing_convnext.py, as microsoft/resnet-*
# use it (crop_pct 0.875, resample 3).
HUGGING_FACE = dataclasses.replace(TORCHVISION, interpolation='bicubic')
# Source: akamaster/pytorch_resnet_cifar10, trainer.py.
CIFAR = dataclasses.replace(
  TORCHVISION, resize_size=32, crop_size=32, resize='none'
)


def usual(depth: int) -> Recipe:
  """For weights that nothing else is known of: the first publisher's."""
  return CIFAR if depth in names.CIFAR else CAFFE


# Of a file with names of PyTorch's programs, which tells nothing else.
GUESSED = (
  'the file tells neither where its network has the stride nor how images'
  ' were prepared: what its names usually stand for is taken (stride_in=3x3;'
  ' input as this run says). Set stride_in, channels, mean, std, resize_size,'
  ' interpolation if it was trained otherwise.'
)
GUESSED_CIFAR = (
  'the file does not tell how images were prepared: what is usual for its'
  ' names is taken (input as this run says). Set channels, mean, std, resize'
  ' if it was trained otherwise.'
)
