# SPDX-License-Identifier: Apache-2.0
"""The table of jobs, which also feeds the flag `--job`."""

import dataclasses
import importlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from resnet_jax.system import errors


@dataclasses.dataclass(frozen=True)
class Job:
  """An entry of the table.

  Attributes:
    module: has `run(config) -> exit status`; imported only to run the job, so
      that a mistyped flag does not wait for JAX.
    summary: half a line for --help.
    takes: the settings that positional arguments set, in order.
  """

  module: str
  summary: str
  takes: tuple[str, ...] = ()


JOBS = {
  'extract': Job(
    'resnet_jax.jobs.extract', "write layers' features for images"
  ),
  'predict': Job('resnet_jax.jobs.predict', 'print the labels of images'),
  'evaluate': Job(
    'resnet_jax.jobs.evaluate', 'measure the error on labelled images'
  ),
  'compare': Job(
    'resnet_jax.jobs.compare',
    'compare two prediction files, or two feature stores',
    ('first', 'second'),
  ),
  'zoo': Job('resnet_jax.jobs.zoo', 'list the published checkpoints'),
  'download': Job(
    'resnet_jax.jobs.download', 'download and verify published checkpoints'
  ),
  'convert': Job(
    'resnet_jax.jobs.convert', 'convert weights to safetensors or for Paddle'
  ),
  'inspect': Job(
    'resnet_jax.jobs.inspect', "print weights' parameters, or one's values"
  ),
  'visualize': Job(
    'resnet_jax.jobs.visualize',
    'show filters, maps, Grad-CAM and predictions on one page',
  ),
  'summary': Job(
    'resnet_jax.jobs.summary', "print layers' names, shapes and costs"
  ),
  'diagram': Job('resnet_jax.jobs.diagram', 'draw the network, with graphviz'),
}


def take(name: str, arguments: Sequence[str], config: ConfigDict) -> None:
  """Sets the settings that a job takes as positional arguments.

  Raises:
    UserError: the job takes another number of arguments.
  """
  keys = JOBS[name].takes
  if arguments and len(arguments) != len(keys):
    takes = f'takes {len(keys)} ({", ".join(keys)})' if keys else 'takes none'
    raise errors.UserError(
      f"unexpected arguments '{' '.join(arguments)}': --job={name} {takes}."
      ' Pass settings as flags, such as --config.data=photos.'
    )
  for key, argument in zip(keys, arguments, strict=False):
    config[key] = argument


def run(name: str, config: ConfigDict) -> int:
  """Runs a job; returns the exit status: 0, or 3 if images failed."""
  return importlib.import_module(JOBS[name].module).run(config)
