# SPDX-License-Identifier: Apache-2.0
"""The names of classes that a configuration beside weights states."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.data import labels
from resnet_jax.system import errors

_WORDNET = re.compile(r'n\d{8}')


def stated(
  path: pathlib.Path,
  key: str,
  names: object,
  classes: int,
  descriptions: object = None,
) -> tuple[str, ...]:
  """The names, in the order of the labels.

  Args:
    path: of the configuration, for messages.
    key: that the names are under, for messages.
    names: a list, or a dict by labels; anything else: there are none.
    classes: of the classifier; 0: there is none.
    descriptions: a dict of what is shown in place of a name.

  Returns:
    () also if they are ImageNet's, whose classes have WordNet ids as well, and
    if they are placeholders.

  Raises:
    UserError: there is not one for each class.
  """
  if isinstance(names, list):
    names = {str(label): name for label, name in enumerate(names)}
  if not isinstance(names, dict) or not names or not classes:
    return ()
  found = tuple(str(names.get(str(label), '')) for label in range(classes))
  if len(names) != classes or not all(found):
    raise errors.UserError(
      f'{path} names {len(names)} classes in {key}, and the classifier has'
      f' {classes}. Correct it, or give the file with the weights instead of'
      ' the folder.'
    )
  if _are_imagenets(found) or _are_placeholders(found):
    return ()
  shown: Mapping[str, Any] = (
    descriptions if isinstance(descriptions, dict) else {}
  )
  # WordNet ids are kept: they tell which class of a data set each is.
  return tuple(
    name if _WORDNET.fullmatch(name) else str(shown.get(name, name))
    for name in found
  )


def _are_placeholders(names: tuple[str, ...]) -> bool:
  """Whether they are Transformers' of classes without names."""
  return names == tuple(f'LABEL_{label}' for label in range(len(names)))


def _are_imagenets(names: tuple[str, ...]) -> bool:
  """Whether they are ImageNet's in its order, in any spelling.

  Publishers name a class by its WordNet id, or by one or several of its
  synonyms, with capitals or underscores of their own.
  """
  known = labels.imagenet_classes()
  return len(names) == len(known) and all(
    name == one.wnid or not _synonyms(name).isdisjoint(_synonyms(one.name))
    for name, one in zip(names, known, strict=True)
  )


def _synonyms(name: str) -> set[str]:
  return {
    re.sub(r'[\W_]+', ' ', part).strip() for part in name.lower().split(',')
  } - {''}
