# SPDX-License-Identifier: Apache-2.0
"""The published wide ResNets and ResNeXts, as a table.

Sources of the figures: torchvision 0.28.0 `models/resnet.py`, timm 1.0.31
`models/resnet.py` and huggingface/pytorch-image-models
`results/results-imagenet.csv` at commit 0173a139.  Their SHA-256 are published
by the first eight digits, in the files' names.
"""

import dataclasses
from collections.abc import Iterator

from resnet_jax.data import presets
from resnet_jax.models import known
from resnet_jax.zoo.records import Accuracy, File, Hash, Protocol, Record

# Learned numbers.
_PARAMETERS = {
  'wide_resnet50_2': 68_883_240,
  'wide_resnet101_2': 126_886_696,
  'resnext50_32x4d': 25_028_904,
  'resnext101_32x8d': 88_791_336,
  'resnext101_64x4d': 83_455_272,
}
_TORCH = 'https://download.pytorch.org/models/'
_GITHUB = 'https://github.com/{}/releases/download/'
_RWIGHTMAN = _GITHUB.format('rwightman/pytorch-image-models')
_HUGGING_FACE = _GITHUB.format('huggingface/pytorch-image-models')
_GLUON = _GITHUB.format('rwightman/pytorch-pretrained-gluonresnet')
# Two bytes a parameter.
_HALF = 'the file has the size of half precision (float16)'

_NETWORKS = {network.name: network for network in known.NETWORKS}


@dataclasses.dataclass(frozen=True)
class _Test:
  """A test of timm: shorter side, crop, and the accuracies, percent."""

  resize: int
  crop: int
  top1: float
  top5: float


def _file(address: str, size: int | None = None) -> File:
  digits = address.removesuffix('.pth').rpartition('-')[2]
  return File((address,), Hash('sha256', digits), size, exact=False)


def _torchvision() -> Iterator[Record]:
  rows = (
    # Network, version, digits, MiB, shorter side, accuracies.
    ('wide_resnet50_2', 'v1', '95faca4d', 131.82, 256, 78.468, 94.086),
    ('wide_resnet50_2', 'v2', '9ba9bcbe', 263.124, 232, 81.602, 95.758),
    ('wide_resnet101_2', 'v1', '32ee1156', 242.896, 256, 78.848, 94.284),
    ('wide_resnet101_2', 'v2', 'd733dc28', 484.747, 232, 82.510, 96.020),
    ('resnext50_32x4d', 'v1', '7cdf4587', 95.789, 256, 77.618, 93.698),
    ('resnext50_32x4d', 'v2', '1a0047aa', 95.833, 232, 81.198, 95.340),
    ('resnext101_32x8d', 'v1', '8ba56ff5', 339.586, 256, 79.312, 94.526),
    ('resnext101_32x8d', 'v2', '110c445d', 339.673, 232, 82.834, 96.228),
    # Its only version, which has the recipe of the others' second.
    ('resnext101_64x4d', 'v1', '173b62eb', 319.318, 232, 83.246, 96.454),
  )
  page = 'torchvision 0.28.0, models/resnet.py'
  for name, version, digits, mebibytes, resize, top1, top5 in rows:
    network = _NETWORKS[name]
    file = _file(f'{_TORCH}{name}-{digits}.pth', round(mebibytes * 2**20))
    assert file.size is not None
    yield Record(
      f'torchvision.{name}.{version}',
      network.depth,
      'torch',
      file,
      'BSD-3-Clause',
      'of the package; the weights state none',
      network.variant,
      dataclasses.replace(presets.TORCHVISION, resize_size=resize),
      _PARAMETERS[name],
      (Accuracy(top1, top5, Protocol(resize), page),),
      _HALF if file.size < 3 * _PARAMETERS[name] else '',
    )


def _timm() -> Iterator[Record]:
  rsb, old = 'v0.1-rsb-weights/', 'v0.1-weights/'
  next50, next101 = 'resnext50_32x4d', 'resnext101_64x4d'
  tpu = f'{_RWIGHTMAN}v0.1-tpu-weights/{next101}'
  rows = (
    # Network, recipe, file, shorter side at 224, published test.
    (
      'wide_resnet50_2',
      'racm_in1k',
      f'{_RWIGHTMAN}{old}wide_resnet50_racm-8234f177.pth',
      256,
      _Test(303, 288, 82.280, 96.064),
    ),
    (
      next50,
      'a1h_in1k',
      f'{_RWIGHTMAN}{rsb}{next50}_a1h-0146ab0a.pth',
      235,
      _Test(288, 288, 82.014, 95.934),
    ),
    (
      next50,
      'a1_in1k',
      f'{_HUGGING_FACE}{rsb}{next50}_a1_0-b5a91a1d.pth',
      235,
      _Test(288, 288, 81.466, 95.174),
    ),
    (
      next50,
      'a2_in1k',
      f'{_HUGGING_FACE}{rsb}{next50}_a2_0-efc76add.pth',
      235,
      _Test(288, 288, 81.304, 95.096),
    ),
    (
      # Trained at 160, and tested at 224.
      next50,
      'a3_in1k',
      f'{_HUGGING_FACE}{rsb}{next50}_a3_0-3e450271.pth',
      235,
      _Test(235, 224, 79.268, 94.306),
    ),
    (
      next50,
      'ra_in1k',
      f'{_HUGGING_FACE}{old}{next50}_ra-d733960d.pth',
      256,
      _Test(303, 288, 80.698, 95.390),
    ),
    (
      next50,
      'gluon_in1k',
      f'{_GLUON}v0.1/gluon_{next50}-e6a097c1.pth',
      256,
      _Test(256, 224, 79.360, 94.430),
    ),
    (
      next101,
      'c1_in1k',
      f'{tpu}_c-0d0e0cc0.pth',
      235,
      _Test(288, 288, 83.156, 96.374),
    ),
    (
      next101,
      'gluon_in1k',
      f'{_GLUON}v0.1/gluon_{next101}-f9a8e184.pth',
      256,
      _Test(256, 224, 80.600, 94.992),
    ),
  )
  page = 'timm, results/results-imagenet.csv'
  for name, recipe, address, resize, test in rows:
    network = _NETWORKS[name]
    protocol = Protocol(test.resize, test.crop, interpolation='bicubic')
    yield Record(
      f'timm.{name}.{recipe}',
      network.depth,
      'torch',
      # No size is published.
      _file(address),
      'Apache-2.0',
      'timm 1.0.31, models/resnet.py',
      network.variant,
      dataclasses.replace(
        presets.TORCHVISION, resize_size=resize, interpolation='bicubic'
      ),
      _PARAMETERS[name],
      (Accuracy(test.top1, test.top5, protocol, page),),
      f'for {test.crop} set resize_size={test.resize} and crop_size={test.crop}'
      if test.crop != 224
      else '',
    )


RECORDS: tuple[Record, ...] = (*_torchvision(), *_timm())
# What weights=auto means, by the network's name.
USUAL = {name: f'torchvision.{name}.v1' for name in _NETWORKS}
