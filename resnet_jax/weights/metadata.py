# SPDX-License-Identifier: Apache-2.0
"""What `--job=convert` writes beside parameters, for whoever loads them.

JSON: the network's variant, preprocessing, class names, source, digest.  In a
safetensors file it is metadata; in a Paddle directory a file of its own, which
the original program does not look at.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from resnet_jax.data import recipe
from resnet_jax.system import errors
from resnet_jax.weights import assemble

# In a Paddle directory.
FILE = 'resnet_jax.json'
# Class names, at most.
MAX_BYTES = 1 << 24

_VARIANT = {'stride_in': str, 'stem_pool': str, 'epsilon': float}


def written(
  loaded: assemble.Loaded,
  source: str,
  digest: str,
  file_sha256: str = '',
  conv_order: str = '',
) -> str:
  """The text.

  Args:
    loaded: the network; if it was converted before, its first source counts.
    source: what the weights were loaded from, for a person.
    digest: SHA-256 of the parameters.
    file_sha256: of the file that they were loaded from; '': there is none.
    conv_order: of a Paddle directory.
  """
  first = loaded.converted_from
  model = loaded.model
  stated: dict[str, Any] = {
    'depth': model.depth,
    'classes': model.classes,
    **{key: getattr(model, key) for key in _VARIANT},
    'preprocessing': dataclasses.asdict(loaded.recipe),
    'source': first.source if first else source,
    'source_sha256': first.sha256 if first else file_sha256,
    'digest': digest,
    'conv_order': conv_order,
    'notes': list(loaded.notes),
    'trained': loaded.trained,
    'class_names': list(loaded.class_names),
  }
  return json.dumps(stated | {'checksum': checksum(stated)})


def applied(
  path: pathlib.Path, loaded: assemble.Loaded, text: str | bytes
) -> assemble.Loaded:
  """A network with what the text says of it.

  Raises:
    UserError: the text is not what `written` gives, or of another network.
  """
  try:
    stated = json.loads(text)
    if stated.pop('checksum') != checksum(stated):
      raise ValueError('it was changed since: the checksum differs')
    variant = {key: kind(stated[key]) for key, kind in _VARIANT.items()}
    how = _recipe(stated['preprocessing'])
    first = assemble.Converted(
      str(stated['source']), str(stated['source_sha256'])
    )
    digest = str(stated['digest'])
    notes = tuple(str(note) for note in stated['notes'])
    class_names = tuple(str(name) for name in stated['class_names'])
    trained = bool(stated['trained'])
  except (
    *(ValueError, KeyError, TypeError, AttributeError),
    RecursionError,
  ) as error:
    raise errors.UserError(
      f'{path} is damaged: what --job=convert wrote of it cannot be read'
      f' ({type(error).__name__}: {error}). Convert the original again.'
    ) from error
  if class_names and len(class_names) != loaded.model.classes:
    raise errors.UserError(
      f'{path} is damaged: {len(class_names)} class names for'
      f' {loaded.model.classes} classes. Convert the original again.'
    )
  return dataclasses.replace(
    loaded,
    model=loaded.model.clone(**assemble.checked_variant(variant)),
    recipe=how,
    notes=notes,
    converted_from=first,
    class_names=class_names,
    trained=trained,
    digest=digest,
  )


def conv_order(text: str | bytes) -> str:
  """The order that the text states of a Paddle directory; '': none."""
  try:
    return str(json.loads(text).get('conv_order', ''))
  except (ValueError, AttributeError, RecursionError):
    # `applied` says what is wrong with it.
    return ''


def checksum(stated: Mapping[str, Any]) -> str:
  """SHA-256 of the metadata, which the digest of the parameters leaves out."""
  text = json.dumps(stated, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _recipe(stated: Any) -> recipe.Recipe:
  return recipe.Recipe(
    channels=str(stated['channels']),
    mean=_three(stated['mean']),
    std=_three(stated['std']),
    resize_size=int(stated['resize_size']),
    crop_size=int(stated['crop_size']),
    interpolation=str(stated['interpolation']),
    rounding=str(stated['rounding']),
    # Absent from what was written before there were CIFAR networks.
    resize=str(stated.get('resize', 'short_side')),
  )


def _three(values: Any) -> tuple[float, float, float]:
  first, second, third = (float(value) for value in values)
  return first, second, third
