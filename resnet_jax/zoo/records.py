# SPDX-License-Identifier: Apache-2.0
"""The record of a published checkpoint."""

import dataclasses

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.models.variant import Variant

# Hexadecimal digits of a full hash.
ALGORITHMS = {'sha256': 64, 'sha1': 40, 'md5': 32}


@dataclasses.dataclass(frozen=True)
class Hash:
  """The hash that a publisher gives.

  Attributes:
    algorithm: a key of ALGORITHMS.
    digits: hexadecimal, lower case; the first ones, or all.
  """

  algorithm: str
  digits: str

  @property
  def is_full(self) -> bool:
    """Whether all digits are known."""
    return len(self.digits) == ALGORITHMS[self.algorithm]

  def __str__(self) -> str:
    known = '' if self.is_full else f' (first {len(self.digits)} digits)'
    return f'{self.algorithm} {self.digits}{known}'


@dataclasses.dataclass(frozen=True)
class File:
  """A published file.

  Attributes:
    urls: the publisher's address, then mirrors; (): it is in the package.
    hash: the published one; None: there is none.
    size: bytes; None: not known.
    exact: whether `size` is exact, or rounded by the publisher.
    embedded: the name of the file in the package; '': it is downloaded.
  """

  urls: tuple[str, ...]
  hash: Hash | None
  size: int | None
  exact: bool = True
  embedded: str = ''

  @property
  def name(self) -> str:
    """The file's name."""
    return self.embedded or self.urls[0].rsplit('/', 1)[-1]


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How the images of an evaluation were resized and cropped.

  Attributes:
    resize: the shorter side, pixels; None: not stated.
    crop: height and width of a crop, pixels.
    crops: 1, the centre; or 10, whose probabilities are averaged.
    interpolation: as `data.preprocess` has it; None: not stated.
  """

  resize: int | None = 256
  crop: int = 224
  crops: int = 1
  interpolation: str | None = None

  def describe(self) -> str:
    """`shorter side 256, one centre crop of 224`."""
    crops = 'one centre crop' if self.crops == 1 else 'ten crops'
    text = f'{crops} of {self.crop}'
    if self.crops > 1:
      text += ', mean of softmax'
    if self.resize is None:
      return f'{text}; the resize is not stated'
    by = f' ({self.interpolation})' if self.interpolation else ''
    return f'shorter side {self.resize}{by}, {text}'

  def differences(self, run: 'Protocol') -> list[str]:
    """How a run departs from it, where it states something."""
    theirs = dataclasses.asdict(run)
    return [
      f'{name} {theirs[name]} for {own}'
      for name, own in dataclasses.asdict(self).items()
      if own not in (None, theirs[name])
    ]


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """A published accuracy on all images of a data set.

  Attributes:
    top1: percent; None: not published.
    top5: the same.
    protocol: how it was measured.
    source: where it is published.
    images: how many they are; the usual ones are ILSVRC 2012's validation.
  """

  top1: float | None
  top5: float | None
  protocol: Protocol
  source: str
  images: int = 50_000


@dataclasses.dataclass(frozen=True)
class Record:
  """A checkpoint.

  Attributes:
    family: what `weights=` selects it by, with the depth.
    depth: one of `structure.ARCHITECTURES`.
    format: as `formats.FORMATS` has it.
    file: where it is.
    licence: its SPDX identifier; 'not stated': the publisher gives none.
    licence_source: what the licence is of, and where it is stated.
    variant: of the network.
    preprocess: of the images, as in training.
    parameters: learned numbers, without biases of convolutions.
    accuracies: published ones.
    note: what else a user should know.
  """

  family: str
  depth: int
  format: str
  file: File
  licence: str
  licence_source: str
  variant: Variant
  preprocess: Preprocess
  parameters: int
  accuracies: tuple[Accuracy, ...]
  note: str = ''

  @property
  def name(self) -> str:
    """`msra-50`: unique, and the name of its folder in the cache."""
    return f'{self.family}-{self.depth}'
