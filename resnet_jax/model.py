# SPDX-License-Identifier: Apache-2.0
"""A network with its weights and preprocessing, for jobs and notebooks."""

import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from resnet_jax import weights as weights_lib
from resnet_jax.data import crops as crops_lib
from resnet_jax.data import labels, pipeline, sources, truth
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.data.sources import given
from resnet_jax.engine import gradcam, loop, networks, reductions, runner
from resnet_jax.evaluation import prediction
from resnet_jax.models import aliases, resnet, variables
from resnet_jax.system import console, errors, text, timing
from resnet_jax.views import graphviz
from resnet_jax.weights import saving

# Images that `crops` cuts out at a time.
_CUT_AT_ONCE = 32


class Model:
  """A network with its weights and preprocessing.

  Attributes:
    weights: the parameters, their source and digest.
    module: the network, a Flax module, every layer as defined.
    preprocess: how an image becomes the network's input.
    layers: every layer's name, in the order of computing.
    execution: the devices and the arithmetic.
  """

  def __init__(
    self,
    weights: weights_lib.Weights,
    preprocess: Preprocess,
    execution: runner.Execution,
    *,
    class_names: str | PathLike[str] | Sequence[str] = '',
    batch_size: int = 0,
  ) -> None:
    """Puts nothing on a device yet.

    Args:
      weights: a network and its parameters.
      preprocess: how an image becomes its input.
      execution: the devices and the arithmetic.
      class_names: as for `load`.
      batch_size: crops a batch; 0: as many as are fast and fit.
    """
    self.weights = weights
    self.module = weights.module
    self.preprocess = preprocess
    self.layers = resnet.layer_names(weights.module)
    self.execution = execution
    self._class_names = _checked_names(class_names)
    self._networks = networks.Networks(
      weights.module,
      weights.parameters,
      preprocess,
      execution,
      batch_size=batch_size,
      say=console.say,
    )

  def __repr__(self) -> str:
    return text.plain(
      f'{resnet.title(self.module)}, weights: {self.weights.source}\n'
      f'digest: {self.weights.digest}\ninput: {self.preprocess.describe()}'
      + ''.join(f'\nnote: {note}' for note in self.weights.notes)
    )

  def __reduce__(self) -> NoReturn:
    raise errors.UserError(runner.NOT_PICKLED)

  @property
  def variables(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """What `module.apply` takes: `{'params': ..., 'batch_stats': ...}`.

    Float32.  The module takes images as `normalised` returns them.
    """
    return variables.tree(self.weights.parameters)

  def normalised(self, pixels: Any) -> Any:
    """Images as the module takes them, by NumPy, or by JAX within a program.

    Args:
      pixels: (N, H, W, 3) uint8, RGB, as `crops` returns them.

    Returns:
      (N, H, W, 3) float32, in the channels' order of the weights.
    """
    numpy = np if isinstance(pixels, np.ndarray) else jnp
    return crops_lib.network_input(pixels, self.preprocess, numpy)

  def save(self, path: str | PathLike[str]) -> None:
    """Writes a safetensors file, which `weights` takes in every job.

    It has the variant, the preprocessing and the class names, too.

    Args:
      path: of a file that does not exist yet, NAME.safetensors.

    Raises:
      UserError: it cannot be written, or the preprocessing has a mean image.
    """
    if not isinstance(path, str | PathLike):
      raise errors.UserError(
        f'a path of type {type(path).__name__} names no file. Give'
        f' NAME{saving.SUFFIX}.'
      )
    named = [c.name for c in self.classes] if self._class_names else []
    target = pathlib.Path(path).expanduser()
    saving.save(target, self.weights, self.preprocess, named)

  @functools.cached_property
  def classes(self) -> tuple[labels.ImageNetClass, ...]:
    """The classifier's classes; the index is the label.

    Raises:
      UserError: the class names given do not fit the classifier.
    """
    file, named = '', self.weights.loaded.class_names
    if isinstance(self._class_names, str | PathLike):
      file = fspath(self._class_names)
    else:
      named = self._class_names
    return labels.classes(self.module.classes, file, named)

  def features(
    self,
    images: given.ImagesLike,
    layers: str | Sequence[str],
    *,
    pool: str = 'none',
    dtype: str = 'float32',
  ) -> Any:
    """Values of layers.

    Args:
      images: a path, a Pillow image, a list of them; or a uint8 array (N, H, W,
        3), RGB, of cropped images, H and W 32 or more.
      layers: a name, also another program's, which means its value; or
        several, or globs, in a list or with commas.
      pool: 'none', or 'avg' or 'max' over all positions.
      dtype: 'float32' or 'float16'.

    Returns:
      (N, C, H, W) for one layer by a name; else a dict of such arrays by
      canonical names.

    Raises:
      UserError: a layer does not exist, or an image cannot be read.
    """
    chosen = self.resolve(layers)
    values = self._values(images, chosen, reductions.Reduction(pool, dtype))
    one = isinstance(layers, str) and not aliases.is_several(layers)
    return values[chosen[0]] if one else values

  def stream(
    self,
    source: given.ImagesLike | sources.Source,
    layers: str | Sequence[str],
    *,
    pool: str = 'none',
    dtype: str = 'float32',
    start: int = 0,
    threads: int = 0,
    on_error: str = 'fail',
    clock: timing.Clock | None = None,
  ) -> Iterator[loop.Computed]:
    """Values of layers, a batch at a time, for more images than fit in memory.

      for batch, values in model.stream('photos', 'avgpool'):
        print(batch.keys, values['avgpool'].shape)

    Args:
      source: a path, as the setting `data` takes it; or what `features` takes.
      layers: as for `features`.
      pool: as for `features`.
      dtype: as for `features`.
      start: the first image.
      threads: that decode; 0: one a core.
      on_error: 'fail', or 'record': an image that cannot be read is False in
        `batch.mask`, with its reason in `batch.reasons` and NaN values.
      clock: times the stages.

    Returns:
      An iterator of `(batch, {layer: (N, C, H, W)})`; `batch` has `start`,
      `keys`, `labels`, `mask` and `reasons` of its N images.

    Raises:
      UserError: a layer does not exist, or an image cannot be read.
    """
    chosen = self.resolve(layers)
    if isinstance(source, str | PathLike):
      must_exist = on_error == 'fail'
      opened = sources.open_source(fspath(source), must_exist=must_exist)
      source = truth.resolved(opened, self.classes, keep=True)
    images = source.items if isinstance(source, sources.Source) else source
    run = self.prepared(images, chosen, reductions.Reduction(pool, dtype))
    return run.stream(start, threads=threads, on_error=on_error, clock=clock)

  def predict(self, images: given.ImagesLike) -> Any:
    """The five best classes of images.

    Args:
      images: as for `features`.

    Returns:
      A `Prediction` for an image, a list of them for several or an array.
    """
    if not self.module.classes:
      raise errors.UserError(
        'these weights have no head (no classifier), so there is nothing to'
        ' predict with; `features` works.'
      )
    values = self._values(images, ('output',), reductions.Reduction())
    predictions = [
      prediction.from_probabilities(row.ravel(), self.classes)
      for row in values['output']
    ]
    return predictions[0] if given.is_single(images) else predictions

  def crops(self, images: given.ImagesLike) -> np.ndarray:
    """Images as the network sees them: (N, H, W, 3) uint8, RGB.

    Raises:
      UserError: an image cannot be read, or the model averages over ten crops.
    """
    if self.preprocess.multi_crop:
      raise errors.UserError(
        'this model averages over ten crops (multi_crop), so there is not one'
        ' that it sees. Load it without multi_crop.'
      )
    checked = given.checked(images, self.preprocess)
    if isinstance(checked, np.ndarray):
      return checked
    batches = pipeline.batches(checked, self.preprocess, rows=_CUT_AT_ONCE)
    return np.concatenate([batch.images[:, 0] for batch in batches])

  def grad_cam(
    self,
    images: given.ImagesLike,
    label: int | str | None = None,
    layer: str = '',
  ) -> np.ndarray:
    """Where in images a layer's values support a class.

    Args:
      images: as for `features`.
      label: the class, or its WordNet id; None: each image's most probable
        one.
      layer: a name; '': the last block's output.

    Returns:
      (N, H, W) of the layer, 0 or more; see `gradcam.GradCam`.

    Raises:
      UserError: the layer or the class does not allow it.
    """
    if isinstance(label, str):
      label = labels.find('label', label, self.classes)
    target = gradcam.checked_grad_cam(self.module, layer, label)
    values = self._values(images, (), reductions.Reduction(), target)
    return values[gradcam.GRAD_CAM][:, 0]

  def diagram(
    self, *, level: str = 'blocks', highlight: str = ''
  ) -> graphviz.Diagram:
    """The network's diagram; see `graphviz.diagram`."""
    size = self.preprocess.crop_size
    return graphviz.draw(self.module, size, level, highlight)

  def resolve(self, layers: str | Sequence[str]) -> tuple[str, ...]:
    """The canonical names of what names and globs of any program stand for.

    Args:
      layers: as for `features`.

    Raises:
      UserError: a name is unknown, or stands for several values.
    """
    return aliases.select(
      layers, self.module.depth, head=self.module.classes > 0
    )

  def prepared(
    self,
    images: given.ImagesLike,
    layers: Sequence[str],
    reduction: reductions.Reduction | None = None,
    *,
    grad_cam: gradcam.GradCam | None = None,
    resumed: int = 0,
    check_decoding: bool = False,
  ) -> loop.Run:
    """Images and the network for layers, with the batch size chosen.

    Args:
      images: as for `features`, or a source's items.
      layers: canonical names.
      reduction: what is kept of the values.
      grad_cam: computed, too.
      resumed: images a batch of the run to resume; 0: there is none.
      check_decoding: whether to say how far an inexact decoding is off.
    """
    return self._networks.prepared(
      given.checked(images, self.preprocess),
      layers,
      reduction or reductions.Reduction(),
      grad_cam=grad_cam,
      resumed=resumed,
      check_decoding=check_decoding,
    )

  def _values(
    self,
    images: given.ImagesLike,
    layers: tuple[str, ...],
    reduction: reductions.Reduction,
    grad_cam: gradcam.GradCam | None = None,
  ) -> dict[str, np.ndarray]:
    run = self.prepared(images, layers, reduction, grad_cam=grad_cam)
    whole: dict[str, np.ndarray] = {}
    for batch, values in run.stream():
      for name, value in values.items():
        if name not in whole:
          shape = (len(run.images), *value.shape[1:])
          whole[name] = np.empty(shape, value.dtype)
        whole[name][batch.start : batch.start + len(value)] = value
    return whole


def _checked_names(
  names: str | PathLike[str] | Sequence[str],
) -> str | PathLike[str] | tuple[str, ...]:
  if isinstance(names, str | PathLike):
    return names
  listed = tuple(names) if isinstance(names, Iterable) else (names,)
  if wrong := [name for name in listed if not isinstance(name, str)]:
    raise errors.UserError(
      f'class_names has a {type(wrong[0]).__name__}. Give a file with a name a'
      ' line, or a list of names.'
    )
  return listed
