# SPDX-License-Identifier: Apache-2.0
"""The labels of images, and a diagnosis of labels in a wrong order."""

from resnet_jax.data.truth.diagnosis import diagnose
from resnet_jax.data.truth.labelset import LabelSet, load

__all__ = ['LabelSet', 'diagnose', 'load']
