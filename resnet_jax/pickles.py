# SPDX-License-Identifier: Apache-2.0
"""Pickles that may hold NumPy arrays, strings, numbers and containers only.

Feature files and mean files of the original program are pickles, and a pickle
can run any code.  This reader admits the few functions that NumPy needs to
rebuild an array and refuses anything else by name.  It reads what Python 2
wrote, too.
"""

import codecs
import mmap
import pathlib
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from resnet_jax import errors


def _reconstruct(kind: type, shape: tuple, code: bytes | str) -> np.ndarray:
  # NumPy writes an empty array here and fills it later; any other shape would
  # let a few bytes claim any amount of memory.
  if kind is not np.ndarray or shape != (0,):
    raise pickle.UnpicklingError('an array that does not start out empty')
  del code
  return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _encode(text: str, encoding: str) -> bytes:
  # How old protocols spell bytes.
  if encoding != 'latin1':
    raise pickle.UnpicklingError(f'bytes encoded as {encoding!r}')
  return codecs.encode(text, 'latin1')


def _scalar(dtype: np.dtype, data: bytes | str) -> np.generic:
  if dtype.hasobject:
    raise pickle.UnpicklingError('an object scalar')
  raw = data.encode('latin1') if isinstance(data, str) else data
  return np.frombuffer(raw, dtype, count=1)[0]


def _dtype(code: str, *flags: Any) -> np.dtype:
  del flags  # whether to align and copy; both without meaning here
  dtype = np.dtype(code)
  if dtype.kind not in 'biufcSU' or dtype.itemsize > 1024:
    raise pickle.UnpicklingError(f'arrays of dtype {dtype}')
  return dtype


_ADMITTED: dict[tuple[str, str], Callable] = {
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): _dtype,
  ('_codecs', 'encode'): _encode,
}
for _module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
  _ADMITTED[_module, '_reconstruct'] = _reconstruct
  _ADMITTED[_module, 'scalar'] = _scalar

# These name or build objects other than through the functions above.
_REFUSED_OPCODES = {'EXT1', 'EXT2', 'EXT4', 'INST', 'OBJ', 'NEWOBJ'} | {
  'NEWOBJ_EX',
  'PERSID',
  'BINPERSID',
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    # Python 2 wrote module names that Python 3 maps before it asks.
    if (module, name) not in _ADMITTED:
      raise pickle.UnpicklingError(f'{module}.{name}')
    return _ADMITTED[module, name]


def load_arrays(path: pathlib.Path) -> Any:
  """The contents of a pickle of arrays; nothing in it is executed.

  Raises:
    UserError: it is no pickle, is damaged, or holds anything else than arrays,
      strings, numbers and containers; says what.
  """
  try:
    with (
      open(path, 'rb') as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
      _check_opcodes(view)
      view.seek(0)
      return _Unpickler(view, encoding='latin1').load()
  except pickle.UnpicklingError as error:
    raise errors.UserError(
      f'{path} is refused: it holds {error}, and only NumPy arrays, strings,'
      ' numbers and containers are read from a pickle.'
    ) from error
  except OSError as error:
    raise errors.UserError(
      f'cannot read {path}: {error.strerror or error}.'
    ) from error
  except Exception as error:
    # A damaged pickle can raise nearly anything.
    raise errors.UserError(
      f'{path} is no pickle, or a damaged one ({type(error).__name__}:'
      f' {error}). Make it again.'
    ) from error


def _check_opcodes(view: Any) -> None:
  """Refuses opcodes that could claim memory or make objects unseen."""
  ended = False
  for count, (opcode, argument, _) in enumerate(pickletools.genops(view)):
    if opcode.name in _REFUSED_OPCODES:
      raise pickle.UnpicklingError(f'the opcode {opcode.name}')
    stores = opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT')
    if stores and int(argument or 0) > count:
      # The unpickler would make a table of that size.
      raise pickle.UnpicklingError(f'a memo of {argument} entries')
    ended = opcode.name == 'STOP'
  if not ended:
    raise ValueError('it breaks off')
