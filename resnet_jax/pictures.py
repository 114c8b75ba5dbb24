# SPDX-License-Identifier: Apache-2.0
"""Pictures as a notebook gives them, to batches for a runner."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TypeAlias

import numpy as np
from PIL import Image

from resnet_jax import errors
from resnet_jax.data import mean as means
from resnet_jax.data import pipeline, preprocess, sources
from resnet_jax.models import resnet

Picture: TypeAlias = str | PathLike[str] | Image.Image
Pictures: TypeAlias = Picture | Sequence[Picture] | np.ndarray


def batches(
  pictures: Pictures, how: preprocess.Preprocess, batch_size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """Arrays (rows, cuts, H, W, 3), all of one shape, and how much counts.

  Args:
    pictures: a path, a Pillow image, a list of them, or a uint8 array (N, H,
      W, 3), RGB, already cropped.
    how: resize and crops.
    batch_size: crops at once.

  Raises:
    UserError: a picture cannot be read, or is none.
  """
  if isinstance(pictures, np.ndarray):
    _check_array(pictures, how)
    rows = min(batch_size, len(pictures))
    for start in range(0, len(pictures), rows):
      piece = pictures[start : start + rows]
      padding = [(0, rows - len(piece))] + [(0, 0)] * 3
      yield np.pad(piece, padding)[:, None], len(piece)
    return
  if isinstance(pictures, str | PathLike | Image.Image):
    pictures = [pictures]
  items = [_item(i, picture) for i, picture in enumerate(pictures)]
  if not items:
    raise errors.UserError('the list of pictures is empty.')
  rows = max(1, min(batch_size // how.crops, len(items)))
  for batch in pipeline.batches(items, how, rows=rows):
    yield batch.images, len(batch.items)


def _check_array(pictures: np.ndarray, how: preprocess.Preprocess) -> None:
  shape = pictures.shape
  if (
    pictures.dtype != np.uint8
    or len(shape) != 4
    or shape[3] != 3
    or min(shape[1:3]) < resnet.MIN_SIZE
    or not len(pictures)
  ):
    raise errors.UserError(
      f'an array of {pictures.dtype} {shape} is no pictures. Give uint8'
      f' (N, H, W, 3), RGB, H and W {resnet.MIN_SIZE} or more.'
    )
  if how.multi_crop:
    raise errors.UserError(
      'an array is taken as already cropped, and this model averages over'
      ' ten crops (multi_crop). Give paths or Pillow images.'
    )
  means.check_mean(how.mean, *shape[1:3])


def _item(index: int, picture: Picture) -> sources.Item:
  if isinstance(picture, Image.Image):
    name = f'number {index} of the list'
    try:
      # Here, because the same image may be in the list twice, and two threads
      # cannot decode it at once.
      picture.load()
    except Exception as error:
      raise errors.UserError(
        f'cannot read the picture {name}: {error}.'
      ) from error
    return sources.Item(name, name, sources.NO_LABEL, lambda: picture)
  if not isinstance(picture, str | PathLike):
    raise errors.UserError(
      f'a {type(picture).__name__} is no picture. Give a path, a Pillow image,'
      ' a list of them, or one uint8 array (N, H, W, 3).'
    )
  file = os.path.expanduser(picture)
  return sources.file_item(pathlib.Path(file), file)
