# SPDX-License-Identifier: Apache-2.0
"""A network with its weights and preprocessing, for a notebook."""

import collections
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from resnet_jax import weights as weights_lib
from resnet_jax.data import labels, pipeline, preprocess, sources
from resnet_jax.data import mean as means
from resnet_jax.engine import gradcam, runner, sizing
from resnet_jax.evaluation import prediction
from resnet_jax.models import aliases, resnet
from resnet_jax.system import console, errors
from resnet_jax.views import graphviz

ImageLike: TypeAlias = str | PathLike[str] | Image.Image
ImagesLike: TypeAlias = ImageLike | Sequence[ImageLike] | np.ndarray

# ImagesLike that are cut out without going through a network.
_CUT_AT_ONCE = 32


def draw(
  model: resnet.ResNet, size: int, level: str, highlight: str
) -> graphviz.Diagram:
  """A diagram, its notes as warnings of whoever called the caller."""
  drawn = graphviz.draw(model, size, size, level=level, highlight=highlight)
  for note in drawn.notes:
    warnings.warn(note, stacklevel=3)
  return drawn


class Model:
  """A network with its weights and preprocessing.

  Attributes:
    weights: the parameters, their source and digest.
    preprocess: how an image becomes the network's input.
    layers: every layer's name, in the order of computing.
    classes: of the classifier; the position is the label.
  """

  def __init__(
    self,
    weights: weights_lib.Weights,
    how: preprocess.Preprocess,
    classes: Sequence[labels.ImageNetClass],
    execution: runner.Execution,
    batch_size: int = 0,
  ) -> None:
    self.weights = weights
    self.preprocess = how
    self.layers = resnet.layer_names(weights.model)
    self.classes = tuple(classes)
    self._model = weights.model
    self._execution = execution
    self._batch_size = batch_size
    # One copy of the parameters for all the runners.
    self._placed: runner.Placed = {}
    self._networks: dict[tuple, sizing.Network] = {}

  def __repr__(self) -> str:
    lines = [
      f'ResNet-{self._model.depth}, weights: {self.weights.source}',
      f'digest: {self.weights.digest}',
      f'input: {self.preprocess.describe()}',
      *(f'note: {note}' for note in self.weights.notes),
    ]
    return '\n'.join(lines)

  def features(
    self,
    images: ImagesLike,
    layers: str | Sequence[str],
    *,
    pool: str = 'none',
    dtype: str = 'float32',
  ) -> Any:
    """Values of layers.

    Args:
      images: a path, a Pillow image, a list of them; or a uint8 array (N,
        H, W, 3), RGB, which is taken as already cropped, H and W 32 or more.
      layers: a name, also one of Caffe, Keras or torchvision; or several, or
        globs, in a list or with commas.
      pool: 'none', or 'avg' or 'max' over all positions.
      dtype: 'float32' or 'float16'.

    Returns:
      (N, C, H, W) for one layer by a name; else a dict of such arrays by
      canonical names.

    Raises:
      UserError: a layer does not exist, or an image cannot be read.
    """
    selection = aliases.select_layers(
      layers, self._model.depth, head=self._model.classes > 0
    )
    for note in selection.notes:
      warnings.warn(note, stacklevel=2)
    chosen = selection.layers
    values = self._values(images, chosen, runner.Reduction(pool, dtype))
    one = isinstance(layers, str) and not aliases.is_several(layers)
    return values[chosen[0]] if one else values

  def predict(self, images: ImagesLike) -> Any:
    """The five best classes of images.

    Args:
      images: as for `features`.

    Returns:
      A `Prediction` for an image, a list of them for several or an array.
    """
    if not self._model.classes:
      raise errors.UserError(
        'these weights have no head (no classifier), so there is nothing to'
        ' predict with; `features` works.'
      )
    values = self._values(images, ('output',), runner.Reduction())
    predictions = [
      prediction.from_probabilities(row.ravel(), self.classes)
      for row in values['output']
    ]
    single = isinstance(images, str | PathLike | Image.Image)
    return predictions[0] if single else predictions

  def crops(self, images: ImagesLike) -> np.ndarray:
    """ImagesLike as the network sees them: (N, H, W, 3) uint8, RGB.

    Raises:
      UserError: an image cannot be read, or the model averages over ten
        crops.
    """
    if self.preprocess.multi_crop:
      raise errors.UserError(
        'this model averages over ten crops (multi_crop), so there is not one'
        ' that it sees. Load it without multi_crop.'
      )
    batches = self._batches(images, lambda count, _: min(count, _CUT_AT_ONCE))
    return np.concatenate([crops[mask, 0] for crops, mask in batches])

  def grad_cam(
    self, images: ImagesLike, label: int | None = None, layer: str = ''
  ) -> np.ndarray:
    """Where in images a layer's values speak for a class.

    Args:
      images: as for `features`.
      label: the class; None: each image's most probable one.
      layer: a name; '': the last block's output.

    Returns:
      (N, H, W) of the layer, 0 or more; see `gradcam.GradCam`.

    Raises:
      UserError: the layer or the class cannot be looked at.
    """
    what = gradcam.checked_grad_cam(self._model, layer, label)
    values = self._values(images, (), runner.Reduction(), what)
    return values[gradcam.GRAD_CAM][:, 0]

  def diagram(
    self, *, level: str = 'blocks', highlight: str = ''
  ) -> graphviz.Diagram:
    """The network's diagram; see `resnet_jax.diagram`."""
    size = self.preprocess.crop_size
    return draw(self._model, size, level, highlight)

  def _values(
    self,
    images: ImagesLike,
    chosen: tuple[str, ...],
    reduction: runner.Reduction,
    grad_cam: gradcam.GradCam | None = None,
  ) -> dict[str, np.ndarray]:
    pieces: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    network = self._network(chosen, reduction, grad_cam)
    rows = functools.partial(self._rows, network)
    for crops, mask in self._batches(images, rows):
      values = network.fetch(network(crops), mask)
      for name, value in values.items():
        pieces[name].append(value[mask])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}

  def _network(
    self,
    layers: tuple[str, ...],
    reduction: runner.Reduction,
    grad_cam: gradcam.GradCam | None = None,
  ) -> sizing.Network:
    key = (layers, reduction, grad_cam)
    if key not in self._networks:
      self._networks[key] = sizing.Network(
        lambda: runner.Runner.prepared(
          self.preprocess,
          self._model,
          self.weights.parameters,
          layers,
          reduction=reduction,
          grad_cam=grad_cam,
          execution=self._execution,
          shared=self._placed,
        ),
        self._execution.devices,
        console.say,
      )
    return self._networks[key]

  def _rows(
    self, network: sizing.Network, count: int, shape: tuple[int, ...]
  ) -> int:
    """ImagesLike at a time, of `count` of a shape (cuts, H, W, 3)."""
    crops = self.preprocess.crops
    if self._batch_size:
      return max(1, min(self._batch_size // crops, count))
    there = self._execution.devices
    rows = sizing.first_rows(there, crops, max(shape[1:3]))
    return network.fitting((sizing.even_rows(rows, count, there), *shape))

  def _batches(
    self,
    images: ImagesLike,
    rows_of: Callable[[int, tuple[int, ...]], int],
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Arrays (rows, cuts, H, W, 3), all of one shape, and which rows count.

    Args:
      images: as for `features`.
      rows_of: says how many at a time, of so many of a shape (cuts, H, W, 3).
    """
    if isinstance(images, np.ndarray):
      self._check_array(images)
      rows = rows_of(len(images), (1, *images.shape[1:]))
      for start in range(0, len(images), rows):
        piece = images[start : start + rows]
        padding = [(0, rows - len(piece))] + [(0, 0)] * 3
        yield np.pad(piece, padding)[:, None], np.arange(rows) < len(piece)
      return
    if isinstance(images, str | PathLike | Image.Image):
      images = [images]
    items = [_item(i, image) for i, image in enumerate(images)]
    if not items:
      raise errors.UserError('the list of images is empty.')
    rows = rows_of(len(items), self.preprocess.shape)
    for batch in pipeline.batches(items, self.preprocess, rows=rows):
      yield batch.images, batch.mask

  def _check_array(self, images: np.ndarray) -> None:
    shape = images.shape
    if (
      images.dtype != np.uint8
      or len(shape) != 4
      or shape[3] != 3
      or min(shape[1:3]) < resnet.MIN_SIZE
      or not len(images)
    ):
      raise errors.UserError(
        f'an array of {images.dtype} {shape} is no images. Give uint8'
        f' (N, H, W, 3), RGB, H and W {resnet.MIN_SIZE} or more.'
      )
    if self.preprocess.multi_crop:
      raise errors.UserError(
        'an array is taken as already cropped, and this model averages over'
        ' ten crops (multi_crop). Give paths or Pillow images.'
      )
    means.check_mean(self.preprocess.mean, *shape[1:3])


def _item(index: int, image: ImageLike) -> sources.Item:
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
    return sources.Item(name, name, sources.NO_LABEL, lambda: image)
  if not isinstance(image, str | PathLike):
    raise errors.UserError(
      f'a {type(image).__name__} is no image. Give a path, a Pillow image,'
      ' a list of them, or one uint8 array (N, H, W, 3).'
    )
  file = os.path.expanduser(image)
  return sources.file_item(pathlib.Path(file), file)
