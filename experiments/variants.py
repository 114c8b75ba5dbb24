# SPDX-License-Identifier: Apache-2.0
"""Measures how much it matters in which ResNet weights run.

Runs weights in their own network and preprocessing, and in each neighbour that
differs in one respect.  Writes one line per neighbour:

  python experiments/variants.py --weights=msra --depth=50 --data=photos
"""

import argparse
import json
import pathlib
import sys
import warnings
from typing import Any

import numpy as np

import resnet_jax
from resnet_jax.data import mean as mean_lib

LAYERS = ('pool1', 'res2_3_addto', 'res5_3_addto', 'avgpool', 'output')
SWAPPED = {'BGR': 'RGB', 'RGB': 'BGR'}


def neighbours(model: resnet_jax.Model) -> dict[str, dict[str, Any]]:
  """Settings that differ from a checkpoint's own in one respect each."""
  own, how = model.weights.module, model.preprocess
  variant = own.variant
  other_pool = 'pad1' if variant.stem_pool == 'ceil' else 'ceil'
  other_stride = '3x3' if variant.stride_in == '1x1' else '1x1'
  other_epsilon = 1e-5 if variant.epsilon > 1e-5 else 1.001e-5
  other_filter = 'lanczos' if how.interpolation == 'bilinear' else 'bilinear'
  other_rounding = 'nearest' if how.rounding != 'nearest' else 'torchvision'
  return {
    f'epsilon {other_epsilon:g}': {'epsilon': other_epsilon},
    f'rounding {other_rounding}': {'rounding': other_rounding},
    f'{other_filter} resize': {'interpolation': other_filter},
    f'stem pool {other_pool}': {'stem_pool': other_pool},
    'whole image squashed': {'resize': 'squash'},
    f'{SWAPPED[how.channels]} input': {
      'channels': SWAPPED[how.channels],
      'mean': mean_lib.as_array(how.mean).ravel()[::-1].tolist(),
      'std': how.std[::-1],
    },
    f'stride in {other_stride}': {'stride_in': other_stride},
    'no mean subtracted': {'mean': (0, 0, 0)},
  }


def compare(
  own: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> dict[str, float]:
  """The differences between two runs on the same images."""
  result = {}
  for layer in LAYERS[:-1]:
    difference = np.sqrt(np.mean((own[layer] - other[layer]) ** 2))
    result[layer] = float(difference / np.sqrt(np.mean(own[layer] ** 2)))
  a, b = (
    run['avgpool'].reshape(len(run['avgpool']), -1) for run in (own, other)
  )
  lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  result['avgpool_cosine'] = float(np.mean((a * b).sum(axis=1) / lengths))
  best = [
    run['output'].reshape(len(a), -1).argmax(axis=1) for run in (own, other)
  ]
  result['labels_changed_percent'] = float(100 * np.mean(best[0] != best[1]))
  return result


def main() -> None:
  """Measures, and writes the lines."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--weights', required=True)
  parser.add_argument('--depth', type=int, default=50)
  parser.add_argument('--data', required=True, help='a folder of images')
  parser.add_argument('--note', default='', help='stored in every line')
  parser.add_argument('--out', default='experiments/results/variants.jsonl')
  given = parser.parse_args()
  images = sorted(p for p in pathlib.Path(given.data).iterdir() if p.is_file())
  warnings.simplefilter('ignore')
  model = resnet_jax.load(given.depth, weights=given.weights)
  own = model.features(images, list(LAYERS))
  lines = []
  for name, settings in neighbours(model).items():
    other = resnet_jax.load(given.depth, weights=given.weights, **settings)
    found = compare(own, other.features(images, list(LAYERS)))
    lines.append(
      {
        'neighbour': name,
        **found,
        'weights_sha256': model.weights.digest,
        'depth': given.depth,
        'images': len(images),
        'note': given.note,
      }
    )
    print(json.dumps(lines[-1]), file=sys.stderr)
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  pathlib.Path(given.out).write_text(text, 'utf-8')


if __name__ == '__main__':
  main()
