# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files, written without PyTorch: opcodes of protocol 2."""

import math
import pickle
import struct

from makers import zip_of

MAGIC = 0x1950A86A20F9469CFC6C


def value(given):
  """The opcodes of plain objects; bytes are opcodes already."""
  if isinstance(given, bytes):
    return given
  if isinstance(given, dict):
    pairs = b''.join(value(k) + value(v) for k, v in given.items())
    return b'}(' + pairs + b'u'
  if isinstance(given, tuple | list):
    end = b't' if isinstance(given, tuple) else b'l'
    return b'(' + b''.join(map(value, given)) + end
  if isinstance(given, str):
    # Without a place in the memo, which tests use themselves.
    data = given.encode()
    return b'X' + struct.pack('<I', len(data)) + data
  return pickle.dumps(given, 2)[2:-1]


def call(name, *arguments):
  module, _, function = name.rpartition('.')
  return f'c{module}\n{function}\n'.encode() + value(arguments) + b'R'


def storage(key, count, kind='Float', view=()):
  module = 'torch.storage' if kind == 'Untyped' else 'torch'
  name = f'c{module}\n{kind}Storage\n'.encode()
  return value(('storage', name, key, 'cpu', count, *view)) + b'Q'


def strides_of(shape):
  return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def tensor(key, shape, *, offset=0, strides=None, count=None, more=(), **kind):
  count = math.prod(shape) if count is None else count
  strides = strides_of(shape) if strides is None else strides
  hooks = call('collections.OrderedDict')
  return call(
    'torch._utils._rebuild_tensor_v2',
    storage(key, count, **kind),
    *(offset, shape, strides, False, hooks, *more),
  )


def pickled(given):
  return b'\x80\x02' + value(given) + b'.'


def zip_file(contents, storages=(), **options):
  data = [(f'm/data/{key}', raw) for key, raw in dict(storages).items()]
  return zip_of(
    [('m/data.pkl', pickled(contents)), ('m/byteorder', b'little'), *data],
    **options,
  )


SYSTEM = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}


def row_file(contents, storages=(), system=SYSTEM, keys=None, version=1001):
  """A file of before 1.6; a storage is (its number of values, its bytes)."""
  storages = dict(storages)
  keys = sorted(storages) if keys is None else keys
  parts = [MAGIC, version, system, contents, keys]
  return b''.join(map(pickled, parts)) + b''.join(
    struct.pack('<q', count) + raw for count, raw in storages.values()
  )


def built(name, how, state=None):
  """An object of a class, made by opcodes, with a state."""
  module, _, kind = name.rpartition('.')
  made = f'c{module}\n{kind}\n'.encode() + how
  return made if state is None else made + value(state) + b'b'


def ordered(state):
  """As torch.save has a state dict: an OrderedDict with a state."""
  pairs = b''.join(value(k) + value(v) for k, v in state.items())
  versions = {'_metadata': {'': {'version': 1}}}
  made = call('collections.OrderedDict')
  return made + b'(' + pairs + b'u' + value(versions) + b'b'
