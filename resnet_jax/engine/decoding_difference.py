# SPDX-License-Identifier: Apache-2.0
"""How far an inexact decoding is off, measured on a run's own first images."""

import dataclasses

import numpy as np

from resnet_jax.data import pipeline
from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import sizing


def line(
  batch: pipeline.Batch,
  preprocess: Preprocess,
  network: sizing.Network,
  rows: int,
) -> str:
  """Compares a batch with the same images decoded exactly.

  Args:
    batch: decoded as `preprocess` says.
    preprocess: with another decoding than 'exact'.
    network: gives the layers that are compared.
    rows: images of a whole batch.

  Returns:
    A line to print: the difference of the pixels, on the scale 0 to 255, and
    of the layer that differs most, as its root mean square over that of the
    layer's values.
  """
  [exact] = pipeline.batches(
    batch.items,
    dataclasses.replace(preprocess, decode='exact'),
    rows=len(batch.items),
    on_error='record',
  )
  real = batch.mask & exact.mask
  note = f'NOTE: decode={preprocess.decode}'
  if not real.any():
    return f'{note}: no image to compare with decode=exact'
  pixels = np.abs(
    batch.images[real].astype(int) - exact.images[real].astype(int)
  )
  ours, theirs = (
    network.fetch(network(images, rows), real)
    for images in (batch.images, exact.images)
  )
  off = {
    name: _rms(ours[name][real] - theirs[name][real])
    / max(_rms(theirs[name][real]), 1e-30)
    for name in theirs
  }
  worst = max(off, key=off.__getitem__)
  return (
    f'{note}, against decode=exact on the first {real.sum()} images: pixels'
    f' differ by {pixels.mean():.2f} on average, by {pixels.max()} at most;'
    f' {worst} by {off[worst]:.2%} of its rms'
  )


def _rms(values: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
