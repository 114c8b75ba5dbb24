# SPDX-License-Identifier: Apache-2.0
"""Features on disk: the Zarr store, and the original program's two formats."""

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
  """The functions that write features in one format.

  Attributes:
    planned_bytes: an upper bound of what that many more rows take.
    create: fills an empty directory before the first row.
    read_settings: the settings of the run in a directory; None without a run.
    writer: opens such a directory.
    shared: whether several processes may write one run.
    notes: what a user should know before rows are written; raises a UserError
      if the format cannot hold them.
  """

  planned_bytes: Callable[[table.FeatureTable, int], int]
  create: Callable[[pathlib.Path, table.FeatureTable, table.Facts], None]
  read_settings: output.ReadSettings
  writer: Callable[[pathlib.Path, table.FeatureTable], table.Writer]
  shared: bool
  notes: Callable[[table.FeatureTable], list[str]] = lambda plan: []


def _stream_format(form: stream.RowFormat) -> FeatureFormat:
  return FeatureFormat(
    functools.partial(stream.planned_bytes, form),
    stream.create,
    stream.read_settings,
    functools.partial(stream.StreamWriter, form),
    False,
    functools.partial(stream.notes, form),
  )


FORMATS: Mapping[str, FeatureFormat] = {
  'zarr': FeatureFormat(
    store.planned_bytes,
    store.create,
    store.read_settings,
    store.StoreWriter,
    True,
  ),
  'pickle': _stream_format(stream.PICKLE),
  'text': _stream_format(stream.TEXT),
}


def read_settings(path: pathlib.Path) -> Mapping[str, Any] | None:
  """The settings of a run in any format; None if there is no run."""
  for form in FORMATS.values():
    if (settings := form.read_settings(path)) is not None:
      return settings
  return None
