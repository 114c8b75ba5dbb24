# SPDX-License-Identifier: Apache-2.0
"""The file of predictions: a JSON object a line, written as they come.

The first line says how they are made, each of the others what is predicted of
an image: `key`; `labels`, for each label set the labels; and `best`, five
pairs of label and probability, or `failed`, why it could not be read.  A file
in the making is called `NAME.part`.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from resnet_jax.system import errors, files

_FORMAT = 'resnet_jax predictions 1'
# Of a line: a key, a few labels, five guesses; the header may name classes.
_MAX_LINE = 1 << 24

# Of an image, by the name of the label set.
Labels = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Header:
  """How the predictions of a file are made.

  Attributes:
    settings: what determines them; a file is used only with the same.
    run: the machine and the batches, of which the last digits may depend; an
      unfinished file is gone on with only with the same.
    record: what else somebody may want to know.
  """

  settings: Mapping[str, Any]
  run: Mapping[str, Any]
  record: Mapping[str, Any]

  def line(self) -> bytes:
    """The first line of a file."""
    return _encode({'format': _FORMAT} | dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Predicted:
  """What is predicted of an image.

  Attributes:
    key: of the source's item.
    labels: by the name of a label set; of several any counts; none: it is not
      counted.
    best: labels and probabilities, the best first; none: it failed.
    failed: why it could not be read, '' if it could.
  """

  key: str
  labels: Labels
  best: tuple[tuple[int, float], ...]
  failed: str = ''

  def line(self) -> bytes:
    """Its line of a file."""
    facts: dict[str, Any] = {'key': self.key, 'labels': self.labels}
    facts |= {'failed': self.failed} if self.failed else {'best': self.best}
    return _encode(facts)


class _DamageError(Exception):
  """A line that is not as it was written; the message says what is wrong."""


class Reader:
  """The images of a file, one after another; a context manager.

  Attributes:
    header: the first line's.
    path: of the file.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self.path = path
    try:
      self._file = open(path, 'rb')  # noqa: SIM115
    except OSError as error:
      raise errors.UserError(
        f'{path} cannot be read: {error.strerror or error}. Name a file of'
        ' predictions that --job=evaluate has written.'
      ) from error
    try:
      self.header = _header(self._line())
    except (_DamageError, OSError) as error:
      self._file.close()
      raise errors.UserError(
        f'{path} is no file of predictions of --job=evaluate: {error}.'
      ) from error

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._file.close()

  def __iter__(self) -> Iterator[Predicted]:
    number, classes = 1, self.header.settings['classes']
    while True:
      number += 1
      try:
        line = self._line()
        if not line:
          return
        yield _image_prediction(line, classes)
      except (_DamageError, OSError) as error:
        raise errors.UserError(
          f'{self.path}, line {number}, is damaged: {error}. Remove the file'
          ' and evaluate again.'
        ) from error

  def _line(self) -> bytes:
    """The next line, whole; empty at the end."""
    line = self._file.readline(_MAX_LINE)
    if line and not line.endswith(b'\n'):
      raise _DamageError('it breaks off, or is too long')
    return line


def part(path: pathlib.Path) -> pathlib.Path:
  """The name of a file in the making."""
  return path.with_name(path.name + files.PART)


def is_finished(path: pathlib.Path, header: Header) -> bool:
  """Whether the predictions with these settings are there, all of them.

  Raises:
    UserError: there is something else, or predictions with other settings.
  """
  if not path.exists():
    return False
  if path.is_dir():
    raise errors.UserError(f'predictions={path} is a folder; name a file.')
  with Reader(path) as reader:
    _check_same(path, reader.header.settings, header.settings)
  return True


class Writer(files.Appended):
  """Adds images to a file in the making, in order; a context manager.

  Attributes:
    done: images that are there already; the next to be written.
  """

  def __init__(self, path: pathlib.Path, header: Header, rows: int) -> None:
    """Opens `NAME.part`, made if it is not there.

    Args:
      path: of the finished file.
      header: how predictions are made.
      rows: images that are written at a time: so that the batches are those
        of a run that was not stopped, it is gone on with from a multiple.

    Raises:
      UserError: it holds something else, or predictions with other settings,
        or another process writes it.
    """
    end = 0

    def whole(there: pathlib.Path) -> int:
      nonlocal end
      self.done, end = _whole(there, header, rows)
      return end

    super().__init__('predictions', path, part(path), whole)
    if not end:
      try:
        self.add(header.line())
      except BaseException:
        self.close()
        raise

  def write(self, images: Sequence[Predicted]) -> None:
    """Adds images; when it returns they outlive a killed process."""
    self.add(b''.join(image.line() for image in images))
    self.done += len(images)


def images(path: pathlib.Path, keys: Sequence[str]) -> Iterator[Predicted]:
  """The images of a finished file, which must be those of `keys`.

  Raises:
    UserError: they are others, or more or fewer, or the file is damaged.
  """
  with Reader(path) as reader:
    for row, (key, image) in enumerate(
      itertools.zip_longest(keys, reader, fillvalue=None)
    ):
      there = image and image.key
      if key is None or image is None or there != key:
        raise errors.UserError(
          f'{path}, image {row}, is {there or "missing"}, and should be'
          f' {key or "none"}. Remove the file and evaluate again.'
        )
      yield image


def relabel(
  path: pathlib.Path,
  keys: Sequence[str],
  labels: Iterable[Labels],
  record: Mapping[str, Any],
) -> None:
  """Gives a finished file's images other labels; the guesses stay.

  Args:
    path: of the file.
    keys: the images that it must hold.
    labels: of each of them.
    record: what the header says of the rest.

  Raises:
    UserError: as `images` does; or it cannot be written.
  """
  with Reader(path) as reader:
    header = dataclasses.replace(reader.header, record=record)
  new = path.with_name(f'{path.name}.new')
  with files.writing('predictions', new), open(new, 'wb') as file:
    file.write(header.line())
    for image, wanted in zip(images(path, keys), labels, strict=True):
      file.write(dataclasses.replace(image, labels=wanted).line())
    file.flush()
    os.fsync(file.fileno())
  with files.writing('predictions', path):
    os.replace(new, path)


def _encode(facts: Mapping[str, Any]) -> bytes:
  return (json.dumps(facts, ensure_ascii=False) + '\n').encode()


def _decode(line: bytes) -> dict[str, Any]:
  try:
    facts = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise _DamageError('it is not JSON in UTF-8') from error
  if not isinstance(facts, dict):
    raise _DamageError('it is not a JSON object')
  return facts


def _header(line: bytes) -> Header:
  facts = _decode(line)
  if facts.pop('format', None) != _FORMAT:
    raise _DamageError(f"its first line does not say '{_FORMAT}'")
  names = {field.name for field in dataclasses.fields(Header)}
  if facts.keys() != names or not all(
    isinstance(value, dict) for value in facts.values()
  ):
    raise _DamageError(f'its first line does not have {", ".join(names)}')
  classes = facts['settings'].get('classes')
  if type(classes) is not int or classes < 1:
    raise _DamageError('its first line does not say how many classes there are')
  return Header(**facts)


def _image_prediction(line: bytes, classes: int) -> Predicted:
  facts = _decode(line)
  key, labels = facts.get('key'), facts.get('labels')
  best, failed = facts.get('best', []), facts.get('failed', '')
  if not isinstance(key, str) or not isinstance(failed, str):
    raise _DamageError('it has no key, or a reason that is no text')
  if not isinstance(labels, dict) or not all(
    isinstance(value, list) and all(_is_label(v, classes) for v in value)
    for value in labels.values()
  ):
    raise _DamageError(f'its labels are not lists of 0 to {classes - 1}')
  if not isinstance(best, list) or not all(
    isinstance(pair, list)
    and len(pair) == 2
    and _is_label(pair[0], classes)
    and type(pair[1]) in (float, int)
    and math.isfinite(pair[1])
    for pair in best
  ):
    raise _DamageError('its guesses are not pairs of label and probability')
  if bool(best) == bool(failed):
    raise _DamageError('it has neither guesses nor a reason, or both')
  return Predicted(
    key,
    {name: tuple(value) for name, value in labels.items()},
    tuple((label, float(probability)) for label, probability in best),
    failed,
  )


def _is_label(value: Any, classes: int) -> bool:
  return type(value) is int and 0 <= value < classes


def _check_same(
  path: pathlib.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  different = [
    f'{key} is {found.get(key)!r} there, {wanted.get(key)!r} now'
    for key in sorted({*found, *wanted})
    if found.get(key) != wanted.get(key)
  ]
  if different:
    raise errors.UserError(
      f'{path} holds predictions with other settings: {"; ".join(different)}.'
      ' Choose another file (results, predictions), remove this one, or use its'
      ' settings.'
    )


def _whole(path: pathlib.Path, header: Header, rows: int) -> tuple[int, int]:
  """Images of a file in the making that are kept, and where they end.

  A last line that breaks off is not; nor are those behind a multiple of `rows`.
  """
  with open(path, 'rb') as file:
    first = file.readline(_MAX_LINE)
    if not first.endswith(b'\n') and _begins_one(first):
      return 0, 0
    ends = [file.tell()]
    while line := file.readline(_MAX_LINE):
      if line.endswith(b'\n'):
        ends.append(file.tell())
  with Reader(path) as reader:
    wanted = {**header.settings, **header.run}
    there = {**reader.header.settings, **reader.header.run}
    _check_same(path, there, wanted)
    # Damage is found now, not after hours.
    for _ in itertools.islice(reader, len(ends) - 1):
      pass
  kept = (len(ends) - 1) // rows * rows
  return kept, ends[kept]


def _begins_one(line: bytes) -> bool:
  """Whether a line that breaks off is the first one of our files.

  Then the process was killed before it had written it; any other file is
  somebody's, and stays.
  """
  start = _encode({'format': _FORMAT}).removesuffix(b'}\n')
  return start.startswith(line[: len(start)])
