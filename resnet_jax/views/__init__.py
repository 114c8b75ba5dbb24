# SPDX-License-Identifier: Apache-2.0
"""What people look at: the network's graph and its diagram."""
