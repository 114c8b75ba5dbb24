# SPDX-License-Identifier: Apache-2.0
"""PyTorch's checkpoints, read without PyTorch and without running their code.

A checkpoint is a pickle that names storages (see `torch_tensors`).  Since
PyTorch 1.6 the pickle is `data.pkl` in a zip archive, and a storage is
`data/KEY` there, its bytes in the order of the record `byteorder`.  Before, a
file is a row of pickles (a magic number, a version, the writer's system, the
contents, the sorted keys) and then each storage, with its number of values
before it.  The first versions wrote a tar archive.  Source: PyTorch 2.13,
`torch/serialization.py`.
"""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from resnet_jax.codecs import pickles
from resnet_jax.system import errors
from resnet_jax.weights import assemble, torch_names, torch_tensors, torch_zip

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# How the magic number begins a file, by the pickle's protocol: 2 and later; 0
# and 1.
_MAGIC_BYTES = b'\x8a\x0a' + _MAGIC.to_bytes(10, 'little') + b'.'
_MAGIC_TEXT = f'L{_MAGIC}L\n.'.encode()
_TAR_NAMES = (b'sys_info', b'pickle', b'tensors', b'storages')

# Where programs put a state dict beside other things.
_PLACES = ('state_dict', 'model_state_dict', 'model')
_CLEAN = (
  'Where you trust the file, make a clean one in Python:'
  " torch.save(model.state_dict(), 'clean.pth')."
)


# Gives the bytes of a storage.
_Read = Callable[[torch_tensors.Storage], bytes]


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, _Read]:
  """The contents and how to read storages of a zip archive."""
  members = torch_zip.directory(file, size)
  pickled = [name for name in members if _is_pickle(name)]
  if len(pickled) != 1:
    raise ValueError(f'it has {len(pickled)} entries data.pkl, not one')
  folder = pickled[0].removesuffix('data.pkl')
  if f'{folder}constants.pkl' in members:
    raise pickles.RefusedError('a TorchScript program')
  if (member := members[pickled[0]]).size > torch_tensors.MAX_PICKLE:
    raise ValueError(
      f'its pickle has {member.size} bytes, more than'
      f' {torch_tensors.MAX_PICKLE}'
    )
  order = members.get(f'{folder}byteorder')
  if order and (order.size != 6 or torch_zip.read(file, order) != b'little'):
    raise pickles.RefusedError('values that are not little-endian')
  storages = torch_tensors.Storages()
  stream = io.BytesIO(torch_zip.read(file, member))
  contents = torch_tensors.unpickle(stream, storages)
  for key, storage in storages.items():
    stored = members.get(f'{folder}data/{key}')
    if stored is None or stored.size != storage.size:
      has = f'{stored.size} bytes' if stored else 'no bytes'
      raise ValueError(
        f'storage {key!r:.99} has {has}, where {storage.size} are expected'
      )

  def read(storage: torch_tensors.Storage) -> bytes:
    return torch_zip.read(file, members[f'{folder}data/{storage.key}'])

  return contents, read


def _is_pickle(name: str) -> bool:
  return name.endswith('/data.pkl')


def _read_row(file: BinaryIO, size: int) -> tuple[Any, _Read]:
  """The contents and how to read storages of a file of before 1.6."""
  file.seek(0)
  stream = io.BytesIO(file.read(torch_tensors.MAX_PICKLE))
  magic, version, system = (torch_tensors.unpickle(stream) for _ in range(3))
  if magic != _MAGIC or version != _VERSION or not isinstance(system, dict):
    raise ValueError("it does not begin as PyTorch's files do")
  if system.get('little_endian') is not True:
    raise pickles.RefusedError('values that are not little-endian')
  storages = torch_tensors.Storages()
  contents = torch_tensors.unpickle(stream, storages)
  keys = torch_tensors.unpickle(stream)
  if not isinstance(keys, list) or keys != sorted(storages):
    raise ValueError('its storages are not those that its tensors name')
  offsets, at = {}, stream.tell()
  for key in keys:
    file.seek(at)
    count = int.from_bytes(file.read(8), 'little')
    offsets[key], expected = at + 8, storages[key].count
    at += 8 + storages[key].size
    if at > size:
      raise ValueError(f'it breaks off in storage {key!r:.99}')
    if count != expected:
      raise ValueError(
        f'storage {key!r:.99} has {count} values, where {expected} are expected'
      )
  if at != size:
    raise ValueError(f'{size - at} bytes follow its last storage')

  def read(storage: torch_tensors.Storage) -> bytes:
    file.seek(offsets[storage.key])
    return file.read(storage.size)

  return contents, read


def _kind(head: bytes) -> str:
  """'zip', 'row', 'tar', or nothing."""
  if head.startswith(b'PK\3\4'):
    return 'zip'
  if head.startswith((b'\x80', _MAGIC_TEXT)):
    at_start = head.startswith(_MAGIC_TEXT) or _MAGIC_BYTES in head[:32]
    return 'row' if at_start else ''
  name = head[:100].rstrip(b'\0')
  return 'tar' if head[257:262] == b'ustar' and name in _TAR_NAMES else ''


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file is a PyTorch checkpoint, of any age.

  Args:
    path: of the file.
    head: its first 512 bytes.
  """
  kind = _kind(head)
  if kind != 'zip':
    return bool(kind)
  # PyTorch writes the pickle first, so that a truncated file is known, too.
  name = head[30 : 30 + int.from_bytes(head[26:28], 'little')]
  if name.endswith(b'/data.pkl'):
    return True
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      return any(map(_is_pickle, torch_zip.directory(file, size)))
  except (OSError, ValueError):
    return False


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads a state dict, alone or under one of _PLACES.

  Raises:
    UserError: the file cannot be read, is damaged, holds anything else than
      tensors and containers, or is no ResNet; says what.
  """
  try:
    with open(path, 'rb') as file:
      contents, read = _read_file(path, file)
      tensors, notes = _state_dict(path, contents)
      # Of tensors that share a storage, each would read all of it.
      read = functools.lru_cache(maxsize=1)(read)
      loaded = torch_names.load_tensors(
        path,
        {name: _lazy(tensor, read) for name, tensor in tensors.items()},
        'PyTorch checkpoint',
        options,
      )
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}.'
    ) from error
  return dataclasses.replace(loaded, notes=(*notes, *loaded.notes))


def _read_file(path: pathlib.Path, file: BinaryIO) -> tuple[Any, _Read]:
  kind = _kind(file.read(512))
  if kind == 'tar':
    raise errors.UserError(
      f'{path} is a tar archive, as PyTorch 0.1 wrote it, and is not read. Take'
      ' a newer file (torchvision has resnet50-0676ba61.pth in place of'
      ' resnet50-19c8e357.pth), or, where you trust it, write it again in'
      " Python: torch.save(torch.load(FILE, weights_only=False), 'clean.pth')."
    )
  size = os.fstat(file.fileno()).st_size
  try:
    return (_read_zip if kind == 'zip' else _read_row)(file, size)
  except pickles.RefusedError as error:
    raise errors.UserError(
      f'{path} is refused: it holds {error}, and only tensors and containers'
      f' are read. {_CLEAN}'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'{path} is damaged: {error}. Get it again.'
    ) from error


def _state_dict(
  path: pathlib.Path, contents: object
) -> tuple[dict[str, torch_tensors.Tensor], list[str]]:
  """The named tensors, and notes on what lies beside them."""
  if not isinstance(contents, dict):
    raise errors.UserError(
      f'{path} holds a {type(contents).__name__}, not a state dict. {_CLEAN}'
    )
  for place in _PLACES:
    if tensors := _tensors(contents.get(place)):
      beside = _others(contents[place], tensors)
      around = [key for key in contents if key != place]
      notes = [f"The state dict is the one under '{place}'."]
      return tensors, notes + _unread([*around, *beside])
  if tensors := _tensors(contents):
    return tensors, _unread(_others(contents, tensors))
  raise errors.UserError(
    f'{path} holds no state dict: there are tensors neither in it nor in its'
    f' {", ".join(_PLACES)}; it holds {_listed(list(contents))}. {_CLEAN}'
  )


def _tensors(given: object) -> dict[str, torch_tensors.Tensor]:
  entries = given.items() if isinstance(given, dict) else ()
  return {
    name: value
    for name, value in entries
    if isinstance(name, str) and isinstance(value, torch_tensors.Tensor)
  }


def _others(given: Mapping, tensors: Mapping) -> list:
  return [key for key in given if key not in tensors]


def _unread(keys: list) -> list[str]:
  return [f'In the file, too, but not read: {_listed(keys)}.'] if keys else []


def _listed(keys: list) -> str:
  # Only texts come whole: Python refuses to write out very long numbers.
  shown = [
    f'{key!r:.99}' if isinstance(key, str) else type(key).__name__
    for key in keys[:20]
  ]
  if len(keys) > 20:
    shown.append(f'and {len(keys) - 20} more')
  return ', '.join(shown) or 'nothing'


def _lazy(tensor: torch_tensors.Tensor, read: _Read) -> assemble.Tensor:
  return assemble.Tensor(
    tensor.shape,
    tensor.storage.kind.dtype,
    lambda: torch_tensors.values(tensor, read(tensor.storage)),
  )
