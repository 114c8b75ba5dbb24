# SPDX-License-Identifier: Apache-2.0
"""Generated images with known labels, in every form that a source has.

Named and numbered as ILSVRC 2012's validation set, small, and with what is odd
in it: a CMYK JPEG, a PNG named .JPEG, a grey one and, if asked for, one cut
off.  The labels are drawn from a fixed seed; nothing here is ImageNet's but
the WordNet ids.
"""

import dataclasses
import io
import json
import pathlib
import tarfile

import numpy as np
import scipy.io
from PIL import Image

from resnet_jax.data import labels

WNIDS = tuple(one.wnid for one in labels.imagenet_classes())
_SPECIAL = {3: 'cmyk', 5: 'png', 7: 'grey', 9: 'truncated'}


@dataclasses.dataclass(frozen=True)
class Sample:
  """A file's name and bytes, and its label."""

  name: str
  data: bytes
  label: int

  @property
  def wnid(self):
    """The WordNet id of its class."""
    return WNIDS[self.label]

  @property
  def stem(self):
    """Its name without the suffix."""
    return self.name.removesuffix('.JPEG')


def images(count=24, *, classes=1000, truncated=False, size=(44, 38), seed=0):
  """`count` images in the order of their names."""
  random = np.random.default_rng(seed)
  chosen = random.integers(0, classes, count)
  result = []
  for row, label in enumerate(chosen.tolist()):
    coarse = random.integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size)
    kind = _SPECIAL.get(row, '')
    name = f'ILSVRC2012_val_{row + 1:08d}.JPEG'
    result.append(
      Sample(name, _encoded(image, kind, truncated=truncated), label)
    )
  return result


def _encoded(image, kind, *, truncated):
  if kind in ('cmyk', 'grey'):
    image = image.convert({'cmyk': 'CMYK', 'grey': 'L'}[kind])
  file = io.BytesIO()
  image.save(file, 'PNG' if kind == 'png' else 'JPEG')
  data = file.getvalue()
  return data[: -len(data) // 8] if kind == 'truncated' and truncated else data


# ----------------------------------------------------------------- images


def _put(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def folder(root: pathlib.Path, chosen):
  """The flat val folder."""
  for one in chosen:
    _put(root / one.name, one.data)
  return root


def class_folders(root: pathlib.Path, chosen, name_of=lambda one: one.wnid):
  """WNID/NAME, or folders named otherwise."""
  for one in chosen:
    _put(root / name_of(one) / one.name, one.data)
  return root


def list_file(path: pathlib.Path, chosen):
  """Lines of NAME LABEL, and the images beside them."""
  folder(path.parent, chosen)
  return val_txt(path, chosen)


def tar(path: pathlib.Path, chosen, name_of=lambda one: one.name, extra=()):
  """An archive of the images, and of extra (name, bytes)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w') as archive:
    for name, data in [*((name_of(o), o.data) for o in chosen), *extra]:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def shards(root: pathlib.Path, chosen, per=7, suffix='.cls'):
  """WebDataset's form; labels as .cls, .json, .txt or ''."""
  text = {
    '.cls': lambda one: str(one.label),
    '.json': lambda one: json.dumps({'label': one.label, 'name': one.name}),
    '.txt': lambda one: one.wnid,
  }
  for number, start in enumerate(range(0, len(chosen), per)):
    part = chosen[start : start + per]
    beside = [
      (one.stem + suffix, text[suffix](one).encode()) for one in part if suffix
    ]
    tar(root / f'val-{number:03d}.tar', part, extra=beside)
  return root


def parquet(root: pathlib.Path, chosen, files=2, group=5, name_of=None):
  """Hugging Face's form: `files` files, `group` rows in each row group."""
  import pyarrow as pa  # noqa: PLC0415
  from pyarrow import parquet as writer  # noqa: PLC0415

  root.mkdir(parents=True, exist_ok=True)
  name_of = name_of or (lambda one: one.name)
  per = -(-len(chosen) // files)
  for number in range(files):
    part = chosen[number * per : (number + 1) * per]
    rows = [{'bytes': one.data, 'path': name_of(one)} for one in part]
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    table = pa.table(
      {
        'image': pa.array(rows, kind),
        'label': pa.array([one.label for one in part], pa.int64()),
      }
    )
    name = f'validation-{number:05d}-of-{files:05d}.parquet'
    writer.write_table(table, root / name, row_group_size=group)
  return root


# ------------------------------------------------------------------- labels


def val_txt(path: pathlib.Path, chosen):
  """Caffe's."""
  _put(path, ''.join(f'{o.name} {o.label}\n' for o in chosen).encode())
  return path


def id_order(seed=1):
  """(1000,) an order of the devkit's: the label of the id i + 1 is at i."""
  return np.random.default_rng(seed).permutation(len(WNIDS))


def devkit(root: pathlib.Path, chosen, order=None):
  """The ground truth and its meta.mat; returns the ground truth's path."""
  order = id_order() if order is None else order
  ids = np.argsort(order) + 1
  path = root / 'ILSVRC2012_validation_ground_truth.txt'
  _put(path, ''.join(f'{ids[one.label]}\n' for one in chosen).encode())
  meta_mat(root / 'meta.mat', order)
  return path


def meta_mat(path: pathlib.Path, order, inner=60):
  """Classes in the order of their ids, and nodes above them as the kit has."""
  rows = [
    (number + 1, WNIDS[label], 'words', 'gloss', 0)
    for number, label in enumerate(np.asarray(order).tolist())
  ] + [
    (len(order) + 1 + number, f'n9{number:07d}', 'words', 'gloss', 2)
    for number in range(inner)
  ]
  names = ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children')
  synsets = np.array(rows, [(name, object) for name in names])
  scipy.io.savemat(path, {'synsets': synsets[:, None]}, do_compression=True)
  return path


def synset_labels(path: pathlib.Path, chosen):
  """TensorFlow's."""
  _put(path, ''.join(f'{one.wnid}\n' for one in chosen).encode())
  return path


def real_json(path: pathlib.Path, answers):
  """ReaL's: a list of labels for each image, in the order of the numbers."""
  _put(path, json.dumps([list(one) for one in answers]).encode())
  return path
