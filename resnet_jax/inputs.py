# SPDX-License-Identifier: Apache-2.0
"""The preprocessing of a run: the checkpoint's, where the user says nothing."""

import dataclasses

from resnet_jax.data import mean, preprocess
from resnet_jax.data import recipe as recipes
from resnet_jax.system import errors

AUTO = 'auto'


@dataclasses.dataclass(frozen=True)
class Wishes:
  """What the user says of the preprocessing; 'auto' and 0: the checkpoint's.

  Attributes are those of `data.preprocess.Preprocess`, with mean and std as
  text: three values in the order of the channels, or a mean file.
  """

  mean: str = AUTO
  std: str = AUTO
  channels: str = AUTO
  resize: str = AUTO
  resize_size: int = 0
  crop_size: int = 0
  interpolation: str = AUTO
  rounding: str = AUTO
  multi_crop: bool = False
  decode: str = 'exact'

  def __post_init__(self) -> None:
    # A mistake should not wait for the weights.
    for what, allowed in (
      ('resize', (*preprocess.RESIZES, AUTO)),
      ('interpolation', (*preprocess.INTERPOLATIONS, AUTO)),
      ('channels', (*preprocess.CHANNELS, AUTO)),
      ('rounding', (*preprocess.ROUNDINGS, AUTO)),
      ('decode', preprocess.DECODES),
    ):
      errors.check_choice(what, getattr(self, what), allowed)
    if self.mean != AUTO:
      mean.check_source(self.mean)
    if self.std != AUTO:
      mean.parse_std(self.std)


def preprocess_for(
  wishes: Wishes, recipe: recipes.Recipe
) -> preprocess.Preprocess:
  """A checkpoint's preprocessing with the user's changes.

  Raises:
    UserError: a setting is out of its set, or does not fit another.
  """

  def pick(what: str) -> str:
    wish = getattr(wishes, what)
    return getattr(recipe, what) if wish == AUTO else wish

  channels = pick('channels')
  if channels != recipe.channels:
    for what, given in (('mean', wishes.mean), ('std', wishes.std)):
      if given == AUTO and len(set(getattr(recipe, what))) > 1:
        raise errors.UserError(
          f'channels={channels}, but the {what} of these weights is in the'
          f' order {recipe.channels}. Give {what}=A,B,C in the order'
          f' {channels}, too.'
        )
  crop_size = wishes.crop_size or recipe.crop_size
  mean_text = wishes.mean
  if mean_text == AUTO:
    mean_text = ','.join(str(value) for value in recipe.mean)
  subtracted = mean.parse_mean(mean_text, crop_size)
  if subtracted.values.shape != (3, 1, 1) and channels != 'BGR':
    raise errors.UserError(
      f'mean={mean_text}: a mean file is in BGR order, and these images are'
      f' {channels}. Give three values, or channels=BGR for weights that were'
      ' trained so.'
    )
  std = recipe.std if wishes.std == AUTO else mean.parse_std(wishes.std)
  return preprocess.Preprocess(
    subtracted,
    pick('resize'),
    wishes.resize_size or recipe.resize_size,
    crop_size,
    wishes.multi_crop,
    pick('interpolation'),
    channels,
    std,
    pick('rounding'),
    wishes.decode,
  )
