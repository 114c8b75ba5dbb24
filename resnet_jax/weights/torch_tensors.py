# SPDX-License-Identifier: Apache-2.0
"""The pickles of PyTorch: tensors, storages and containers, nothing else.

A tensor is a call of `_rebuild_tensor_v2` with a storage, an offset, a size and
strides (in values), and a storage is a persistent id with its class, key and
number of values.  Source: PyTorch 2.13, `torch/serialization.py` and
`torch/_utils.py`.
"""

import dataclasses
import io
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from resnet_jax.codecs import pickles

# ResNet-152 with AdamW's state has a pickle of 0.22 MiB.
MAX_PICKLE = 4 << 20
_MAX_RANK = 8
# The dtype of a storage's values, and their bytes.
_STORAGES = {
  'FloatStorage': ('float32', 4),
  'DoubleStorage': ('float64', 8),
  'HalfStorage': ('float16', 2),
  'BFloat16Storage': ('bfloat16', 2),
  'LongStorage': ('int64', 8),
  'IntStorage': ('int32', 4),
  'ShortStorage': ('int16', 2),
  'CharStorage': ('int8', 1),
  'ByteStorage': ('uint8', 1),
  'BoolStorage': ('bool', 1),
  'ComplexFloatStorage': ('complex64', 8),
  'ComplexDoubleStorage': ('complex128', 16),
}


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A class of storages."""

  dtype: str
  width: int


@dataclasses.dataclass(frozen=True)
class Storage:
  """What tensors view: `count` values, by its key in the file."""

  kind: _Kind
  key: str
  count: int

  @property
  def size(self) -> int:
    """Bytes."""
    return self.count * self.kind.width


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage, known to lie within it; offset, strides in values."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(  # noqa: PLR0917, as PyTorch's has them
  storage: object,
  offset: object,
  shape: object,
  strides: object,
  requires_grad: object = None,
  hooks: object = None,
  metadata: object = None,
) -> Tensor:
  del requires_grad, hooks
  if not isinstance(storage, Storage):
    raise ValueError('a tensor is not made of a storage')
  if metadata:
    raise pickles.RefusedError('a tensor with a conjugate or negative bit')
  shape, strides = _numbers(shape), _numbers(strides)
  (offset,) = _numbers((offset,))
  if len(shape) != len(strides):
    raise ValueError('a tensor has not one stride for each dimension')
  steps = [(n - 1, s) for n, s in zip(shape, strides, strict=True)]
  if any(n > 0 and s == 0 for n, s in steps):
    raise pickles.RefusedError('a tensor that repeats values (a stride of 0)')
  count = math.prod(shape)
  end = offset + (1 + sum(n * s for n, s in steps) if count else 0)
  # Overlapping strides could make many values of few.
  if max(end, count) > storage.count:
    raise ValueError(
      f'a tensor of {count} values that ends at value {end} has a storage of'
      f' {storage.count}'
    )
  return Tensor(storage, offset, shape, strides)


def _numbers(given: object) -> tuple[int, ...]:
  if not isinstance(given, tuple | list) or len(given) > _MAX_RANK:
    raise ValueError(f'a tensor has not 0 to {_MAX_RANK} dimensions')
  if not all(type(n) is int and 0 <= n < 1 << 63 for n in given):
    raise ValueError('a size, a stride or an offset is no number there can be')
  return tuple(given)


def _rebuild_parameter(
  data: object, requires_grad: object, hooks: object
) -> object:
  del requires_grad, hooks
  return data


_ADMITTED: dict[tuple[str, str], Any] = {
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  # PyTorch 0.3's, which has the first four arguments only.
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  ('collections', 'OrderedDict'): pickles.ordered_dict,
} | {('torch', name): _Kind(*kind) for name, kind in _STORAGES.items()}


class Storages(dict[str, Storage]):
  """The storages that a pickle names, by key."""

  def persistent_load(self, given: object) -> Storage:
    """Makes a storage of ('storage', kind, key, device, count)."""
    match given:
      case ('storage', _Kind() as kind, str(key), _, int(count)):
        pass
      # Of views, which the old format has here, only PyTorch 0.1 made any.
      case ('storage', _Kind() as kind, str(key), _, int(count), None):
        pass
      case _:
        raise pickles.RefusedError('a persistent id that names no storage')
    _numbers((count,))
    storage = Storage(kind, key, count)
    if self.setdefault(key, storage) != storage:
      raise ValueError(f'storage {key!r:.99} has two sizes or two types')
    return storage


def unpickle(stream: io.BytesIO, storages: Storages | None = None) -> Any:
  """The next pickle of a stream, which holds MAX_PICKLE bytes at most.

  Args:
    stream: is left behind the pickle.
    storages: is given those that the pickle names; None: it is one of plain
      numbers, strings and containers.

  Raises:
    RefusedError: of `pickles`: it holds anything else.
    ValueError: it is damaged or too large; says how.
  """
  size = stream.getbuffer().nbytes
  admitted, persistent_load = (
    ({}, None) if storages is None else (_ADMITTED, storages.persistent_load)
  )
  try:
    return pickles.load(stream, size, admitted, persistent_load)
  except ValueError as error:
    if stream.tell() == MAX_PICKLE:
      raise ValueError(f'its pickle has more than {size} bytes') from error
    raise ValueError(f'its pickle: {error}') from error


def values(tensor: Tensor, data: bytes) -> np.ndarray:
  """A tensor, of the bytes of its storage.

  Raises:
    ValueError: these are too few.
  """
  name = tensor.storage.kind.dtype
  dtype = np.dtype(jnp.bfloat16 if name == 'bfloat16' else name)
  flat = np.frombuffer(data, dtype.newbyteorder('<'))
  if flat.size != tensor.storage.count:
    raise ValueError('its storage breaks off')
  # Copied: of a view, all the storage would stay in memory.
  return np.array(
    np.lib.stride_tricks.as_strided(
      flat[tensor.offset :],
      tensor.shape,
      [stride * dtype.itemsize for stride in tensor.strides],
    )
  )
