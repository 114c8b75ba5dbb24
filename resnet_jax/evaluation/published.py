# SPDX-License-Identifier: Apache-2.0
"""The published accuracy that a run can be compared with, if there is one."""

import dataclasses

import numpy as np

from resnet_jax.data import mean as mean_lib
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.evaluation import statistics
from resnet_jax.models import resnet, variant
from resnet_jax.zoo import records

# The validation images of ILSVRC 2012, which all published figures are of.
IMAGES = 50_000


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A measured error beside a published one.

  Attributes:
    published: the error, percent.
    difference: measured less published, percentage points.
    inside: whether the published error lies in the measured one's interval.
  """

  published: float
  difference: float
  inside: bool


def nearest(
  record: records.Record, preprocess: Preprocess
) -> tuple[records.Accuracy, list[str]]:
  """The accuracy whose protocol is nearest to a run's, and how they differ.

  Only an accuracy without a difference can be compared with.
  """
  run = records.Protocol(
    preprocess.resize_size,
    preprocess.crop_size,
    preprocess.crops,
    preprocess.interpolation,
  )
  found = [(a, a.protocol.differences(run)) for a in record.accuracies]
  accuracy, differences = min(found, key=lambda pair: len(pair[1]))
  if preprocess.resize != 'short_side':
    differences.append(f'resize {preprocess.resize} for short_side')
  return accuracy, differences


def changes(
  record: records.Record,
  preprocess: Preprocess,
  model: resnet.ResNet,
) -> list[str]:
  """How a run departs from the checkpoint's own settings otherwise."""
  own = record.preprocess
  pairs = [
    ('interpolation', preprocess.interpolation, own.interpolation),
    ('rounding', preprocess.rounding, own.rounding),
    ('channels', preprocess.channels, own.channels),
    ('std', tuple(preprocess.std), tuple(own.std)),
    *(
      (name, getattr(model.variant, name), getattr(record.variant, name))
      for name in variant.FIELDS
    ),
  ]
  found = [f'{name} {run} for {its}' for name, run, its in pairs if run != its]
  run, its = map(mean_lib.as_array, (preprocess.mean, own.mean))
  if run.shape != its.shape or not np.allclose(run, its, rtol=0, atol=1e-3):
    found.append(
      f'mean {mean_lib.describe(preprocess.mean)} for'
      f' {mean_lib.describe(own.mean)}'
    )
  return found


def compare(rate: statistics.Rate, accuracy: float | None) -> Comparison | None:
  """Compares a measured error rate with a published accuracy, percent."""
  if accuracy is None or not rate.total:
    return None
  error = round(100 - accuracy, 6)
  low, high = rate.interval()
  return Comparison(error, round(rate.percent - error, 6), low <= error <= high)
