# SPDX-License-Identifier: Apache-2.0
"""The jobs: a table that feeds the flag, and how one is run."""

import dataclasses
import importlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from resnet_jax.system import errors


@dataclasses.dataclass(frozen=True)
class Job:
  """An entry of the table.

  Attributes:
    module: has `run(config) -> exit status`; imported when it is run, since
      a mistyped flag should not wait for JAX.
    summary: half a line for --help.
    takes: the settings that arguments behind the flags are for.
  """

  module: str
  summary: str
  takes: tuple[str, ...] = ()


JOBS = {
  'extract': Job('resnet_jax.jobs.extract', "write layers' features of images"),
  'predict': Job('resnet_jax.jobs.predict', 'print the labels of images'),
  'evaluate': Job('resnet_jax.jobs.evaluate', 'errors of labelled images'),
  'compare': Job(
    'resnet_jax.jobs.compare',
    'compare two files of predictions, or two feature stores',
    ('first', 'second'),
  ),
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
  'visualize': Job(
    'resnet_jax.jobs.visualize',
    'filters, maps, Grad-CAM and predictions as PNGs and one page',
  ),
  'summary': Job(
    'resnet_jax.jobs.summary', "show layers' names, shapes and costs"
  ),
  'diagram': Job('resnet_jax.jobs.diagram', 'draw the network, with graphviz'),
}


def take(name: str, arguments: Sequence[str], config: ConfigDict) -> None:
  """Puts arguments behind the flags into the settings that they are for.

  Raises:
    UserError: the job takes none, or another number.
  """
  keys = JOBS[name].takes
  if arguments and len(arguments) != len(keys):
    takes = f'takes {len(keys)} ({", ".join(keys)})' if keys else 'takes none'
    raise errors.UserError(
      f"do not know what to do with '{' '.join(arguments)}': --job={name}"
      f' {takes}; settings are flags, such as --config.data=photos.'
    )
  for key, argument in zip(keys, arguments, strict=False):
    config[key] = argument


def run(name: str, config: ConfigDict) -> int:
  """Runs a job; returns the exit status: 0, or 3 if images failed."""
  return importlib.import_module(JOBS[name].module).run(config)
