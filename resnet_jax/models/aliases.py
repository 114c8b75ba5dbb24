# SPDX-License-Identifier: Apache-2.0
"""Values by the names of any program; Paddle's names of parameters.

Plain Python, so that a command line can be checked without JAX.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping, Sequence

from resnet_jax.models import names, programs
from resnet_jax.system import errors

CANONICAL = 'paddle'
# timm's names are among torchvision's.
_SYNONYMS = {'timm': 'torchvision', 'transformers': 'hugging_face'}
SCHEMES = (CANONICAL, *programs.SCHEMES)

# What a parameter's file ends with in Paddle; `bias` is 'wbias'.
_PADDLE_SUFFIXES = {'kernel': 'w0', 'scale': 'w0', 'mean': 'w1', 'var': 'w2'}


@dataclasses.dataclass(frozen=True)
class Alias:
  """A name of a value in a program.

  Attributes:
    scheme: one of SCHEMES.
    name: the name there.
    value: the canonical name.
  """

  scheme: str
  name: str
  value: str


class AmbiguousNameError(errors.UserError):
  """A name that stands for several things; the message tells them apart."""


def paddle_parameter(parameter: str) -> str:
  """Paddle's name of a `layer/leaf` parameter: `_res2_1_branch1_bn.w1`."""
  layer, leaf = parameter.split('/')
  owner = 'output' if layer == 'logits' else layer
  return f'_{owner}.{_PADDLE_SUFFIXES.get(leaf, "wbias")}'


@functools.lru_cache(maxsize=32)
def aliases(depth: int, head: bool = True) -> tuple[Alias, ...]:
  """All names of all values; a value's first one of a scheme is the usual."""
  values = dict.fromkeys(names.value_names(depth, head))
  found = [Alias(CANONICAL, value, value) for value in values]
  for scheme in programs.schemes(depth):
    found += [
      Alias(scheme, name, value)
      for value, several in programs.rows(depth, scheme)
      if value in values
      for name in several
    ]
  return tuple(found)


def is_several(text: str) -> bool:
  """Whether a text names layers by a glob or a list, rather than one."""
  return ',' in text or _is_glob(text)


def _is_glob(pattern: str) -> bool:
  return any(sign in pattern for sign in '*?[')


def resolve(
  pattern: str,
  tables: Mapping[str, Mapping[str, Sequence[str]]],
  order: Sequence[str],
) -> tuple[str, ...]:
  """What a name or glob stands for, in `order`; () if it is unknown.

  Args:
    pattern: may begin with a scheme and a colon: `keras:conv*`.
    tables: for each scheme, the canonical names that a name stands for.
    order: all the canonical names.

  Raises:
    AmbiguousNameError: schemes differ, or a name stands for several things.
  """
  scheme, colon, rest = pattern.partition(':')
  scheme = _SYNONYMS.get(scheme, scheme)
  if colon and scheme in tables:
    tables, pattern = {scheme: tables[scheme]}, rest
  glob = _is_glob(pattern)
  found = {}
  for scheme, table in tables.items():
    if meant := _meant(pattern, table, layers=scheme == CANONICAL):
      found[scheme] = meant
  if not found:
    return ()
  if not glob:
    # A program that gives the name to several values yields to the others.
    found = {k: v for k, v in found.items() if len(v) == 1} or found
    if len(found) == 1 and len(meant := next(iter(found.values()))) > 1:
      raise AmbiguousNameError(
        f"'{pattern}' is ambiguous: in {next(iter(found))} it is the name of"
        f' {" and of ".join(n for n in order if n in meant)}. Name one of'
        ' these.'
      )
  # A canonical name means what it says; of a glob, others may only repeat it.
  chosen = next(iter(found.values()))
  if CANONICAL in found:
    agree = not glob or all(
      meant <= chosen or _layers(meant) <= chosen for meant in found.values()
    )
  else:
    agree = all(meant == chosen for meant in found.values())
  if not agree:
    choices = '; '.join(
      f'{scheme}:{pattern} stands for {_brief(meant, order)}'
      for scheme, meant in found.items()
    )
    raise AmbiguousNameError(
      f"'{pattern}' is ambiguous: {choices}. Write one of these."
    )
  return tuple(name for name in order if name in chosen)


def _meant(
  pattern: str, table: Mapping[str, Sequence[str]], *, layers: bool
) -> set[str]:
  """What a name or glob stands for; a glob of `layers` prefers these."""
  if not _is_glob(pattern):
    return set(table.get(pattern, ()))
  hits = [name for name in table if fnmatch.fnmatchcase(name, pattern)]
  if layers:
    hits = [name for name in hits if not names.is_between(name)] or hits
  return {ours for name in hits for ours in table[name]}


def _layers(values: set[str]) -> set[str]:
  """The layers of values; those that belong to no layer are left out."""
  bare = {name.removesuffix(names.LINEAR) for name in values}
  return {name for name in bare if not names.is_between(name)}


def _brief(meant: set[str], order: Sequence[str]) -> str:
  listed = [name for name in order if name in meant]
  if len(listed) <= 3:
    return ', '.join(listed)
  return f'{len(listed)} names from {listed[0]} to {listed[-1]}'


@functools.cache
def _tables(depth: int, head: bool) -> dict[str, dict[str, list[str]]]:
  tables: dict[str, dict[str, list[str]]] = {scheme: {} for scheme in SCHEMES}
  for alias in aliases(depth, head):
    tables[alias.scheme].setdefault(alias.name, []).append(alias.value)
  return tables


def select(
  asked: str | Sequence[str], depth: int, head: bool = True
) -> tuple[str, ...]:
  """The values that names and globs of any scheme stand for.

  In the order asked for, without duplicates; a glob gives its matches in the
  order of computing.  A canonical glob stands for layers, and only where it
  matches none for the values between them.

  Args:
    asked: `res5_*_addto,layer1.0.conv1`, or a sequence of names.
    depth: of the network.
    head: whether it has a classifier.

  Raises:
    UserError: nothing is asked for, or a name matches nothing or is ambiguous.
  """
  known = names.value_names(depth, head)
  tables = _tables(depth, head)
  chosen: dict[str, None] = {}
  for pattern in names.split_list(asked):
    matches = resolve(pattern, tables, known)
    if not matches:
      raise _unknown(pattern, depth, head, aliases(depth, head))
    chosen.update(dict.fromkeys(matches))
  if not chosen:
    raise errors.UserError(
      'no layer was asked for. Give output_layer one or several names or'
      f' globs, for example {names.map_layers(depth)[-1]},avgpool.'
    )
  return tuple(chosen)


def _unknown(
  pattern: str, depth: int, head: bool, everything: Sequence[Alias]
) -> errors.UserError:
  bare = pattern.rpartition(':')[2]
  if not head and any(alias.name == bare for alias in aliases(depth)):
    return errors.UserError(
      f"layer '{pattern}': these weights have no head (no classifier), so the"
      ' network ends with avgpool. Ask for layers up to there, or give weights'
      ' with a classifier.'
    )
  if after := programs.batch_norms(depth).get(bare):
    return errors.UserError(
      f"'{pattern}' is Caffe's BatchNorm without the Scale after it, and no"
      f' value here. Ask for {after}, the value after both.'
    )
  scheme, colon, _ = pattern.partition(':')
  if colon and scheme not in (*SCHEMES, *_SYNONYMS):
    return errors.UserError(
      f"layer '{pattern}': {scheme} is no program whose names are known."
      f' Allowed: {", ".join((*SCHEMES, *_SYNONYMS))}.'
    )
  linear = bare.removesuffix(names.LINEAR)
  if linear != bare and linear in names.layer_names(depth, head):
    return errors.UserError(
      f"'{pattern}': no ReLU follows in {linear}, which is this value. Ask for"
      f' {linear}.'
    )
  known = [a.name for a in everything if scheme in (a.scheme, pattern)]
  # A near canonical name is the likelier meaning than another program's.
  hint = errors.hint(bare, names.layer_names(depth, head) if not colon else ())
  hint = hint or errors.hint(bare, known)
  return errors.UserError(
    f"ResNet-{depth} has no layer '{pattern}'.{hint} Allowed:"
    f' {names.grammar(depth)}.'
  )
