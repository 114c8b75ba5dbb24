# SPDX-License-Identifier: Apache-2.0
"""A network in a notebook: `load`, then `features`, `predict`, `diagram`."""

import collections
import re
import warnings
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax import errors, inputs, prediction, runner, terminal
from resnet_jax import pictures as pictures_room
from resnet_jax import weights as weights_room
from resnet_jax.data import labels, preprocess
from resnet_jax.models import aliases, names, resnet
from resnet_jax.pictures import Pictures
from resnet_jax.views import graphviz


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
  use_gpu: bool = False,
  batch_size: int = 32,
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
    use_gpu: fail if there is no GPU; otherwise JAX's default device.
    batch_size: crops that go through the network at once.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  depth = 0 if name is None else _depth(name)
  if batch_size < 1:
    raise errors.UserError(f'batch_size={batch_size}: 1 is the least.')
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
  return Model(loaded, how, classes, device, batch_size)


def diagram(
  name: str | int = 50,
  *,
  level: str = 'blocks',
  highlight: str = '',
  stride_in: str = 'auto',
  stem_pool: str = 'auto',
  crop_size: int = 224,
) -> graphviz.Diagram:
  """A network's diagram, without any weights.

  Args:
    name: as for `load`.
    level: a box for each of the 'layers', 'blocks' or 'stages'.
    highlight: a layer; what is not computed for it is pale.
    stride_in: '1x1' or '3x3'.
    stem_pool: 'ceil' or 'pad1'.
    crop_size: of the pictures, pixels.

  Returns:
    A `Diagram`, which a notebook shows where graphviz is installed; its `.dot`
    is the text, and `.render()` gives SVG.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  model = resnet.published(_depth(name))
  wishes = weights_room.Wishes(stride_in=stride_in, stem_pool=stem_pool)
  model = model.clone(**wishes.variant(model))
  return _draw(model, crop_size, level, highlight)


def _draw(
  model: resnet.ResNet, size: int, level: str, highlight: str
) -> graphviz.Diagram:
  drawn = graphviz.draw(model, size, size, level=level, highlight=highlight)
  for note in drawn.notes:
    warnings.warn(note, stacklevel=3)
  return drawn


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
    device: 'runner.jax.Device | None' = None,
    batch_size: int = 32,
  ) -> None:
    self.weights = weights
    self.preprocess = how
    self.layers = resnet.layer_names(weights.model)
    self.classes = tuple(classes)
    self._model = weights.model
    self._device = device
    self._batch_size = batch_size
    # One copy for all the runners.
    self._parameters = runner.place(weights.parameters, device)
    self._runners: dict[tuple, runner.Runner] = {}

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

  def crops(self, pictures: Pictures) -> np.ndarray:
    """Pictures as the network sees them: (N, H, W, 3) uint8, RGB.

    Raises:
      UserError: a picture cannot be read, or the model averages over ten
        crops.
    """
    if self.preprocess.multi_crop:
      raise errors.UserError(
        'this model averages over ten crops (multi_crop), so there is not one'
        ' that it sees. Load it without multi_crop.'
      )
    batches = pictures_room.batches(pictures, self.preprocess, self._batch_size)
    return np.concatenate([images[:count, 0] for images, count in batches])

  def grad_cam(
    self, pictures: Pictures, label: int | None = None, layer: str = ''
  ) -> np.ndarray:
    """Where in pictures a layer's values speak for a class.

    Args:
      pictures: as for `features`.
      label: the class; None: each picture's most probable one.
      layer: a name; '': the last block's output.

    Returns:
      (N, H, W) of the layer, 0 or more; see `runner.GradCam`.

    Raises:
      UserError: the layer or the class cannot be looked at.
    """
    what = runner.checked_grad_cam(self._model, layer, label)
    values = self._values(pictures, (), runner.Reduction(), what)
    return values[runner.GRAD_CAM][:, 0]

  def diagram(
    self, *, level: str = 'blocks', highlight: str = ''
  ) -> graphviz.Diagram:
    """The network's diagram; see `resnet_jax.diagram`."""
    size = self.preprocess.crop_size
    return _draw(self._model, size, level, highlight)

  def _values(
    self,
    pictures: Pictures,
    chosen: tuple[str, ...],
    reduction: runner.Reduction,
    grad_cam: runner.GradCam | None = None,
  ) -> dict[str, np.ndarray]:
    pieces: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for images, count in pictures_room.batches(
      pictures, self.preprocess, self._batch_size
    ):
      run = self._runner(chosen, reduction, grad_cam)
      result = run(images)
      for name, value in run.fetch(result, np.arange(count)).items():
        pieces[name].append(value[:count])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}

  def _runner(
    self,
    layers: tuple[str, ...],
    reduction: runner.Reduction,
    grad_cam: runner.GradCam | None = None,
  ) -> runner.Runner:
    key = (layers, reduction, grad_cam)
    if key not in self._runners:
      self._runners[key] = runner.Runner.prepared(
        self.preprocess,
        self._model,
        self._parameters,
        layers,
        reduction=reduction,
        grad_cam=grad_cam,
        device=self._device,
      )
    return self._runners[key]
