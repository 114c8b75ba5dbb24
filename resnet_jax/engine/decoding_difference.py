# SPDX-License-Identifier: Apache-2.0
"""How far a faster way of decoding is off, on a run's own first images."""

import dataclasses

import numpy as np

from resnet_jax.data import pipeline, preprocess
from resnet_jax.engine import sizing


def line(
  batch: pipeline.Batch, how: preprocess.Preprocess, network: sizing.Network
) -> str:
  """Compares a batch with the same images decoded exactly.

  Args:
    batch: decoded as `how` says.
    how: another decoding than 'exact'.
    network: gives the layers that are compared.

  Returns:
    A line for a person: pixels, on the scale 0 to 255, and the layer that
    differs most, as the root mean square of the difference over that of the
    layer.
  """
  [exact] = pipeline.batches(
    batch.items,
    dataclasses.replace(how, decode='exact'),
    rows=len(batch.images),
    on_error='record',
  )
  real = batch.mask & exact.mask
  if not real.any():
    return f'NOTE: decode={how.decode}: no image to compare with decode=exact'
  difference = np.abs(
    batch.images[real].astype(int) - exact.images[real].astype(int)
  )
  ours, theirs = (
    network.fetch(network(images), real)
    for images in (batch.images, exact.images)
  )
  off = {
    name: _rms(ours[name][real] - theirs[name][real])
    / max(_rms(theirs[name][real]), 1e-30)
    for name in theirs
  }
  worst = max(off, key=off.__getitem__)
  return (
    f'NOTE: decode={how.decode}, against decode=exact on the first'
    f' {real.sum()} images: pixels differ by {difference.mean():.2f} on'
    f' average, by {difference.max()} at most; {worst} by'
    f' {off[worst]:.2%} of its rms'
  )


def _rms(values: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
