# SPDX-License-Identifier: Apache-2.0
"""The published accuracy that a run can be compared with, if there is one."""

import dataclasses
from typing import Any

import numpy as np

from resnet_jax.data import mean as mean_lib
from resnet_jax.data.preprocess import FIELDS, Preprocess
from resnet_jax.evaluation import statistics
from resnet_jax.models import resnet, variant
from resnet_jax.zoo import records

# The fields that `nearest` compares as a protocol, and the mean, an array.
_COMPARED_OTHERWISE = (
  *('resize', 'resize_size', 'crop_size', 'multi_crop'),
  'mean',
)


@dataclasses.dataclass(frozen=True)
class Standard:
  """What a run is compared with.

  Attributes:
    checkpoint: the zoo's name, such as msra-50; '': it is not in the zoo.
    accuracy: published for the run's protocol; None: there is none.
    differences: how the run departs from the nearest published protocol.
    changes: how it departs from the checkpoint's settings otherwise.
  """

  checkpoint: str = ''
  accuracy: records.Accuracy | None = None
  differences: tuple[str, ...] = ()
  changes: tuple[str, ...] = ()


def standard(
  record: records.Record | None,
  preprocess: Preprocess,
  module: resnet.ResNet,
) -> Standard:
  """What a run of a checkpoint can be compared with."""
  if record is None:
    return Standard()
  accuracy, differences = nearest(record, preprocess)
  return Standard(
    record.name,
    None if differences else accuracy,
    tuple(differences),
    tuple(changes(record, preprocess, module)),
  )


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
  module: resnet.ResNet,
) -> list[str]:
  """How a run departs from the checkpoint's own settings otherwise."""
  own = record.preprocess
  fields = [name for name in FIELDS if name not in _COMPARED_OTHERWISE]
  found = [
    f'{name} {getattr(run, name)} for {getattr(its, name)}'
    for run, its, names in (
      (preprocess, own, fields),
      (module.variant, record.variant, variant.FIELDS),
    )
    for name in names
    if getattr(run, name) != getattr(its, name)
  ]
  run, its = map(mean_lib.as_array, (preprocess.mean, own.mean))
  if run.shape != its.shape or not np.allclose(run, its, rtol=0, atol=1e-3):
    found.append(
      f'mean {mean_lib.describe(preprocess.mean)} for'
      f' {mean_lib.describe(own.mean)}'
    )
  return found


def compare(rate: statistics.Rate, accuracy: float | None) -> dict[str, Any]:
  """A measured error rate beside a published accuracy, percent.

  Returns:
    The published error; the measured one less it, percentage points; and
    whether it lies in the measured one's interval.  {} without an accuracy.
  """
  if accuracy is None or not rate.total:
    return {}
  error = round(100 - accuracy, 6)
  low, high = rate.interval()
  return {
    'published': error,
    'difference': round(rate.percent - error, 6),
    'inside': low <= error <= high,
  }
