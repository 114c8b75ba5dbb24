# SPDX-License-Identifier: Apache-2.0
"""Orbax checkpoints of a Flax network.

A checkpoint is a folder: `_METADATA`, JSON with the names of its arrays as
paths in a tree, and the arrays, each by its path joined with dots, as Zarr in
one OCDBT store or in a folder of its own.  TensorStore reads them, so that
Orbax is only needed to write, and an array's shape is known before its values
are read.  A `CheckpointManager` keeps a folder for each step, and in it one
for each item.  Source: Orbax 0.12.8, `_src/metadata/tree.py`,
`_src/serialization/tensorstore_utils.py`; its folders.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore

from resnet_jax.codecs.tensor import Tensor
from resnet_jax.codecs.zarr import foreign
from resnet_jax.data import presets
from resnet_jax.models import names, structure, variables
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors, files
from resnet_jax.system.text import some
from resnet_jax.weights import assemble, metadata, torch_names

FORMAT = 'Orbax checkpoint'

_TREE = '_METADATA'
_MANIFEST = 'manifest.ocdbt'  # where all arrays are in one store
_MAX_TREE = 1 << 24  # bytes; ResNet-152 with an optimiser's state has 0.5 MB
_VARIANT = (
  'an Orbax checkpoint states no variant unless --job=convert wrote it: that of'
  " the authors' networks is taken. Set stride_in, stem_pool and epsilon if it"
  ' was trained otherwise.'
)

# Where an array lies in a tree.
_Keys = tuple[str, ...]


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a path is a checkpoint's folder, or one that holds checkpoints."""
  return not head and next(_items(path), None) is not None


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads the network in a checkpoint.

  Raises:
    UserError: it is damaged, or holds no network, or several.
  """
  item = _item(path)
  try:
    tree = files.read_json(files.read(item / _TREE, _MAX_TREE))
    keys = [
      tuple(str(key['key']) for key in entry['key_metadata'])
      for entry in tree['tree_metadata'].values()
    ]
    if any('/' in key or '\0' in key for each in keys for key in each):
      raise ValueError('a name is a path')
    # Versions before it had only the other.
    version = 3 if tree.get('use_zarr3', False) else 2
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{item / _TREE} is damaged: {type(error).__name__}: {str(error)[:200]}.'
      ' Get the checkpoint again.'
    ) from error
  try:
    foreign.check_files(item)
  except ValueError as error:
    raise errors.UserError(
      f'{item} is damaged: {str(error)[:600]}. Get the checkpoint again.'
    ) from error
  prefix = _network(item, keys)
  tensors, left_out = {}, []
  for each in keys:
    own = each[len(prefix) :]
    if each[: len(prefix)] == prefix and own[:1] in _COLLECTIONS:
      tensors['/'.join(own)] = _tensor(item, '.'.join(each), version)
    else:
      left_out.append('.'.join(each))
  beside = item / metadata.FILE
  stated = beside.exists()
  loaded = assemble.assemble(
    path,
    tensors,
    _naming,
    assemble.KERAS_LAYOUT,
    format=FORMAT,
    variant=Variant(),
    preprocess=presets.CAFFE,
    options=options,
    notes=[f'left out beside the network: {some(left_out, 4)}.']
    if left_out
    else [],
    guesses=[] if stated else [_VARIANT, presets.GUESSED_INPUT],
  )
  if stated:
    text = files.read(beside, metadata.MAX_BYTES)
    return metadata.applied(path, loaded, text)
  if loaded.module.depth not in structure.CIFAR:
    return loaded
  return dataclasses.replace(
    loaded,
    preprocess=presets.usual(loaded.module.depth),
    guesses=(_VARIANT, torch_names.GUESSED_CIFAR),
  )


_COLLECTIONS = tuple((name,) for name in variables.COLLECTIONS)


def _naming(depth: int) -> dict[str, str]:
  return {
    f'{variables.collection(name)}/{name}': name
    for name in names.parameter_names(depth, biases=True)
  }


def _items(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """The checkpoints at a path and up to two folders below."""
  for pattern in ('', '*', '*/*'):
    for found in sorted(path.glob(f'{pattern}/{_TREE}' if pattern else _TREE)):
      yield found.parent


def _item(path: pathlib.Path) -> pathlib.Path:
  found = list(_items(path))
  if len(found) > 1:
    listed = some([os.fspath(item) for item in found], 4)
    raise errors.UserError(
      f'{path} holds {len(found)} checkpoints: {listed}. Give the path of one.'
    )
  return found[0]


def _network(item: pathlib.Path, keys: Iterable[_Keys]) -> _Keys:
  """The path of the only node that has all of a network's collections."""
  places: dict[_Keys, set[str]] = {}
  for each in keys:
    for place, key in enumerate(each):
      if (key,) in _COLLECTIONS:
        places.setdefault(each[:place], set()).add(key)
        break
  whole = [p for p, held in places.items() if len(held) == len(_COLLECTIONS)]
  if len(whole) == 1:
    return whole[0]
  named = some([repr('.'.join(place)) for place in whole], 4)
  raise errors.UserError(
    f'{item} holds {len(whole)} networks{f" ({named})" if whole else ""}, and'
    " one is expected: a tree with 'params' and 'batch_stats', as"
    ' module.init returns it. Save that alone.'
  )


def _store(item: pathlib.Path, name: str) -> dict[str, Any]:
  """TensorStore's specification of the store with an array's files."""
  folder = item.absolute().as_posix()
  # `_METADATA` states it too, in old versions not always as it is.
  if (item / _MANIFEST).exists():
    base = {'driver': 'file', 'path': f'{folder}/'}
    return {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
  return {'driver': 'file', 'path': f'{folder}/{name}/'}


def _tensor(item: pathlib.Path, name: str, version: int) -> Tensor:
  """An array; raises a UserError if it is not there."""
  store, stated = _store(item, name), foreign.METADATA[version]
  driver = {2: 'zarr', 3: 'zarr3'}[version]
  try:
    found = tensorstore.KvStore.open(store).result().read(stated).result()
    if found.state != 'value':
      raise ValueError('it is not there')
    foreign.check_metadata(found.value, version)
    spec = {'driver': driver, 'kvstore': store}
    array = tensorstore.open(spec, open=True, read=True).result()
  except ValueError as error:
    raise errors.UserError(
      f'{item} is damaged: {name} cannot be opened: {stated}:'
      f' {str(error)[:200]}. Get the checkpoint again.'
    ) from error

  def read() -> np.ndarray:
    return np.asarray(array.read().result())

  return Tensor(tuple(array.shape), array.dtype.name, read)


def write(
  directory: pathlib.Path, parameters: Mapping[str, np.ndarray], text: str
) -> None:
  """Writes a new checkpoint, whole or not at all.

  Args:
    directory: the new one.
    parameters: `layer/leaf` arrays.
    text: of `metadata.written`.

  Raises:
    UserError: Orbax is not installed, or the folder cannot be written.
  """
  try:
    import orbax.checkpoint  # noqa: PLC0415
  except ImportError as error:
    raise errors.UserError(
      'Orbax, which writes its checkpoints, is not installed. Install it with:'
      " pip install 'resnet-jax-zoo[orbax]'"
    ) from error
  part = directory.absolute().with_name(directory.name + files.PART)
  with files.writing('the checkpoint', directory):
    if part.exists():
      shutil.rmtree(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
      checkpointer.save(part, variables.tree(parameters))
    (part / metadata.FILE).write_text(text, 'utf-8')
    os.replace(part, directory)
