# SPDX-License-Identifier: Apache-2.0
"""The job `zoo`: the published checkpoints, as a table."""

import dataclasses

from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.models import names, structure
from resnet_jax.system import console
from resnet_jax.zoo import lookup


def run(config: ConfigDict) -> int:
  """Prints the checkpoints of `weights` and `layer_num`: a table, or JSON."""
  depth = config.layer_num
  if depth:
    structure.check_depth(depth)
  if config.weights == weights.AUTO:
    chosen = [r for r in lookup.RECORDS if depth in (0, r.depth)]
  else:
    chosen = lookup.select(names.split_list(config.weights), depth)
  rows = (
    [dataclasses.asdict(record) for record in chosen]
    if config.as_json
    else lookup.table(chosen)
  )
  console.show(rows, config.as_json, heads=2)
  return 0
