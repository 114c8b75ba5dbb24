# SPDX-License-Identifier: Apache-2.0
"""The table of jobs, which also feeds the flag `--job`."""

import importlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from resnet_jax.system import errors, memory


class Job(NamedTuple):
  """An entry of the table.

  Attributes:
    summary: half a line for --help.
    takes: the settings that positional arguments set, in order.
    parts: whether several processes may share a run, by the setting `part`.
  """

  summary: str
  takes: tuple[str, ...] = ()
  parts: bool = False


# A module of the same name has `run(config) -> exit status`.
JOBS = {
  'extract': Job("write layers' features for images", parts=True),
  'status': Job('say how far a store of features is, and verify it'),
  'predict': Job('print the labels of images'),
  'evaluate': Job('measure the error on labelled images'),
  'compare': Job(
    'compare two prediction files, or two feature stores', ('first', 'second')
  ),
  'crop': Job(
    'decode and crop images once, for any number of later jobs', parts=True
  ),
  'zoo': Job('list the published checkpoints'),
  'download': Job('download and verify published checkpoints'),
  'convert': Job('convert weights to safetensors or for Paddle'),
  'inspect': Job("print weights' parameters, or one's values"),
  'visualize': Job('show filters, maps, Grad-CAM and predictions on one page'),
  'summary': Job("print layers' names, shapes and costs"),
  'diagram': Job('draw the network, with graphviz'),
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
  """Runs a job; returns the exit status: 0, or 3 if images failed.

  Raises:
    UserError: the job has no parts, and one is asked for.
  """
  if config.part and not JOBS[name].parts:
    able = ', '.join(job for job, facts in JOBS.items() if facts.parts)
    raise errors.UserError(
      f"part='{config.part}': --job={name} runs in one process. Jobs that"
      f' several processes share: {able}. Leave part out.'
    )
  memory.check(memory.IMPORTS, 'the program')
  _import_jax()
  # Imported only now: a mistyped flag should not wait for JAX.
  return importlib.import_module(f'{__name__}.{name}').run(config)


def _import_jax() -> None:
  """Imports JAX, which reads the environment.

  Raises:
    UserError: one of its variables has a value that it does not take.
  """
  try:
    importlib.import_module('jax')
  except ValueError as error:
    given = [name for name in os.environ if name.startswith(('JAX_', 'XLA_'))]
    raise errors.UserError(
      f'JAX does not start: {error}. Correct or unset the variables of the'
      f' environment for it: {", ".join(sorted(given)) or "none is set"}.'
    ) from error
