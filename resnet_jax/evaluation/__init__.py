# SPDX-License-Identifier: Apache-2.0
"""Evaluation: predictions on disk, error rates, and their statistics."""
