# SPDX-License-Identifier: Apache-2.0
"""The job `zoo`: the published checkpoints, as a table."""

import dataclasses

from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.models import names, structure
from resnet_jax.system import console, errors
from resnet_jax.zoo import lookup


def run(config: ConfigDict) -> int:
  """Prints the checkpoints of `weights` and `layer_num`: a table, or JSON."""
  if config.layer_num:
    structure.check_depth(config.layer_num)
  families = list(lookup.FAMILIES)
  if config.weights != weights.AUTO:
    families = names.split_list(config.weights)
  for family in families:
    errors.check_choice('checkpoint', family, lookup.FAMILIES)
    if config.layer_num and config.weights != weights.AUTO:
      lookup.find(family, config.layer_num)
  chosen = tuple(
    record
    for record in lookup.RECORDS
    if config.layer_num in (0, record.depth) and record.family in families
  )
  rows = (
    [dataclasses.asdict(record) for record in chosen]
    if config.as_json
    else lookup.table(chosen)
  )
  console.show(rows, config.as_json, heads=2)
  return 0
