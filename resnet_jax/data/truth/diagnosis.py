# SPDX-License-Identifier: Apache-2.0
"""A diagnosis of accuracies near chance: labels or images in a wrong order.

Known causes of a top-1 accuracy of 0.1 to 0.6%: ILSVRC ids mistaken for labels
(raoyongming/DynamicViT, issue 17), unsorted images
(huggingface/pytorch-image-models, issue 1081), labels that count from one, and
numbered folders sorted as text.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resnet_jax.data.truth import devkit, labelset
from resnet_jax.system import errors

# Below this share of hits the labels are probably wrong.
_SUSPECT = 0.01
# An order is named from this share, multiple of chance and number of hits on.
_FITS = 0.05
_TIMES_CHANCE = 5
_FEWEST_HITS = 5

_Try = tuple[str, np.ndarray]


def diagnose(
  predicted: np.ndarray,
  keys: Sequence[str],
  labels: labelset.LabelSet,
  wnids: Sequence[str],
  beside: Sequence[str] = (),
) -> str:
  """Names the wrong order of labels that would explain the predictions.

  Args:
    predicted: (images,) the best label of each; negative: none.
    keys: of the images.
    labels: the labels that the predictions were compared with.
    wnids: the classes' WordNet ids or names, in the order of the labels.
    beside: paths (the label file, the data) that may have a meta.mat beside
      them.

  Returns:
    One or two sentences for the report; '' if the top-1 accuracy is 1% or more
    or no image has a label.
  """
  answers = labels.answers
  rows = np.flatnonzero([bool(answer) for answer in answers])
  counted = int((predicted[rows] >= 0).sum())
  if not counted or _hits(predicted, answers) >= _SUSPECT * counted:
    return ''
  classes = len(wnids) or 1 + max(
    int(predicted.max()), *(max(answers[row]) for row in rows)
  )
  tries = [
    *_other_labels(predicted, classes, _order_of_ids(wnids, beside)),
    *_other_images(predicted, keys),
  ]
  hits = [_hits(other, answers) for _, other in tries]
  best = int(np.argmax(hits))
  share = hits[best] / counted
  if hits[best] >= _FEWEST_HITS and share >= max(
    _FITS, _TIMES_CHANCE / classes
  ):
    return (
      f'the labels look wrong: {tries[best][0]}; if so, the top-1 accuracy'
      f' would be {share:.2%}.'
    )
  return (
    'the labels or the preprocessing look wrong, but none of the known wrong'
    f' orders explains it (best: {share:.2%}, if {tries[best][0]}).'
    ' Check with --job=predict on an image that you know whether the weights'
    ' and their preprocessing (order of channels, mean) belong together.'
  )


def _hits(predicted: np.ndarray, answers: Sequence[frozenset[int]]) -> int:
  return sum(
    label in answer
    for label, answer in zip(predicted.tolist(), answers, strict=True)
  )


def _order_of_ids(
  wnids: Sequence[str], beside: Sequence[str]
) -> np.ndarray | None:
  """The label of each ILSVRC id, from a meta.mat, else the published kit."""
  for name in filter(None, beside):
    path = pathlib.Path(name).expanduser()
    meta = path / devkit.NAME if path.is_dir() else path.with_name(devkit.NAME)
    if meta.is_file():
      with contextlib.suppress(errors.UserError):
        return devkit.label_of_id(meta, wnids)
  return devkit.published_label_of_id(wnids)


def _other_labels(
  predicted: np.ndarray, classes: int, order: np.ndarray | None
) -> Iterator[_Try]:
  """The predictions after each mistake that the labels may contain."""
  same = np.arange(classes)
  as_text = np.array(sorted(range(classes), key=str))
  tables = {
    'they are one too large, as though counted from 1': same + 1,
    'they are one too small': same - 1,
    'numbered class folders were sorted as text (0, 1, 10, 100)': np.argsort(
      as_text
    ),
    'they are positions among numbered folders sorted as text (0, 1, 10, 100)'
    ' instead of the numbers': as_text,
  }
  if order is not None:
    ids = np.argsort(order)
    unmapped = "the development kit's ILSVRC ids were taken for labels"
    mapped = 'labels were mapped as though they were ILSVRC ids'
    tables |= {
      f'{unmapped}, less one': ids,
      unmapped: ids + 1,
      f'{mapped} less one': order,
      mapped: np.roll(order, 1),
    }
  inside = (predicted >= 0) & (predicted < classes)
  for what, table in tables.items():
    yield what, np.where(inside, table[np.where(inside, predicted, 0)], -1)


def _other_images(predicted: np.ndarray, keys: Sequence[str]) -> Iterator[_Try]:
  """The predictions in each order that the images may have."""
  names: dict[str, list[Any]] = {
    'of their paths': list(keys),
    'of the names of their files': [key.rpartition('/')[2] for key in keys],
    'of the numbers in their names': [_numbered(key) for key in keys],
  }
  for what, values in names.items():
    order = np.array(sorted(range(len(keys)), key=values.__getitem__))
    yield (
      f'the images are in the order {what}, and the labels in that of the'
      ' source',
      predicted[np.argsort(order)],
    )
    yield (
      f'the labels are in the order {what}, and the images in that of the'
      ' source',
      predicted[order],
    )


def _numbered(key: str) -> list[tuple[int, str]]:
  """A sort key that puts 9.jpg before 10.jpg."""
  parts = re.findall(r'[0-9]{1,18}|[^0-9]+', key)
  return [
    (int(part), '') if part.isdigit() and part.isascii() else (-1, part)
    for part in parts
  ]
