# SPDX-License-Identifier: Apache-2.0
"""The complete ResNets among the tensors of a file, by their names' prefixes.

A checkpoint's network may lie below any prefix (`module.encoder_q.`), beside
other tensors (a queue, a projection, another network) and below any classifier.
A complete one has all tensors of a network's body below one prefix.
"""

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.models import structure
from resnet_jax.system import errors
from resnet_jax.system.text import counted, some
from resnet_jax.weights import surroundings

# In `weights_prefix`, stands for names without a prefix.
ROOT = '.'
# Where programs store averages (EMA, SWA) of the network beside it; and the
# number of averaged steps, which torch.optim.swa_utils has beside its average.
_AVERAGES = {
  *('ema', 'model_ema', 'ema_model', 'state_dict_ema', 'ema_state_dict'),
  *('model_state_ema', 'ema_model_state', 'model_state_dict_ema'),
  *('ema_model_state_dict', 'swa', 'swa_model', 'averaged_model'),
  *('ema_network', 'network_ema', 'ema_net', 'net_ema', 'ema_encoder'),
  *('avg_model', 'model_avg', 'averaged_state_dict', 'swa_state_dict'),
}
_AVERAGED_STEPS = 'n_averaged'
_MOST_ABOVE = 8
_DOT = re.compile(r'\.')
_LEAF = re.compile(r'\.(weight|bias|running_mean|running_var)$')


@dataclasses.dataclass(frozen=True)
class Program:
  """How a program names a network below its prefix.

  Attributes:
    name: human-readable.
    naming: for a depth, the canonical `layer/leaf` of each name; empty for a
      depth that the program does not have.
    first: names that each of its networks has.
    inside: matches the names of what lies between the body's layers, which
      makes another network.
  """

  name: str
  naming: Callable[[int], Mapping[str, str]]
  first: tuple[str, ...]
  inside: re.Pattern[str]

  @functools.cache  # noqa: B019, of a handful of programs
  def body(self, depth: int) -> dict[str, str]:
    """The naming without the classifier."""
    return {
      name: ours
      for name, ours in self.naming(depth).items()
      if not ours.startswith('logits/')
    }

  def renamed(self, modules: Mapping[str, str]) -> 'Program':
    """The same program, its first-level modules named otherwise."""

    def rename(name: str) -> str:
      first, _, rest = name.partition('.')
      return f'{modules.get(first, first)}.{rest}'

    return Program(
      self.name,
      lambda depth: {rename(n): ours for n, ours in self.body(depth).items()},
      tuple(map(rename, self.first)),
      re.compile(
        rf'([0-7]|{"|".join(map(re.escape, modules.values()))})\.'
        rf'|{self.inside.pattern}'
      ),
    )


@dataclasses.dataclass(frozen=True)
class Network:
  """A complete ResNet.

  Attributes:
    prefix: of its names; '' or with a dot at its end.
    program: that named it.
    depth: the deepest that is complete.
    averaged: whether it is an average of another one in the file.
  """

  prefix: str
  program: Program
  depth: int
  averaged: bool = False

  @property
  def choice(self) -> str:
    """The value of `weights_prefix` that chooses it."""
    return self.prefix.removesuffix('.') or ROOT

  @property
  def above(self) -> tuple[str, ...]:
    """The prefix and those of the modules around it, the nearest first."""
    return ('', *_bases(self.prefix))[: -_MOST_ABOVE - 1 : -1]


@dataclasses.dataclass(frozen=True)
class Chosen:
  """The tensors of one network.

  Attributes:
    tensors: by the file's names, of the body, the classifier and whatever lies
      between the layers.
    head: the module of the classifier; '': there is none.
    left_out: names of the other tensors.
    notes: why a layer is not taken for the classifier.
  """

  tensors: dict[str, Tensor]
  head: str
  left_out: tuple[str, ...]
  notes: tuple[str, ...]


def find(names: Collection[str], programs: Sequence[Program]) -> list[Network]:
  """The complete networks among the tensors of these names."""
  result = []
  for program in programs:
    first, *others = program.first
    for name in names:
      prefix = name.removesuffix(first)
      if (
        f'.{name}'.endswith(f'.{first}')
        # Of most files these tell, before all names are looked for.
        and all(prefix + other in names for other in others)
        and (depth := _depth(names, program, prefix))
      ):
        network = Network(prefix, program, depth)
        averaged = not _AVERAGES.isdisjoint(prefix.split('.')) or any(
          f'{base}{_AVERAGED_STEPS}' in names for base in network.above
        )
        result.append(dataclasses.replace(network, averaged=averaged))
  return result


def _depth(names: Collection[str], program: Program, prefix: str) -> int:
  """The deepest network that is complete below a prefix; 0: there is none."""
  complete = [
    (len(body), depth)
    for depth in structure.ARCHITECTURES
    if (body := program.body(depth))
    and all(prefix + name in names for name in body)
  ]
  return max(complete)[1] if complete else 0


def choose(
  path: pathlib.Path,
  networks: Sequence[Network],
  wanted: str,
  places: Collection[str] = (),
) -> Network:
  """The network that is meant: the one, or the one that is no average.

  Args:
    path: for messages.
    networks: at least one.
    wanted: the setting `weights_prefix`; '': not set.  A prefix, or modules in
      it that only one network's has (`encoder_q`).
    places: prefixes that are places of state dicts, without one in them.

  Raises:
    UserError: several are meant, or none; lists them.
  """
  if wanted:
    meant = [n for n in networks if n.choice == (wanted.strip('.') or ROOT)]
    if wanted == ROOT and not meant:
      meant = [n for n in networks if n.prefix in places]
    meant = meant or [
      n for n in networks if f'.{wanted.strip(".")}.' in f'.{n.prefix}'
    ]
  else:
    meant = [n for n in networks if not n.averaged] or list(networks)
  if len(meant) == 1:
    return meant[0]
  listed = some(
    [f"'{n.choice[:99]}' (ResNet-{n.depth})" for n in meant or networks], 6
  )
  choice = (meant or networks)[0].choice[:99]
  what = f"weights_prefix='{wanted[:99]}': " if wanted else ''
  if not meant:
    raise errors.UserError(
      f'{what}{path} has no complete ResNet there. Its complete networks have'
      f" the prefixes {listed}: set weights_prefix='{choice}', for example."
    )
  raise errors.UserError(
    f'{what}{path} holds {len(meant)} complete networks, and which one is meant'
    f' is not known: their prefixes are {listed}. Choose one, for example'
    f" weights_prefix='{choice}'."
  )


def tensors_of(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  networks: Sequence[Network],
  network: Network,
) -> Chosen:
  """The network's tensors, its classifier's, and what is left out.

  Args:
    path: for messages.
    tensors: all.
    networks: all, one of them the other argument.
    network: that is chosen.

  Raises:
    UserError: the other tensors say that its layers are not a plain ResNet's.
  """
  prefix, body = network.prefix, network.program.body(network.depth)
  kept: dict[str, Tensor] = {}
  beside: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    rest = name.removeprefix(prefix) if name.startswith(prefix) else ''
    ours = rest in body or network.program.inside.match(rest)
    (kept if ours else beside)[name] = tensor
  surroundings.check(path, beside, network.above)
  # Of the last batch norm, as the parameters are in the order of computing.
  (features,) = tensors[prefix + list(body)[-1]].shape
  head = surroundings.classifier(
    tensors, beside, network.above, _foreign(networks, network), features
  )
  for leaf in ('weight', 'bias') if head.layer else ():
    name = f'{head.layer}.{leaf}'
    kept[name] = beside.pop(name)
  return Chosen(kept, head.layer, tuple(beside), head.notes)


def _foreign(networks: Sequence[Network], network: Network) -> set[str]:
  """Prefixes that only other networks have: theirs and those around them."""
  own = {'', *_bases(network.prefix)}
  return {
    base
    for other in networks
    for base in _bases(other.prefix)
    if base not in own
  }


def described(
  left_out: Sequence[str],
  networks: Sequence[Network],
  chosen: Network,
  place: str,
) -> list[str]:
  """Notes on the tensors of a place that are left out: a few, and a count."""
  others = {n.prefix for n in networks if n is not chosen}
  modules: dict[str, None] = {}
  count = 0
  for name in left_out:
    if name.startswith(place):
      count += 1
      owner = next((base for base in _bases(name) if base in others), '')
      module = owner.removesuffix('.') or _LEAF.sub('', name)
      modules[module.removeprefix(place)] = None
  notes = []
  if modules:
    notes.append(
      f'Left out, as the network does not have them: {counted(count, "tensor")}'
      f' of {some([name[:99] for name in modules], 6)}.'
    )
  averages = [n for n in networks if n.averaged and n is not chosen]
  if averages and not chosen.averaged:
    notes.append(
      'The file also holds an average of the network (EMA): to take it, set'
      f" weights_prefix='{averages[0].choice[:99]}'."
    )
  return notes


def _bases(name: str) -> list[str]:
  """The beginnings of a name that end with a dot, the shortest first."""
  ends = [match.end() for match in itertools.islice(_DOT.finditer(name), 32)]
  return [name[:end] for end in ends]


def needless(wanted: str, what: str) -> errors.UserError:
  """The error for `weights_prefix` where `what` has one network."""
  return errors.UserError(
    f'weights_prefix={wanted!r:.99} chooses a network of several in a PyTorch'
    f' or safetensors file, and {what} has one. Leave weights_prefix out.'
  )
