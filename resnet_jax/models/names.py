# SPDX-License-Identifier: Apache-2.0
"""The names of the layers, in order; PaddlePaddle's are canonical.

Plain Python, so that a command line can be checked without importing JAX.
Depths and block counts: He et al., "Deep Residual Learning for Image
Recognition", 2015, table 1 (ImageNet) and section 4.2 (CIFAR).
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from resnet_jax.system import errors


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The architecture of a depth; the defaults are the ImageNet networks'.

  Attributes:
    bottleneck: whether a block is 1x1, 3x3, 1x1 (else two 3x3).
    blocks: the number of blocks of each stage, from res2 on.
    width: output channels of the stem and of res2's 3x3 convolutions; they
      double with each further stage.
    kernel: height and width of the stem's convolution.
    stride: of the stem's convolution.
    pool: whether the stem ends with `pool1`.
    projections: whether a shortcut that changes the shape is a 1x1
      convolution (the paper's option B); else it takes every second pixel and
      pads the channels with zeros (option A).
    classes: of the data set of the paper.
  """

  bottleneck: bool
  blocks: tuple[int, ...]
  width: int = 64
  kernel: int = 7
  stride: int = 2
  pool: bool = True
  projections: bool = True
  classes: int = 1000

  @property
  def last_stage(self) -> int:
    """The number of the last stage: 5 in res5."""
    return 1 + len(self.blocks)

  @property
  def branches(self) -> tuple[str, ...]:
    """The convolutions of a block's residual branch, first to last."""
    letters = 'abc' if self.bottleneck else 'ab'
    return tuple(f'branch2{letter}' for letter in letters)

  @property
  def expansion(self) -> int:
    """Output channels of a block, over its inner width."""
    return 4 if self.bottleneck else 1

  def has_projection(self, stage: int, block: int) -> bool:
    """Whether the block's shortcut is a 1x1 convolution, `branch1`.

    Only where the shape changes: the first block of a stage, except in res2
    of basic blocks, which keeps the number of channels.
    """
    changes = block == 1 and (self.bottleneck or stage > 2)
    return changes and self.projections


IMAGENET = {
  18: Architecture(bottleneck=False, blocks=(2, 2, 2, 2)),
  34: Architecture(bottleneck=False, blocks=(3, 4, 6, 3)),
  50: Architecture(bottleneck=True, blocks=(3, 4, 6, 3)),
  101: Architecture(bottleneck=True, blocks=(3, 4, 23, 3)),
  152: Architecture(bottleneck=True, blocks=(3, 8, 36, 3)),
}
# 6n + 2 layers, for images of 32x32.
CIFAR = {
  6 * n + 2: Architecture(
    bottleneck=False,
    blocks=(n, n, n),
    width=16,
    kernel=3,
    stride=1,
    pool=False,
    projections=False,
    classes=10,
  )
  for n in (3, 5, 7, 9)
}
ARCHITECTURES = IMAGENET | CIFAR


def _listed(depths: Iterable[int]) -> str:
  return ', '.join(map(str, depths))


# For messages.
DEPTHS = f'{_listed(IMAGENET)} (ImageNet), {_listed(CIFAR)} (CIFAR)'


def check_depth(depth: int) -> int:
  """Returns `depth`; raises a UserError if no ResNet has that many layers."""
  if depth not in ARCHITECTURES:
    raise errors.UserError(f'no ResNet has {depth} layers. Allowed: {DEPTHS}.')
  return depth


def block_name(stage: int, block: int) -> str:
  """The prefix of a block's layers; the first block is `res2_1`."""
  return f'res{stage}_{block}'


HEAD = ('logits', 'output')
# Parameters of a batch norm.
NORM_LEAVES = ('scale', 'mean', 'var', 'bias')


def layer_names(depth: int, head: bool = True) -> tuple[str, ...]:
  """Every addressable layer of ResNet-`depth`, in the order of computing.

  `_conv` is before batch norm.  `_bn` includes the ReLU after it, except
  directly before the sum; `_addto` is the sum after ReLU.  `logits` is the
  input of the softmax `output` (the original has no such layer); a network
  without a head has neither.
  """
  architecture = ARCHITECTURES[check_depth(depth)]
  names = ['conv1_conv', 'conv1_bn', *(('pool1',) if architecture.pool else ())]
  for stage, count in enumerate(architecture.blocks, start=2):
    for block in range(1, count + 1):
      prefix = block_name(stage, block)
      branches = architecture.branches
      if architecture.has_projection(stage, block):
        branches = ('branch1', *branches)
      for branch in branches:
        names += [f'{prefix}_{branch}_conv', f'{prefix}_{branch}_bn']
      names.append(f'{prefix}_addto')
  return (*names, 'avgpool', *(HEAD if head else ()))


def map_layers(depth: int) -> tuple[str, ...]:
  """The layers with spatial maps: all but the average pool and the head."""
  return layer_names(depth, head=False)[:-1]


def parameter_names(depth: int, head: bool = True) -> tuple[str, ...]:
  """Every parameter, `layer/leaf`, in the order of computing.

  Leaves: a convolution's `kernel`; a batch norm's `scale`, `mean`, `var` and
  `bias`; the classifier's `kernel` and `bias`, in `logits`.
  """
  leaves = {
    'conv': ('kernel',),
    'bn': NORM_LEAVES,
    'logits': ('kernel', 'bias'),
  }
  return tuple(
    f'{layer}/{leaf}'
    for layer in layer_names(depth, head)
    for leaf in leaves.get(layer.rsplit('_', 1)[-1], ())
  )


def grammar(depth: int) -> str:
  """All layer names of a depth in a few lines, for a person."""
  architecture = ARCHITECTURES[check_depth(depth)]
  blocks = ', '.join(
    f'res{stage}_1 to res{stage}_{count}'
    for stage, count in enumerate(architecture.blocks, start=2)
  )
  projected = ', '.join(
    block_name(stage, 1)
    for stage in range(2, 1 + architecture.last_stage)
    if architecture.has_projection(stage, 1)
  )
  pool = 'pool1, ' if architecture.pool else ''
  branch1 = f' (and branch1 in {projected})' if projected else ''
  return (
    f'conv1_conv, conv1_bn, {pool}avgpool, logits, output, and BLOCK_addto,'
    f' BLOCK_BRANCH_conv, BLOCK_BRANCH_bn where BLOCK is {blocks} and BRANCH'
    f' is {", ".join(architecture.branches)}{branch1};'
    f' globs such as res{architecture.last_stage}_*_addto choose several; the'
    ' names of Caffe, Keras and torchvision are known, too (--job=summary lists'
    ' them)'
  )


def split_list(text: str | Sequence[str]) -> list[str]:
  """Names from `a,b` or from a sequence of names."""
  parts = text.split(',') if isinstance(text, str) else text
  return [part.strip() for part in parts if part.strip()]


def depth_of(name: str | int) -> int:
  """The depth of a network by its name: 50 of 'resnet50', 'ResNet-50' or 50.

  Raises:
    UserError: there is no such network.
  """
  match = re.fullmatch(r'(?:resnet[-_]?)?(\d+)', str(name).lower())
  if not match or int(match[1]) not in ARCHITECTURES:
    allowed = ', '.join(f'resnet{depth}' for depth in ARCHITECTURES)
    raise errors.unknown(
      'network',
      str(name),
      (),
      described=f'{allowed}; a file is given as weights=...',
    )
  return int(match[1])
