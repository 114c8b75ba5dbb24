# SPDX-License-Identifier: Apache-2.0
"""The preprocessing of the publishers of weights."""

import dataclasses

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import structure

# Sources: the model zoo's page (the mean) and PaddlePaddle 0.8 to 0.10,
# demo/model_zoo/resnet/classify.py (the rest); the fields' defaults.
CAFFE = Preprocess()
# A note on weights in a format that states no preprocessing.
GUESSED_INPUT = (
  'the file is not a published checkpoint and does not state its preprocessing:'
  f" that of the authors' networks is used, {CAFFE.describe()}. Set"
  ' channels, mean, std, resize_size, interpolation if it was trained'
  ' otherwise.'
)
# Source: torchvision 0.29.2, transforms/_presets.py (there on the scale 0 to
# 1: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225).
TORCHVISION = Preprocess(
  channels='RGB',
  mean=(123.675, 116.28, 103.53),
  std=(58.395, 57.12, 57.375),
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
# The project's own network: mean and deviation of CIFAR-10's training images,
# which have 32x32 pixels; of others the middle is made so small.
CIFAR10 = Preprocess(
  channels='RGB',
  mean=(125.3, 123.0, 113.9),
  std=(63.0, 62.1, 66.7),
  resize_size=32,
  crop_size=32,
  interpolation='bilinear',
)


def usual(depth: int) -> Preprocess:
  """The first publisher's, for weights that state no preprocessing."""
  return CIFAR if depth in structure.CIFAR else CAFFE
