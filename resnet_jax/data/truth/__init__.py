# SPDX-License-Identifier: Apache-2.0
"""The right answers to images, and which wrong order they look like."""

from resnet_jax.data.truth.diagnosis import diagnose
from resnet_jax.data.truth.labelset import LabelSet, load

__all__ = ['LabelSet', 'diagnose', 'load']
