# SPDX-License-Identifier: Apache-2.0
r"""Features and predictions of the published ResNets.

ResNet-18, -34, -50, -101, -152, wide_resnet50_2, resnext50_32x4d and the like;
the CIFAR networks have configs/cifar.py.

  python -m resnet_jax.main --config=configs/resnet.py:50 --job=extract
  python -m resnet_jax.main --config=configs/resnet.py:50 --job=predict \
      --config.data=photos --config.multi_crop=true
  python -m resnet_jax.main --config=configs/resnet.py:152,weights=random ...

configs/resnet.py lists every setting with its default and meaning.  Set any of
them after the colon or by --config.KEY=VALUE.
"""

import contextlib
import gc
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from resnet_jax import configuration, jobs
from resnet_jax.system import console, errors, memory

# absl's own help lists flags instead of settings, and exits with 1.
_HELP = {
  *('--help', '-help', '-h', '-?', '--helpshort', '--helpfull', '--helpxml')
}

# Objects that are made between two of them; Python's default is 700 or 2000.
_FEWER_COLLECTIONS = 50_000

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Configuration file, and settings after a colon, such as'
  f' {configuration.DEFAULT}:50; by default {configuration.DEFAULT}.',
)
_JOB = flags.DEFINE_string('job', None, 'The job to run.')


def _parse(arguments: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(list(arguments))
  except flags.Error as error:
    configuration.check_overrides(arguments)
    raise errors.UserError(
      f'{str(error).removesuffix(".")}. --help lists jobs and settings.'
    ) from error
  except (AttributeError, KeyError, TypeError):
    # config_flags raises these for a key that the config lacks.
    configuration.check_overrides(arguments)
    raise


def _help() -> str:
  width = max(map(len, jobs.JOBS))
  lines = [
    f'  {name:{width}}  {job.summary}' for name, job in jobs.JOBS.items()
  ]
  return '\n'.join(
    [
      (__doc__ or '').strip(),
      '\nJobs, --job=NAME:\n',
      *lines,
      f'\nSettings ({configuration.DEFAULT}), with their defaults:\n',
      configuration.settings_text(),
    ]
  )


def main(arguments: Sequence[str]) -> int:
  """Runs the job that the flags name; returns the exit status."""
  if _JOB.value is None:
    raise errors.UserError(
      f'give --job=JOB, one of: {", ".join(jobs.JOBS)}. --help says more.'
    )
  errors.check_choice('job', _JOB.value, jobs.JOBS)
  configuration.check_complete(_CONFIG.value)
  jobs.take(_JOB.value, arguments[1:], _CONFIG.value)
  return jobs.run(_JOB.value, _CONFIG.value)


def run() -> None:
  """The program: flags, job, exit status."""
  # Modules and traced programs live on: by default, looking for cycles among
  # them takes a tenth of the processor's time of a short run.
  gc.set_threshold(_FEWER_COLLECTIONS)
  # At lower levels, JAX logs every accelerator that it did not find.
  logging.set_verbosity(logging.WARNING)
  # Ctrl-C ends the program at once, even inside the compiler: every run can be
  # killed at any moment, so nothing needs cleaning up.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  console.prepare()
  try:
    if _HELP & set(sys.argv[1:]):
      console.result(_help())
      return
    # config_flags reads sys.argv, too.
    sys.argv = configuration.resolve_flags(sys.argv)
    app.run(main, flags_parser=_parse)
  except BrokenPipeError:
    # The reader of the output closed the pipe (`| head`).
    console.abandon()
    sys.exit(141)
  except errors.UserError as error:
    _fail(str(error))
  except MemoryError as error:
    _fail(memory.exhausted(error))
  except OSError as error:
    # A file that no other place has named.
    named = f'{error.filename}: ' if error.filename else ''
    _fail(f'{named}{error.strerror or error}.')


def _fail(message: str) -> NoReturn:
  # Without a place for the message there is still the exit status.
  with contextlib.suppress(OSError, errors.UserError):
    console.say(f'error: {message}')
  console.abandon()
  sys.exit(1)


if __name__ == '__main__':
  run()
