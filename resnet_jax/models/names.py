# SPDX-License-Identifier: Apache-2.0
"""What the layers are called, in order; PaddlePaddle's names are canonical.

Plain Python, so that a command line can be checked without importing JAX.
Depths and block counts: He et al., "Deep Residual Learning for Image
Recognition", 2015, table 1.
"""

import dataclasses
from collections.abc import Sequence

from resnet_jax import errors


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One column of the paper's table 1.

  Attributes:
    bottleneck: whether a block is 1x1, 3x3, 1x1 (else two 3x3).
    blocks: blocks in the stages res2 to res5.
  """

  bottleneck: bool
  blocks: tuple[int, ...]

  @property
  def branches(self) -> tuple[str, ...]:
    """The convolutions of a block's residual branch, first to last."""
    letters = 'abc' if self.bottleneck else 'ab'
    return tuple(f'branch2{letter}' for letter in letters)

  @property
  def expansion(self) -> int:
    """Channels that leave a block, over its inner width."""
    return 4 if self.bottleneck else 1

  def has_projection(self, stage: int, block: int) -> bool:
    """Whether the block's shortcut is a 1x1 convolution, `branch1`.

    Only where the shape changes (the paper's option B): the first block of a
    stage, but not of basic-block res2, which 64 channels enter and leave.
    """
    return block == 1 and (self.bottleneck or stage > 2)


ARCHITECTURES = {
  18: Architecture(bottleneck=False, blocks=(2, 2, 2, 2)),
  34: Architecture(bottleneck=False, blocks=(3, 4, 6, 3)),
  50: Architecture(bottleneck=True, blocks=(3, 4, 6, 3)),
  101: Architecture(bottleneck=True, blocks=(3, 4, 23, 3)),
  152: Architecture(bottleneck=True, blocks=(3, 8, 36, 3)),
}


def check_depth(depth: int) -> int:
  """Returns `depth` if a ResNet of that many layers was published."""
  if depth not in ARCHITECTURES:
    allowed = ', '.join(map(str, ARCHITECTURES))
    raise errors.UserError(f'no ResNet has {depth} layers. Allowed: {allowed}.')
  return depth


def block_name(stage: int, block: int) -> str:
  """The prefix of a block's layers; both numbers as in `res2_1`, the first."""
  return f'res{stage}_{block}'


HEAD = ('logits', 'output')


def layer_names(depth: int, head: bool = True) -> tuple[str, ...]:
  """Every addressable layer of ResNet-`depth`, in the order of computing.

  `_conv` is before batch norm.  `_bn` includes the ReLU that follows it, if
  one does before the sum; `_addto` is the sum after ReLU.  `logits` goes into
  the softmax `output` (the original has no layer of that name); without a
  head there are neither.
  """
  architecture = ARCHITECTURES[check_depth(depth)]
  names = ['conv1_conv', 'conv1_bn', 'pool1']
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


def parameter_names(depth: int, head: bool = True) -> tuple[str, ...]:
  """Every parameter, `layer/leaf`, in the order of computing.

  Leaves: a convolution's `kernel`; a batch norm's `scale`, `mean`, `var` and
  `bias`; the classifier's `kernel` and `bias`, in `logits`.
  """
  leaves = {
    'conv': ('kernel',),
    'bn': ('scale', 'mean', 'var', 'bias'),
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
    for stage in range(2, 6)
    if architecture.has_projection(stage, 1)
  )
  return (
    'conv1_conv, conv1_bn, pool1, avgpool, logits, output, and BLOCK_addto,'
    f' BLOCK_BRANCH_conv, BLOCK_BRANCH_bn where BLOCK is {blocks} and BRANCH'
    f' is {", ".join(architecture.branches)} (and branch1 in {projected});'
    ' globs such as res5_*_addto choose several; the names of Caffe, Keras and'
    ' torchvision are known, too (--job=summary lists them)'
  )


def split_list(text: str | Sequence[str]) -> list[str]:
  """Names from `a,b` or from a sequence of names."""
  parts = text.split(',') if isinstance(text, str) else text
  return [part.strip() for part in parts if part.strip()]
