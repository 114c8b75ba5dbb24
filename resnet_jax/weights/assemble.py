# SPDX-License-Identifier: Apache-2.0
"""From a file's tensors to a network's parameters, checked; for all formats.

A format reads a table of contents and maps its names to ours; it is checked
here, and a tensor is read only once its shape is known to be right.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models import resnet, structure, widths
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.system.text import some

CONV_ORDERS = ('OHWI', 'OIHW')
# What becomes float32; weights of any other type are refused.
DTYPES = ('float16', 'bfloat16', 'float32', 'float64')
MAX_CLASSES = 100_000
# How the bias of a unit's convolution ends.
CONV_BIAS = '_conv/bias'


@dataclasses.dataclass(frozen=True)
class KernelLayout:
  """How a format lays out kernels.

  Attributes:
    text: human-readable, '(Co, Ci, ky, kx)'.
    kernel: the axes that transpose a convolution to (ky, kx, Ci, Co).
    dense: the axes that transpose the classifier to (in, out).
  """

  text: str
  kernel: tuple[int, ...]
  dense: tuple[int, ...]

  def axes(self, rank: int) -> tuple[int, ...]:
    """The transposition of a tensor, to ours."""
    return {4: self.kernel, 2: self.dense}.get(rank, tuple(range(rank)))

  def stored(self, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in the file of a parameter of our `shape`."""
    return tuple(shape[axis] for axis in np.argsort(self.axes(len(shape))))


@dataclasses.dataclass(frozen=True)
class Options:
  """A user's settings of the weights.

  Attributes:
    depth: one of `structure.ARCHITECTURES`; 0: the file's, else 50.
    variant: fields of `Variant` that override the checkpoint's; see
      `overrides.given`.
    conv_order: the axes of convolutions in a Paddle directory; see `paddle`.
    seed: for `random`, 0 to 2**32 - 1.
    finite: whether values that are not finite are an error.
    weights_prefix: chooses a network of several in a PyTorch or safetensors
      file, see `prefixes.choose`; '': the only one.

  Raises:
    UserError: a setting is out of its set.
  """

  depth: int = 0
  variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  conv_order: str = 'OHWI'
  seed: int = 0
  finite: bool = True
  weights_prefix: str = ''

  def __post_init__(self) -> None:
    if self.depth:
      structure.check_depth(self.depth)
    errors.check_choice('conv_order', self.conv_order, CONV_ORDERS)
    if not 0 <= self.seed < 2**32:
      raise errors.UserError(
        f'seed={self.seed} is not between 0 and 2**32 - 1.'
      )
    Variant().overridden(**self.variant)

  def applied(self, module: resnet.ResNet) -> resnet.ResNet:
    """A network with the variant's fields that the user gave.

    Raises:
      UserError: no network of the depth has such widths.
    """
    own = module.variant.overridden(**self.variant)
    return module.clone(variant=widths.normal(module.depth, own))


TORCH_LAYOUT = KernelLayout('(Co, Ci, ky, kx), (out, in)', (2, 3, 1, 0), (1, 0))
KERAS_LAYOUT = KernelLayout('(ky, kx, Ci, Co), (in, out)', (0, 1, 2, 3), (0, 1))


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a parameter comes from.

  Attributes:
    name: in the file, by the file's own naming.
    shape: in the file.
    dtype: in the file.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str


@dataclasses.dataclass(frozen=True)
class Converted:
  """The source of a file that `--job=convert` wrote.

  Attributes:
    source: human-readable.
    sha256: of the source; '': it was not a file.
  """

  source: str
  sha256: str


@dataclasses.dataclass(frozen=True)
class Loaded:
  """The contents of a file of weights.

  Attributes:
    format: the recognised one, human-readable.
    module: the network; its variant is the format's usual one if not stated.
    parameters: `layer/leaf` float32 arrays in the order of computing; kernels
      (ky, kx, Ci, Co), the classifier's (in, out).
    origins: of each parameter.
    layout: of kernels in the file, human-readable.
    preprocess: the format's usual one if not stated.
    notes: what the user should know, one per entry.
    guesses: notes on settings that no file or zoo record states.
    warnings: probable mistakes, one per entry.
    class_names: the classifier's, if the file holds them.
    trained: whether the weights were trained, as far as is known.
    digest: of the parameters, if the file states it.
    converted_from: None: the file is an original.
  """

  format: str
  module: resnet.ResNet
  parameters: dict[str, np.ndarray] = dataclasses.field(repr=False)
  origins: dict[str, Origin] = dataclasses.field(repr=False)
  layout: str
  preprocess: Preprocess
  notes: tuple[str, ...] = ()
  guesses: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  class_names: tuple[str, ...] = ()
  trained: bool = True
  digest: str = ''
  converted_from: Converted | None = None

  @property
  def all_notes(self) -> tuple[str, ...]:
    """The notes and the guesses."""
    return (*self.notes, *self.guesses)


def assemble(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  naming: Callable[[int], Mapping[str, str]],
  layout: KernelLayout,
  *,
  format: str,
  variant: Variant,
  preprocess: Preprocess,
  options: Options,
  notes: Sequence[str] = (),
  guesses: Sequence[str] = (),
) -> Loaded:
  """Names, checks and reads the tensors of a file.

  Args:
    path: for messages.
    tensors: by the file's names; an unknown name is an error.
    naming: for a depth, the canonical `layer/leaf` of each of the file's
      names; empty for a depth that the format does not have.  A convolution
      may have a `bias` or not.
    layout: of kernels.
    format: human-readable, 'Keras HDF5'.
    variant: of the network.
    options: the user's.
    preprocess: see `Loaded`.
    notes: see `Loaded`.
    guesses: see `Loaded`.

  Raises:
    UserError: names are missing or unknown, or shapes, types or values are
      not those of a ResNet; lists them.
  """
  depth = nearest_depth(tensors, naming)
  known = naming(depth)
  _check_names(path, tensors, known, depth, format)
  origins = {
    ours: Origin(name, tuple(tensors[name].shape), tensors[name].dtype)
    for name, ours in known.items()
    if name in tensors
  }
  classes = _classes(path, origins, layout)
  biases = frozenset(
    ours.removesuffix(CONV_BIAS) for ours in origins if ours.endswith(CONV_BIAS)
  )
  sizes = {ours: math.prod(origin.shape) for ours, origin in origins.items()}
  try:
    variant = dataclasses.replace(variant, **widths.told(depth, sizes))
    structure.widths(depth, variant)
  except errors.UserError as error:
    raise not_plain(path, str(error).split('. ')[0]) from error
  module = resnet.ResNet(depth, classes, variant, biases)
  shapes = resnet.parameter_shapes(module)
  _check_shapes(path, origins, shapes, layout)
  values = {
    ours: _read(path, origin.name, tensors[origin.name])
    for ours, origin in origins.items()
  }
  if options.finite:
    _check_values(path, values, origins)
  return Loaded(
    format,
    module,
    {
      ours: np.ascontiguousarray(
        values[ours].transpose(layout.axes(values[ours].ndim))
      )
      for ours in shapes
    },
    {ours: origins[ours] for ours in shapes},
    layout.text,
    preprocess,
    tuple(notes),
    tuple(guesses),
  )


def _check_values(
  path: pathlib.Path,
  values: Mapping[str, np.ndarray],
  origins: Mapping[str, Origin],
) -> None:
  faults, negative = [], []
  for ours, array in values.items():
    if bad := array.size - int(np.isfinite(array).sum()):
      faults.append(f'{origins[ours].name} ({bad} of {array.size})')
    if ours.endswith('/var') and (array < 0).any():
      negative.append(origins[ours].name)
  if faults:
    raise errors.UserError(
      f'{path} holds values that are not finite, or too large for float32, in'
      f' {some(faults, 6)}. Get it again; --job=inspect lists every tensor.'
    )
  if negative:
    raise errors.UserError(
      f'{path} holds negative variances in {some(negative, 6)}. Get it again.'
    )


def nearest_depth(
  tensors: Collection[str], naming: Callable[[int], Mapping[str, str]]
) -> int:
  """The depth whose names are most like those of a file.

  Args:
    tensors: the file's names.
    naming: as `assemble` takes it.
  """

  def likeness(depth: int) -> float:
    known = naming(depth)
    required = {name for name, ours in known.items() if _required(ours)}
    there = set(tensors)
    # A share, since the shallowest would be the nearest to any strange file.
    return len(there & set(known)) / len(there | required)

  return max((d for d in structure.ARCHITECTURES if naming(d)), key=likeness)


def _required(ours: str) -> bool:
  return not ours.startswith('logits/') and not ours.endswith(CONV_BIAS)


def _check_names(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  known: Mapping[str, str],
  depth: int,
  format: str,
) -> None:
  head = any(known.get(name, '').startswith('logits/') for name in tensors)
  missing = [
    name
    for name, ours in known.items()
    if name not in tensors
    and (_required(ours) or (head and ours.startswith('logits/')))
  ]
  unknown = [name for name in tensors if name not in known]
  if len(unknown) == len(tensors):
    first = ', '.join(name[:99] for name in unknown[:5])
    why = (
      f': its names are {first or "none"}, ..., where {", ".join(missing[:3])},'
      ' ... are expected'
    )
  elif missing or unknown:
    parts = [
      f'{len(given)} names are {what} ({some([n[:99] for n in given], 6)})'
      for given, what in ((missing, 'missing'), (unknown, 'unknown'))
      if given
    ]
    why = f'; the nearest is ResNet-{depth}: {"; ".join(parts)}'
  else:
    return
  raise errors.UserError(
    f'{path}, read as {format}, does not hold a plain ResNet{why}. Give a'
    f' checkpoint of a ResNet of one of the depths {structure.DEPTHS}.'
  )


def _classes(
  path: pathlib.Path, origins: Mapping[str, Origin], layout: KernelLayout
) -> int:
  if (origin := origins.get('logits/kernel')) is None:
    return 0
  shape = origin.shape
  classes = shape[layout.dense[1]] if len(shape) == 2 else 0
  if not 0 < classes <= MAX_CLASSES:
    raise errors.UserError(
      f'{path}: the classifier {origin.name} has the shape {shape}; it must'
      f' have two dimensions and 1 to {MAX_CLASSES} classes.'
    )
  return classes


def _check_shapes(
  path: pathlib.Path,
  origins: Mapping[str, Origin],
  shapes: Mapping[str, tuple[int, ...]],
  layout: KernelLayout,
) -> None:
  faults = []
  for ours, origin in origins.items():
    expected = layout.stored(shapes[ours])
    if origin.shape != expected:
      faults.append(
        f'{origin.name} has the shape {origin.shape}, not {expected}'
      )
    if origin.dtype not in DTYPES:
      faults.append(
        f'{origin.name} is {origin.dtype}, not one of {", ".join(DTYPES)}'
      )
  if faults:
    raise not_plain(path, some(faults, 6))


def not_plain(path: pathlib.Path, why: str) -> errors.UserError:
  """The error for another network."""
  return errors.UserError(
    f'{path} does not hold a plain ResNet: {why}. Give a checkpoint of one.'
  )


def _read(path: pathlib.Path, name: str, tensor: Tensor) -> np.ndarray:
  try:
    array = tensor.read()
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f'{path} is damaged: {name}: {error}. Get it again.'
    ) from error
  # Values beyond float32 become infinite, which `_check_values` refuses.
  with np.errstate(over='ignore'):
    return np.asarray(array, dtype=np.float32).reshape(tensor.shape)
