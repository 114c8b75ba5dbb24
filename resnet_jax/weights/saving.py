# SPDX-License-Identifier: Apache-2.0
"""What is written with weights: preprocessing and class names; and where."""

import dataclasses
import pathlib
from collections.abc import Sequence

from resnet_jax import weights
from resnet_jax.data import mean
from resnet_jax.data.preprocess import RUN_FIELDS, Preprocess
from resnet_jax.system import errors, files
from resnet_jax.weights import assemble, metadata, safetensors

SUFFIX = '.safetensors'


def check_target(target: pathlib.Path, setting: str) -> None:
  """Raises a UserError if weights cannot be written under a path, or exist."""
  files.check_path(target, setting)
  if target.exists():
    raise errors.UserError(
      f'{target} exists already; remove it, or name another {setting}.'
    )


def stated(
  given: weights.Weights, preprocess: Preprocess, class_names: Sequence[str]
) -> assemble.Loaded:
  """A network with its preprocessing and class names, as they are written.

  Args:
    given: the weights.
    preprocess: their own, with a user's changes; what only concerns a run, as
      `RUN_FIELDS` lists, is not written.
    class_names: the classifier's; none: those of the weights.

  Raises:
    UserError: the preprocessing has a mean image.
  """
  if isinstance(preprocess.mean, mean.MeanImage):
    raise errors.UserError(
      'a mean image cannot be stored with the weights. Convert with three'
      ' values for mean=, and give the mean image where the weights are used.'
    )
  own = {name: getattr(given.preprocess, name) for name in RUN_FIELDS}
  return dataclasses.replace(
    given.loaded,
    preprocess=dataclasses.replace(preprocess, **own),
    class_names=tuple(class_names) or given.loaded.class_names,
  )


def save(
  target: pathlib.Path,
  given: weights.Weights,
  preprocess: Preprocess,
  class_names: Sequence[str],
) -> None:
  """Writes weights as our own safetensors file.

  Args:
    target: of the file.
    given: the weights.
    preprocess: as for `stated`.
    class_names: as for `stated`.

  Raises:
    UserError: the file exists, has another suffix, or cannot be written.
  """
  if target.suffix != SUFFIX:
    raise errors.UserError(
      f"{target} does not end with '{SUFFIX}', as weights do that every job"
      ' reads. Give such a name.'
    )
  check_target(target, 'path')
  held = stated(given, preprocess, class_names)
  path = given.path
  sha256 = files.sha256(path) if path and path.is_file() else ''
  text = metadata.written(held, given.source, given.digest, sha256)
  safetensors.write(target, given.parameters, text)
