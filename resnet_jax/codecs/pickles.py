# SPDX-License-Identifier: Apache-2.0
"""Pickles of NumPy arrays, strings, numbers and containers, and nothing else.

The original program's feature and mean files are pickles, also Python 2's, and
a pickle can run any code.  This reader calls the few functions that rebuild an
array, its own, and refuses any other name.  `load` takes another table of
functions, for PyTorch's files, and may put an `Inert` object in the place of
what any other name would make.
"""

import codecs
import contextlib
import dataclasses
import io
import mmap
import pathlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, ClassVar

import numpy as np

from resnet_jax.codecs import faults
from resnet_jax.system import files

# Stands for numpy.ndarray, which could be called for arrays of any size.
_NDARRAY = object()
# The object for a module and a name.
Admitted = Mapping[tuple[str, str], Any]


@dataclasses.dataclass(eq=False, slots=True)
class Inert:
  """Stands for an object that is not rebuilt; nothing of it is imported or run.

  Attributes:
    name: of its class or function, `argparse.Namespace`; or what it is.
    state: its attributes or entries, as far as they are a dict.
  """

  name: str
  state: dict = dataclasses.field(default_factory=dict)


class _Dtype:
  """A dtype, its byte order set by the state that follows it in a pickle.

  Setting it on NumPy's own object would change that for the whole process, and
  would trust the pickle with more than a byte order.
  """

  def __init__(self, code: str, *flags: Any) -> None:
    del flags  # whether to align and to copy
    if not isinstance(code, str):
      raise faults.RefusedError('arrays of a structured dtype')
    self.value = np.dtype(code)
    # Without a size of its own, an array may claim any number of values.
    sized = 0 < self.value.itemsize <= 1024
    if self.value.kind not in 'biufcSU' or not sized:
      raise faults.RefusedError(f'arrays of dtype {self.value}')

  def build(self, state: tuple) -> None:
    # The version, the byte order, and what structured dtypes hold.
    if state[2:5] != (None, None, None):
      raise faults.RefusedError('arrays of a structured dtype')
    self.value = self.value.newbyteorder(state[1])


def _reconstruct(kind: object, shape: tuple, code: bytes | str) -> np.ndarray:
  # NumPy starts with an empty array and fills it later; any other shape would
  # let a few bytes claim any amount of memory.
  if kind is not _NDARRAY or shape != (0,):
    raise faults.RefusedError('an array that does not start out empty')
  del code
  return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _frombuffer(
  data: bytes | bytearray,
  dtype: _Dtype,
  shape: tuple,
  order: Any,
  axes: Any = None,
) -> np.ndarray:
  # Protocol 5's array.  A view of another array's memory could outlive it.
  if not isinstance(data, bytes | bytearray):
    raise faults.RefusedError(f'an array made of a {type(data).__name__}')
  array = np.frombuffer(data, dtype.value)
  if axes is None:
    return array.reshape(shape, order=order)
  return array.reshape(shape).transpose(axes)


def _encode(text: str, encoding: str) -> bytes:
  # The bytes of old protocols.
  if encoding != 'latin1':
    raise faults.RefusedError(f'bytes encoded as {encoding!r}')
  return codecs.encode(text, 'latin1')


def _scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
  raw = data.encode('latin1') if isinstance(data, str) else data
  return np.frombuffer(raw, dtype.value, count=1)[0]


_ADMITTED: dict[tuple[str, str], Any] = {
  ('numpy', 'ndarray'): _NDARRAY,
  ('numpy', 'dtype'): _Dtype,
  ('_codecs', 'encode'): _encode,
  # Old protocols' bytes of an array of size 0.
  ('builtins', 'bytes'): lambda: b'',
}
for _core in ('numpy.core', 'numpy._core'):
  _ADMITTED[f'{_core}.multiarray', '_reconstruct'] = _reconstruct
  _ADMITTED[f'{_core}.multiarray', 'scalar'] = _scalar
  _ADMITTED[f'{_core}.numeric', '_frombuffer'] = _frombuffer


def ordered_dict(entries: Iterable = ()) -> dict:
  """Stands for collections.OrderedDict in a table of `Admitted`.

  Python 2 calls it with its entries; Python 3 sets them afterwards.
  """
  result: dict = {}
  for key, value in entries:
    _fill(result, [key, value])
  return result


_REFUSED_OPCODES = ('EXT1', 'EXT2', 'EXT4', 'PERSID')
# These build objects other than through the functions above, or sets, which
# hash what they hold, see load_setitems.
_BUILDING_OPCODES = (
  *('INST', 'OBJ', 'NEWOBJ', 'NEWOBJ_EX', 'EMPTY_SET', 'ADDITEMS', 'FROZENSET'),
)
_KEYS = (str, bytes, int)
_COPIED = (str, bytes, bytearray, list, tuple, dict)
# What these make is of the class in their first argument.
_MAKERS = ('copyreg._reconstructor', 'copy_reg._reconstructor')


class _Unpickler(pickle._Unpickler):
  # The pure-Python one: its opcodes can be restricted, and it reads before
  # it allocates.
  dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
  read: Callable[[int], bytes]
  pop_mark: Callable[[], list[Any]]
  readline: Callable[[], bytes]
  stack: list[Any]

  def __init__(
    self,
    stream: Any,
    size: int,
    admitted: Admitted,
    persistent_load: Callable[[Any], Any] | None,
    inert: bool,
  ) -> None:
    super().__init__(stream, encoding='latin1')
    self._admitted = admitted
    self.inert = inert
    self._persistent_load = persistent_load
    # A value is copied three times at most: as text, bytes and an array.
    self._left = 4 * size

  def find_class(self, module: str, name: str) -> Any:
    # Python 2's name, which Python 3 maps only after this call.
    module = 'builtins' if module == '__builtin__' else module
    if (module, name) in self._admitted:
      return self._admitted[module, name]
    return self._instead(f'{module}.{name}'[:99])

  def _instead(self, name: str) -> Inert:
    if not self.inert:
      raise faults.RefusedError(name)
    return Inert(name)

  def persistent_load(self, pid: Any) -> Any:
    if self._persistent_load is None:
      raise faults.RefusedError('the opcode BINPERSID')
    return self._persistent_load(pid)

  def _charge(self, values: Any) -> None:
    # Two bytes refer to a value again: copied each time, it would fill memory.
    self._left -= len(values)
    if self._left >= 0:
      self._left -= sum(len(v) for v in values if isinstance(v, _COPIED))
    if self._left < 0:
      raise faults.RefusedError('values that are copied again and again')

  def load_reduce(self) -> None:
    arguments = self.stack.pop()
    if isinstance(self.stack[-1], Inert):
      self._make(self.stack.pop(), arguments)
      return
    self._charge(arguments)
    self.stack[-1] = self.stack[-1](*arguments)

  def _make(self, kind: object, arguments: Any = ()) -> None:
    """Pushes what stands for an object of a class, or of a function's."""
    if not isinstance(kind, Inert):
      raise faults.RefusedError('an object made by another opcode')
    if kind.name in _MAKERS and isinstance(arguments[0], Inert):
      kind = arguments[0]
    self.stack.append(Inert(kind.name))

  def load_inst(self) -> None:
    module = self.readline()[:-1].decode('ascii')
    name = self.readline()[:-1].decode('ascii')
    self.pop_mark()
    self._make(self.find_class(module, name))

  def load_obj(self) -> None:
    self._make(self.pop_mark()[0])

  def load_newobj(self) -> None:
    self.stack.pop()
    self._make(self.stack.pop())

  def load_newobj_ex(self) -> None:
    self.stack.pop()
    self.load_newobj()

  def load_empty_set(self) -> None:
    self.stack.append(self._instead('a set'))

  def load_additems(self) -> None:
    self.pop_mark()

  def load_frozenset(self) -> None:
    self.pop_mark()
    self.load_empty_set()

  def load_append(self) -> None:
    value = self.stack.pop()
    if not isinstance(self.stack[-1], Inert):
      self.stack[-1].append(value)

  def load_appends(self) -> None:
    values = self.pop_mark()
    if not isinstance(self.stack[-1], Inert):
      self.stack[-1].extend(values)

  def load_build(self) -> None:
    state = self.stack.pop()
    built = self.stack[-1]
    if isinstance(built, Inert):
      if isinstance(state, dict):
        built.state = state
    elif isinstance(built, _Dtype):
      built.build(state)
    elif isinstance(built, np.ndarray):
      self._charge(state)
      version, shape, dtype, fortran, data = state
      built.__setstate__((version, shape, dtype.value, fortran, data))
    elif not (isinstance(built, dict) and isinstance(state, dict)):
      # An OrderedDict's state lies beside its entries, and is dropped.
      raise faults.RefusedError(f'the state of a {type(built).__name__}')

  def load_bytearray8(self) -> None:
    # The inherited one allocates before it reads.
    size = int.from_bytes(self.read(8), 'little')
    self.stack.append(bytearray(self.read(size)))

  def load_setitems(self) -> None:
    entries = self.pop_mark()
    self._enter(entries)

  def load_setitem(self) -> None:
    entries = [self.stack.pop(), self.stack.pop()]
    self._enter(entries[::-1])

  def load_dict(self) -> None:
    entries = self.pop_mark()
    self.stack.append({})
    self._enter(entries)

  def _enter(self, entries: list[Any]) -> None:
    target = self.stack[-1]
    if self.inert:
      # Whatever is under such a key has no name.
      entries[::2] = [
        key if isinstance(key, _KEYS) else Inert(f'a {type(key).__name__}')
        for key in entries[::2]
      ]
    _fill(target.state if isinstance(target, Inert) else target, entries)

  dispatch[pickle.REDUCE[0]] = load_reduce
  dispatch[pickle.APPEND[0]] = load_append
  dispatch[pickle.APPENDS[0]] = load_appends
  dispatch[pickle.BUILD[0]] = load_build
  dispatch[pickle.SETITEMS[0]] = load_setitems
  dispatch[pickle.SETITEM[0]] = load_setitem
  dispatch[pickle.DICT[0]] = load_dict
  dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _fill(target: object, entries: list[Any]) -> None:
  # Hashing a deep or much-shared tuple crashes the interpreter or never ends.
  if type(target) is not dict or len(entries) % 2:
    raise faults.RefusedError(f'entries of a {type(target).__name__}')
  for key, value in zip(entries[::2], entries[1::2], strict=True):
    if not isinstance(key, (*_KEYS, Inert)):
      raise faults.RefusedError(f'a {type(key).__name__} as the key of a dict')
    target[key] = value


def _refuse(name: str) -> Callable[[_Unpickler], None]:
  def refuse(unpickler: _Unpickler) -> None:
    raise faults.RefusedError(f'the opcode {name}')

  return refuse


def _unless_inert(name: str) -> Callable[[_Unpickler], None]:
  method = getattr(_Unpickler, f'load_{name.lower()}')

  def build(unpickler: _Unpickler) -> None:
    if not unpickler.inert:
      raise faults.RefusedError(f'the opcode {name}')
    method(unpickler)

  return build


for _name in _REFUSED_OPCODES:
  _Unpickler.dispatch[getattr(pickle, _name)[0]] = _refuse(_name)
for _name in _BUILDING_OPCODES:
  _Unpickler.dispatch[getattr(pickle, _name)[0]] = _unless_inert(_name)


def load(
  stream: IO[bytes] | mmap.mmap,
  size: int,
  admitted: Admitted,
  persistent_load: Callable[[Any], Any] | None = None,
  *,
  inert: bool = False,
) -> Any:
  """The next pickle of a stream, which is left at its end.

  Args:
    stream: a mapped file, or bytes: neither allocates more than it has.
    size: of the stream, bytes.
    admitted: functions that are safe with any arguments, and other objects.
    persistent_load: returns the object of a persistent id; None: refused.
    inert: whether an `Inert` stands for what is not admitted, instead of an
      error.

  Raises:
    RefusedError: it holds something that is not admitted.
    ValueError: it is not a pickle, or is damaged.
  """
  try:
    return _Unpickler(stream, size, admitted, persistent_load, inert).load()
  except faults.RefusedError:
    raise
  except EOFError as error:
    raise ValueError('it breaks off') from error
  except Exception as error:
    # A damaged pickle can raise nearly any exception.
    raise ValueError(f'{type(error).__name__}: {error}'[:99]) from error


def load_arrays(path: pathlib.Path) -> Any:
  """The contents of a pickle of arrays; nothing in it is executed.

  Raises:
    UserError: it is not a pickle, is damaged, or holds anything other than
      arrays, strings, numbers and containers.
  """
  with (
    _reported(path),
    files.opened(path) as file,
    # Mapped, because a file object allocates as much as a pickle claims.
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
  ):
    return load(view, len(view), _ADMITTED)


def load_bytes(path: pathlib.Path, data: bytes) -> Any:
  """As `load_arrays`, of a pickle's bytes; `path` is for messages."""
  with _reported(path):
    return load(io.BytesIO(data), len(data), _ADMITTED)


def _reported(
  path: pathlib.Path,
) -> contextlib.AbstractContextManager[None]:
  return faults.reported(
    path,
    '{path} is not a pickle, or is damaged ({error}). Write it again.',
    '{path} is refused: it holds {error}, and only NumPy arrays, strings,'
    ' numbers and containers are read from a pickle.',
  )
