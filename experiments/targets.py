# SPDX-License-Identifier: Apache-2.0
"""The published figures to reproduce, and the measurements of them."""

import dataclasses
import pathlib
from typing import Any

from resnet_jax.evaluation import evidence
from resnet_jax.zoo import lookup

ROOT = pathlib.Path(__file__).parent.parent
EVIDENCE = ROOT / 'experiments' / 'results' / 'accuracy.jsonl'
FAMILIES = ('paddle', 'msra')


@dataclasses.dataclass(frozen=True)
class Target:
  """A published figure.

  Attributes:
    record: the checkpoint.
    accuracy: the figure and its protocol.
  """

  record: lookup.Record
  accuracy: lookup.Accuracy

  @property
  def published(self) -> float:
    """The top-1 error, percent."""
    assert self.accuracy.top1 is not None
    return round(100 - self.accuracy.top1, 3)

  @property
  def multi_crop(self) -> bool:
    """Whether it is of ten crops."""
    return self.accuracy.protocol.crops == 10

  @property
  def name(self) -> str:
    """`msra-50-ten`."""
    return f'{self.record.name}-{"ten" if self.multi_crop else "one"}'


TARGETS = tuple(
  Target(record, accuracy)
  for family in FAMILIES
  for place in (0, 1)
  for record in lookup.RECORDS
  if record.family == family
  for accuracy in record.accuracies[place : place + 1]
)


def measured(path: pathlib.Path = EVIDENCE) -> dict[Target, dict[str, Any]]:
  """The latest measurement of each figure on all validation images.

  Skips measurements whose notes list settings other than the checkpoint's.

  Raises:
    UserError: the file is damaged.
  """
  found = {}
  for line in evidence.read(path):
    of = line['published']
    for target in TARGETS:
      if (
        # Earlier versions wrote the reason, a string, instead of null.
        isinstance(of, dict)
        and of['checkpoint'] == target.record.name
        and of['protocol'] == target.accuracy.protocol.describe()
        and line['trained']
        and line['images'] == target.accuracy.images
        and not of['notes']
      ):
        found[target] = line
  return found
