# SPDX-License-Identifier: Apache-2.0
"""Weights for networks of PyTorch, of which no two values are alike."""

import torch


def randomise(network):
  """Weights and statistics of which none is the identity's.

  No ReLU overwrites its input, which may be the value that a test compares.
  """
  torch.manual_seed(0)
  for module in network.modules():
    if isinstance(module, torch.nn.Conv2d):
      torch.nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, torch.nn.BatchNorm2d):
      torch.nn.init.uniform_(module.weight, 0.3, 1.0)
      torch.nn.init.normal_(module.bias, 0, 0.3)
      torch.nn.init.normal_(module.running_mean, 0, 0.3)
      torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
      module.num_batches_tracked.fill_(77)
    elif isinstance(module, torch.nn.ReLU):
      module.inplace = False
  return network.eval()
