# SPDX-License-Identifier: Apache-2.0
"""The original's feature files: pickles `batch_N`, and text `rank-00000`.

One writer appends the rows of both, and notes the files' size in
`progress.json` after each batch; a resumed run truncates them to it.
`run.json` holds the settings.  Source of both formats: PaddlePaddle 0.8 to
0.10, `demo/model_zoo/resnet` (`classify.py`, `load_feature.py`).
"""

import collections
import dataclasses
import io
import itertools
import os
import pathlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.codecs import pickles
from resnet_jax.features import output, table
from resnet_jax.system import errors, files, units
from resnet_jax.system import settings as settings_lib

RUN, PROGRESS = 'run.json', 'progress.json'

Row = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """How rows become files.

  Attributes:
    file_name: the name of the n-th file.
    rows_per_file: rows in each file but the last; 0: all in one file.
    head: the first bytes of a file.
    tail: the last bytes of a file.
    row: encodes a row, from its name and the layers' (C, H, W) arrays.
    value_bytes: the most that a value takes; 0: the size of its dtype.
    unique: whether a row is known by its name.
  """

  file_name: str
  rows_per_file: int
  head: bytes
  tail: bytes
  row: Callable[[str, Row], bytes]
  value_bytes: int
  unique: bool


def _pickle_row(name: str, values: Row) -> bytes:
  entry = {
    layer: np.ascontiguousarray(array).reshape(1, -1)
    for layer, array in values.items()
  }
  # A dict's pickle is a start, entries (mark, key, value, 'u') and a stop.
  # Protocol 3 is the last without frames.
  return b'(' + _pickled(name) + _pickled(entry) + b'u'


def _pickled(value: Any) -> bytes:
  return pickle.dumps(value, protocol=3)[2:-1]


def _text_row(name: str, values: Row) -> bytes:
  del name
  # Nine digits restore every float32 exactly; the original wrote six.
  layers = [
    ' '.join([f'{value:.9g}' for value in array.ravel().tolist()])
    for array in values.values()
  ]
  return (''.join(f'{layer};' for layer in layers) + '\n').encode('ascii')


PICKLE = RowFormat('batch_{}', 10000, b'\x80\x03}', b'.', _pickle_row, 0, True)
TEXT = RowFormat('rank-{:05d}', 0, b'', b'', _text_row, 16, False)


def planned_bytes(form: RowFormat, plan: table.FeatureTable, rows: int) -> int:
  """An upper bound of the bytes that `rows` more rows take."""
  itemsize = np.dtype(plan.dtype).itemsize
  values = plan.row_bytes() // itemsize * (form.value_bytes or itemsize)
  return rows * (values + 300 * (1 + len(plan.layers)))


def notes(form: RowFormat, plan: table.FeatureTable) -> list[str]:
  """What is unusual about the names of the rows."""
  note = row_names(plan.keys)[1] if form.unique else ''
  return [note] if note else []


def row_names(keys: Sequence[str]) -> tuple[list[str], str]:
  """The names of images in a pickle, and a note if they are unusual.

  Base names, as in the original; relative paths if two images share a base
  name (in the original the later one replaced the first).

  Raises:
    UserError: an image is listed twice, and a dict holds it once.
  """
  names = [key.rsplit('/', 1)[-1] for key in keys]
  if len(set(names)) == len(names):
    return names, ''
  key, times = collections.Counter(keys).most_common(1)[0]
  if times > 1:
    raise errors.UserError(
      f"'{key}' is listed twice, and the pickle format holds an image once."
      ' List it once, or use feature_format=zarr.'
    )
  return list(keys), (
    'images have the same base name, so the keys in batch_N are relative paths'
  )


def create(
  path: pathlib.Path, plan: table.FeatureTable, facts: table.Facts
) -> None:
  """Fills an empty directory with the settings of a run."""
  del plan
  files.write_json(path / RUN, dataclasses.asdict(facts))


def read_settings(path: pathlib.Path) -> Mapping[str, Any] | None:
  """The settings of the run in a directory; None without a run."""
  return settings_lib.read(path / RUN, 'settings')


class StreamWriter:
  """Appends rows to files; see `table.Writer`."""

  def __init__(
    self, form: RowFormat, path: pathlib.Path, plan: table.FeatureTable
  ) -> None:
    self._form, self._path, self._plan = form, path, plan
    self._names = row_names(plan.keys)[0] if form.unique else plan.keys
    progress: dict[str, Any] = {'rows': 0, 'bytes': 0, 'failed': []}
    try:
      if (path / PROGRESS).exists():
        progress = files.read_json(path / PROGRESS)
      elif 'failed' in (run := files.read_json(path / RUN)):
        # Killed between `finish` and the renaming of the directory.
        progress |= {'rows': plan.rows, 'failed': run['failed']}
      self.done: int = progress['rows']
      self._size: int = progress['bytes']
      self._failures: list[dict] = progress['failed']
    except (KeyError, ValueError, OSError, TypeError) as error:
      raise errors.UserError(
        f'{path} is damaged: {error}. Remove it to start over.'
      ) from error
    self.failed = len(self._failures)

  def rows(self, part: units.Part) -> tuple[int, int]:
    """All rows, and those that were there: a file has one writer."""
    del part
    return self._plan.rows, self.done

  def starts(self, part: units.Part) -> Iterator[int]:
    """What is left."""
    del part
    return iter(range(self.done, self._plan.rows, self._plan.batch_rows))

  def write(
    self, start: int, values: Mapping[str, np.ndarray], reasons: Sequence[str]
  ) -> None:
    """Appends rows, then notes the size of the last file."""
    end = start + len(reasons)
    with files.writing('features', self._path):
      for number, rows in itertools.groupby(range(start, end), self._number):
        pieces = (
          self._form.row(
            self._names[row], {k: v[row - start] for k, v in values.items()}
          )
          for row in rows
        )
        self._append(number, pieces, end)
      self._failures += [
        {'row': row, 'key': self._plan.keys[row], 'reason': reason}
        for row, reason in enumerate(reasons, start)
        if reason
      ]
      self.done, self.failed = end, len(self._failures)
      files.write_json(
        self._path / PROGRESS,
        {'rows': end, 'bytes': self._size, 'failed': self._failures},
      )

  def close(self) -> None:
    """Does nothing: no file is open between batches."""

  def missing(self) -> Sequence[units.Unit]:
    """Nothing."""
    return ()

  def finish(self) -> None:
    """Notes the failed rows beside the settings."""
    with files.writing('features', self._path):
      run = files.read_json(self._path / RUN)
      files.write_json(self._path / RUN, run | {'failed': self._failures})
      (self._path / PROGRESS).unlink(missing_ok=True)

  def _number(self, row: int) -> int:
    """The number of a row's file."""
    return row // self._form.rows_per_file if self._form.rows_per_file else 0

  def _append(self, number: int, pieces: Iterable[bytes], end: int) -> None:
    """Adds pieces to a file; `end` is the first row after the batch."""
    path = self._path / self._form.file_name.format(number)
    exists = self.done > 0 and number == self._number(self.done - 1)
    with files.writable(path, 'r+b' if exists else 'wb') as file:
      if exists:
        # A killed run has left the bytes after the noted size.
        if file.seek(0, os.SEEK_END) < self._size:
          raise errors.UserError(
            f'{path} is shorter than {PROGRESS} says. Remove {self._path} to'
            ' start over.'
          )
        file.truncate(self._size)
        file.seek(self._size)
      else:
        file.write(self._form.head)
      file.writelines(pieces)
      if end == self._plan.rows or self._number(end) != number:
        file.write(self._form.tail)
      file.flush()
      os.fsync(file.fileno())
      self._size = file.tell()


def load_feature_py(directory: str | pathlib.Path) -> dict[str, Any]:
  """Reads the pickles `batch_N` of a directory, all into memory.

  Returns:
    {image: {layer: (1, C * H * W) array}}, as the original's function of
    this name.

  Raises:
    UserError: there are no files, the run is unfinished, or a file holds
      anything but arrays, which is never executed.
  """
  path = pathlib.Path(directory)
  output.check_finished(path)
  paths = sorted(
    (int(entry.name.removeprefix('batch_')), entry)
    for entry in (path.iterdir() if path.is_dir() else ())
    if re.fullmatch(r'batch_\d{1,9}', entry.name)
  )
  if not paths:
    raise errors.UserError(f'there are no feature files batch_N in {path}.')
  features: dict[str, Any] = {}
  for _, file in paths:
    entries = pickles.load_arrays(file)
    if not isinstance(entries, dict):
      raise errors.UserError(f'{file} holds no dict of features.')
    features.update(entries)
  return features


def load_feature_c(file: str | pathlib.Path) -> list[list[list[float]]]:
  """Reads a text file `rank-00000`, all into memory.

  Returns:
    A list of samples, each a list of layers, each a list of numbers, as the
    original's function of this name.

  Raises:
    UserError: there is no file, the run is unfinished, or a line is malformed.
  """
  path = pathlib.Path(file)
  output.check_finished(path.parent)
  samples: list[list[list[float]]] = []
  try:
    with (
      files.opened(path) as opened,
      io.TextIOWrapper(opened, 'ascii', errors='backslashreplace') as lines,
    ):
      for line in lines:
        *layers, rest = line.split(';')
        if rest != '\n' or not layers:
          raise ValueError('it does not end with a semicolon')
        samples.append([[float(v) for v in layer.split()] for layer in layers])
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}.'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'{path} is not a text file of features: line {len(samples) + 1}:'
      f' {error}.'
    ) from error
  return samples
