# SPDX-License-Identifier: Apache-2.0
"""Evaluation: predictions on disk, error rates, their statistics, a probe."""

from resnet_jax.evaluation.probe import Probe, linear_probe

__all__ = ['Probe', 'linear_probe']
