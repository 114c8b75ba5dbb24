# SPDX-License-Identifier: Apache-2.0
"""A network with its weights and preprocessing, for jobs and notebooks."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from typing import Any, NoReturn

import numpy as np

from resnet_jax import weights as weights_lib
from resnet_jax.data import labels, pipeline, sources, truth
from resnet_jax.data import preprocess as preprocess_lib
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.data.sources import given
from resnet_jax.engine import gradcam, loop, networks, reductions, runner
from resnet_jax.evaluation import prediction
from resnet_jax.models import aliases, known, resnet, variant
from resnet_jax.system import console, errors, text, timing
from resnet_jax.views import graphviz

# Images that `crops` cuts out at a time.
_CUT_AT_ONCE = 32


class Model:
  """A network with its weights and preprocessing.

  Attributes:
    weights: the parameters, their source and digest.
    module: the network, a Flax module.
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
    self._class_names = class_names
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
      named = tuple(self._class_names)
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


def load(
  name: str | int | None = None,
  *,
  weights: str | PathLike[str] = 'auto',
  weights_prefix: str = '',
  conv_order: str = 'OHWI',
  seed: int = 0,
  class_names: str | PathLike[str] | Sequence[str] = '',
  stride_in: str = 'auto',
  stem_pool: str = 'auto',
  epsilon: float = 0.0,
  stem_width: int = 0,
  width: int = 0,
  inner_width: int = 0,
  groups: int = 0,
  mean: str | PathLike[str] | Sequence[float] = 'auto',
  std: str | Sequence[float] = 'auto',
  channels: str = 'auto',
  resize: str = 'auto',
  resize_size: int = 0,
  crop_size: int = 0,
  multi_crop: bool = False,
  interpolation: str = 'auto',
  rounding: str = 'auto',
  decode: str = 'exact',
  use_gpu: bool = False,
  batch_size: int | str = 'auto',
  arithmetic: str = 'float32',
  compilation_cache: bool = True,
) -> Model:
  """Loads a network; the settings are those of `configs/resnet.py`.

  'auto' and 0 take what belongs to the weights.

  Args:
    name: 'resnet50', 50, 'resnext50_32x4d' and so on; None: that of the
      weights, else 50.
    weights: a file or directory in any known format; a checkpoint of the zoo,
      such as 'msra'; 'auto', `model/resnet_50`, else the zoo's; or 'random'.
    weights_prefix: of the names of one of several networks in a file.
    conv_order: the axes of convolutions in a Paddle directory.
    seed: for 'random'.
    class_names: a file with a class name a line, or a list of names.
    stride_in: '1x1' or '3x3'.
    stem_pool: 'ceil' or 'pad1'.
    epsilon: of the batch norms.
    stem_width: channels of the stem.
    width: channels of res2's blocks, over 4 in bottleneck blocks.
    inner_width: channels of the 3x3 convolution of a bottleneck block of res2.
    groups: of that convolution.
    mean: subtracted from the image, 0 to 255: three values, or a mean file.
    std: divides the image: three values.
    channels: 'BGR' or 'RGB'.
    resize: 'short_side', 'squash' or 'none'.
    resize_size: the shorter side before cropping, pixels.
    crop_size: of the crop, pixels.
    multi_crop: average over ten crops.
    interpolation: 'lanczos', 'bilinear' or 'bicubic'.
    rounding: 'nearest' or 'torchvision'.
    decode: 'exact', or 'scaled', which is faster and gives other pixels.
    use_gpu: fail if there is no GPU; otherwise JAX's default device.
    batch_size: crops a batch; 'auto': as many as are fast and fit into memory.
    arithmetic: 'float32', 'direct', 'tf32' or 'bfloat16'.
    compilation_cache: keep compiled programs in the user's cache folder.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  # By the names of fields, so that a new field is a new argument only.
  settings = dict(locals())
  batch_size = 0 if batch_size == 'auto' else batch_size
  if not isinstance(batch_size, int) or batch_size < 0:
    raise errors.UserError(
      f"batch_size={batch_size!r} is neither a number of crops nor 'auto'."
    )
  overrides = {field: settings[field] for field in preprocess_lib.FIELDS}
  preprocess_lib.check_overrides(**overrides)
  depth, fields = 0, {field: settings[field] for field in variant.FIELDS}
  if name is not None:
    depth, fields = known.asked(name, fields)
  options = weights_lib.Options(
    depth, fields, conv_order, seed, weights_prefix=weights_prefix
  )
  execution = runner.start(
    use_gpu, arithmetic, compilation_cache, console.say, application=False
  )
  loaded = weights_lib.load_logged(
    fspath(weights), options, lambda line: warnings.warn(line, stacklevel=4)
  )
  model = Model(
    loaded,
    loaded.preprocess.overridden(**overrides),
    execution,
    class_names=class_names,
    batch_size=batch_size,
  )
  # A wrong file of names should not wait for the first prediction.
  _ = model.classes
  return model
