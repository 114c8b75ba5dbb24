# SPDX-License-Identifier: Apache-2.0
"""Which columns of a Parquet file are the images and the labels.

Source: Hugging Face's documentation of `datasets.Image`, `datasets.ClassLabel`
and `datasets.Features.arrow_schema`.
"""

import dataclasses
from typing import Any

from resnet_jax.data.places import Place
from resnet_jax.data.sources.item import NAMES_OF_CLASSES
from resnet_jax.system import errors, files
from resnet_jax.system.text import one_line, some

_METADATA = b'huggingface'


@dataclasses.dataclass(frozen=True)
class Columns:
  """What is read of a file.

  Attributes:
    image: the column of images.
    parts: of a structure's fields, 'bytes' and 'path' where they are; () for a
      column of bytes.
    label: the column of labels, '' if there is none.
    classes: the names of the labels 0, 1 and so on, where they are known.
    note: which columns may have labels and are not read.
  """

  image: str
  parts: tuple[str, ...]
  label: str
  classes: tuple[str, ...]
  note: str


def choose(schema: Any, path: Place) -> Columns:
  """Chooses the columns, by the file's metadata or by their types."""
  features = _features(schema)
  fields = {field.name: field for field in schema}
  parts = {name: _parts_of_image(field.type) for name, field in fields.items()}
  # `datasets` knows images by the metadata; others write none.
  for kind in (
    [name for name in fields if features.get(name) == 'Image'],
    [name for name, of in parts.items() if of],
    list(fields),
  ):
    images = [name for name in kind if parts[name] is not None]
    if images:
      break
  if len(images) != 1:
    raise errors.UserError(
      f'{path} has {len(images)} columns of images: its columns are'
      f' {", ".join(map(one_line, schema.names))}. It needs exactly one of'
      " {bytes, path} or of bytes, and may have one named 'label' of whole"
      ' numbers or names.'
    )
  classes = _classes(schema)
  # What `datasets` calls a label may have any name.
  labels = ['label'] if 'label' in fields else list(classes)
  readable = [name for name in labels if _may_be_labels(fields[name].type)]
  label = readable[0] if len(readable) == 1 == len(labels) else ''
  if label and not classes.get(label) and not _is_text(fields[label].type):
    names = [name for name in NAMES_OF_CLASSES if name in fields]
    label = next((n for n in names if _is_text(fields[n].type)), label)
  note = ''
  if labels and not label:
    what = [f'{name} ({fields[name].type})' for name in labels]
    note = f'no labels, as they could be in {some(what)}: one column of whole'
    note += " numbers or names is read, named 'label' where there are several"
  elif not labels and len(fields) > 1:
    note = f"no labels, as no column is named 'label' ({some(list(fields))})"
  return Columns(
    images[0], parts[images[0]] or (), label, classes.get(label, ()), note
  )


def _parts_of_image(kind: Any) -> tuple[str, ...] | None:
  """Fields of a structure that can be an image, () for bytes, or None."""
  import pyarrow  # noqa: PLC0415

  if pyarrow.types.is_struct(kind):
    parts = {part.name: f'{part.type}'.removeprefix('large_') for part in kind}
    known = {'bytes': 'binary', 'path': 'string'}
    found = tuple(
      name for name, type_ in known.items() if type_ == parts.get(name)
    )
    return found if 'bytes' in found else None
  is_bytes = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(
    kind
  )
  return () if is_bytes else None


def _may_be_labels(kind: Any) -> bool:
  """Whether a column has whole numbers, or texts."""
  import pyarrow  # noqa: PLC0415

  types = pyarrow.types
  if types.is_dictionary(kind):
    kind = kind.value_type
  return bool(types.is_integer(kind) or _is_text(kind))


def _is_text(kind: Any) -> bool:
  import pyarrow  # noqa: PLC0415

  types = pyarrow.types
  if types.is_dictionary(kind):
    kind = kind.value_type
  return bool(types.is_string(kind) or types.is_large_string(kind))


def _metadata(schema: Any) -> dict[str, dict[str, Any]]:
  """What `datasets` notes of the columns, {} where there is nothing."""
  try:
    found = files.read_json((schema.metadata or {})[_METADATA])
    features = found['info']['features']
    names = set(schema.names)
    return {
      name: feature
      for name, feature in features.items()
      if name in names and isinstance(feature, dict)
    }
  except (KeyError, TypeError, AttributeError, ValueError):
    return {}


def _features(schema: Any) -> dict[str, Any]:
  """The columns' types, as `datasets` calls them."""
  return {name: of.get('_type') for name, of in _metadata(schema).items()}


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
  """The names of the classes of each column of labels."""
  found = {}
  for column, feature in _metadata(schema).items():
    names = feature.get('names')
    if feature.get('_type') == 'ClassLabel':
      is_list = isinstance(names, list) and all(
        isinstance(name, str) for name in names
      )
      found[column] = tuple(names or ()) if is_list else ()
  return found
