# SPDX-License-Identifier: Apache-2.0
"""The published figure that a run can be compared with, if there is one."""

import dataclasses
import re

import numpy as np

from resnet_jax.data import mean as mean_lib
from resnet_jax.data import preprocess
from resnet_jax.evaluation import statistics
from resnet_jax.models import resnet, variant
from resnet_jax.zoo import lookup

# Images of ILSVRC 2012's validation set, which the figures are of.
IMAGES = 50_000

_CROPS = {'one centre crop': 1, 'ten crops': 10}
_PROTOCOL = re.compile(
  r'(?:shorter side (?P<resize>\d+)(?: \((?P<filter>\w+)\))?, )?'
  rf'(?P<crops>{"|".join(_CROPS)}) of (?P<size>\d+)\b.*'
)


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


def find(
  record: lookup.Record, how: preprocess.Preprocess
) -> lookup.Accuracy | None:
  """The published accuracy for a run's resize and crops; None: there is none.

  What a protocol does not state is taken to agree.
  """
  for accuracy in record.accuracies:
    match = _PROTOCOL.fullmatch(accuracy.protocol)
    if match is None or how.resize != 'short_side':
      continue
    if (
      _CROPS[match['crops']] == how.crops
      and int(match['size']) == how.crop_size
      and int(match['resize'] or how.resize_size) == how.resize_size
      and (match['filter'] or how.interpolation) == how.interpolation
    ):
      return accuracy
  return None


def changes(
  record: lookup.Record, how: preprocess.Preprocess, model: resnet.ResNet
) -> list[str]:
  """In what else a run departs from the checkpoint's own settings."""
  own = record.preprocess
  pairs = [
    ('interpolation', how.interpolation, own.interpolation),
    ('rounding', how.rounding, own.rounding),
    ('channels', how.channels, own.channels),
    ('std', tuple(how.std), tuple(own.std)),
    *(
      (name, getattr(model.variant, name), getattr(record.variant, name))
      for name in variant.FIELDS
    ),
  ]
  found = [f'{name} {run} for {its}' for name, run, its in pairs if run != its]
  run, its = map(mean_lib.as_array, (how.mean, own.mean))
  if run.shape != its.shape or not np.allclose(run, its, rtol=0, atol=1e-3):
    found.append(
      f'mean {mean_lib.describe(how.mean)} for {mean_lib.describe(own.mean)}'
    )
  return found


def compare(rate: statistics.Rate, accuracy: float | None) -> Comparison | None:
  """A measured error rate beside a published accuracy, percent."""
  if accuracy is None or not rate.total:
    return None
  error = round(100 - accuracy, 6)
  low, high = rate.interval()
  return Comparison(error, round(rate.percent - error, 6), low <= error <= high)
