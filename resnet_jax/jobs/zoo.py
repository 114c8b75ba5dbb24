# SPDX-License-Identifier: Apache-2.0
"""The job `zoo`: the published checkpoints, as a table."""

import dataclasses

from ml_collections import ConfigDict

from resnet_jax.jobs import console
from resnet_jax.weights import zoo


def run(config: ConfigDict) -> int:
  """Prints the table, or every record whole as JSON."""
  if config.as_json:
    console.show([dataclasses.asdict(r) for r in zoo.RECORDS], True)
  else:
    console.show(zoo.table(), False)
  return 0
