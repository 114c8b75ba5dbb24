# SPDX-License-Identifier: Apache-2.0
"""Readers of containers, each once, for weights and data."""
