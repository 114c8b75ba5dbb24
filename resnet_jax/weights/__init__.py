# SPDX-License-Identifier: Apache-2.0
"""Weights by name or path, checked, with all that must be known about them."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from resnet_jax.data import recipe
from resnet_jax.models import names, resnet
from resnet_jax.system import errors
from resnet_jax.weights import assemble, formats, paddle, random
from resnet_jax.zoo import download, lookup

UNTRAINED = (
  'UNTRAINED: random weights; features and labels mean nothing, only shapes,'
  ' formats and speed do'
)
DEFAULT_DEPTH = 50
AUTO, RANDOM = 'auto', 'random'
# Formats whose files do not tell how images were prepared.
_UNTOLD = ('Keras', 'Caffe')
_INPUT = (
  'the file is none of the published ones and does not tell how images were'
  " prepared: as for the authors' networks, {how.channels}, minus {how.mean},"
  ' no scaling. Set channels, mean, std, resize_size, interpolation if it was'
  ' trained otherwise.'
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """A network, its parameters, and where they are from.

  Attributes:
    loaded: what the file held, with the user's and the zoo's variant.
    source: for a person: what was loaded, and what it was recognised as.
    warnings: what the user should hear, a sentence each.
    path: of the file or directory; None: there is none.
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
  def model(self) -> resnet.ResNet:
    """The network that they are for."""
    return self.loaded.model

  @property
  def recipe(self) -> recipe.Recipe:
    """How images must be prepared for it."""
    return self.loaded.recipe

  @property
  def trained(self) -> bool:
    """Whether anybody trained them."""
    return self.loaded.trained


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """What the user says of the weights.

  Attributes:
    depth: one of `names.ARCHITECTURES`; 0: that of the file, else 50.
    stride_in: a field of the network; 'auto': the checkpoint's.
    stem_pool: the same.
    epsilon: the same; 0: the checkpoint's.
    conv_order: how convolutions lie in a Paddle directory; see `paddle`.
    seed: for `random`, 0 to 2**32 - 1.
    finite: whether values that are not finite are an error.
  """

  depth: int = 0
  stride_in: str = AUTO
  stem_pool: str = AUTO
  epsilon: float = 0.0
  conv_order: str = 'OHWI'
  seed: int = 0
  finite: bool = True

  def __post_init__(self) -> None:
    if self.depth:
      names.check_depth(self.depth)
    errors.check_choice('conv_order', self.conv_order, paddle.CONV_ORDERS)
    if not 0 <= self.seed < 2**32:
      raise errors.UserError(
        f'seed={self.seed} is not between 0 and 4294967295.'
      )
    assemble.checked_variant(self.variant(resnet.ResNet(DEFAULT_DEPTH)))

  def variant(self, model: resnet.ResNet) -> dict[str, Any]:
    """The fields of a network, with those that the user wants otherwise."""
    wished = {
      'stride_in': self.stride_in if self.stride_in != AUTO else None,
      'stem_pool': self.stem_pool if self.stem_pool != AUTO else None,
      'epsilon': self.epsilon or None,
    }
    return {
      key: getattr(model, key) if wish is None else wish
      for key, wish in wished.items()
    }


def load(
  name: str,
  options: LoadOptions | None = None,
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
    options: what else the user says.
    say: hears what happens, a line each.
    report: hears of a download's bytes, so far and in all.

  Raises:
    UserError: there is no such file, or it does not hold a ResNet of the
      depth.
  """
  options = options or LoadOptions()
  if name == RANDOM:
    return _random(options)
  record = None
  if name in lookup.FAMILIES:
    record = lookup.find(name, options.depth or DEFAULT_DEPTH)
    path = download.fetch(record.file, record.name, report=report, say=say)
  elif name == AUTO:
    path, record = _automatic(options.depth or DEFAULT_DEPTH, report, say)
  else:
    path = _existing(name)
  loaded = formats.load(
    path, assemble.Options(options.finite, options.conv_order)
  )
  if options.depth not in (0, loaded.model.depth):
    raise errors.UserError(
      f'{path} holds ResNet-{loaded.model.depth}, not ResNet-{options.depth}:'
      f' set layer_num={loaded.model.depth} (in Python the name'
      f" 'resnet{loaded.model.depth}'), or 0 for that of any file."
    )
  if record is None:
    record = lookup.identify(path, loaded.model.depth)
  source = f'{loaded.format} {path}'
  if loaded.converted_from:
    source += f', converted from {loaded.converted_from.source}'
  if record:
    loaded = _as_recorded(path, loaded, record)
    source += f', {record.name} of the zoo ({record.file.hash or "no hash"})'
  elif loaded.format.startswith(_UNTOLD):
    note = _INPUT.format(how=loaded.recipe)
    loaded = dataclasses.replace(loaded, notes=(*loaded.notes, note))
  loaded = dataclasses.replace(
    loaded, model=loaded.model.clone(**options.variant(loaded.model))
  )
  warnings = loaded.warnings
  if not loaded.trained:
    warnings = (f'{UNTRAINED}.', *warnings)
  result = Weights(loaded, source, warnings, path)
  if loaded.digest not in ('', result.digest):
    changed = (
      f'{path} was changed since it was written: its parameters have the'
      f' digest {result.digest}, and it states {loaded.digest}. Convert the'
      ' original again.'
    )
    if options.finite:
      raise errors.UserError(changed)
    return dataclasses.replace(result, warnings=(*warnings, changed))
  return result


def digest(parameters: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of names, shapes and float32 bytes, in the order of the names."""
  total = hashlib.sha256()
  for name in sorted(parameters):
    array = np.ascontiguousarray(parameters[name], '<f4')
    total.update(f'{name} {array.shape}\n'.encode())
    total.update(array.data)
  return total.hexdigest()


def untrained(model: resnet.ResNet, seed: int = 0) -> assemble.Loaded:
  """Random parameters for a network, as if a file had held them."""
  cifar = model.depth in names.CIFAR
  parameters = random.initialise(
    resnet.parameter_shapes(model),
    seed,
    random.CIFAR if cifar else random.IMAGENET,
  )
  return assemble.Loaded(
    f'random, seed {seed}',
    model,
    parameters,
    {
      name: assemble.Origin(name, array.shape, 'float32')
      for name, array in parameters.items()
    },
    assemble.KERAS_LAYOUT.text,
    recipe.usual(model.depth),
    trained=False,
  )


def _random(options: LoadOptions) -> Weights:
  model = resnet.published(options.depth or DEFAULT_DEPTH)
  loaded = untrained(model.clone(**options.variant(model)), options.seed)
  return Weights(loaded, loaded.format, (f'{UNTRAINED}.',))


def _automatic(
  depth: int,
  report: Callable[[int, int | None], None] | None,
  say: Callable[[str], None],
) -> tuple[pathlib.Path, lookup.Record | None]:
  """The model directory, else the cache, else a download."""
  usual = pathlib.Path('model') / f'resnet_{depth}'
  if usual.is_dir():
    return usual, None
  if depth not in lookup.USUAL:
    raise errors.UserError(
      f'no weights found: {usual} is not there, and the zoo has no checkpoint'
      f' of ResNet-{depth}. {_WAYS}'
    )
  record = lookup.find(lookup.USUAL[depth], depth)
  try:
    return (
      download.fetch(record.file, record.name, report=report, say=say),
      record,
    )
  except errors.UserError as error:
    raise errors.UserError(
      f'no weights found: {usual} is not there. {error} Or name another'
      f' checkpoint ({", ".join(lookup.FAMILIES)}); or take weights=random,'
      ' untrained, to try the program.'
    ) from error


_WAYS = (
  'Give weights=PATH, a file or directory; or weights=NAME, one of'
  f' {", ".join(lookup.FAMILIES)}; or take weights=random,'
  ' untrained, to try the program.'
)


def _existing(name: str) -> pathlib.Path:
  path = pathlib.Path(name).expanduser()
  if name and os.path.exists(path):
    return path
  hint = errors.hint(name, (*lookup.FAMILIES, AUTO, RANDOM))
  raise errors.UserError(
    f"weights='{name}': {path} is not there.{hint} {_WAYS}"
  )


def _as_recorded(
  path: pathlib.Path, loaded: assemble.Loaded, record: lookup.Record
) -> assemble.Loaded:
  """The network and the preprocessing that the zoo states."""
  count = resnet.learned_count(resnet.parameter_shapes(loaded.model))
  if (loaded.model.depth, count) != (record.depth, record.parameters):
    raise errors.UserError(
      f'{path} should be {record.name}, a ResNet-{record.depth} of'
      f' {record.parameters} parameters, and holds a ResNet-'
      f'{loaded.model.depth} of {count}. Get it again.'
    )
  return dataclasses.replace(
    loaded,
    model=loaded.model.clone(
      stride_in=record.stride_in,
      stem_pool=record.stem_pool,
      epsilon=record.epsilon,
    ),
    recipe=record.recipe,
    # What a format had to guess is known now.
    notes=tuple(n for n in loaded.notes if n != recipe.GUESSED),
  )
