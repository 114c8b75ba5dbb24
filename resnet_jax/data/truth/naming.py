# SPDX-License-Identifier: Apache-2.0
"""Classes that data names, found among a network's classes.

A number means nothing without its list of names: data sets number the same
classes otherwise (`datasets.ClassLabel`, sorted folders).  So where data has
names they are compared, and a number only decides between classes of one name.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence

from resnet_jax.data import labels
from resnet_jax.data.sources import NO_LABEL, Source
from resnet_jax.data.truth import formats
from resnet_jax.system.text import counted, some

# A class as data states it: its name, and its number there or NO_LABEL.
Stated = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Match:
  """What data's classes are among a network's.

  Attributes:
    labels: of each class that was found.
    strange: the names that fit no class.
    several: the names that fit several, with these.
    how: by what they were found, for messages.
  """

  labels: dict[Stated, int]
  strange: tuple[str, ...]
  several: dict[str, tuple[int, ...]]
  how: str


def match(
  stated: Iterable[Stated], wnids: Sequence[str], words: Sequence[str] = ()
) -> Match:
  """Finds classes by WordNet id, then by exact name.

  Names are equal whatever their Unicode form.  If none is known and all are
  whole numbers, they are the labels; if the network has no names, the data's
  numbers are, except that of a WordNet id, which is ImageNet's.

  Args:
    stated: the data's classes.
    wnids: the WordNet ids of the network's classes in the order of the labels;
      for other networks their names, or nothing.
    words: the classes' names beside WordNet ids, synonyms with commas.
  """
  given = dict.fromkeys(stated)
  tables = _tables(wnids, words)
  found = {one: _candidates(one[0], tables) for one in given}
  known = {one: fits[0] for one, fits in found.items() if len(fits) == 1}
  if not known and all(is_number(name) for name, _ in given):
    numbers = {one: int(one[0]) for one in given}
    return Match(numbers, (), {}, 'named by the numbers of the classes')
  if not known and _numbers_decide(given, wnids):
    how = 'numbered as the classes of the network, which have no names'
    return Match({one: one[1] for one in given}, (), {}, how)
  known |= _by_number(found, known, tables[1] or tables[0])
  rest = [one[0] for one in given if one not in known]
  several = {name: fits for (name, _), fits in found.items() if len(fits) > 1}
  return Match(
    known,
    tuple(dict.fromkeys(name for name in rest if name not in several)),
    {name: several[name] for name in rest if name in several},
    'named as the classes of the network',
  )


def _tables(
  wnids: Sequence[str], words: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], ...]:
  """The labels by id, by whole name and by synonym."""
  synonyms = [
    (part.strip(), label)
    for label, name in enumerate(words)
    for part in name.split(',')
  ]
  return (
    _index((name, label) for label, name in enumerate(wnids)),
    _index((name, label) for label, name in enumerate(words)),
    _index(synonyms),
  )


def _index(pairs: Iterable[Stated]) -> dict[str, tuple[int, ...]]:
  found: dict[str, tuple[int, ...]] = {}
  for name, label in pairs:
    key = _composed(name)
    if key and label not in found.get(key, ()):
      found[key] = (*found.get(key, ()), label)
  return found


def _candidates(
  name: str, tables: Sequence[dict[str, tuple[int, ...]]]
) -> tuple[int, ...]:
  key = _composed(name)
  return next((table[key] for table in tables if key in table), ())


def _composed(name: str) -> str:
  return unicodedata.normalize('NFC', name)


def _numbers_decide(given: Iterable[Stated], wnids: Sequence[str]) -> bool:
  return labels.are_placeholders(wnids) and all(
    number != NO_LABEL and not formats.are_wnids([name])
    for name, number in given
  )


def _by_number(
  found: dict[Stated, tuple[int, ...]],
  known: dict[Stated, int],
  names: dict[str, tuple[int, ...]],
) -> dict[Stated, int]:
  """Classes that share their name, where the data's order is the network's.

  ImageNet has two cranes, which `datasets` has to call crane and crane2.
  """
  if any(label != number for (_, number), label in known.items()):
    return {}
  shared = {label for fits in names.values() if len(fits) > 1 for label in fits}
  return {
    (name, number): number
    for (name, number), fits in found.items()
    if number in (fits or (shared if known else ())) and len(fits) != 1
  }


def are_names(names: Sequence[str]) -> bool:
  """Whether a network's classes have names: no placeholders, no numbers."""
  return not labels.are_placeholders(names) and not all(map(is_number, names))


def is_number(name: str) -> bool:
  """Whether a class's name is its number, perhaps with zeros before it."""
  return bool(re.fullmatch(r'[0-9]{1,9}', name))


def nearest(name: str, names: Sequence[str]) -> str:
  """The one of the names that differs in case, blanks or hyphens, or ''."""
  return next((other for other in names if _folded(other) == _folded(name)), '')


def _folded(name: str) -> str:
  return re.sub(r'[\s_-]+', ' ', _composed(name).casefold()).strip()


_FITS_NOT = ('fits no class of this network', 'fit no class of this network')


def fault(found: Match, fits_not: tuple[str, str] = _FITS_NOT) -> str:
  """What fits no class, or several, as a sentence; '' if all fit one."""
  notes = []
  if found.strange:
    names = some([repr(name) for name in found.strange])
    notes.append(f'{names} {fits_not[len(found.strange) > 1]}')
  for name, fits in list(found.several.items())[:1]:
    where = some([str(label) for label in fits])
    notes.append(f'{name!r} is the name of the classes {where}')
  return ', and '.join(notes)


def resolved(
  source: Source, classes: Sequence[labels.ImageNetClass], *, keep: bool
) -> Source:
  """The source with the network's labels where the data names its classes.

  Args:
    source: the images.
    classes: the network's.
    keep: whether the data's own numbers stay if none of its names fits a
      class.  Else an image whose name fits none, or several, has no label.
  """
  items = source.items
  stated = dict.fromkeys((i.named, i.label) for i in items if i.named)
  if not stated or not classes:
    return source
  wnids, words = columns(classes)
  found = match(stated, wnids, words)
  why = fault(found)
  new = {one: found.labels.get(one, NO_LABEL) for one in stated}
  # Beside numbers of the network, those of the data would be taken for such.
  own = keep and not found.labels
  if own:
    new = {one: one[1] for one in stated}
  changed = any(label != number for (_, number), label in new.items())
  if changed:
    items = [
      dataclasses.replace(item, label=new[item.named, item.label])
      if item.named
      else item
      for item in items
    ]
  note = f'its classes are {found.how}'
  if why:
    lost = sum(bool(item.named) and item.label == NO_LABEL for item in items)
    note = "labels are the data's own numbers"
    note = (
      note if own and not lost else f'{counted(lost, "image")} without a label'
    )
    note += f', as {why}'
  elif not changed and not labels.are_placeholders(wnids):
    return source
  return Source(items, f'{source.description}; {note}')


def columns(
  classes: Sequence[labels.ImageNetClass],
) -> tuple[list[str], list[str]]:
  """The classes' WordNet ids, or names, and the names beside the ids."""
  wnids = [known.wnid or known.name for known in classes]
  return wnids, [known.name if known.wnid else '' for known in classes]
