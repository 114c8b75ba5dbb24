# SPDX-License-Identifier: Apache-2.0
"""Plots and diagrams of a network and its features.

`filters`, `feature_maps`, `grad_cam`, `bars` and `neighbours` take arrays and
return Matplotlib figures.
"""

from resnet_jax.views.plots import (
  bars,
  feature_maps,
  filters,
  grad_cam,
  neighbours,
)

__all__ = ['bars', 'feature_maps', 'filters', 'grad_cam', 'neighbours']
