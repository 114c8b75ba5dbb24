# SPDX-License-Identifier: Apache-2.0
"""The version of the program, and of what determines its values."""

import importlib.metadata

__version__ = '0.1.0'

_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'pillow')


def versions() -> dict[str, str]:
  """Versions of this package and of those that values depend on."""
  return {'resnet_jax': __version__} | {
    package: importlib.metadata.version(package) for package in _PACKAGES
  }
