# SPDX-License-Identifier: Apache-2.0
"""Configuration files: where they are, and the grammar of their argument."""

import pathlib
import re
import runpy
import textwrap
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.system import errors

_PACKAGE = pathlib.Path(__file__).parent
# In a checkout configs/ lies beside the package, in an installation inside.
_HOMES = (_PACKAGE, _PACKAGE.parent)

DEFAULT = 'configs/resnet.py'

# Settings whose 0 means that the program decides, which may be written 'auto',
# too.
_AUTOMATIC = (
  *('layer_num', 'epsilon', 'resize_size', 'crop_size'),
  *('batch_size', 'threads'),
)

_BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


def find(path: str) -> str:
  """The file that `--config=path[:argument]` names.

  A path that is not there from the working directory is looked for in the
  installed project, so that `configs/resnet.py` works anywhere.

  Raises:
    UserError: it is in neither.
  """
  name, colon, argument = path.partition(':')
  if pathlib.Path(name).is_file():
    return path
  for home in _HOMES:
    if (home / name).is_file():
      return f'{home / name}{colon}{argument}'
  ours = sorted(
    f'configs/{file.name}'
    for home in _HOMES
    for file in home.glob('configs/*.py')
  )
  raise errors.unknown('configuration file', name, ours)


def resolve_flags(arguments: Sequence[str]) -> list[str]:
  """A command line whose first flag is `--config=` with a path that is there.

  Without the flag it is DEFAULT.
  """
  program, *rest = arguments
  path, others = DEFAULT, []
  flags = iter(rest)
  for flag in flags:
    if flag in ('--config', '-config'):
      path = next(flags, '')
    elif match := re.fullmatch(r'--?config=(.*)', flag):
      path = match[1]
    else:
      others.append(_automatic(flag))
  return [program, f'--config={find(path)}', *others]


def settings_text() -> str:
  """Every key of the default file, with its default, below its comment."""
  text = pathlib.Path(find(DEFAULT)).read_text('utf-8')
  body = re.search(r'ConfigDict\(\)\n\n(.*)\n\n  return ', text, re.S)
  if body is None:
    raise ValueError(f'{DEFAULT} does not look as expected')
  lines = textwrap.dedent(body[1]).splitlines()
  return '\n'.join(line.removeprefix('config.') for line in lines)


def _automatic(flag: str) -> str:
  """`--config.batch_size=auto` as a number."""
  return re.sub(
    rf'^(--?config\.(?:{"|".join(_AUTOMATIC)}))=auto$', r'\1=0', flag
  )


def check_overrides(arguments: Sequence[str]) -> None:
  """Raises a UserError for a `--config.key` that the config does not have.

  Args:
    arguments: what `resolve_flags` returned.
  """
  path, _, settings = arguments[1].removeprefix('--config=').partition(':')
  keys = sorted(runpy.run_path(path)['get_config'](settings))
  for argument in arguments[2:]:
    match = re.match(r'--?(?:no)?config\.([^=]*)', argument)
    if match and match[1] not in keys:
      raise errors.unknown('setting', match[1], keys)


def check_complete(config: ConfigDict) -> None:
  """Raises a UserError if a configuration lacks keys of the default one."""
  default = runpy.run_path(find(DEFAULT))['get_config']()
  if missing := sorted(set(default) - set(config)):
    raise errors.UserError(
      f'the configuration lacks {", ".join(missing)}. Let it start from'
      f' {DEFAULT} and change what is to be different.'
    )


def apply(config: ConfigDict, argument: str) -> ConfigDict:
  """Changes settings as `152,weights=random,multi_crop=true` says.

  Raises:
    UserError: a key, or the type of a value, is not the config's.
  """
  for part in filter(None, (part.strip() for part in argument.split(','))):
    key, equals, text = part.partition('=')
    if part.isdecimal():
      key, text = 'layer_num', part
    elif not equals:
      raise errors.UserError(
        f"'{part}' in '{argument}' is neither a depth (18, 34, 50, 101, 152)"
        ' nor a setting (key=value). A value with commas goes into a flag of'
        ' its own, --config.key=value.'
      )
    # A ConfigDict's own `in` would follow the dots in a key.
    if key not in (keys := sorted(config)):
      raise errors.unknown('setting', key, keys)
    config[key] = _typed(key, text, config[key])
  return config


def _typed(key: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    errors.check_choice(f'value of {key}', text.lower(), _BOOLEANS)
    return _BOOLEANS[text.lower()]
  if text == 'auto' and key in _AUTOMATIC:
    text = '0'
  try:
    return type(default)(text)
  except ValueError as error:
    kind = 'a number' if isinstance(default, float) else 'a whole number'
    raise errors.UserError(f"{key}='{text}' is not {kind}.") from error
