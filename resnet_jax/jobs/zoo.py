# SPDX-License-Identifier: Apache-2.0
"""The job `zoo`: the published checkpoints, as a table."""

import dataclasses

from ml_collections import ConfigDict

from resnet_jax import errors, weights
from resnet_jax.jobs import console
from resnet_jax.models import names
from resnet_jax.weights import zoo


def run(config: ConfigDict) -> int:
  """Prints the table, or records whole as JSON; of a depth, of a family."""
  if config.layer_num:
    names.check_depth(config.layer_num)
  if config.weights != weights.AUTO:
    errors.check_choice('checkpoint', config.weights, zoo.FAMILIES)
  chosen = tuple(
    record
    for record in zoo.RECORDS
    if config.layer_num in (0, record.depth)
    and config.weights in (weights.AUTO, record.family)
  )
  rows = (
    [dataclasses.asdict(record) for record in chosen]
    if config.as_json
    else zoo.table(chosen)
  )
  console.show(rows, config.as_json)
  return 0
