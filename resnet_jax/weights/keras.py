# SPDX-License-Identifier: Apache-2.0
"""The files of keras.applications' ResNet50, 101 and 152, without Keras.

Four layouts: HDF5 of weights, one group per layer (`conv1_conv/conv1_conv/
kernel:0`, as published); HDF5 of a whole model, the same below
`model_weights`; Keras 3's `.weights.h5` (`layers/conv2d_3/vars/0`, by class,
numbered in the order of computing); and `.keras`, a zip with such a file and
`config.json`.  Sources: Keras 3.15.1, `legacy/saving/legacy_h5_format.py`,
`saving/saving_lib.py` and `applications/resnet.py`; its files.

Until 2018 the layers had Caffe's names (`res2a_branch2a`, `bn2a_branch2a`).
Sources: fchollet/deep-learning-models, `resnet50.py`; Keras-Applications,
`resnet50.py` at commit 36436f6, which pads `pool1` and takes the same file.
"""

import contextlib
import dataclasses
import io
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import h5py

from resnet_jax.codecs import faults, hdf5
from resnet_jax.codecs import zip as zip_lib
from resnet_jax.data import presets
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.system.text import some
from resnet_jax.weights import assemble, keras_config, keras_names

WEIGHTS = 'Keras HDF5, weights'
MODEL = 'Keras HDF5, whole model'
WEIGHTS_3 = 'Keras 3 HDF5, weights'
ARCHIVE = 'Keras 3 archive'

VARIANT = Variant(stem_pool='pad1', epsilon=1.001e-5)
# Keras' default, which the old network used.
OLD_EPSILON = 1e-3
OLD_NOTE = (
  'its layers have the names that Keras used until 2018: it runs as in Keras-'
  'Applications since August 2018, with a padded max pool and epsilon 0.001;'
  ' before, the max pool had no padding (55 pixels, not 56), and features'
  ' differed at the edges.'
)

_WEIGHTS, _CONFIG = 'model.weights.h5', 'config.json'
# Limits of the HDF5 file in a `.keras` file: bytes that are always allowed
# (ResNet-152 takes as many), and its ratio to the whole file.  Keras does not
# compress it.
_MAX_UNPACKED, _MAX_RATIO = 2**28, 2
_MAX_DIRECTORY = 2**16  # bytes; a `.keras` file has about three members

# Groups that training leaves.
_SKIPPED = (
  *('optimizer', 'optimizer_weights', '_optimizer', 'top_level_model_weights'),
  *('_loss_tracker', '_metrics', 'metrics', '_compile_metrics'),
)

# Layers without weights that are in the network, or do nothing at inference.
_EXPECTED_LAYERS = re.compile(
  r'conv\d_.*|pool1_.*|avg_pool|resnet.*|(input|activation|add|merge|flatten'
  r'|zero_?padding2d|max_?pooling2d|global_average_pooling2d|functional|model'
  r'|sequential|dropout|random_[a-z]+|softmax|layers|vars'
  r'|_layer_checkpoint_dependencies)(_.*)?'
)


naming = keras_names.naming


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file is HDF5 or a zip of Keras, by content."""
  if head.startswith(hdf5.SIGNATURE):
    return True
  # Keras writes the metadata first.
  wanted = ('metadata.json', _WEIGHTS)
  return zip_lib.holds(path, head, lambda name: name in wanted, _MAX_DIRECTORY)


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Loads a file.

  Raises:
    UserError: it is damaged, refused, or not Keras' ResNet.
  """
  with faults.opened(path) as file, contextlib.ExitStack() as stack:
    stream, config = file, None
    with faults.reported(path):
      if file.read(4) == zip_lib.MAGIC:
        weights, config = _unzip(file)
        stream = io.BytesIO(weights)
      opened = stack.enter_context(hdf5.opened(stream))
    return _load(path, stream, opened, config, options)


def _load(
  path: pathlib.Path,
  stream: BinaryIO,
  file: h5py.File,
  config: str | None,
  options: assemble.Options,
) -> assemble.Loaded:
  with faults.reported(path):
    form, found, skipped = _contents(path, file)
    if config is None:
      config = hdf5.text_attribute(stream, file, 'model_config')
    else:
      form = ARCHIVE
    layers = keras_config.parse(path, config)
    if form in (WEIGHTS_3, ARCHIVE):
      named, empty = keras_names.by_class(path, stream, found, layers)
    else:
      named, empty = keras_names.by_layer(found)
    datasets = keras_names.unique(path, named)
    tensors = {name: hdf5.tensor(stream, d) for name, d in datasets.items()}
  owned = {name.rpartition('/')[0] for name in datasets}
  if v2 := [n for n in owned if n.endswith('_preact_bn') or n == 'post_bn']:
    raise errors.UserError(
      f'{path} holds a ResNet v2 (pre-activation: it has {min(v2)}), which is'
      ' another network. Give ResNet50, ResNet101 or ResNet152 of'
      ' keras.applications, without V2.'
    )
  old = any(name.startswith(('res2a_', 'bn_conv1/')) for name in datasets)
  canonical = keras_names.canonical(old)
  keras_config.check(path, layers, canonical)
  epsilon = keras_config.epsilon(path, layers, canonical)
  usual_head = 'fc1000' if old else 'predictions'
  head = _classifier(datasets, usual_head)
  notes = list(_head_notes(usual_head, head, datasets, layers))
  if any(name.lstrip('_').startswith('optimizer') for name in skipped):
    notes.append(f"{path} also holds an optimizer's state, which is not read.")
  if old and not layers:
    notes.append(OLD_NOTE)

  def here(depth: int) -> dict[str, str]:
    return {
      name.replace(usual_head, head): ours
      for name, ours in naming(depth, old).items()
    }

  loaded = assemble.assemble(
    path,
    tensors,
    here,
    assemble.KERAS_LAYOUT,
    format=form,
    variant=VARIANT.overridden(epsilon=epsilon or (OLD_EPSILON if old else 0)),
    preprocess=presets.CAFFE,
    options=options,
    notes=notes,
    guesses=(presets.GUESSED_INPUT,),
  )
  if any(layer.snake_kind == 'global_max_pooling2d' for layer in layers):
    raise errors.UserError(
      f'{path} max-pools its last maps, so after res5 it is another network.'
      ' Save the model without its top and without pooling, and extract the'
      ' last res5_*_addto with pool=max.'
    )
  left_out = _left_out(path, empty, layers, owned)
  return dataclasses.replace(loaded, warnings=left_out)


def _contents(
  path: pathlib.Path, file: h5py.File
) -> tuple[str, hdf5.Tree, tuple[str, ...]]:
  """The layout, its contents, and what is skipped."""
  found = hdf5.contents(file, _SKIPPED)
  if 'model_weights' in found.groups:
    inner = hdf5.contents(file['model_weights'], _SKIPPED)
    return MODEL, inner, found.skipped
  # Long lists are cut into layer_names0, layer_names1, ...
  if 'layer_names' in file.attrs or 'layer_names0' in file.attrs:
    return WEIGHTS, found, found.skipped
  if any(name.rpartition('/')[2] == 'vars' for name in found.groups):
    return WEIGHTS_3, found, found.skipped
  held = [*found.datasets, *(n for n in found.groups if '/' not in n)]
  text = some([name[:99] for name in held], 20) or 'nothing'
  raise errors.UserError(
    f'{path} is an HDF5 file, but not of Keras: it has no layer_names,'
    f' model_weights or vars. It holds {text}. Give a file that model.save or'
    ' model.save_weights wrote.'
  )


def _classifier(datasets: Mapping[str, h5py.Dataset], usual: str) -> str:
  """The layer of the only matrix, whatever its name."""
  matrices = [
    name.removesuffix('/kernel')
    for name, dataset in datasets.items()
    if name.endswith('/kernel') and len(dataset.shape) == 2
  ]
  return matrices[0] if len(matrices) == 1 else usual


def _left_out(
  path: pathlib.Path,
  empty: Iterable[str],
  layers: Sequence[keras_config.KerasLayer],
  owned: Collection[str],
) -> tuple[str, ...]:
  """A warning of layers without arrays that may compute something."""
  if layers:
    empty = [x.name for x in layers if not _expected(x.snake_kind)]
  extra = [n for n in empty if n not in owned and not _expected(n)]
  if not extra:
    return ()
  return (
    f'the network in {path} also has the layers'
    f' {", ".join(dict.fromkeys(extra))[:300]}, which are left out: if they'
    ' preprocess images or change features, the values differ from'
    " Keras'. Settings such as mean and std can replace preprocessing layers.",
  )


def _expected(name: str) -> bool:
  return _EXPECTED_LAYERS.fullmatch(name) is not None


def _head_notes(
  usual: str,
  head: str,
  datasets: Collection[str],
  layers: Sequence[keras_config.KerasLayer],
) -> Iterator[str]:
  if f'{head}/kernel' not in datasets:
    return
  if head != usual:
    yield f'its classifier is {head}, not {usual}.'
  for layer in layers:
    activation = layer.fields.get('activation', 'softmax')
    if layer.name == head and activation != 'softmax':
      yield (
        f'its classifier {head} ends with {ascii(activation)[:99]}; here'
        " 'output' is the softmax of 'logits'."
      )


def _unzip(file: BinaryIO) -> tuple[bytes, str]:
  """The HDF5 file and the configuration of a `.keras` file."""
  archive = zip_lib.ZipArchive(file, _MAX_DIRECTORY)
  size = file.seek(0, io.SEEK_END)
  most = max(_MAX_RATIO * size, _MAX_UNPACKED)
  most = min(hdf5.MAX_EXPANSION * size, most)
  weights = archive.inflate(_WEIGHTS, most)
  return weights, archive.inflate(_CONFIG, hdf5.MAX_TEXT).decode()
