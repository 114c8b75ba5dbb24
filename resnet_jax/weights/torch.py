# SPDX-License-Identifier: Apache-2.0
"""PyTorch's checkpoints, read without PyTorch and without running their code.

A checkpoint is a pickle that names storages (see `torch_tensors`).  Since
PyTorch 1.6 the pickle is `data.pkl` in a zip archive, and a storage is
`data/KEY` there, its byte order in the member `byteorder`.  Older files are a
row of pickles (a magic number, a version, the writer's system, the contents,
the sorted keys) followed by the storages, each preceded by its number of
values.  The first versions wrote a tar archive.  Source: PyTorch 2.13,
`torch/serialization.py`.
"""

import collections
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from resnet_jax.codecs import faults, pickles
from resnet_jax.codecs import zip as zip_lib
from resnet_jax.codecs.tensor import Tensor
from resnet_jax.system import errors
from resnet_jax.system.text import some
from resnet_jax.weights import (
  assemble,
  statements,
  torch_names,
  torch_tensors,
)

# ResNet-152 with AdamW's state has 2339 members of 60 bytes or so.
_MAX_DIRECTORY = 4 << 20
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# The first bytes of a pickled magic number: from protocol 2 on; in 0 and 1.
_MAGIC_BYTES = b'\x8a\x0a' + _MAGIC.to_bytes(10, 'little') + b'.'
_MAGIC_TEXT = f'L{_MAGIC}L\n.'.encode()
_TAR_NAMES = (b'sys_info', b'pickle', b'tensors', b'storages')

_PICKLE = '/data.pkl'
# Containers in one another that a state dict may lie in.
_MAX_DEPTH = 16
_MAX_PLACE = 400
_MAX_BITS = 64
# Longer ones are histories and the like, not lists of state dicts.
_MAX_LIST = 1000
# What holds tensors of the training's, which are no network's.
_OF_TRAINING = re.compile(r'optim|sched')
_ARRAY = re.compile(
  r'numpy\.(_?core\.)?(multiarray\._reconstruct|numeric\._frombuffer)'
)
_CLEAN = (
  'If you trust the file, save a clean one in Python:'
  " torch.save(model.state_dict(), 'clean.pth')."
)
_REFUSED = (
  '{path} is refused: it holds {error}, and only tensors and containers are'
  f' read. {_CLEAN}'
)


def _read_zip(file: BinaryIO) -> Any:
  """The contents of a zip archive."""
  archive = zip_lib.ZipArchive(file, _MAX_DIRECTORY)
  members = archive.members
  pickled = [name for name in members if name.endswith(_PICKLE)]
  if len(pickled) != 1:
    raise ValueError(f'it has {len(pickled)} members data.pkl, not one')
  folder = pickled[0].removesuffix('data.pkl')
  if f'{folder}constants.pkl' in members:
    raise faults.RefusedError('a TorchScript program')
  size = members[pickled[0]].file_size
  if size > torch_tensors.MAX_PICKLE:
    raise torch_tensors.too_large(f'{size} bytes, more than')
  order = members.get(f'{folder}byteorder')
  if order and (
    order.file_size != 6 or archive.read(order.filename) != b'little'
  ):
    raise faults.RefusedError('values that are not little-endian')
  storages = torch_tensors.Storages()
  stream = io.BytesIO(archive.read(pickled[0]))
  contents = torch_tensors.unpickle(stream, storages)
  for key, storage in storages.items():
    stored = members.get(f'{folder}data/{key}')
    if stored is None or stored.file_size != storage.size:
      has = f'{stored.file_size} bytes' if stored else 'no bytes'
      raise ValueError(
        f'storage {key!r:.99} has {has}, where {storage.size} are expected'
      )
  storages.set_reader(lambda s: archive.read(f'{folder}data/{s.key}'))
  return contents


def _read_row(file: BinaryIO) -> Any:
  """The contents of a file from before 1.6."""
  size = os.fstat(file.fileno()).st_size
  file.seek(0)
  stream = io.BytesIO(file.read(torch_tensors.MAX_PICKLE))
  magic, version, system = (torch_tensors.unpickle(stream) for _ in range(3))
  if magic != _MAGIC or version != _VERSION or not isinstance(system, dict):
    raise ValueError("it does not begin as PyTorch's files do")
  if system.get('little_endian') is not True:
    raise faults.RefusedError('values that are not little-endian')
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

  storages.set_reader(read)
  return contents


def _kind(head: bytes) -> str:
  """'zip', 'row', 'tar', or nothing."""
  if head.startswith(zip_lib.MAGIC):
    return 'zip'
  if head.startswith((b'\x80', _MAGIC_TEXT)):
    at_start = head.startswith(_MAGIC_TEXT) or _MAGIC_BYTES in head[:32]
    return 'row' if at_start else ''
  name = head[:100].rstrip(b'\0')
  return 'tar' if head[257:262] == b'ustar' and name in _TAR_NAMES else ''


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file, with its first 512 bytes, is a PyTorch checkpoint."""
  return _kind(head) not in ('', 'zip') or zip_lib.holds(
    path, head, lambda name: name.endswith(_PICKLE), _MAX_DIRECTORY
  )


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads the state dict of a ResNet, alone or among other contents.

  Raises:
    UserError: the file cannot be read, is damaged, or does not hold one ResNet.
  """
  with faults.opened(path) as file:
    kind = _kind(file.read(512))
    if kind == 'tar':
      raise errors.UserError(
        f'{path} is a tar archive of PyTorch 0.1, which is not read. Use a'
        ' newer file (torchvision has resnet50-0676ba61.pth in place of'
        ' resnet50-19c8e357.pth), or, if you trust it, save it again in Python:'
        " torch.save(torch.load(FILE, weights_only=False), 'clean.pth')."
      )
    with faults.reported(path, refused=_REFUSED):
      contents = (_read_zip if kind == 'zip' else _read_row)(file)
      if isinstance(contents, pickles.Inert):
        raise faults.RefusedError(contents.name)
      tensors = _tensors(contents)
    if not tensors:
      raise errors.UserError(_no_state_dict(path, contents))
    loaded = torch_names.load_tensors(
      path,
      {name: found.tensor for name, found in tensors.items()},
      'PyTorch checkpoint',
      options,
      places={found.place for found in tensors.values()},
      beside=lambda used: _unread(contents, [tensors[name] for name in used]),
    )
  stated = statements.check_checkpoint(path, contents, loaded.module.depth)
  return dataclasses.replace(loaded, notes=(*loaded.notes, *stated))


@dataclasses.dataclass(frozen=True)
class _Found:
  """A tensor in the contents of a file.

  Attributes:
    tensor: not read yet.
    place: the keys to its state dict, with dots after them.
    key: the first of these; '': the contents are the state dict.
  """

  tensor: Tensor
  place: str
  key: str


def _entries(held: object) -> Iterator[tuple[str, Any]]:
  """The values of a container under their names: keys, or places in a list."""
  pairs: Iterable[tuple[object, Any]] = ()
  if isinstance(held, dict):
    pairs = held.items()
  elif isinstance(held, list | tuple) and len(held) <= _MAX_LIST:
    pairs = enumerate(held)
  for key, value in pairs:
    if isinstance(key, bytes):
      yield key.decode('utf-8', 'replace'), value
    elif isinstance(key, str):
      yield key, value
    # Python refuses to print very long numbers.
    elif isinstance(key, int) and key.bit_length() < _MAX_BITS:
      yield str(key), value
    else:
      yield f'({type(key).__name__})', value


def _tensors(contents: object) -> dict[str, _Found]:
  """All tensors with names, in the contents and in containers in them.

  Raises:
    ValueError: two have the same name.
  """
  found: dict[str, _Found] = {}
  # A container may be referred to any number of times.
  seen = set()
  waiting = collections.deque[tuple[Any, tuple[str, ...]]]([(contents, ())])
  while waiting:
    held, keys = waiting.popleft()
    length = sum(map(len, keys)) + len(keys)
    # It is copied for each of the tensors.
    place = ''.join(f'{key}.' for key in keys) if length <= _MAX_PLACE else ''
    for name, value in _entries(held):
      if isinstance(value, Tensor):
        if length > _MAX_PLACE:
          raise ValueError(
            f'its state dict is under a name of {length} letters'
          )
        if place + name in found:
          raise ValueError(f'it has two tensors {place + name!r:.99}')
        found[place + name] = _Found(value, place, keys[0] if keys else '')
      elif (
        isinstance(value, dict | list | tuple)
        and value
        and id(value) not in seen
        and len(keys) < _MAX_DEPTH
        and not _OF_TRAINING.search(name[:_MAX_PLACE])
      ):
        seen.add(id(value))
        waiting.append((value, (*keys, name)))
  return found


def _unread(contents: object, used: Sequence[_Found]) -> list[str]:
  """A note on the contents beside the state dicts of the tensors."""
  keys = {found.key for found in used}
  unread = {
    key: value
    for key, value in _entries(contents)
    if key not in keys
    and not ('' in keys and isinstance(value, Tensor))
    and not statements.is_name(key, value)
  }
  if not unread:
    return []
  return [f'Also in the file, but not read: {_listed(unread)}.']


def _no_state_dict(path: pathlib.Path, contents: object) -> str:
  if not isinstance(contents, dict | list | tuple):
    kind = type(contents).__name__
    return f'{path} holds a {kind}, not a state dict. {_CLEAN}'
  held = dict(_entries(contents))
  # By identity, as one may be referred to any number of times.
  inner = {id(value): value for value in held.values()}
  if any(
    _is_array(value) or any(_is_array(one) for _, one in _entries(value))
    for value in inner.values()
  ):
    return (
      f'{path} holds NumPy arrays, and weights in a PyTorch file are read from'
      ' tensors. If you trust the file, save them as tensors in Python:'
      ' torch.save({name: torch.as_tensor(array) for name, array in'
      " torch.load(FILE, weights_only=False).items()}, 'clean.pth')."
    )
  return (
    f'{path} holds no state dict: no tensor has a name in it, nor in its'
    f' containers (up to {_MAX_DEPTH} in one another); it holds'
    f' {_listed(held)}. {_CLEAN}'
  )


def _is_array(value: object) -> bool:
  return isinstance(value, pickles.Inert) and bool(_ARRAY.fullmatch(value.name))


def _listed(contents: dict[str, Any]) -> str:
  shown = [
    f'{key!r:.99}'
    + (f' ({value.name})' if isinstance(value, pickles.Inert) else '')
    for key, value in contents.items()
  ]
  return some(shown, 20) or 'nothing that has a name'
