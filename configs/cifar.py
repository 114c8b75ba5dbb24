# SPDX-License-Identifier: Apache-2.0
"""Settings for the paper's CIFAR networks; the keys are those of resnet.py.

  python -m resnet_jax.main --config=configs/cifar.py:56 --job=evaluate \
      --config.weights=resnet56.pth --config.data=test.tar

The weights are your own, or those of akamaster/pytorch_resnet_cifar10; the
images are 32x32.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from resnet_jax import configuration


def get_config(arg: str = '') -> ConfigDict:
  """The settings, overridden by those in `arg` ('56,weights=random')."""
  every = runpy.run_path(str(pathlib.Path(__file__).with_name('resnet.py')))
  config = every['get_config']()

  # 20, 32, 44 or 56; 0: the depth of the weights' file.
  config.layer_num = 20
  # Or a file with the class names, for other classes than CIFAR-10's.
  config.class_names = 'cifar10'
  # The images have the network's size.
  config.resize = 'none'
  # Images of 32x32 take little memory.
  config.batch_size = 256

  return configuration.apply(config, arg)
