# SPDX-License-Identifier: Apache-2.0
"""HDF5 files of other people.

An HDF5 file can refer to other files (links, external and virtual storage),
load code (plugins for filters), form cycles, and state any size.  Only plain
groups and arrays are read, and arrays only if the file has their bytes.
Source: the HDF5 File Format Specification 3.0.
"""

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

import h5py
import ml_dtypes
import numpy as np

from resnet_jax.codecs import faults, hdf5_header
from resnet_jax.codecs.tensor import Tensor

SIGNATURE = b'\x89HDF\r\n\x1a\n'

MAX_OBJECTS = 20_000  # ResNet-152 with everything around it: about 3,000.
MAX_DEPTH = 12
MAX_TEXT = 16 * 2**20  # bytes; the configuration of ResNet-152 has 0.5 MiB.
# Gzip saves a tenth of trained weights, and nearly all of zeros and ones.
MAX_EXPANSION = 64
_SMALL = 2**16  # bytes that are always allowed

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_FILTERS = {_DEFLATE: 'gzip', _SHUFFLE: 'shuffle', _FLETCHER32: 'fletcher32'}


@dataclasses.dataclass(frozen=True)
class Tree:
  """The contents of a group.

  Attributes:
    datasets: by their paths below the group.
    groups: by their paths below the group.
    skipped: which of the names to skip were found.
  """

  datasets: dict[str, h5py.Dataset]
  groups: dict[str, h5py.Group]
  skipped: tuple[str, ...]


@contextlib.contextmanager
def translated(what: str = '') -> Iterator[None]:
  """Turns what h5py raises for damaged files into a ValueError."""
  try:
    yield
  except (
    # h5py has no exception of its own, and raises these for HDF5's errors.
    *(OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError),
    *(AttributeError, zlib.error),
  ) as error:
    where = f'{what}: ' if what else ''
    text = str(error.args[0] if error.args else error) or type(error).__name__
    raise ValueError(f'{where}{text[:300]}') from error


@contextlib.contextmanager
def opened(stream: BinaryIO) -> Iterator[h5py.File]:
  """Opens an HDF5 file; as a stream, so that it is not locked.

  Raises:
    ValueError: the file is truncated or damaged.
  """
  with translated():
    hdf5_header.check_heaps(stream)
    stream.seek(0)
    file = h5py.File(stream, 'r')
    if file.id.get_create_plist().get_sizes() != (8, 8):
      raise ValueError('its addresses do not have 8 bytes')
  with file:
    yield file


def contents(group: h5py.Group, skip: Collection[str] = ()) -> Tree:
  """The contents of a group, checked; no values are read.

  Args:
    group: the root of the search.
    skip: names directly in it that are not descended into.

  Raises:
    ValueError: the file is damaged.
    RefusedError: it holds links, or arrays that are not plain.
  """
  with translated():
    # `in` would follow a link.
    links = group.id.links
    skipped = tuple(name for name in skip if links.exists(name.encode()))
    found = Tree({}, {}, skipped)
    _walk(group, '', frozenset(skip), found)
    stored = sum(d.id.get_storage_size() for d in found.datasets.values())
    size = group.file.id.get_filesize()
  if stored > size:
    raise _refused(f'its arrays take {stored} bytes of a file of {size} bytes')
  return found


def text_attribute(
  stream: BinaryIO, group: h5py.Group, name: str
) -> str | None:
  """A string attribute of a group or array; None if it is absent.

  Args:
    stream: that the file was opened from.
    group: or array.
    name: of the attribute.

  Raises:
    ValueError: the file is damaged.
    RefusedError: it is not a string, or has more than MAX_TEXT bytes.
  """
  with translated(f'the attribute {name}'):
    if name not in group.attrs:
      return None
    attribute = group.attrs.get_id(name)
    # An array of strings could refer to the same bytes again and again.
    is_text = h5py.check_string_dtype(attribute.dtype) is not None
    if attribute.shape != () or not is_text:
      raise _refused(f'its attribute {name} is not a string')
    length = attribute.get_storage_size()
    if attribute.dtype.hasobject:
      address = h5py.h5o.get_info(group.id).addr
      length = hdf5_header.text_length(stream, address, name)
    if length > MAX_TEXT:
      raise _refused(f'its attribute {name} has more than {MAX_TEXT} bytes')
    value = group.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def tensor(stream: BinaryIO, dataset: h5py.Dataset) -> Tensor:
  """An array of the file, not read yet."""
  dtype = dataset.dtype
  # HDF5 lacks bfloat16: Keras writes two opaque bytes and this attribute.
  if dtype.str == '|V2' and (
    text_attribute(stream, dataset, 'dtype') == 'bfloat16'
  ):
    dtype = np.dtype(ml_dtypes.bfloat16)

  def read() -> np.ndarray:
    with translated():
      return _values(dataset).view(dtype)

  return Tensor(tuple(dataset.shape), dtype.name, read)


def _refused(why: str) -> faults.RefusedError:
  return faults.RefusedError(
    f'{why}. Of HDF5 files, plain arrays in plain groups are read, uncompressed'
    ' or gzipped'
  )


def _walk(
  group: h5py.Group,
  prefix: str,
  skip: frozenset[str],
  found: Tree,
) -> None:
  if prefix.count('/') > MAX_DEPTH:
    raise _refused(f'its groups are nested deeper than {MAX_DEPTH}')
  if len(group) + len(found.groups) + len(found.datasets) > MAX_OBJECTS:
    raise _refused(f'it holds more than {MAX_OBJECTS} groups and arrays')
  for name in group:
    if not prefix and name in skip:
      continue
    full = f'{prefix}{name}'
    # h5py's high-level interface follows the link.
    link = group.id.links.get_info(name.encode())
    if link.type != h5py.h5l.TYPE_HARD:
      raise _refused(f'{full} is a soft link or a link to another file')
    entry = group[name]
    if isinstance(entry, h5py.Group):
      found.groups[full] = entry
      _walk(entry, f'{full}/', skip, found)
    elif isinstance(entry, h5py.Dataset):
      _check_dataset(full, entry)
      found.datasets[full] = entry
    else:
      raise _refused(f'{full} is neither a group nor an array')


def _check_dataset(name: str, dataset: h5py.Dataset) -> None:
  creation = dataset.id.get_create_plist()
  if creation.get_external_count():
    raise _refused(f'the values of {name} are in another file')
  if dataset.is_virtual:
    raise _refused(f'{name} is made of other arrays (virtual)')
  if dataset.shape is None:
    raise _refused(f'{name} has no shape')
  if unknown := set(_filters(dataset)) - set(_FILTERS):
    raise _refused(
      f'{name} has the filter {min(unknown)}, where'
      f' {", ".join(_FILTERS.values())} are known'
    )
  if dataset.dtype.hasobject:
    return  # never read: not weights, and of unknown size
  stored = dataset.id.get_storage_size()
  stated = math.prod(dataset.shape) * dataset.dtype.itemsize
  if dataset.chunks is None:
    complete = stored == stated
  else:
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
    counts = -(-np.array(dataset.shape) // dataset.chunks)
    complete = (
      dataset.id.get_num_chunks() == math.prod(counts.tolist())
      and max(stated, chunk) <= MAX_EXPANSION * stored + _SMALL
    )
  if not complete:
    raise ValueError(
      f'{name} states {stated} bytes, and the file holds {stored} for it'
    )


def _filters(dataset: h5py.Dataset) -> list[int]:
  """The codes of the filters, in the order of their application."""
  creation = dataset.id.get_create_plist()
  return [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]


def _values(dataset: h5py.Dataset) -> np.ndarray:
  if _DEFLATE not in _filters(dataset):
    return dataset[()]
  # HDF5's own gzip allocates as much as the stream expands to.
  result = np.empty(dataset.shape, dataset.dtype)
  limit = math.prod(dataset.chunks) * dataset.dtype.itemsize
  for index in range(dataset.id.get_num_chunks()):
    info = dataset.id.get_chunk_info(index)
    if info.filter_mask or info.size > limit + limit // 8 + _SMALL:
      raise ValueError(
        f'the chunk at {info.chunk_offset} is larger than stated'
      )
    _, data = dataset.id.read_direct_chunk(info.chunk_offset)
    for code in reversed(_filters(dataset)):
      if code == _DEFLATE:
        # Of a checksum, four bytes may be inside.
        data = zlib.decompressobj().decompress(data, limit + 5)
      elif code == _SHUFFLE:
        planes = np.frombuffer(data, np.uint8)
        data = planes.reshape(dataset.dtype.itemsize, -1).T.tobytes()
      else:
        data = data[:-4]
    chunk = np.frombuffer(data, dataset.dtype).reshape(dataset.chunks)
    where = tuple(
      slice(start, min(start + step, size))
      for start, step, size in zip(
        info.chunk_offset, dataset.chunks, dataset.shape, strict=True
      )
    )
    result[where] = chunk[tuple(slice(0, s.stop - s.start) for s in where)]
  return result
