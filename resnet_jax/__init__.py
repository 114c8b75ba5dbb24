# SPDX-License-Identifier: Apache-2.0
"""The published ResNets in JAX: features of any layer, predictions, weights.

  import resnet_jax
  model = resnet_jax.load('resnet50', weights='model/resnet_50')
  features = model.features('cat.jpg', 'res5_3_branch2c_bn')
  print(model.predict('cat.jpg'))

`from_variables` makes a model of a network that was trained.
`diagram` draws a network.  `load_features` reads a feature store;
`load_feature_py` and `load_feature_c` read the original program's two formats.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resnet_jax.system.version import __version__

if TYPE_CHECKING:
  from resnet_jax.evaluation.prediction import Prediction
  from resnet_jax.features import (
    load_feature_c,
    load_feature_py,
    load_features,
  )
  from resnet_jax.loading import from_variables, load
  from resnet_jax.model import Model
  from resnet_jax.system.errors import UserError
  from resnet_jax.views.graphviz import diagram

__all__ = [
  'Model',
  'Prediction',
  'UserError',
  '__version__',
  'diagram',
  'from_variables',
  'load',
  'load_feature_c',
  'load_feature_py',
  'load_features',
]

_HOMES = {
  'Model': 'resnet_jax.model',
  'Prediction': 'resnet_jax.evaluation.prediction',
  'UserError': 'resnet_jax.system.errors',
  'diagram': 'resnet_jax.views.graphviz',
  'from_variables': 'resnet_jax.loading',
  'load': 'resnet_jax.loading',
  'load_feature_c': 'resnet_jax.features',
  'load_feature_py': 'resnet_jax.features',
  'load_features': 'resnet_jax.features',
}


def __getattr__(name: str) -> Any:
  # Importing JAX takes a second or more: `main --help` must not wait for it.
  if name not in _HOMES:
    raise AttributeError(f"module 'resnet_jax' has no attribute '{name}'")
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
