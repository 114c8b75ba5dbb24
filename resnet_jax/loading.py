# SPDX-License-Identifier: Apache-2.0
"""Models from weights by name or path, and from variables in memory."""

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from resnet_jax import weights as weights_lib
from resnet_jax.data import preprocess as preprocess_lib
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import runner
from resnet_jax.model import Model
from resnet_jax.models import known, resnet, variant
from resnet_jax.system import console, errors
from resnet_jax.weights import variables as variables_lib


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
  crops = _crops(batch_size)
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
    batch_size=crops,
  )
  # A wrong file of names should not wait for the first prediction.
  _ = model.classes
  return model


def from_variables(
  module: resnet.ResNet,
  variables: Mapping[str, Any],
  preprocess: Preprocess,
  class_names: str | PathLike[str] | Sequence[str] = '',
  *,
  use_gpu: bool = False,
  batch_size: int | str = 'auto',
  arithmetic: str = 'float32',
  compilation_cache: bool = True,
) -> Model:
  """A model of a module and its variables, as training leaves them.

  `Model.save` writes them to a file for the jobs.

  Args:
    module: the network, such as `Model.module`.
    variables: `{'params': ..., 'batch_stats': ...}`, copied.
    preprocess: how an image becomes the network's input.
    class_names: as for `load`.
    use_gpu: as for `load`.
    batch_size: as for `load`.
    arithmetic: as for `load`.
    compilation_cache: as for `load`.

  Raises:
    UserError: the variables are not the module's, or not finite.
  """
  # What was given is checked before a device is started.
  crops = _crops(batch_size)
  loaded = variables_lib.loaded(module, variables, preprocess)
  execution = runner.start(
    use_gpu, arithmetic, compilation_cache, console.say, application=False
  )
  model = Model(
    weights_lib.Weights(loaded, loaded.format),
    preprocess,
    execution,
    class_names=class_names,
    batch_size=crops,
  )
  _ = model.classes
  return model


def _crops(batch_size: int | str) -> int:
  """The number of crops, 0 for 'auto'."""
  batch_size = 0 if batch_size == 'auto' else batch_size
  if not isinstance(batch_size, int) or batch_size < 0:
    raise errors.UserError(
      f"batch_size={batch_size!r} is neither a number of crops nor 'auto'."
    )
  return batch_size
