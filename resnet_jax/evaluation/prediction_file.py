# SPDX-License-Identifier: Apache-2.0
"""The file of predictions: JSON lines, a header and then an object an image.

`predict` and `evaluate` write it and resume each other's.  It is called
`NAME.part` until the last image is in it.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Self

from resnet_jax.data import labels as labels_lib
from resnet_jax.evaluation.prediction_record import (
  DamageError,
  Header,
  ImagePrediction,
  Labels,
  begins_header,
  parse_header,
  parse_image,
)
from resnet_jax.system import errors, files
from resnet_jax.system import settings as settings_lib
from resnet_jax.system.text import one_line

_MAX_LINE = 1 << 24
# Settings that files of earlier versions do not state.
_LATER = ('class_names_sha256', 'labels_sha256')


class PredictionReader:
  """Iterates over the images of a file.

  Attributes:
    header: the first line.
    path: the file.
    format: of the file, 1 or 2.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self.path = path
    try:
      with files.opened(path) as file:
        self.format, self.header = parse_header(_line(file))
    except (DamageError, OSError) as error:
      raise errors.UserError(
        f'{path} is not a prediction file: {error}. Choose another file'
        ' (results, predictions), or remove it and predict again.'
      ) from error

  def __iter__(self) -> Iterator[ImagePrediction]:
    count, names = self.header.settings['classes'], None
    if self.format == 1:
      stored = self.header.record.get('class_names', ())
      names = labels_lib.classes(count, stored=stored)
    number = 1
    try:
      with files.opened(self.path) as file:
        _line(file)
        number = 2
        while line := _line(file):
          yield parse_image(line, count, names)
          number += 1
    except (DamageError, OSError) as error:
      raise errors.UserError(
        f'{self.path}, line {number}, is damaged: {error}. Remove the file'
        ' and predict again.'
      ) from error


def _line(file: IO[bytes]) -> bytes:
  """The next line, whole; empty at the end."""
  line = file.readline(_MAX_LINE)
  if line and not line.endswith(b'\n'):
    raise DamageError('it breaks off, or is too long')
  return line


def batch_rows(path: pathlib.Path) -> int:
  """The batch size of a finished or unfinished file; 0: there is none."""
  for place in (path, files.part(path)):
    with contextlib.suppress(errors.UserError):
      return settings_lib.batch_rows(PredictionReader(place).header.run)
  return 0


def is_finished(path: pathlib.Path, header: Header) -> bool:
  """Whether there is a finished file with the header's settings.

  Raises:
    UserError: the file is something else, or has other settings.
  """
  if not path.exists():
    return False
  _check_same(path, PredictionReader(path).header.settings, header.settings)
  return True


class PredictionWriter:
  """Appends images to an unfinished file, in order; a context manager.

  Attributes:
    done: images in the file; the number of the next one.
  """

  def __init__(self, path: pathlib.Path, header: Header, rows: int) -> None:
    """Opens or creates `NAME.part`, and locks it.

    Args:
      path: the finished file.
      header: how the predictions are made.
      rows: images a batch.  A file resumes at a multiple of it, so that the
        batches are those of a run that was not interrupted.

    Raises:
      UserError: the file is something else, has other settings, or another
        process writes it.
    """
    self._path, self._part = path, files.part(path)
    with self._writing():
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = files.writable(self._part, 'ab')
    try:
      files.lock(self._file, self._part, 'results, predictions')
      self.done, end = _resumable(self._part, header, rows)
      with self._writing():
        self._file.truncate(end)
      if not end:
        self._add(header.line())
    except BaseException:
      self.__exit__()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    # What could not be written has been reported by then.
    with contextlib.suppress(OSError):
      self._file.close()

  def write(self, images: Sequence[ImagePrediction]) -> None:
    """Adds images; when it returns they outlive a killed process."""
    self._add(b''.join(image.line() for image in images))
    self.done += len(images)

  def publish(self) -> None:
    """Renames the file to its final name."""
    with self._writing():
      os.fsync(self._file.fileno())
      os.replace(self._part, self._path)

  def _add(self, data: bytes) -> None:
    with self._writing():
      self._file.write(data)
      self._file.flush()

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    return files.writing('predictions', self._path)


def images(
  path: pathlib.Path, keys: Sequence[str]
) -> Iterator[ImagePrediction]:
  """The images of a finished file, whose keys must be `keys`.

  Raises:
    UserError: the file has other images, or is damaged.
  """
  pairs = itertools.zip_longest(keys, PredictionReader(path))
  for row, (key, image) in enumerate(pairs):
    if image is None or image.key != key:
      found = one_line(image.key) if image else 'missing'
      wanted = one_line(key) if key else 'none'
      raise errors.UserError(
        f'{path}, image {row}, is {found}, and should be {wanted}.'
        ' Remove the file and predict again.'
      )
    yield image


def relabel(
  path: pathlib.Path,
  keys: Sequence[str],
  labels: Sequence[Labels],
  record: Mapping[str, Any],
) -> bool:
  """Replaces the labels in a finished file, if they differ.

  Args:
    path: the file.
    keys: of the images that it must hold.
    labels: of each image.
    record: the header's new one.

  Returns:
    Whether they differed.

  Raises:
    UserError: as from `images`; or the file cannot be written.
  """
  pairs = zip(images(path, keys), labels, strict=True)
  if all(image.labels == wanted for image, wanted in pairs):
    return False
  header = dataclasses.replace(PredictionReader(path).header, record=record)
  new = path.with_name(f'{path.name}.new')
  with files.writing('predictions', new), files.writable(new, 'wb') as file:
    file.write(header.line())
    for image, wanted in zip(images(path, keys), labels, strict=True):
      file.write(dataclasses.replace(image, labels=wanted).line())
    file.flush()
    os.fsync(file.fileno())
  with files.writing('predictions', path):
    os.replace(new, path)
  return True


def _check_same(
  path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  known = {k: v for k, v in wanted.items() if k in found or k not in _LATER}
  if different := settings_lib.differences(found, known):
    raise errors.UserError(
      f'{path} holds predictions with other settings: {different}. Choose'
      ' another file (results, predictions), remove this one, or use its'
      ' settings.'
    )


def _resumable(
  path: pathlib.Path, header: Header, rows: int
) -> tuple[int, int]:
  """How many images of an unfinished file are kept, and the byte they end at.

  Whole batches are; a last line that breaks off is not.
  """
  with files.opened(path) as file:
    first = file.readline(_MAX_LINE)
    # A file of anything else stays.
    if not first.endswith(b'\n') and begins_header(first):
      return 0, 0
    ends = [file.tell()]
    while line := file.readline(_MAX_LINE):
      if line.endswith(b'\n'):
        ends.append(file.tell())
  done = len(ends) - 1
  reader = PredictionReader(path)
  if not done:
    # Nothing is lost: the run stopped before its first batch.
    return 0, 0
  if reader.format == 1:
    raise errors.UserError(
      f'{path} was begun by an earlier version of this program. Finish it with'
      ' that version, choose another file (results, predictions), or remove it.'
    )
  there = reader.header
  _check_same(
    path, {**there.settings, **there.run}, {**header.settings, **header.run}
  )
  # Damage is found now, not after hours.
  for _ in itertools.islice(reader, done):
    pass
  total = header.settings.get('images', done)
  kept = total if done >= total else done // rows * rows
  return kept, ends[kept]
