# SPDX-License-Identifier: Apache-2.0
"""The settings of preprocessing, which `crops` carries out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from resnet_jax.data import mean as mean_lib
from resnet_jax.system import errors, overrides
from resnet_jax.system import settings as settings_lib

INTERPOLATIONS = ('lanczos', 'bilinear', 'bicubic')
ROUNDINGS = ('nearest', 'torchvision')
_CHOICES = {
  'resize': ('short_side', 'squash', 'none'),
  'interpolation': INTERPOLATIONS,
  'channels': ('BGR', 'RGB'),
  'rounding': ROUNDINGS,
  'decode': ('exact', 'scaled'),
}
# By `resize`: the fields that determine the pixels of crops.  The others act on
# the device, or not at all.
_CROP_FIELDS = {
  'short_side': (
    *('resize', 'resize_size', 'crop_size', 'multi_crop', 'interpolation'),
    *('rounding', 'decode'),
  ),
  'squash': ('resize', 'crop_size', 'interpolation', 'decode'),
  'none': ('resize', 'crop_size'),
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How an image becomes the network's input.

  The defaults are those of the authors' Caffe models and PaddlePaddle's model
  zoo; `presets` has the other publishers'.

  Attributes:
    mean: what is subtracted, on the scale 0 to 255: three values, in the order
      of `channels`, or an image.
    resize: 'short_side', the shorter side to `resize_size`; 'squash', the
      whole image to a square of `crop_size` (the original demo's); or 'none':
      images already have that size.
    resize_size: the shorter side, pixels.
    crop_size: height and width of a crop, pixels.
    multi_crop: ten crops: top left, top right, bottom left, bottom right,
      centre, and the mirror images of these five, in this order.
    interpolation: one of INTERPOLATIONS.
    channels: 'BGR' or 'RGB', the order of mean, std and the input.
    std: the divisor, after the mean, on the scale 0 to 255.
    rounding: how the longer side and the offsets of a crop become whole:
      'nearest', halves up and offsets down, as in the original; or
      'torchvision', the side down and offsets to the nearest, halves to even.
    decode: 'exact': decode all pixels, resize, crop; or 'scaled', faster, with
      slightly different pixels: a JPEG is decoded at a half, a quarter or an
      eighth of its size where that is no smaller than the resized image, and
      only the pixels of a single crop are resized.

  Raises:
    UserError: a field is out of its set, or does not fit another.
  """

  mean: mean_lib.Mean = mean_lib.MEAN_BGR
  resize: str = 'short_side'
  resize_size: int = 256
  crop_size: int = 224
  multi_crop: bool = False
  interpolation: str = 'lanczos'
  channels: str = 'BGR'
  std: mean_lib.Three = (1.0, 1.0, 1.0)
  rounding: str = 'nearest'
  decode: str = 'exact'

  def __post_init__(self) -> None:
    for name, allowed in _CHOICES.items():
      errors.check_choice(name, getattr(self, name), allowed)
    mean_lib.check_std(self.std)
    check_crop_size(self.crop_size)
    if self.multi_crop and self.resize != 'short_side':
      raise errors.UserError(
        'multi_crop=true needs resize=short_side: with'
        f' resize={self.resize} an image is no larger than one crop.'
      )
    if self.resize == 'short_side' and not (
      self.crop_size <= self.resize_size <= 8192
    ):
      raise errors.UserError(
        f'resize_size={self.resize_size} is not between'
        f' crop_size={self.crop_size} and 8192.'
      )
    mean_lib.check_mean(self.mean, self.crop_size, self.crop_size)
    if isinstance(self.mean, mean_lib.MeanImage) and self.channels != 'BGR':
      raise errors.UserError(
        f'{self.mean.description} is in BGR order, and channels='
        f'{self.channels}. Give three values, or channels=BGR for weights that'
        ' were trained so.'
      )

  def overridden(self, **given: Any) -> 'Preprocess':
    """This preprocessing with the fields that a user gave.

    Args:
      given: as `check_overrides` takes them.

    Raises:
      UserError: a field is out of its set, or does not fit another.
    """
    check_overrides(**given)
    changes = overrides.given(given)
    channels = changes.get('channels', self.channels)
    reordered = {'mean', 'std'} if channels != self.channels else set()
    for name in sorted(reordered - changes.keys()):
      own = getattr(self, name)
      if isinstance(own, tuple) and len(set(own)) > 1:
        raise errors.UserError(
          f'channels={channels}, but the {name} of these weights is in the'
          f' order {self.channels}. Give {name}=A,B,C in the order'
          f' {channels}, too.'
        )
    if 'mean' in changes:
      crop_size = changes.get('crop_size', self.crop_size)
      changes['mean'] = mean_lib.parse_mean(changes['mean'], crop_size)
    if 'std' in changes:
      changes['std'] = mean_lib.parse_std(changes['std'])
    return dataclasses.replace(self, **changes)

  @property
  def cuts(self) -> int:
    """Crops that are cut out; the device makes the mirrored ones."""
    return 5 if self.multi_crop else 1

  @property
  def crops(self) -> int:
    """Crops that an image's values are averaged over."""
    return 10 if self.multi_crop else 1

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(cuts, S, S, 3), of an image's pixels."""
    return self.cuts, self.crop_size, self.crop_size, 3

  @property
  def crop_fields(self) -> dict[str, Any]:
    """The fields that determine the pixels of crops, with their values."""
    return {name: getattr(self, name) for name in _CROP_FIELDS[self.resize]}

  def describe(self) -> str:
    """One line for the run's record."""
    size = f'{self.crop_size}x{self.crop_size}'
    over = f', over {_tuple(self.std)}' if self.std != (1.0, 1.0, 1.0) else ''
    colours = f'{self.channels}, minus {mean_lib.describe(self.mean)}{over}'
    if self.decode != 'exact':
      colours += f', {self.decode} decoding'
    if self.resize == 'none':
      return f'images of {size} as they are, {colours}'
    if self.resize == 'squash':
      cut = f'whole image resized to {size} ({self.interpolation})'
    else:
      crops = (f'centre crop {size}', f'ten crops of {size} averaged')
      cut = f'shorter side to {self.resize_size} ({self.interpolation}), '
      cut += crops[self.multi_crop]
    if self.rounding != 'nearest':
      cut += f' ({self.rounding} rounding)'
    return f'{cut}, {colours}'


# Of a crop that a network takes, pixels.
SIDES = range(32, 4097)
FIELDS = tuple(field.name for field in dataclasses.fields(Preprocess))
# Chosen for each run, and not stored with weights.
RUN_FIELDS = ('multi_crop', 'decode')


def check_crop_size(size: int) -> None:
  """Raises a UserError for a size that no network takes."""
  if size not in SIDES:
    raise errors.UserError(f'crop_size={size} is not between 32 and 4096.')


def of_crops(stated: Any) -> Preprocess:
  """The preprocessing whose `crop_fields` a file states.

  Raises:
    ValueError: it states others, or values that this version does not have.
  """
  wrong = ValueError(
    f'its preprocessing is {settings_lib.shown(stated)}, which is none of this'
    ' version'
  )
  resize = stated.get('resize') if isinstance(stated, dict) else None
  names = _CROP_FIELDS.get(resize, ()) if isinstance(resize, str) else ()
  kinds = {name: type(getattr(Preprocess, name)) for name in names}
  # JSON has no other types; `true` is no number of pixels.
  if not names or {n: type(value) for n, value in stated.items()} != kinds:
    raise wrong
  try:
    return Preprocess(**stated)
  except errors.UserError as error:
    raise wrong from error


def check_overrides(**given: Any) -> None:
  """Finds a user's mistakes before the weights are loaded.

  Args:
    given: fields of `Preprocess`; 'auto', 0 and None stand for the weights'
      own.  mean and std are text (three values, or a mean file) or sequences.

  Raises:
    UserError: a field is out of its set, or a mean file is missing.
  """
  changes = overrides.given(given)
  for name, allowed in _CHOICES.items():
    if name in changes:
      auto = () if name in RUN_FIELDS else (overrides.AUTO,)
      errors.check_choice(name, changes[name], (*allowed, *auto))
  for name in ('resize_size', 'crop_size'):
    if not isinstance(changes.get(name, 0), int):
      raise errors.UserError(
        f'{name}={changes[name]!r} is not a whole number of pixels. Give one,'
        " or 'auto'."
      )
  if 'mean' in changes:
    mean_lib.check_source(changes['mean'])
  if 'std' in changes:
    mean_lib.parse_std(changes['std'])


def _tuple(values: Sequence[float]) -> str:
  return f'({", ".join(f"{value:g}" for value in values)})'
