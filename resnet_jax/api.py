# SPDX-License-Identifier: Apache-2.0
"""A network in a notebook: `load`, then `features` and `predict`."""

import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from resnet_jax import (
  compilation,
  errors,
  inputs,
  prediction,
  runner,
  sizing,
  terminal,
)
from resnet_jax import weights as weights_room
from resnet_jax.data import labels, pipeline, preprocess, sources
from resnet_jax.data import mean as means
from resnet_jax.models import aliases, names, resnet

Picture: TypeAlias = str | PathLike[str] | Image.Image
Pictures: TypeAlias = Picture | Sequence[Picture] | np.ndarray


def load(
  name: str | int | None = None,
  *,
  weights: str | PathLike[str] = 'auto',
  conv_order: str = 'OHWI',
  seed: int = 0,
  class_names: str | PathLike[str] | Sequence[str] = '',
  stride_in: str = 'auto',
  stem_pool: str = 'auto',
  epsilon: float = 0.0,
  mean: str | PathLike[str] | Sequence[float] = 'auto',
  std: str | Sequence[float] = 'auto',
  channels: str = 'auto',
  resize: str = 'short_side',
  resize_size: int = 0,
  crop_size: int = 0,
  multi_crop: bool = False,
  interpolation: str = 'auto',
  rounding: str = 'auto',
  decode: str = 'exact',
  use_gpu: bool = False,
  batch_size: int | str = 'auto',
  compilation_cache: bool = True,
) -> 'Model':
  """Loads a network; the settings are those of `configs/resnet.py`.

  'auto' and 0 stand for what belongs to the weights.

  Args:
    name: 'resnet18', 'resnet34', 'resnet50', 'resnet101' or 'resnet152', or
      the number; None: that of the weights' file, else 50.
    weights: a file or directory in any known format; a checkpoint of the zoo,
      such as 'msra' or 'torchvision.v2'; 'auto', `model/resnet_50` and so on,
      else the zoo's usual one; or 'random', untrained.
    conv_order: how convolutions lie in a Paddle directory.
    seed: for 'random'.
    class_names: a file with a class name a line, or a list of names.
    stride_in: '1x1' or '3x3'.
    stem_pool: 'ceil' or 'pad1'.
    epsilon: of the batch norms.
    mean: what is subtracted, 0 to 255: three values, or a mean file.
    std: what is divided by: three values.
    channels: 'BGR' or 'RGB'.
    resize: 'short_side' or 'squash'.
    resize_size: the shorter side before cropping, pixels.
    crop_size: of the crop, pixels.
    multi_crop: average over ten crops.
    interpolation: 'lanczos', 'bilinear' or 'bicubic'.
    rounding: 'nearest' or 'torchvision'.
    decode: 'exact', or 'scaled', faster and other pixels.
    use_gpu: fail if there is no GPU; otherwise JAX's default device.
    batch_size: crops that go through the network at once; 'auto': as many as
      are fast and fit into the memory.
    compilation_cache: keep compiled programs in the user's cache folder.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  depth = 0 if name is None else _depth(name)
  if batch_size == 'auto':
    batch_size = 0
  if not isinstance(batch_size, int) or batch_size < 0:
    raise errors.UserError(
      f"batch_size={batch_size!r} is neither a number of crops nor 'auto'."
    )
  wishes = inputs.Wishes(
    _text(mean),
    _text(std),
    channels,
    resize,
    resize_size,
    crop_size,
    interpolation,
    rounding,
    multi_crop,
    decode,
  )
  device = runner.select_device(use_gpu)
  with terminal.Bytes() as bar:
    loaded = weights_room.load(
      fspath(weights),
      weights_room.Wishes(
        depth, stride_in, stem_pool, epsilon, conv_order, seed
      ),
      say=terminal.say,
      report=bar.set,
    )
  terminal.say(f'weights: {loaded.source}')
  for note in loaded.loaded.notes:
    terminal.say(f'NOTE: {note}')
  for warning in loaded.warnings:
    warnings.warn(warning, stacklevel=2)
  how = inputs.preprocess_for(wishes, loaded.recipe)
  file, named = '', loaded.loaded.class_names
  if isinstance(class_names, str | PathLike):
    file = fspath(class_names)
  else:
    named = tuple(class_names)
  classes = labels.classes(loaded.model.classes, file, named)
  kept = compilation.folder(compilation_cache, terminal.say)
  return Model(loaded, how, classes, device, batch_size=batch_size, kept=kept)


def _depth(name: str | int) -> int:
  match = re.fullmatch(r'(?:resnet[-_]?)?(\d+)', str(name).lower())
  if not match or int(match[1]) not in names.ARCHITECTURES:
    allowed = ', '.join(f'resnet{depth}' for depth in names.ARCHITECTURES)
    raise errors.unknown(
      'network',
      str(name),
      (),
      described=f'{allowed}; a file is given as weights=...',
    )
  return int(match[1])


def _text(value: str | PathLike[str] | Sequence[float]) -> str:
  if isinstance(value, str | PathLike):
    return fspath(value)
  return ','.join(str(number) for number in value)


class Model:
  """A network with its weights and preprocessing.

  Attributes:
    weights: the parameters, their source and digest.
    preprocess: how a picture becomes the network's input.
    layers: every layer's name, in the order of computing.
    classes: of the classifier; the position is the label.
  """

  def __init__(
    self,
    weights: weights_room.Weights,
    how: preprocess.Preprocess,
    classes: Sequence[labels.ImageNetClass],
    device: 'runner.jax.Device',
    *,
    batch_size: int = 0,
    kept: pathlib.Path | None = None,
  ) -> None:
    self.weights = weights
    self.preprocess = how
    self.layers = resnet.layer_names(weights.model)
    self.classes = tuple(classes)
    self._model = weights.model
    self._device = device
    self._batch_size = batch_size
    self._kept = kept
    # One copy for all the runners.
    self._parameters = runner.place(weights.parameters, device)
    self._networks: dict[tuple, sizing.Network] = {}

  def __repr__(self) -> str:
    lines = [
      f'ResNet-{self._model.depth}, weights: {self.weights.source}',
      f'digest: {self.weights.digest}',
      f'input: {self.preprocess.describe()}',
      *(f'note: {note}' for note in self.weights.loaded.notes),
    ]
    return '\n'.join(lines)

  def features(
    self,
    pictures: Pictures,
    layers: str | Sequence[str],
    *,
    pool: str = 'none',
    dtype: str = 'float32',
  ) -> Any:
    """Values of layers.

    Args:
      pictures: a path, a Pillow image, a list of them; or a uint8 array (N,
        H, W, 3), RGB, which is taken as already cropped, H and W 32 or more.
      layers: a name, also one of Caffe, Keras or torchvision; or several, or
        globs, in a list or with commas.
      pool: 'none', or 'avg' or 'max' over all positions.
      dtype: 'float32' or 'float16'.

    Returns:
      (N, C, H, W) for one layer by a name; else a dict of such arrays by
      canonical names.

    Raises:
      UserError: a layer does not exist, or a picture cannot be read.
    """
    selection = aliases.select_layers(
      layers, self._model.depth, head=self._model.classes > 0
    )
    for note in selection.notes:
      warnings.warn(note, stacklevel=2)
    chosen = selection.layers
    values = self._values(pictures, chosen, runner.Reduction(pool, dtype))
    one = isinstance(layers, str) and not aliases.is_several(layers)
    return values[chosen[0]] if one else values

  def predict(self, pictures: Pictures) -> Any:
    """The five best classes of pictures.

    Args:
      pictures: as for `features`.

    Returns:
      A `Prediction` for a picture, a list of them for several or an array.
    """
    if not self._model.classes:
      raise errors.UserError(
        'these weights have no head (no classifier), so there is nothing to'
        ' predict with; `features` works.'
      )
    values = self._values(pictures, ('output',), runner.Reduction())
    predictions = [
      prediction.from_probabilities(row.ravel(), self.classes)
      for row in values['output']
    ]
    single = isinstance(pictures, str | PathLike | Image.Image)
    return predictions[0] if single else predictions

  def _values(
    self,
    pictures: Pictures,
    chosen: tuple[str, ...],
    reduction: runner.Reduction,
  ) -> dict[str, np.ndarray]:
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    network = self._network(chosen, reduction)
    for images, mask in self._batches(pictures, network):
      values = network.fetch(network(images), mask)
      for name, value in values.items():
        pieces[name].append(value[mask])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}

  def _network(
    self,
    layers: tuple[str, ...],
    reduction: runner.Reduction,
  ) -> sizing.Network:
    key = (layers, reduction)
    if key not in self._networks:
      self._networks[key] = sizing.Network(
        lambda: runner.Runner.prepared(
          self.preprocess,
          self._model,
          self._parameters,
          layers,
          reduction=reduction,
          device=self._device,
          kept=self._kept,
        ),
        self._device,
        terminal.say,
      )
    return self._networks[key]

  def _rows(
    self, count: int, shape: tuple[int, ...], network: sizing.Network
  ) -> int:
    """Pictures at a time, of `count` of a shape (cuts, H, W, 3)."""
    crops = self.preprocess.crops
    if self._batch_size:
      return max(1, min(self._batch_size // crops, count))
    rows = min(sizing.first_rows(self._device, crops, max(shape[1:3])), count)
    return network.fitting((rows, *shape))

  def _batches(
    self, pictures: Pictures, network: sizing.Network
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Arrays (rows, cuts, H, W, 3), all of one shape, and which rows count."""
    if isinstance(pictures, np.ndarray):
      self._check_array(pictures)
      rows = self._rows(len(pictures), (1, *pictures.shape[1:]), network)
      for start in range(0, len(pictures), rows):
        piece = pictures[start : start + rows]
        padding = [(0, rows - len(piece))] + [(0, 0)] * 3
        yield np.pad(piece, padding)[:, None], np.arange(rows) < len(piece)
      return
    if isinstance(pictures, str | PathLike | Image.Image):
      pictures = [pictures]
    items = [_item(i, picture) for i, picture in enumerate(pictures)]
    if not items:
      raise errors.UserError('the list of pictures is empty.')
    rows = self._rows(len(items), self.preprocess.shape, network)
    for batch in pipeline.batches(items, self.preprocess, rows=rows):
      yield batch.images, batch.mask

  def _check_array(self, pictures: np.ndarray) -> None:
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
    if self.preprocess.multi_crop:
      raise errors.UserError(
        'an array is taken as already cropped, and this model averages over'
        ' ten crops (multi_crop). Give paths or Pillow images.'
      )
    means.check_mean(self.preprocess.mean, *shape[1:3])


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
