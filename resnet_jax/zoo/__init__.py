# SPDX-License-Identifier: Apache-2.0
"""The published checkpoints: a table, a download and a cache."""
