# SPDX-License-Identifier: Apache-2.0
"""Evaluation: predictions on disk, what they count, and how sure that is."""
