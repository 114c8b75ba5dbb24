# SPDX-License-Identifier: Apache-2.0
"""Configuration files: finding them, and the grammar of their argument."""

import pathlib
import re
import runpy
import textwrap
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.models import known
from resnet_jax.system import errors

_PACKAGE = pathlib.Path(__file__).parent
# configs/ lies next to the package in a checkout, inside it when installed.
_HOMES = (_PACKAGE, _PACKAGE.parent)

DEFAULT = 'configs/resnet.py'

# Settings whose 0 leaves the choice to the program; 'auto' is a synonym of 0.
_AUTOMATIC = (
  *('layer_num', 'epsilon', 'resize_size', 'crop_size'),
  *('batch_size', 'threads'),
)

_AUTO_FLAG = re.compile(rf'^(--?config\.(?:{"|".join(_AUTOMATIC)}))=auto$')
_BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


def find(path: str) -> str:
  """The existing file for `--config=path[:argument]`, argument included.

  Looks in the working directory, then in the installed project, so that
  `configs/resnet.py` works anywhere.

  Raises:
    UserError: neither has the file.
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
  """Puts `--config=` first, with the path of an existing file.

  Without the flag, the file is DEFAULT.
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
      others.append(_AUTO_FLAG.sub(r'\1=0', flag))
  return [program, f'--config={find(path)}', *others]


def settings_text() -> str:
  """Every key of the default file, with its comment and default value."""
  text = pathlib.Path(find(DEFAULT)).read_text('utf-8')
  (body,) = re.findall(r'ConfigDict\(\)\n\n(.*)\n\n  return ', text, re.S)
  lines = textwrap.dedent(body).splitlines()
  return '\n'.join(line.removeprefix('config.') for line in lines)


def check_overrides(arguments: Sequence[str]) -> None:
  """Raises a UserError for a `--config.key=value` that the config refuses.

  Args:
    arguments: the result of `resolve_flags`.
  """
  path, _, settings = arguments[1].removeprefix('--config=').partition(':')
  config = runpy.run_path(path)['get_config'](settings)
  keys = sorted(config)
  for argument in arguments[2:]:
    match = re.fullmatch(r'--?(?:no)?(config\.)?([^=]*)(?:=(.*))?', argument)
    if not match:
      continue
    prefix, key, value = match.groups()
    if prefix and key not in keys:
      raise errors.unknown('setting', key, keys)
    if prefix and value is not None:
      _typed(key, value, config[key])
    elif not prefix and key in keys:
      raise errors.UserError(
        f'unknown flag --{key}. Did you mean --config.{key}? --help lists jobs'
        ' and settings.'
      )


def check_complete(config: ConfigDict) -> None:
  """Raises a UserError if a configuration lacks keys of DEFAULT."""
  default = runpy.run_path(find(DEFAULT))['get_config']()
  if missing := sorted(set(default) - set(config)):
    raise errors.UserError(
      f'the configuration lacks {", ".join(missing)}. Start from the'
      f' configuration of {DEFAULT} and override its values.'
    )


def apply(config: ConfigDict, argument: str) -> ConfigDict:
  """Overrides settings by an argument like `152,weights=random`.

  Raises:
    UserError: the config lacks a key, or a value has the wrong type.
  """
  for part in filter(None, (part.strip() for part in argument.split(','))):
    key, equals, text = part.partition('=')
    given = {key: text}
    if part.isdecimal():
      given = {'layer_num': part}
    elif not equals:
      network = known.settings(part)
      if network is None:
        raise errors.UserError(
          f"'{part}' in '{argument}' is neither a depth (18, 34, 50, 101, 152)"
          ' nor a network (such as resnext50_32x4d) nor a setting (key=value).'
          ' Pass a value with commas by its own flag, --config.key=value.'
        )
      given = {name: str(value) for name, value in network.items()}
    for key, text in given.items():
      # `in` of a ConfigDict would follow the dots in a key.
      if key not in (keys := sorted(config)):
        raise errors.unknown('setting', key, keys)
      config[key] = _typed(key, text, config[key])
  return config


def _typed(key: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    if text.lower() not in _BOOLEANS:
      raise errors.UserError(f"{key}='{text}' is not true or false.")
    return _BOOLEANS[text.lower()]
  if text == 'auto' and key in _AUTOMATIC:
    text = '0'
  try:
    return type(default)(text)
  except ValueError as error:
    kind = 'a number' if isinstance(default, float) else 'a whole number'
    raise errors.UserError(f"{key}='{text}' is not {kind}.") from error
