# SPDX-License-Identifier: Apache-2.0
"""Weights by name or path, checked, with their network and preprocessing."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from resnet_jax.data import presets
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import known, resnet, structure, widths
from resnet_jax.system import console, errors
from resnet_jax.system.overrides import AUTO
from resnet_jax.system.text import plain, some
from resnet_jax.weights import assemble, formats, prefixes, random
from resnet_jax.weights.assemble import Options
from resnet_jax.zoo import download, lookup

__all__ = [
  'AUTO',
  'RANDOM',
  'UNTRAINED',
  'Options',
  'Weights',
  'check_record',
  'digest',
  'load',
  'recorded',
  'untrained',
]

UNTRAINED = (
  'UNTRAINED: random weights; features and labels mean nothing, only shapes,'
  ' formats and speed do'
)
RANDOM = 'random'


@dataclasses.dataclass(frozen=True)
class Weights:
  """A network, its parameters, and their source.

  Attributes:
    loaded: the contents of the file, with the zoo's and the user's variant.
    source: human-readable: the file, and the checkpoint that it is.
    warnings: probable mistakes, one per entry.
    path: of the file or directory; None: random weights.
    digest: SHA-256 of names, shapes and values, 64 hexadecimal digits.
  """

  loaded: assemble.Loaded
  source: str
  warnings: tuple[str, ...] = ()
  path: pathlib.Path | None = None
  digest: str = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    object.__setattr__(self, 'digest', digest(self.parameters))

  @property
  def parameters(self) -> dict[str, np.ndarray]:
    """`layer/leaf` float32 arrays in the order of computing.

    Kernels are (ky, kx, Ci, Co), the classifier's (in, out).
    """
    return self.loaded.parameters

  @property
  def module(self) -> resnet.ResNet:
    """The network that they are for."""
    return self.loaded.module

  @property
  def preprocess(self) -> Preprocess:
    """The preprocessing that they were trained with."""
    return self.loaded.preprocess

  @property
  def notes(self) -> tuple[str, ...]:
    """What the user should know, one per entry."""
    return self.loaded.all_notes

  @property
  def trained(self) -> bool:
    """Whether they were trained, as far as is known."""
    return self.loaded.trained


def load(
  name: str,
  options: Options | None = None,
  *,
  say: Callable[[str], None] = lambda text: None,
  report: Callable[[int, int | None], None] | None = None,
) -> Weights:
  """Loads weights.

  Args:
    name: the path of a file or directory, in any of `formats.FORMATS`; a
      family of the zoo, such as `msra`, downloaded if it is not in the cache;
      `random`; or `auto`: `model/resnet_50` (and so on) below the working
      directory, else the zoo's usual checkpoint of the depth.
    options: the user's other settings.
    say: called with each line of the log.
    report: called with a download's bytes, so far and in all.

  Raises:
    UserError: the file does not exist, or holds no ResNet of the depth.
  """
  options = options or Options()
  if name == RANDOM and options.weights_prefix:
    raise prefixes.needless(options.weights_prefix, f'weights={RANDOM}')
  if name == RANDOM:
    depth = options.depth or structure.DEFAULT_DEPTH
    module = resnet.published(depth, options.variant)
    loaded = untrained(module, options.seed)
    return Weights(loaded, loaded.format, (f'{UNTRAINED}.',))
  path, record = _find(name, options, report, say)
  loaded = formats.load(path, options)
  if options.depth not in (0, loaded.module.depth):
    raise errors.UserError(
      f'{path} holds {resnet.title(loaded.module)}, not ResNet-{options.depth}:'
      f' set layer_num={loaded.module.depth} (in Python the name'
      f" 'resnet{loaded.module.depth}'), or 0 for that of any file."
    )
  record = record or lookup.identify(path, loaded.module.depth)
  source = f'{loaded.format} {path}'
  if loaded.converted_from:
    source += f', converted from {loaded.converted_from.source}'
  if record:
    loaded = _as_recorded(path, loaded, record)
    source += f', {record.name} of the zoo ({record.file.hash or "no hash"})'
  told = loaded.module
  if wrong := widths.contradicting(told.depth, told.variant, options.variant):
    raise errors.UserError(
      f'{path} holds {resnet.describe(told)}, which {wrong} contradicts. Leave'
      ' that out: the weights tell it.'
    )
  loaded = dataclasses.replace(loaded, module=options.applied(loaded.module))
  warnings = (*(() if loaded.trained else (f'{UNTRAINED}.',)), *loaded.warnings)
  result = Weights(loaded, source, warnings, path)
  if loaded.digest in ('', result.digest):
    return result
  changed = (
    f'{path} was changed since it was written: its parameters have the digest'
    f' {result.digest}, and it states {loaded.digest[:64]}. Convert the'
    ' original again.'
  )
  if options.finite:
    raise errors.UserError(changed)
  return dataclasses.replace(result, warnings=(*warnings, changed))


def load_logged(
  name: str, options: Options, warn: Callable[[str], None]
) -> Weights:
  """Loads weights, and logs what they are.

  Args:
    name: as for `load`.
    options: as for `load`.
    warn: called with each warning.
  """
  with console.Bytes() as bar:
    loaded = load(name, options, say=console.say, report=bar.set)
  console.say(f'weights: {loaded.source}')
  console.say(resnet.describe(loaded.module))
  console.say(f'digest {loaded.digest}')
  for warning in loaded.warnings:
    warn(plain(warning))
  for note in loaded.notes:
    console.say(f'NOTE: {note}')
  return loaded


def digest(parameters: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of names, shapes and float32 bytes, in the order of the names."""
  total = hashlib.sha256()
  for name in sorted(parameters):
    array = np.ascontiguousarray(parameters[name], '<f4')
    total.update(f'{name} {array.shape}\n'.encode())
    total.update(array.data)
  return total.hexdigest()


def untrained(module: resnet.ResNet, seed: int = 0) -> assemble.Loaded:
  """Random parameters for a network, in the form of a loaded file."""
  parameters = random.initialise(module, seed)
  return assemble.Loaded(
    f'random, seed {seed}',
    module,
    parameters,
    {
      name: assemble.Origin(name, array.shape, 'float32')
      for name, array in parameters.items()
    },
    assemble.KERAS_LAYOUT.text,
    presets.usual(module.depth),
    trained=False,
  )


def recorded(family: str, options: Options) -> lookup.Record:
  """The checkpoint of a family that a user's settings ask for.

  Raises:
    UserError: the family lacks the depth, or has another network's widths.
  """
  return check_record(lookup.find(family, options.depth), options)


def check_record(record: lookup.Record, options: Options) -> lookup.Record:
  """Returns a checkpoint; raises a UserError if it is of other widths."""
  own = record.depth, record.variant
  if wrong := widths.contradicting(*own, options.variant):
    asked = known.usual(record.depth, options.variant)
    there = some(lookup.families(record.depth, asked)) or 'no checkpoint'
    raise errors.UserError(
      f'{record.name} is {known.title(*own)}, which {wrong} contradicts. Leave'
      f' that out; or take one of {known.describe(record.depth, asked)}:'
      f' {there}.'
    )
  return record


def _find(
  name: str,
  options: Options,
  report: Callable[[int, int | None], None] | None,
  say: Callable[[str], None],
) -> tuple[pathlib.Path, lookup.Record | None]:
  """The file or directory of a name, and the zoo's record that it names."""
  missing = f'weights={name!r}: {name} does not exist.'
  family = name
  if name == AUTO:
    depth = options.depth or structure.DEFAULT_DEPTH
    asked = known.usual(depth, options.variant)
    network = known.name(depth, asked)
    plain = network in ('', f'resnet{depth}')
    usual = pathlib.Path('model') / (f'resnet_{depth}' if plain else network)
    if usual.is_dir():
      return usual, None
    missing = f'no weights found: {usual} does not exist.'
    family = lookup.USUAL.get(network, '')
    if not family:
      raise errors.UserError(
        f'{missing} The zoo has no checkpoint of'
        f' {known.describe(depth, asked)}. {_WAYS}'
      )
  if family in lookup.FAMILIES:
    record = recorded(family, options)
    try:
      path = download.fetch(record.file, record.name, report=report, say=say)
    except errors.UserError as error:
      if name != AUTO:
        raise
      raise errors.UserError(f'{missing} {error} {_WAYS}') from error
    return path, record
  path = pathlib.Path(name).expanduser()
  if name and os.path.exists(path):
    return path, None
  hint = errors.hint(name, (*lookup.FAMILIES, AUTO, RANDOM))
  raise errors.UserError(f'{missing}{hint} {_WAYS}')


_WAYS = (
  'Give weights=PATH, a file or directory; or weights=NAME, one of'
  f' {lookup.LISTED}; or weights=random, untrained, to try the'
  ' program.'
)


def _as_recorded(
  path: pathlib.Path, loaded: assemble.Loaded, record: lookup.Record
) -> assemble.Loaded:
  """The file's parameters with the zoo's variant and preprocessing."""
  # Some files of a network have biases that others lack.
  bare = loaded.module.clone(biases=frozenset())
  count = resnet.learned_count(resnet.parameter_shapes(bare))
  own = record.depth, record.variant
  if (loaded.module.depth, count) != (record.depth, record.parameters):
    raise errors.UserError(
      f'{path} should be {record.name}, a {known.title(*own)} of'
      f' {record.parameters} parameters, and holds a'
      f' {resnet.title(loaded.module)} of {count}. Get it again.'
    )
  return dataclasses.replace(
    loaded,
    module=loaded.module.clone(variant=record.variant),
    preprocess=record.preprocess,
    guesses=(),
  )
