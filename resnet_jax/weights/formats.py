# SPDX-License-Identifier: Apache-2.0
"""The formats of weight files, recognised by content."""

import dataclasses
import pathlib
from collections.abc import Callable

from resnet_jax.codecs import faults
from resnet_jax.system import errors, files
from resnet_jax.system.text import some
from resnet_jax.weights import (
  archive,
  assemble,
  caffe,
  hugging_face,
  keras,
  orbax,
  paddle,
  prefixes,
  safetensors,
  torch,
)


@dataclasses.dataclass(frozen=True)
class WeightFormat:
  """A format of weight files.

  Attributes:
    description: human-readable.
    recognise: whether a path, with its first bytes, is in the format.
    load: reads and checks it.
  """

  description: str
  recognise: Callable[[pathlib.Path, bytes], bool]
  load: Callable[[pathlib.Path, assemble.Options], assemble.Loaded]


FORMATS = {
  name: WeightFormat(description, reader.recognise, reader.load)
  for name, description, reader in (
    # Before Paddle: both have a file of our metadata.
    ('orbax', "Orbax checkpoint of this package's Flax module", orbax),
    ('paddle', 'Paddle model directory', paddle),
    ('archive', 'Paddle model directory as .tar.gz', archive),
    ('caffe', 'Caffe .caffemodel', caffe),
    ('keras', 'Keras .h5, .weights.h5, .keras', keras),
    ('torch', 'PyTorch .pth', torch),
    ('hugging_face', 'a Hugging Face folder', hugging_face),
    (
      'safetensors',
      'safetensors (ours, torchvision, timm, Hugging Face)',
      safetensors,
    ),
  )
}

# Whose names have prefixes.
_OF_MODULES = [FORMATS[key] for key in ('torch', 'hugging_face', 'safetensors')]
_HEAD = 512
# Files that are mistaken for weights: their first bytes and a description.
_MISTAKEN = (
  (b'<', 'a web page or XML, not weights: the download went wrong'),
  (b'\x89PNG', 'an image'),
  (b'\xff\xd8\xff', 'an image'),
)


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads weights in any of FORMATS.

  Raises:
    UserError: the format is none of FORMATS, or the file does not hold a
      ResNet.
  """
  try:
    head = b''
    if not path.is_dir():
      with files.opened(path) as file:
        head = file.read(_HEAD)
    for form in FORMATS.values():
      if form.recognise(path, head):
        if options.weights_prefix and form not in _OF_MODULES:
          raise prefixes.needless(
            options.weights_prefix, f'{path}, {form.description},'
          )
        loaded = form.load(path, options)
        notes = (*loaded.notes, *hugging_face.beside(path))
        return dataclasses.replace(loaded, notes=notes)
  except OSError as error:
    raise errors.UserError(
      f'cannot read the weights {path}: {error.strerror or error}.'
    ) from error
  known = ', '.join(form.description for form in FORMATS.values())
  raise errors.UserError(
    f'{path} is {_looks_like(path, head)}. Weights are read from: {known}.'
  )


def _looks_like(path: pathlib.Path, head: bytes) -> str:
  if path.is_dir():
    held = some(sorted(entry.name for entry in path.iterdir()), 5)
    return (
      'a directory, but not one of Paddle, Orbax, Hugging Face or timm (it'
      f' holds {held or "nothing"}); name the file in it that has the weights'
    )
  if not head:
    return 'empty'
  if faults.is_git_lfs(head):
    return faults.GIT_LFS_SAYS
  for beginning, what in _MISTAKEN:
    if head.startswith(beginning):
      return what
  return f'in an unknown format (it begins with {head[:16]!r})'
