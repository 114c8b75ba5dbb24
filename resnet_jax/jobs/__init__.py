# SPDX-License-Identifier: Apache-2.0
"""The jobs: a table that feeds the flag, and how one is run."""

import dataclasses
import importlib

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Job:
  """An entry of the table.

  Attributes:
    module: has `run(config) -> exit status`; imported when it is run, since
      a mistyped flag should not wait for JAX.
    summary: half a line for --help.
  """

  module: str
  summary: str


JOBS = {
  'extract': Job(
    'resnet_jax.jobs.extract', "write layers' features of pictures"
  ),
  'predict': Job('resnet_jax.jobs.predict', 'print the labels of pictures'),
  'zoo': Job('resnet_jax.jobs.zoo', 'list the published checkpoints'),
  'download': Job(
    'resnet_jax.jobs.download', 'get published checkpoints, verified'
  ),
  'convert': Job(
    'resnet_jax.jobs.convert', 'write weights as safetensors or for Paddle'
  ),
  'inspect': Job(
    'resnet_jax.jobs.inspect', "show weights' parameters, or one's values"
  ),
  'summary': Job(
    'resnet_jax.jobs.summary', "show layers' names, shapes and costs"
  ),
}


def run(name: str, config: ConfigDict) -> int:
  """Runs a job; returns the exit status: 0, or 3 if pictures failed."""
  return importlib.import_module(JOBS[name].module).run(config)
