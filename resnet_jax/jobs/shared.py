# SPDX-License-Identifier: Apache-2.0
"""What jobs share that write a run by units, maybe in several processes."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.engine import devices
from resnet_jax.features import output, table
from resnet_jax.system import console, errors, files, ledger, units
from resnet_jax.system.text import counted


def check_part(text: str) -> None:
  """Raises a UserError for a wrong setting `part`, before JAX starts."""
  units.part(text, os.environ, lambda: (0, 1))


def recorded(config: ConfigDict) -> dict[str, Any]:
  """The config for a run's record, without what may change as it goes on.

  Each of its processes has another part, and one may resume it with another
  on_error.
  """
  return {k: v for k, v in config.items() if k not in ('on_error', 'part')}


def part_of(text: str) -> units.Part:
  """The part that the setting names; says it."""
  part = units.part(text, os.environ, devices.processes)
  if part.source:
    console.say(str(part))
  return part


@contextlib.contextmanager
def published_by_others(
  directory: pathlib.Path,
  settings: Mapping[str, Any],
  read: output.ReadSettings,
  kind: output.Kind = output.FEATURES,
) -> Iterator[None]:
  """Ends a block without an error where another process finished the run."""
  try:
    yield
  except (errors.UserError, OSError):
    gone = not files.part(directory).exists()
    if not gone or not output.is_finished(directory, settings, read, kind):
      raise
    console.say(f'another process finished {directory}')


def say_resumed(part: units.Part, own: int, done: int) -> None:
  """Says how many images are done, of those that are this process's."""
  of = ' of this part' if part.source else ''
  console.say(f'resuming after {done} of {counted(own, "image")}{of}')


def finish(
  directory: pathlib.Path,
  writer: table.Writer,
  part: units.Part,
  kind: output.Kind = output.FEATURES,
) -> bool:
  """Publishes a run that is complete; else says what is missing."""
  if missing := writer.missing():
    console.say(
      f'{part if part.source else "this process"} has nothing left to do;'
      f' {ledger.described(missing)}. {directory} is published by the process'
      ' that ends last; --job=status says more'
    )
    return False
  writer.finish()
  output.publish(directory, kind)
  return True
