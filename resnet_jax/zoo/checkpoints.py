# SPDX-License-Identifier: Apache-2.0
"""The published checkpoints, as a table; `wider` has those of wider networks.

Sources of the figures: torchvision 0.29.2 `models/resnet.py`, timm 1.0.31
`models/resnet.py` and `results/results-imagenet.csv`, Keras 3.15
`applications/resnet.py` and keras-applications' README, the READMEs of
KaimingHe/deep-residual-networks and of PaddlePaddle's model zoo, Apache MXNet
`tools/caffe_converter/convert_caffe_modelzoo.py` and Intel's Open Model Zoo
`models/public/resnet-*/model.yml` (hashes and mirrors of the Caffe files).
A SHA-256 that a publisher gives by its first eight digits, in the file's name,
stands here in full where two independent programs record it.
"""

import dataclasses

from resnet_jax.data import presets
from resnet_jax.models.variant import Variant
from resnet_jax.zoo import wider
from resnet_jax.zoo.records import Accuracy, File, Hash, Protocol, Record

# Learned numbers of the networks with 1000 classes.
_PARAMETERS = {
  18: 11_689_512,
  34: 21_797_672,
  50: 25_557_032,
  101: 44_549_160,
  152: 60_192_808,
}
# SHA-256 (Keras': MD5), as far as they are published.
_DIGITS = dict(
  line.split()
  for line in """
msra-50 44ee2b08816cede2b7aaa047888df07dcab52f73399aa1c8bef05a17bfdd4888
msra-101 2847d93346d7928ec1f257f49f60ea53e9075c15265c494469610e67ffb7f2e2
msra-152 6253c4c4132c0b25c112b166629aa57dcaeec044a4c68ac9f003b6c801329d55
keras-50 2cb95161c43110f7111970584f804107
keras-101 f1aeb4b969a6efcfb50fad2f0c20cfc5
keras-152 100835be76be38e30d865e96f2aaae62
v1-18 f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec
v1-34 b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f
v1-50 0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a
v2-50 11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca
v1-101 63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a
v2-101 cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e
v1-152 394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58
v2-152 f82ba261
a1-18 d63eafa07a6e32a39d328e364f8c9f89d671444ecc7f02aa0f7eb8882af3dd29
a1-34 46f8f793
a1-50 14fe96d1f9fb311a60490082d2077e6e60427dcfe21839ddf934cce948f72b0f
a1-101 cdcb52a9
a1-152 2eee8a7a
""".strip().splitlines()
)
_CAFFE_VARIANT = Variant(stride_in='1x1', stem_pool='ceil', epsilon=1e-5)
_KERAS_VARIANT = Variant(stride_in='1x1', stem_pool='pad1', epsilon=1.001e-5)
_TORCH_VARIANT = Variant(stride_in='3x3', stem_pool='pad1', epsilon=1e-5)
_EMBEDDED = 'resnet20_cifar10.safetensors'
_MSRA_LICENCE = 'MIT'
_MSRA_SOURCE = '(c) 2016 Shaoqing Ren (github.com/KaimingHe)'
_MXNET = (
  'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/caffe/models/'
  'resnet/'
)
_DEEPDETECT = 'https://www.deepdetect.com/models/resnet/'
_OPENCV = 'https://dl.opencv.org/models/'
_PADDLE = 'http://paddlepaddle.bj.bcebos.com/model_zoo/imagenet/'
_SZP = 'https://file.szp.io/f/'
_TORCH = 'https://download.pytorch.org/models/'
_TIMM = (
  'https://github.com/huggingface/pytorch-image-models/releases/download/'
  'v0.1-rsb-weights/'
)
_KERAS = (
  'https://storage.googleapis.com/tensorflow/keras-applications/resnet/',
  'https://github.com/keras-team/keras-applications/releases/download/resnet/',
)


def _from_errors(
  top1: float, top5: float | None, protocol: Protocol, source: str
) -> Accuracy:
  other = None if top5 is None else round(100 - top5, 3)
  return Accuracy(round(100 - top1, 3), other, protocol, source)


def _msra() -> list[Record]:
  rows = (
    # Depth, bytes, errors of one crop and of ten; the file's key at szp.io.
    (50, 102462397, (24.7, 7.8), (22.9, 6.7), '80094d907e'),
    (101, 178662602, (23.6, 7.1), (21.8, 6.1), '3dda65e477'),
    (152, 241444171, (23.0, 6.7), (21.4, 5.7), '97ae78f7ba'),
  )
  both = (_MXNET, _DEEPDETECT)
  mirrors = {50: (*both, _OPENCV), 101: both, 152: both}
  page = 'github.com/KaimingHe/deep-residual-networks, README'
  return [
    Record(
      'msra',
      depth,
      'caffe',
      File(
        (
          *(f'{m}ResNet-{depth}-model.caffemodel' for m in mirrors[depth]),
          f'{_SZP}{key}/?dl=1',
        ),
        Hash('sha256', _DIGITS[f'msra-{depth}']),
        size,
      ),
      _MSRA_LICENCE,
      _MSRA_SOURCE,
      _CAFFE_VARIANT,
      presets.CAFFE,
      _PARAMETERS[depth],
      (
        _from_errors(*one, Protocol(), page),
        _from_errors(*ten, Protocol(crops=10), page),
      ),
      "the authors' own; their page's address is dead, these are mirrors. They"
      ' subtracted a mean image (mean=ResNet_mean.binaryproto); the'
      ' interpolation is not stated',
    )
    for depth, size, one, ten, key in rows
  ]


def _paddle() -> list[Record]:
  page = "PaddlePaddle's page 'Model Zoo - ImageNet'"
  return [
    Record(
      'paddle',
      depth,
      'archive',
      File((f'{_PADDLE}resnet_{depth}.tar.gz',), None, None),
      'not stated',
      f'converted from weights under {_MSRA_LICENCE}, {_MSRA_SOURCE}',
      _CAFFE_VARIANT,
      presets.CAFFE,
      _PARAMETERS[depth],
      (_from_errors(error, None, Protocol(), page),),
      'no hash is published, so a download is checked by its contents only',
    )
    for depth, error in ((50, 24.9), (101, 23.7), (152, 23.2))
  ]


def _keras() -> list[Record]:
  rows = (
    # Depth, bytes, whether exactly, accuracies; top-5 error of ten crops.
    (50, 102967424, True, (74.928, 92.060), 6.828),
    (101, 179648224, True, (76.420, 92.786), 6.092),
    # Its size: that of the file without a head and of the other heads.
    (152, 242900552, False, (76.604, 93.118), 5.908),
  )
  page = 'github.com/keras-team/keras-applications, README'
  one_crop = Protocol(resize=None)
  ten_crops = Protocol(resize=None, crops=10)
  return [
    Record(
      'keras',
      depth,
      'keras',
      File(
        tuple(
          f'{address}resnet{depth}_weights_tf_dim_ordering_tf_kernels.h5'
          for address in _KERAS
        ),
        Hash('md5', _DIGITS[f'keras-{depth}']),
        size,
        exact,
      ),
      _MSRA_LICENCE,
      f'ported from weights under it: {_MSRA_SOURCE}',
      _KERAS_VARIANT,
      presets.CAFFE,
      _PARAMETERS[depth],
      (
        Accuracy(*one, one_crop, page),
        Accuracy(
          None, round(100 - ten, 3), ten_crops, f'{page} before 976050c'
        ),
      ),
      "the authors' weights in a network whose max pool is padded",
    )
    for depth, size, exact, one, ten in rows
  ]


def _torchvision() -> list[Record]:
  rows = (
    # Version, depth, bytes, whether exactly, accuracies.
    ('v1', 18, 46830571, True, 69.758, 89.078),
    ('v1', 34, 87319819, True, 73.314, 91.420),
    ('v1', 50, 102530333, True, 76.130, 92.862),
    ('v2', 50, 102540417, True, 80.858, 95.434),
    ('v1', 101, 178793742, False, 77.374, 93.546),
    ('v2', 101, 178813665, False, 81.886, 95.780),
    ('v1', 152, 241627562, False, 78.312, 94.046),
    ('v2', 152, 241669505, False, 82.284, 96.002),
  )
  sizes = {'v1': 256, 'v2': 232}
  page = 'torchvision 0.29.2, models/resnet.py'
  return [
    Record(
      f'torchvision.{version}',
      depth,
      'torch',
      _torch_file(f'{_TORCH}resnet{depth}', f'{version}-{depth}', size, exact),
      'BSD-3-Clause',
      'of the package; the weights state none',
      _TORCH_VARIANT,
      dataclasses.replace(presets.TORCHVISION, resize_size=sizes[version]),
      _PARAMETERS[depth],
      (Accuracy(top1, top5, Protocol(sizes[version]), page),),
    )
    for version, depth, size, exact, top1, top5 in rows
  ]


def _torch_file(
  start: str, name: str, size: int | None = None, exact: bool = True
) -> File:
  """A file whose address ends in the first digits of its hash."""
  digits = _DIGITS[name]
  return File(
    (f'{start}-{digits[:8]}.pth',), Hash('sha256', digits), size, exact
  )


def _timm() -> list[Record]:
  rows = (
    # Depth, top-1 and top-5 at 224, at 288.  No size is published; that of
    # torchvision's file of the depth is near.
    (18, (71.504, 90.086), (73.164, 91.054)),
    (34, (76.420, 92.896), (77.930, 93.758)),
    (50, (80.382, 94.598), (81.240, 95.112)),
    (101, (81.494, 95.164), (82.326, 95.630)),
    (152, (81.998, 95.294), (82.742, 95.734)),
  )
  usual = Protocol(235, interpolation='bicubic')
  large = Protocol(288, 288, interpolation='bicubic')
  page = 'timm, results/results-imagenet.csv'
  return [
    Record(
      'timm.a1_in1k',
      depth,
      'torch',
      _torch_file(f'{_TIMM}resnet{depth}_a1_0', f'a1-{depth}'),
      'Apache-2.0',
      'timm 1.0.31, models/resnet.py',
      _TORCH_VARIANT,
      dataclasses.replace(
        presets.TORCHVISION, resize_size=235, interpolation='bicubic'
      ),
      _PARAMETERS[depth],
      (Accuracy(*at_224, usual, page), Accuracy(*at_288, large, page)),
      'for 288 set resize_size=288 and crop_size=288',
    )
    for depth, at_224, at_288 in rows
  ]


def _embedded() -> list[Record]:
  # Trained by experiments/train_cifar.py; docs/resnet20_cifar10.md.
  digits = '97d48eed0d16cf18a2b34faefd8683c4e077938d8a63ac73ee9709524a2115ab'
  return [
    Record(
      'cifar10',
      20,
      'safetensors',
      File((), Hash('sha256', digits), 551340, embedded=_EMBEDDED),
      'Apache-2.0',
      'of this package, whose authors trained it from a random start',
      Variant(),
      presets.CIFAR10,
      269_722,
      (
        Accuracy(
          87.77,
          99.59,
          Protocol(32, 32, interpolation='bilinear'),
          'experiments/results/cifar.jsonl',
          images=10_000,
        ),
      ),
      'in the package; its accuracy is that on the 10,000 test images of'
      ' CIFAR-10, stored as JPEG',
    )
  ]


RECORDS: tuple[Record, ...] = (
  *_msra(),
  *_paddle(),
  *_keras(),
  *_torchvision(),
  *_timm(),
  *wider.RECORDS,
  *_embedded(),
)
FAMILIES = tuple(dict.fromkeys(record.family for record in RECORDS))
# What weights=auto means, by the network's name.
USUAL = {
  'resnet20': 'cifar10',
  'resnet18': 'torchvision.v1',
  'resnet34': 'torchvision.v1',
  'resnet50': 'msra',
  'resnet101': 'msra',
  'resnet152': 'msra',
  **wider.USUAL,
}
# The mean images that the authors' networks were trained with, by family.
MEANS = {
  'msra': File(
    (
      f'{_MXNET}ResNet_mean.binaryproto',
      f'{_DEEPDETECT}ResNet_mean.binaryproto',
      'https://raw.githubusercontent.com/ry/tensorflow-resnet/'
      '45c6c42f97c6f90b9709e6a02c33ec3ae5c73a3c/ResNet_mean.binaryproto',
    ),
    Hash('sha1', '0b056fd4444f0ae1537af646ba736edf0d4cefaf'),
    None,
  ),
  'paddle': File((f'{_PADDLE}mean_meta_224.tar.gz',), None, None),
}
