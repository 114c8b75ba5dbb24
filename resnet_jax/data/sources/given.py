# SPDX-License-Identifier: Apache-2.0
"""Images as a notebook gives them: paths, Pillow images, an array."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TypeAlias

import numpy as np
from PIL import Image

from resnet_jax.data import mean as mean_lib
from resnet_jax.data import places
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.data.sources.item import (
  NO_LABEL,
  Item,
  check_stored,
  file_item,
  file_items,
)
from resnet_jax.system import errors

ImageLike: TypeAlias = str | PathLike[str] | Image.Image
ImagesLike: TypeAlias = ImageLike | Sequence[ImageLike | Item] | np.ndarray

# The network reduces this to a single position.
_MIN_SIZE = 32


def is_single(images: ImagesLike) -> bool:
  """Whether this is one image, not a list or an array."""
  return isinstance(images, str | PathLike | Image.Image)


def checked(
  images: ImagesLike, preprocess: Preprocess
) -> Sequence[Item] | np.ndarray:
  """Items to read, or the array of cropped images.

  Args:
    images: a path, a Pillow image, or a list of these or of items; or a uint8
      array (N, H, W, 3), RGB, of cropped images.
    preprocess: what an array must fit.

  Raises:
    UserError: they are none of these, or crops of another preprocessing.
  """
  if isinstance(images, np.ndarray):
    _check_array(images, preprocess)
    return images
  if isinstance(images, str | PathLike) and os.path.isdir(
    os.path.expanduser(images)
  ):
    raise errors.UserError(
      f'{os.fspath(images)} is a folder. model.stream(FOLDER, layers) takes'
      ' one; here give a path, or a list of paths.'
    )
  if isinstance(images, str | PathLike | Image.Image) or not isinstance(
    images, Iterable
  ):
    images = [images]
  items = [_item(index, image) for index, image in enumerate(images)]
  if not items:
    raise errors.UserError('the list of images is empty.')
  check_stored(items, preprocess)
  return items


def _check_array(images: np.ndarray, preprocess: Preprocess) -> None:
  shape = images.shape
  fits = len(shape) == 4 and shape[3] == 3 and min(shape[1:3]) >= _MIN_SIZE
  if images.dtype != np.uint8 or not fits or not len(images):
    raise errors.UserError(
      f'cannot take an array of {images.dtype} {shape} as images. Give uint8'
      f' (N, H, W, 3), RGB, H and W {_MIN_SIZE} or more{_cure(shape)}.'
    )
  if preprocess.multi_crop:
    raise errors.UserError(
      'an array is taken as already cropped, and this model averages over'
      ' ten crops (multi_crop). Give paths or Pillow images.'
    )
  mean_lib.check_mean(preprocess.mean, *shape[1:3])


def _cure(shape: tuple[int, ...]) -> str:
  if len(shape) == 3 and shape[2] == 3:
    return ': add an axis, array[None]'
  if len(shape) == 4 and shape[1] == 3:
    return ': array.transpose(0, 2, 3, 1)'
  return ''


def _item(index: int, image: ImageLike | Item) -> Item:
  if isinstance(image, Item):
    return image
  if isinstance(image, Image.Image):
    name = f'number {index} of the list'
    try:
      # Here, because the same image may be in the list twice, and two threads
      # cannot decode it at once.
      image.load()
    except Exception as error:
      raise errors.UserError(
        f'cannot read the image {name}: {error}.'
      ) from error
    return Item(name, name, NO_LABEL, lambda: image)
  if not isinstance(image, str | PathLike):
    raise errors.UserError(
      f'cannot take an image of type {type(image).__name__}. Give a path, a'
      ' Pillow image, a list of them, or one NumPy array, uint8 (N, H, W, 3):'
      ' np.stack(images) of a list of arrays, np.asarray(images) of a JAX'
      ' array.'
    )
  file = os.path.expanduser(image)
  if places.protocol(file):
    (path,) = places.looked_up([places.place(file)])
    return file_items([(path, os.fspath(path), NO_LABEL)])[0]
  return file_item(pathlib.Path(file), file)
