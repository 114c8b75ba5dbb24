# SPDX-License-Identifier: Apache-2.0
"""The job `zoo`: the published checkpoints, as a table."""

import dataclasses

from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.jobs import setup
from resnet_jax.models import names
from resnet_jax.system import console
from resnet_jax.zoo import lookup


def run(config: ConfigDict) -> int:
  """Prints the checkpoints of the config's network: a table, or JSON."""
  options = setup.weight_options(config)
  chosen = lookup.with_settings(options.depth, options.variant)
  if config.weights != weights.AUTO:
    families = names.split_list(config.weights)
    named = lookup.select(families, options.depth)
    chosen = [record for record in named if record in chosen]
  rows = (
    [dataclasses.asdict(record) for record in chosen]
    if config.as_json
    else lookup.table(chosen)
  )
  console.show(rows, config.as_json, heads=2)
  return 0
