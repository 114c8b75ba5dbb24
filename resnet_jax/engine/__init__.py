# SPDX-License-Identifier: Apache-2.0
"""Images through a network on devices: the loop and what it needs."""
