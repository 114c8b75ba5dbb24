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
  families = list(zoo.FAMILIES)
  if config.weights != weights.AUTO:
    families = names.split_list(config.weights)
  for family in families:
    errors.check_choice('checkpoint', family, zoo.FAMILIES)
    if config.layer_num and config.weights != weights.AUTO:
      zoo.find(family, config.layer_num)
  chosen = tuple(
    record
    for record in zoo.RECORDS
    if config.layer_num in (0, record.depth) and record.family in families
  )
  rows = (
    [dataclasses.asdict(record) for record in chosen]
    if config.as_json
    else zoo.table(chosen)
  )
  console.show(rows, config.as_json, heads=2)
  return 0
