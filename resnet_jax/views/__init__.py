# SPDX-License-Identifier: Apache-2.0
"""Images of a network and of what it makes of an image.

`filters`, `feature_maps`, `grad_cam`, `bars` and `neighbours` take arrays and
give Matplotlib figures, which notebooks show and `savefig` writes.
"""

from resnet_jax.views.plots import (
  bars,
  feature_maps,
  filters,
  grad_cam,
  neighbours,
)

__all__ = ['bars', 'feature_maps', 'filters', 'grad_cam', 'neighbours']
