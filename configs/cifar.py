# SPDX-License-Identifier: Apache-2.0
"""Settings of the paper's CIFAR networks; the keys are configs/resnet.py's.

  python -m resnet_jax.main --config=configs/cifar.py --job=predict
  python -m resnet_jax.main --config=configs/cifar.py:56 --job=evaluate \
      --config.weights=resnet56.pth --config.data=test.tar

The package has trained weights of ResNet-20.  You supply others, such as those
of akamaster/pytorch_resnet_cifar10.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from resnet_jax import configuration


def get_config(arg: str = '') -> ConfigDict:
  """The settings, overridden by `arg`, such as '56,weights=random'."""
  every = runpy.run_path(str(pathlib.Path(__file__).with_name('resnet.py')))
  config = every['get_config']()

  # 20, 32, 44 or 56; 0: from the weights' file.
  config.layer_num = 20
  # Or a file, for weights of classes other than CIFAR-10's.
  config.class_names = 'cifar10'
  config.data = 'example/cifar10.list'
  # Small images allow a large batch size.
  config.batch_size = 256

  return configuration.apply(config, arg)
