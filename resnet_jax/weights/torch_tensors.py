# SPDX-License-Identifier: Apache-2.0
"""The pickles of PyTorch: tensors, storages and containers.

A tensor is a call of `_rebuild_tensor_v2` with a storage, an offset, a size and
strides (in values), and a storage is a persistent id with its class, key and
number of values.  A `pickles.Inert` stands for anything else.  Source: PyTorch
2.13, `torch/serialization.py` and `torch/_utils.py`.
"""

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.codecs import faults, pickles
from resnet_jax.codecs.tensor import Tensor

# ResNet-152 with AdamW's state has a pickle of 0.22 MiB.
MAX_PICKLE = 4 << 20
_MAX_RANK = 8
_DTYPES = {
  'Float': np.dtype('<f4'),
  'Double': np.dtype('<f8'),
  'Half': np.dtype('<f2'),
  'BFloat16': np.dtype(ml_dtypes.bfloat16),
  'Long': np.dtype('<i8'),
  'Int': np.dtype('<i4'),
  'Short': np.dtype('<i2'),
  'Char': np.dtype('i1'),
  'Byte': np.dtype('u1'),
  'Bool': np.dtype('?'),
  'ComplexFloat': np.dtype('<c8'),
  'ComplexDouble': np.dtype('<c16'),
  'QInt8': np.dtype('i1'),
  'QUInt8': np.dtype('u1'),
  'QInt32': np.dtype('<i4'),
}
# Of the types that are newer than the named ones; its count is in bytes.
_UNTYPED = 'torch.storage.UntypedStorage'


@dataclasses.dataclass(frozen=True)
class Storage:
  """`count` values that tensors view, with their key in the file."""

  dtype: np.dtype
  key: str
  count: int
  owner: 'Storages' = dataclasses.field(compare=False, repr=False)

  @property
  def size(self) -> int:
    """Bytes."""
    return self.count * self.dtype.itemsize


class Storages(dict[str, Storage]):
  """The storages that a pickle names, by key."""

  def set_reader(self, read: Callable[[Storage], bytes]) -> None:
    """Sets the function that reads a storage, once the layout is known."""
    # Each tensor that shares a storage would read the whole storage.
    self.read = functools.lru_cache(maxsize=1)(read)

  def persistent_load(self, given: object) -> Storage | pickles.Inert:
    """Makes a storage of ('storage', dtype, key, device, count)."""
    match given:
      # Of views, which the old format has last, only PyTorch 0.1 made any.
      case ('storage', kind, str(key), _, int(count)) | (
        'storage',
        kind,
        str(key),
        _,
        int(count),
        None,
      ) if isinstance(kind, np.dtype | pickles.Inert):
        pass
      # A module's class with its source, in the old format.
      case ('module', pickles.Inert() as named, *_):
        return named
      case _:
        raise faults.RefusedError('a persistent id that names no storage')
    if isinstance(kind, np.dtype):
      dtype = kind
    elif kind.name == _UNTYPED:
      dtype = np.dtype('u1')
    else:
      raise faults.RefusedError(kind.name)
    _numbers((count,))
    storage = Storage(dtype, key, count, self)
    if self.setdefault(key, storage) != storage:
      raise ValueError(f'storage {key!r:.99} has two sizes or two types')
    return storage


def _rebuild_tensor(  # noqa: PLR0917, as PyTorch's has them
  storage: object,
  offset: object,
  shape: object,
  strides: object,
  requires_grad: object = None,
  hooks: object = None,
  metadata: object = None,
) -> Tensor | pickles.Inert:
  del requires_grad, hooks
  if not isinstance(storage, Storage):
    raise ValueError('a tensor does not view a storage')
  if metadata:
    return pickles.Inert('a tensor with a conjugate or negative bit')
  shape, strides = _numbers(shape), _numbers(strides)
  (offset,) = _numbers((offset,))
  if len(shape) != len(strides):
    raise ValueError('a tensor does not have one stride per dimension')
  steps = [(n - 1, s) for n, s in zip(shape, strides, strict=True)]
  if any(n > 0 and s == 0 for n, s in steps):
    return pickles.Inert('a tensor that repeats values (a stride of 0)')
  count = math.prod(shape)
  end = offset + (1 + sum(n * s for n, s in steps) if count else 0)
  # Overlapping strides could expand a few values.
  if max(end, count) > storage.count:
    raise ValueError(
      f'a tensor of {count} values that ends at value {end} has a storage of'
      f' {storage.count}'
    )
  # The stride of a dimension of size 1 may be any number.
  strides = tuple(s if n > 0 and count else 0 for n, s in steps)
  return Tensor(
    shape,
    storage.dtype.name,
    functools.partial(_values, storage, offset, shape, strides),
  )


def _numbers(given: object) -> tuple[int, ...]:
  if not isinstance(given, tuple | list) or len(given) > _MAX_RANK:
    raise ValueError(f'a tensor does not have 0 to {_MAX_RANK} dimensions')
  if not all(type(n) is int and 0 <= n < 1 << 63 for n in given):
    raise ValueError('a size, a stride or an offset is out of range')
  return tuple(given)


def _rebuild_parameter(data: object, *rest: object) -> object:
  del rest  # whether it requires a gradient, hooks, attributes
  return data


def _bytes(text: object, encoding: object = '') -> bytes | pickles.Inert:
  # The bytes of protocol 2, which may be names.
  if isinstance(text, str) and encoding == 'latin1':
    return text.encode('latin1')
  return pickles.Inert('encoded text')


def too_large(size: str) -> faults.RefusedError:
  """The error for a pickle of such a size."""
  return faults.RefusedError(
    f'a pickle of {size} {MAX_PICKLE}, as of histories, long settings, or'
    ' NumPy arrays in place of tensors'
  )


_ADMITTED: dict[tuple[str, str], Any] = {
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  # PyTorch 0.3's, which has the first four arguments only.
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  ('torch._utils', '_rebuild_parameter_with_state'): _rebuild_parameter,
  ('_codecs', 'encode'): _bytes,
  ('collections', 'OrderedDict'): pickles.ordered_dict,
} | {('torch', f'{n}Storage'): dtype for n, dtype in _DTYPES.items()}


def unpickle(stream: io.BytesIO, storages: Storages | None = None) -> Any:
  """The next pickle of a stream of MAX_PICKLE bytes at most.

  Args:
    stream: is left at the end of the pickle.
    storages: gets those that the pickle names; None: only numbers, strings and
      containers are allowed.

  Raises:
    RefusedError: it holds what cannot be read past, or, without `storages`,
      anything but numbers, strings and containers.
    ValueError: it is damaged or too large.
  """
  size = stream.getbuffer().nbytes
  admitted, persistent_load = (
    ({}, None) if storages is None else (_ADMITTED, storages.persistent_load)
  )
  try:
    inert = storages is not None
    return pickles.load(stream, size, admitted, persistent_load, inert=inert)
  except ValueError as error:
    if stream.tell() == MAX_PICKLE:
      raise too_large('more bytes than') from error
    raise ValueError(f'its pickle: {error}') from error


def _values(
  storage: Storage, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> np.ndarray:
  """A view of a storage, known to lie within it; offset, strides in values."""
  dtype = storage.dtype
  data = storage.owner.read(storage)
  if len(data) != storage.size:
    raise ValueError('its storage breaks off')
  # A view would keep the whole storage in memory.
  return np.ndarray(
    shape,
    dtype,
    data,
    offset * dtype.itemsize,
    [stride * dtype.itemsize for stride in strides],
  ).copy()
