# SPDX-License-Identifier: Apache-2.0
"""Features on disk: the Zarr store and the original's two formats."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from resnet_jax.features import output, store, stream, table
from resnet_jax.features.store import Features, load_features
from resnet_jax.features.stream import load_feature_c, load_feature_py

__all__ = [
  'FORMATS',
  'Features',
  'load_feature_c',
  'load_feature_py',
  'load_features',
]


class FeatureFormat(NamedTuple):
  """A way to write features.

  Attributes:
    planned_bytes: the most that so many more rows of a layout take.
    create: fills an empty directory before the first row.
    read_settings: settings of the run in a directory, None if there is none.
    writer: opens such a directory.
  """

  planned_bytes: Callable[[table.FeatureTable, int], int]
  create: Callable[[pathlib.Path, table.FeatureTable, table.Facts], None]
  read_settings: output.ReadSettings
  writer: Callable[[pathlib.Path, table.FeatureTable], table.Writer]


def _text_writer(path: pathlib.Path, plan: table.FeatureTable) -> table.Writer:
  return stream.StreamWriter(stream.TEXT, path, plan, plan.keys)


def _pickle_writer(
  path: pathlib.Path, plan: table.FeatureTable
) -> table.Writer:
  names, _ = stream.row_names(plan.keys)
  return stream.StreamWriter(stream.PICKLE, path, plan, names)


FORMATS: Mapping[str, FeatureFormat] = {
  'zarr': FeatureFormat(
    store.planned_bytes, store.create, store.read_settings, store.StoreWriter
  ),
  'pickle': FeatureFormat(
    functools.partial(stream.planned_bytes, stream.PICKLE),
    stream.create,
    stream.read_settings,
    _pickle_writer,
  ),
  'text': FeatureFormat(
    functools.partial(stream.planned_bytes, stream.TEXT),
    stream.create,
    stream.read_settings,
    _text_writer,
  ),
}


def read_settings(path: pathlib.Path) -> Mapping[str, Any] | None:
  """The settings of a run in any of the formats; None if there is none."""
  for form in FORMATS.values():
    if (settings := form.read_settings(path)) is not None:
      return settings
  return None


def notes(format_name: str, plan: table.FeatureTable) -> list[str]:
  """What a user should know of a format before these rows are written.

  Raises:
    UserError: the format cannot hold them.
  """
  if format_name != 'pickle':
    return []
  _, note = stream.row_names(plan.keys)
  return [note] if note else []
