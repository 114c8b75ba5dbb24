# SPDX-License-Identifier: Apache-2.0
"""A network in a notebook: `load`, then `features`, `predict`, `diagram`."""

import re
import warnings
from collections.abc import Sequence
from os import PathLike, fspath

from resnet_jax import weights as weights_lib
from resnet_jax.data import labels, preprocess
from resnet_jax.engine import compilation, devices, runner
from resnet_jax.model import Model, draw
from resnet_jax.models import names, resnet, variant
from resnet_jax.system import console, errors
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
    resize: 'short_side', 'squash' or 'none'.
    resize_size: the shorter side before cropping, pixels.
    crop_size: of the crop, pixels.
    multi_crop: average over ten crops.
    interpolation: 'lanczos', 'bilinear' or 'bicubic'.
    rounding: 'nearest' or 'torchvision'.
    decode: 'exact', or 'scaled', faster and other pixels.
    use_gpu: fail if there is no GPU; otherwise JAX's default device.
    batch_size: crops that go through the network at once; 'auto': as many as
      are fast and fit into the memory.
    arithmetic: 'float32', 'direct', 'tf32' or 'bfloat16'.
    compilation_cache: keep compiled programs in the user's cache folder.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  settings = dict(locals())
  depth = 0 if name is None else _depth(name)
  if batch_size == 'auto':
    batch_size = 0
  if not isinstance(batch_size, int) or batch_size < 0:
    raise errors.UserError(
      f"batch_size={batch_size!r} is neither a number of crops nor 'auto'."
    )
  given = {field: settings[field] for field in preprocess.FIELDS}
  preprocess.check_overrides(**given)
  devices.use_cores()
  execution = runner.Execution(
    devices.select(use_gpu),
    arithmetic,
    compilation.folder(compilation_cache, console.say),
  )
  with console.Bytes() as bar:
    loaded = weights_lib.load(
      fspath(weights),
      weights_lib.Options(
        depth,
        {field: settings[field] for field in variant.FIELDS},
        conv_order,
        seed,
      ),
      say=console.say,
      report=bar.set,
    )
  console.say(f'weights: {loaded.source}')
  for note in loaded.notes:
    console.say(f'NOTE: {note}')
  for warning in loaded.warnings:
    warnings.warn(warning, stacklevel=2)
  own = loaded.preprocess.overridden(**given)
  file, named = '', loaded.loaded.class_names
  if isinstance(class_names, str | PathLike):
    file = fspath(class_names)
  else:
    named = tuple(class_names)
  classes = labels.classes(loaded.model.classes, file, named)
  return Model(loaded, own, classes, execution, batch_size)


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
    crop_size: of the images, pixels.

  Returns:
    A `Diagram`, which a notebook shows where graphviz is installed; its `.dot`
    is the text, and `.render()` gives SVG.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  model = resnet.published(_depth(name))
  model = model.clone(
    variant=model.variant.overridden(stride_in=stride_in, stem_pool=stem_pool)
  )
  return draw(model, crop_size, level, highlight)


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
