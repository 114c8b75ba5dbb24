# SPDX-License-Identifier: Apache-2.0
"""What differs between published ResNets of the same depth."""

import dataclasses
from typing import Any

from resnet_jax.system import errors, overrides

STRIDES = ('1x1', '3x3')
STEM_POOLS = ('ceil', 'pad1')
# The fields that parameters' shapes tell.
WIDTHS = ('stem_width', 'width', 'inner_width', 'groups')
MAX_WIDTH = 4096


@dataclasses.dataclass(frozen=True)
class Variant:
  """The fields of a network other than its depth and classes.

  The network, a checkpoint's record, the metadata of converted weights and a
  run's record all hold one.  The defaults are the authors' Caffe models and
  PaddlePaddle's model zoo.

  Attributes:
    stride_in: which convolution of a bottleneck block has the stage's stride:
      '1x1', branch2a, as published ("v1"), or '3x3', branch2b, as in
      torchvision ("v1.5").  A basic block has it in its first 3x3.
    stem_pool: the padding of `pool1`, if there is one: 'ceil', Caffe's and
      Paddle's, or 'pad1', torchvision's and Keras'; see `layers.stem_pool`.
    epsilon: what every batch norm adds to the variance.
    stem_width: channels of the stem; 0: as many as the depth usually has, 64
      or 16.
    width: channels that a block of res2 puts out, over 4 in a bottleneck block;
      they double with each further stage.  0: the usual 64 or 16.
    inner_width: channels of the 3x3 convolution of a bottleneck block of res2,
      which double, too: 128 in a wide ResNet-50-2 and a ResNeXt-50 of 32x4.
      0: `width`.
    groups: of that convolution; a ResNeXt's cardinality.

  Raises:
    UserError: a field is out of its set.
  """

  stride_in: str = '1x1'
  stem_pool: str = 'ceil'
  epsilon: float = 1e-5
  stem_width: int = 0
  width: int = 0
  inner_width: int = 0
  groups: int = 1

  def __post_init__(self) -> None:
    errors.check_choice('stride_in', self.stride_in, STRIDES)
    errors.check_choice('stem_pool', self.stem_pool, STEM_POOLS)
    if not 0 < self.epsilon < 1:
      raise errors.UserError(
        f'epsilon={self.epsilon} is not between 0 and 1; 1e-5 is usual.'
      )
    for name in WIDTHS:
      value, least = getattr(self, name), int(name == 'groups')
      if not least <= value <= MAX_WIDTH:
        raise errors.UserError(
          f'{name}={value} is not between {least} and {MAX_WIDTH}.'
        )

  def overridden(self, **given: Any) -> 'Variant':
    """This variant with the fields that a user gave; see `overrides.given`."""
    return dataclasses.replace(self, **overrides.given(given))

  def stated(self) -> dict[str, Any]:
    """The fields as a record has them, the widths only if they are unusual.

    Records of versions before the widths then are those of the same network.
    """
    return {
      field.name: value
      for field in dataclasses.fields(self)
      if (value := getattr(self, field.name)) != field.default
      or field.name not in WIDTHS
    }


FIELDS = tuple(field.name for field in dataclasses.fields(Variant))
