# SPDX-License-Identifier: Apache-2.0
"""Readers of label files.

Caffe's `val.txt` (NAME LABEL; Caffe's ImageNet page), the development kit's
ground truth (an ILSVRC id a line; its readme.txt), TensorFlow's
`imagenet_2012_validation_synset_labels.txt` (a WordNet id a line) and ReaL's
`real.json` (a list of lists by file number; Beyer et al., "Are we done with
ImageNet?", 2020, and the repository google-research/reassessed-imagenet).
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence

from resnet_jax.data.truth import devkit
from resnet_jax.system import errors

_MAX_BYTES = 1 << 26
_MAX_JSON_BYTES = 1 << 24
WNID = re.compile(r'n[0-9]{8}')
_NUMBER = re.compile(r'[0-9]{1,9}')
_PAIR = re.compile(
  r'(?:"(?P<quoted>[^"]+)"|(?P<plain>\S.*?))\s+(?P<label>[0-9]{1,9})'
)

ALLOWED = (
  "Label files are: lines of NAME LABEL (Caffe's val.txt), an ILSVRC id a line"
  " with meta.mat beside it (the development kit's ground truth), a WordNet id"
  " a line (TensorFlow's), or a JSON list of lists of labels (ReaL's real.json)"
)

Answer = frozenset[int]


@dataclasses.dataclass(frozen=True)
class Entries:
  """The contents of a label file.

  Attributes:
    names: the names of the images; None: the file goes by their numbers.
    answers: the labels of each image.
    form: for a person.
  """

  names: list[str] | None
  answers: list[Answer]
  form: str


def read(path: pathlib.Path, wnids: Sequence[str]) -> Entries:
  """Reads a label file of any known form.

  Args:
    path: the file.
    wnids: the classes' WordNet ids, or other names, in the order of labels.

  Raises:
    UserError: the file is in no known form, a line is not in the form of the
      first, or the ids cannot be mapped.
  """
  text = _text(path)
  if text.lstrip()[:1] in ('[', '{'):
    return Entries(None, _lists(text, path), 'lists of labels (ReaL)')
  lines = [line.strip() for line in text.split('\n')]
  filled = [line for line in lines if line]
  form = next(
    (form for form in _FORMS if filled and form.line.fullmatch(filled[0])), None
  )
  if form is None:
    given = repr(filled[0][:60]) if filled else 'nothing'
    raise errors.UserError(
      f'the label file {path} begins with {given}, which is no label.'
      f' {ALLOWED}.'
    )
  for number, line in enumerate(lines, 1):
    if line and not form.line.fullmatch(line):
      raise errors.UserError(
        f'the label file {path} has {line[:60]!r} in line {number}, which is'
        f' not {form.what}, as the first line is. Mend it. {ALLOWED}.'
      )
  return form.read(filled, path, wnids)


def _text(path: pathlib.Path) -> str:
  try:
    if not path.is_file():
      raise errors.UserError(
        f"labels='{path}': there is no such file. {ALLOWED}; 'folders' takes"
        " the names of the images' folders, '' what the source itself says."
      )
    if path.stat().st_size > _MAX_BYTES:
      raise errors.UserError(
        f'the label file {path} has more than {_MAX_BYTES} bytes. {ALLOWED}.'
      )
    text = path.read_text('utf-8-sig')
  except OSError as error:
    raise errors.UserError(
      f'the label file {path} cannot be read: {error.strerror or error}.'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'the label file {path} is not text in UTF-8. {ALLOWED}.'
    ) from error
  return text


def _lists(text: str, path: pathlib.Path) -> list[Answer]:
  try:
    if len(text) > _MAX_JSON_BYTES:
      raise ValueError(f'it has more than {_MAX_JSON_BYTES} bytes')
    values = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f'the label file {path} begins as JSON and cannot be read:'
      f' {str(error) or type(error).__name__}. Get it again.'
    ) from error
  whole = isinstance(values, list) and all(
    isinstance(one, list) and all(type(label) is int for label in one)
    for one in values
  )
  if not whole:
    raise errors.UserError(
      f'the label file {path} is JSON, but no list of lists of whole numbers.'
      f' {ALLOWED}.'
    )
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
    raise errors.UserError(
      f'the label file {path} has {devkit.NAME} beside it, so its numbers are'
      ' ILSVRC ids, and the classes of this network have no WordNet ids to map'
      ' them to. Give lines of NAME LABEL; for an ImageNet network leave out'
      ' class_names.'
    )
  if 0 in numbers or not are_wnids(wnids):
    return Entries(None, [frozenset([n]) for n in numbers], 'a label a line')
  for line, number in enumerate(numbers, 1):
    if number > len(wnids):
      raise errors.UserError(
        f'the label file {path}: image {line} has the ILSVRC id {number}, and'
        f' they end at {len(wnids)}. {ALLOWED}.'
      )
  labels = devkit.label_of_id(meta, wnids)
  return Entries(
    None,
    [frozenset([int(labels[number - 1])]) for number in numbers],
    f'an ILSVRC id a line, mapped by {devkit.NAME} (development kit)',
  )


def _wnids(
  lines: list[str], path: pathlib.Path, wnids: Sequence[str]
) -> Entries:
  index = {wnid: label for label, wnid in enumerate(wnids)}
  for number, line in enumerate(lines, 1):
    if line not in index:
      raise errors.UserError(
        f'the label file {path}: image {number} has the WordNet id {line},'
        f' which is none of the {len(wnids)} classes of this network.'
      )
  return Entries(
    None,
    [frozenset([index[line]]) for line in lines],
    'a WordNet id a line (TensorFlow)',
  )


def are_wnids(names: Sequence[str]) -> bool:
  """Whether the names of the classes are WordNet ids."""
  return bool(names) and all(WNID.fullmatch(name) for name in names)


@dataclasses.dataclass(frozen=True)
class _Form:
  """A form of a label file: a line's pattern and name, and the reader."""

  line: re.Pattern[str]
  what: str
  read: Callable[[list[str], pathlib.Path, Sequence[str]], Entries]


_FORMS = (
  _Form(_NUMBER, 'a number', _numbers),
  _Form(WNID, 'a WordNet id', _wnids),
  _Form(_PAIR, 'NAME LABEL', _pairs),
)
