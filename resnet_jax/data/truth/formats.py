# SPDX-License-Identifier: Apache-2.0
"""Readers of label files.

Caffe's `val.txt` (NAME LABEL; Caffe's ImageNet page), the development kit's
ground truth (one ILSVRC id per line; its readme.txt), TensorFlow's
`imagenet_2012_validation_synset_labels.txt` (one WordNet id per line) and
ReaL's `real.json` (a list of lists by file number; Beyer et al., "Are we done
with ImageNet?", 2020, and the repository google-research/reassessed-imagenet).
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

from resnet_jax.codecs import faults
from resnet_jax.data.truth import devkit
from resnet_jax.system import errors, files

_MAX_BYTES = 1 << 26
_MAX_JSON_BYTES = 1 << 24
_WNID = re.compile(r'n[0-9]{8}')
_NUMBER = re.compile(r'[0-9]{1,9}')
_PAIR = re.compile(
  r'(?:"(?P<quoted>[^"]+)"|(?P<plain>\S.*?))\s+(?P<label>[0-9]{1,9})'
)

_ALLOWED = (
  "Label files are: lines of NAME LABEL (Caffe's val.txt), one ILSVRC id per"
  " line with meta.mat beside it (the development kit's ground truth), one"
  " WordNet id per line (TensorFlow's), or a JSON list of lists of labels"
  " (ReaL's real.json)"
)


@dataclasses.dataclass(frozen=True)
class Entries:
  """The contents of a label file.

  Attributes:
    names: the names of the images; None: the entries go by their numbers.
    answers: the labels of each image.
    form: the form of the file, for messages.
  """

  names: list[str] | None
  answers: list[frozenset[int]]
  form: str


def error(
  path: pathlib.Path, what: str, advice: str = _ALLOWED
) -> errors.UserError:
  """The error for a label file."""
  return errors.UserError(f'the label file {path} {what}. {advice}.')


def read(path: pathlib.Path, wnids: Sequence[str]) -> Entries:
  """Reads a label file of any known form.

  Args:
    path: the file.
    wnids: the classes' WordNet ids, or other names, in the order of labels.

  Raises:
    UserError: the form is unknown, a line has another form than the first, or
      the ids cannot be mapped.
  """
  text = _text(path)
  if text.lstrip().startswith(('[', '{')):
    return Entries(None, _lists(text, path), 'lists of labels (ReaL)')
  lines = [line.strip() for line in text.split('\n')]
  filled = [line for line in lines if line]
  first = filled[0] if filled else ''
  form = next((form for form in _FORMS if form.line.fullmatch(first)), None)
  if form is None:
    given = repr(first[:60]) if first else 'nothing'
    raise error(path, f'begins with {given}, which is not a label')
  for number, line in enumerate(lines, 1):
    if line and not form.line.fullmatch(line):
      raise error(
        path,
        f'has {line[:60]!r} in line {number}, which is not {form.what}, as the'
        ' first line is',
        f'Correct it. {_ALLOWED}',
      )
  return form.read(filled, path, wnids)


def _text(path: pathlib.Path) -> str:
  try:
    if not path.is_file():
      raise errors.UserError(
        f"labels='{path}': there is no such file. {_ALLOWED}; 'folders' takes"
        " the names of the images' folders, '' what the source itself says."
      )
    if path.stat().st_size > _MAX_BYTES:
      raise error(path, f'has more than {_MAX_BYTES} bytes')
    text = path.read_text('utf-8-sig')
    if faults.is_git_lfs(text):
      raise error(path, f'is {faults.GIT_LFS_SAYS}')
    return text
  except OSError as fault:
    raise errors.UserError(
      f'the label file {path} cannot be read: {fault.strerror or fault}.'
    ) from fault
  except UnicodeDecodeError as fault:
    raise error(path, 'is not text in UTF-8') from fault


def _lists(text: str, path: pathlib.Path) -> list[frozenset[int]]:
  try:
    if len(text) > _MAX_JSON_BYTES:
      raise ValueError(f'it has more than {_MAX_JSON_BYTES} bytes')
    values = files.read_json(text)
  except ValueError as fault:
    what = f'begins as JSON and cannot be read: {fault}'
    raise error(path, what, 'Get it again') from fault
  whole = isinstance(values, list) and all(
    isinstance(one, list) and all(type(label) is int for label in one)
    for one in values
  )
  if not whole:
    raise error(path, 'is JSON, but not a list of lists of whole numbers')
  return [frozenset(one) for one in values]


def _pairs(
  lines: list[str], path: pathlib.Path, wnids: Sequence[str]
) -> Entries:
  del path, wnids
  matches = [match for line in lines if (match := _PAIR.fullmatch(line))]
  return Entries(
    [match['quoted'] or match['plain'] for match in matches],
    [frozenset([int(match['label'])]) for match in matches],
    'NAME LABEL (Caffe)',
  )


def _numbers(
  lines: list[str], path: pathlib.Path, wnids: Sequence[str]
) -> Entries:
  """ILSVRC ids, which count from 1, or labels if one of them is 0."""
  numbers = [int(line) for line in lines]
  meta = path.with_name(devkit.NAME)
  if not are_wnids(wnids) and meta.exists():
    raise error(
      path,
      f'has {devkit.NAME} beside it, so its numbers are ILSVRC ids, and the'
      ' classes of this network have no WordNet ids to map them to',
      'Give lines of NAME LABEL; for an ImageNet network leave out class_names',
    )
  if 0 in numbers or not are_wnids(wnids):
    return Entries(
      None, [frozenset([n]) for n in numbers], 'one label per line'
    )
  for image, number in enumerate(numbers, 1):
    if number > len(wnids):
      raise error(
        path,
        f'gives image {image} the ILSVRC id {number}, and they end at'
        f' {len(wnids)}',
      )
  labels = devkit.label_of_id(meta, wnids)
  return Entries(
    None,
    [frozenset([int(labels[number - 1])]) for number in numbers],
    f'one ILSVRC id per line, mapped by {devkit.NAME} (development kit)',
  )


def _wnids(
  lines: list[str], path: pathlib.Path, wnids: Sequence[str]
) -> Entries:
  index = {wnid: label for label, wnid in enumerate(wnids)}
  for image, line in enumerate(lines, 1):
    if line not in index:
      raise error(
        path,
        f'gives image {image} the WordNet id {line}, which is none of the'
        f' {len(wnids)} classes of this network',
      )
  return Entries(
    None,
    [frozenset([index[line]]) for line in lines],
    'one WordNet id per line (TensorFlow)',
  )


def are_wnids(names: Sequence[str]) -> bool:
  """Whether the names of the classes are WordNet ids."""
  return bool(names) and all(map(_WNID.fullmatch, names))


@dataclasses.dataclass(frozen=True)
class _Form:
  """A form of a label file: a line's pattern and name, and the reader."""

  line: re.Pattern[str]
  what: str
  read: Callable[[list[str], pathlib.Path, Sequence[str]], Entries]


_FORMS = (
  _Form(_NUMBER, 'a number', _numbers),
  _Form(_WNID, 'a WordNet id', _wnids),
  _Form(_PAIR, 'NAME LABEL', _pairs),
)
