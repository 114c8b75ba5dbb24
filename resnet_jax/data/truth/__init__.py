# SPDX-License-Identifier: Apache-2.0
"""The labels of images, and a diagnosis of labels in a wrong order."""

from resnet_jax.data.truth.diagnosis import diagnose
from resnet_jax.data.truth.labelset import LabelSet, load
from resnet_jax.data.truth.naming import columns, resolved

__all__ = ['LabelSet', 'columns', 'diagnose', 'load', 'resolved']
