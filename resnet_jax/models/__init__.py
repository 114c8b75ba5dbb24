# SPDX-License-Identifier: Apache-2.0
"""The network: layer names, layers and the ResNet itself."""
