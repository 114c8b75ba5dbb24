# SPDX-License-Identifier: Apache-2.0
"""The metadata that `--job=convert` writes beside the parameters.

JSON: the network's variant, preprocessing, class names, source, digest.  A
safetensors file has it as metadata, a Paddle directory as a file that the
original program ignores.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import known
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors, files
from resnet_jax.weights import assemble

FILE = 'resnet_jax.json'  # in a Paddle directory
MAX_BYTES = 1 << 24  # for the names of many classes

# Fields of every version.  Older files lack later ones, and have the defaults.
_ALWAYS = (
  *('stride_in', 'stem_pool', 'epsilon', 'rounding', 'interpolation'),
  *('channels', 'mean', 'std', 'resize_size', 'crop_size'),
)

Fields = TypeVar('Fields', Variant, Preprocess)


def written(
  loaded: assemble.Loaded,
  source: str,
  digest: str,
  file_sha256: str = '',
  conv_order: str = '',
) -> str:
  """The metadata as text.

  Args:
    loaded: the network; if it was converted before, its first source is stated.
    source: of the weights, human-readable.
    digest: SHA-256 of the parameters.
    file_sha256: of the source; '': it is not a file.
    conv_order: of a Paddle directory.
  """
  first = loaded.converted_from
  module = loaded.module
  stated: dict[str, Any] = {
    'depth': module.depth,
    'classes': module.classes,
    **module.variant.stated(),
    'preprocessing': dataclasses.asdict(loaded.preprocess),
    'source': first.source if first else source,
    'source_sha256': first.sha256 if first else file_sha256,
    'digest': digest,
    'conv_order': conv_order,
    'notes': list(loaded.all_notes),
    'trained': loaded.trained,
    'class_names': list(loaded.class_names),
  }
  return json.dumps(stated | {'checksum': checksum(stated)})


def applied(
  path: pathlib.Path, loaded: assemble.Loaded, text: str | bytes
) -> assemble.Loaded:
  """A file's contents with the variant, preprocessing, ... of its metadata.

  Raises:
    UserError: the text is damaged, or of another network.
  """
  try:
    stated = files.read_json(text)
    if stated.pop('checksum') != checksum(stated):
      raise ValueError('it was changed since: the checksum differs')
    class_names = tuple(map(str, stated['class_names']))
    if len(class_names) not in (0, loaded.module.classes):
      raise ValueError(
        f'{len(class_names)} class names for {loaded.module.classes} classes'
      )
    variant = _restored(Variant, stated)
    if not known.same_widths(variant, loaded.module.variant):
      raise ValueError('it states other widths than the parameters have')
    return dataclasses.replace(
      loaded,
      module=loaded.module.clone(variant=variant),
      preprocess=_restored(Preprocess, stated['preprocessing']),
      notes=tuple(map(str, stated['notes'])),
      converted_from=assemble.Converted(
        str(stated['source']), str(stated['source_sha256'])
      ),
      class_names=class_names,
      trained=bool(stated['trained']),
      digest=str(stated['digest']),
    )
  except (
    *(ValueError, KeyError, TypeError, AttributeError, ArithmeticError),
    errors.UserError,
  ) as error:
    raise errors.UserError(
      f'{path} is damaged: the metadata that --job=convert wrote cannot be read'
      f' ({type(error).__name__}: {str(error)[:300]}). Convert the original'
      ' again.'
    ) from error


def conv_order(text: str | bytes) -> str:
  """The stated order of convolutions; '': none."""
  try:
    return str(files.read_json(text).get('conv_order', ''))
  except (ValueError, AttributeError):
    # `applied` raises the error.
    return ''


def checksum(stated: Mapping[str, Any]) -> str:
  """SHA-256 of the metadata, which the parameters' digest does not cover."""
  text = json.dumps(stated, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _restored(kind: type[Fields], stated: Mapping[str, Any]) -> Fields:
  """A dataclass from JSON, its values converted to the defaults' types."""
  values: dict[str, Any] = {}
  for field in dataclasses.fields(kind):
    if field.name in stated or field.name in _ALWAYS:
      value, default = stated[field.name], cast(Any, field.default)
      if isinstance(default, tuple):
        value = map(float, value)
      values[field.name] = type(default)(value)
  return kind(**values)
