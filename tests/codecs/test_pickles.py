# SPDX-License-Identifier: Apache-2.0
"""Pickles of arrays are read; nothing else is, and nothing is executed."""

import collections
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from makers import refusal

from resnet_jax.codecs import pickles
from resnet_jax.system import errors

PROTOCOLS = range(6)
MULTIARRAY = [b'numpy.core.multiarray', b'numpy._core.multiarray']
# What a GLOBAL opcode leads to must not happen: this file would be made.
EXECUTED = 'executed'


def load(tmp_path, data):
  path = tmp_path / 'a.pickle'
  path.write_bytes(data)
  return pickles.load_arrays(path)


def assert_same(found, expected):
  assert type(found) is type(expected)
  if isinstance(expected, np.ndarray):
    # NumPy's own reader makes some arrays native.
    assert found.dtype.newbyteorder('=') == expected.dtype.newbyteorder('=')
    np.testing.assert_array_equal(found, expected)
  elif isinstance(expected, dict):
    assert list(found) == list(expected)
    for key in expected:
      assert_same(found[key], expected[key])
  elif isinstance(expected, list | tuple):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
      assert_same(a, b)
  else:
    assert found == expected


# ---------------------------------------------------------------- admitted


ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize(
  'value',
  [
    ARRAY,
    ARRAY.astype('>f4'),
    ARRAY.astype('>i2'),
    np.asfortranarray(ARRAY),
    ARRAY.transpose(1, 0, 2),
    ARRAY[:, ::2],
    np.frombuffer(b'read only', np.uint8),
    np.zeros((0, 3)),
    np.float64(0.1) * np.ones(()),
    np.array([True, False]),
    np.array([1 + 2j], np.complex64),
    np.array(['grün', '猫']),
    np.array(['a', 'b'], '>U3'),
    np.array([b'a\xff', b'bc']),
    np.float32(2.5),
    np.dtype('>f8').type(3),
    np.int64(-7),
    np.str_('猫'),
    {'a.jpg': {'res5_3': ARRAY.reshape(1, -1)}, 'é': [ARRAY, ARRAY[0]]},
    [
      None,
      True,
      -3,
      2**70,
      1.5,
      'é\n"',
      b'\x00\xff',
      b'',
      (),
      (1, (2, [])),
      {},
    ],
    {1: 'a', 'b': (2.0, None)},
  ],
  ids=lambda value: f'{type(value).__name__}-{getattr(value, "dtype", "")}',
)
def test_arrays_and_containers_come_back(tmp_path, value, protocol):
  assert_same(load(tmp_path, pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_big_endian_arrays_leave_numpys_own_dtypes_alone(tmp_path, protocol):
  load(tmp_path, pickle.dumps(ARRAY.astype('>f4'), protocol))
  assert np.dtype('f4').isnative
  assert np.float32(1).tobytes() == struct.pack('=f', 1)


@pytest.mark.parametrize('core', MULTIARRAY)
@pytest.mark.parametrize('order', ['<', '>'])
def test_what_python_2_wrote(tmp_path, core, order):
  values = struct.pack(f'{order}3f', 1, -2.5, 1e6)
  data = (
    b'\x80\x02}q\x01U\x04dataq\x02c' + core + b'\n_reconstruct\nq\x03'
    b'cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08'
    b'(K\x01K\x03\x85q\tcnumpy\ndtype\nq\nU\x02f4q\x0bK\x00K\x01\x87q\x0c'
    b'Rq\r(K\x03U\x01' + order.encode() + b'q\x0eNNNJ\xff\xff\xff\xff'
    b'J\xff\xff\xff\xffK\x00tq\x0fb\x89U\x0c' + values + b'q\x10tq\x11bs.'
  )
  [(key, array)] = load(tmp_path, data).items()
  assert key == 'data'
  assert array.tolist() == [1, -2.5, 1e6]


def test_shared_objects_stay_shared(tmp_path):
  first, second = load(tmp_path, pickle.dumps([ARRAY, ARRAY], 4))
  assert first is second


# ----------------------------------------------------------------- refused


class Reduces:
  """Pickled as a call."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_call_of_os_system_is_refused_and_not_made(
  tmp_path, monkeypatch, protocol
):
  monkeypatch.chdir(tmp_path)
  data = pickle.dumps(
    {'data_mean': Reduces(os.system, f'echo > {EXECUTED}')}, protocol
  )
  message = refusal(pickles.load_arrays, tmp_path / 'a', data)
  assert f'it holds {os.name}.system, and only' in message
  assert message.endswith(
    'only NumPy arrays, strings, numbers and containers are read from a pickle.'
  )
  assert not (tmp_path / EXECUTED).exists()
  # The same bytes do run where they are trusted: the check above is one.
  pickle.loads(data)
  assert (tmp_path / EXECUTED).exists()


@pytest.mark.parametrize(
  ('value', 'name'),
  [
    (Reduces(getattr, 'a', 'upper'), 'builtins.getattr'),
    (Reduces(eval, '1'), 'builtins.eval'),
    (Reduces(os.getcwd), f'{os.name}.getcwd'),
    (Reduces(np.zeros, 3), 'numpy.zeros'),
    (Reduces(np.ndarray.__new__, np.ndarray, (3,)), 'builtins.getattr'),
    (collections.OrderedDict(a=1), 'collections.OrderedDict'),
    (np.array([None, {}], object), 'arrays of dtype object'),
    (np.array([(1, 2)], 'i4,f4'), 'arrays of dtype'),
    (np.array(['2020'], 'M8[D]'), 'arrays of dtype'),
    (np.array(['x' * 300]), 'arrays of dtype <U300'),
  ],
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_anything_else_is_refused_by_name(tmp_path, value, name, protocol):
  data = pickle.dumps(value, protocol)
  message = refusal(pickles.load_arrays, tmp_path / 'a', data)
  assert 'is refused: it holds ' in message
  assert name in message
  assert 'only NumPy arrays' in message


def dtype(code, state):
  call = pickle.dumps(Reduces(np.dtype, code, False, True), 2)
  return call[:-1] + pickle.dumps(state, 2)[2:-1] + b'b.'


def frombuffer(data):
  names = b'\x80\x04cnumpy._core.numeric\n_frombuffer\n('
  arguments = (data, np.dtype('f8'), (3,), 'C')
  return names + b''.join(pickle.dumps(a, 2)[2:-1] for a in arguments) + b'tR.'


STRUCTURED = 'arrays of a structured dtype'
SYSTEM = f"(S'echo > {EXECUTED}'\n".encode()


@pytest.mark.parametrize(
  ('data', 'what'),
  [
    (b'cos\nsystem\n' + SYSTEM + b'tR.', 'os.system'),
    (b'c__builtin__\neval\n(S"1"\ntR.', 'builtins.eval'),
    (b'\x80\x04\x8c\x02os\x8c\x06system\x93.', 'os.system'),
    (SYSTEM + b'ios\nsystem\n.', 'the opcode INST'),
    (b'(cnumpy\ndtype\n' + SYSTEM[1:] + b'o.', 'the opcode OBJ'),
    (b'\x80\x02cnumpy\ndtype\n)\x81.', 'the opcode NEWOBJ'),
    (b'\x80\x04cnumpy\ndtype\n)}\x92.', 'the opcode NEWOBJ_EX'),
    (b'Pid\n.', 'the opcode PERSID'),
    (b'K\x01Q.', 'the opcode BINPERSID'),
    (b'\x80\x02\x82\x01.', 'the opcode EXT1'),
    (b'\x80\x02\x83\x01\x00.', 'the opcode EXT2'),
    (b'\x80\x02\x84\x01\x00\x00\x00.', 'the opcode EXT4'),
    (
      dtype('f4', (3, '<', None, ('a',), {'a': ('f8', 9)}, 4, 4, 0)),
      STRUCTURED,
    ),
    (dtype('f4', (3, '<', ('f8', (9**9,)), None, None, 4, 4, 0)), STRUCTURED),
    # Of another array's memory, which a second state would give back.
    (frombuffer(np.zeros(3)), 'an array made of a ndarray'),
    # A state for a function would change it for the whole process.
    (b'c_codecs\nencode\n}S"a"\nI1\nsb.', 'the state of a function'),
    (b'c_codecs\nencode\n(S"a"\nS"rot13"\ntR.', "bytes encoded as 'rot13'"),
  ],
)
def test_hand_made_attacks_are_refused(tmp_path, monkeypatch, data, what):
  monkeypatch.chdir(tmp_path)
  message = refusal(pickles.load_arrays, tmp_path / 'a', data)
  assert f'is refused: it holds {what}, and only' in message
  assert not (tmp_path / EXECUTED).exists()


@pytest.mark.parametrize(
  'arguments',
  [
    b'(I5\ntS"O"\n',
    b'(I1073741824\ntS"i1"\n',
  ],
)
def test_ndarray_itself_cannot_be_called(tmp_path, arguments):
  message = refusal(
    pickles.load_arrays,
    tmp_path / 'a',
    b'cnumpy\nndarray\n(' + arguments + b'tR.',
  )
  assert 'is not callable' in message


# ------------------------------------------------- claims of memory, damage


@pytest.fixture
def little_memory():
  """Checks that a test claims less than eight megabytes at once."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
  finally:
    tracemalloc.stop()


def reconstruct(core, shape, kind=b'cnumpy\nndarray\n'):
  return b'c' + core + b'\n_reconstruct\n(' + kind + shape + b"S'b'\ntR."


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize('core', MULTIARRAY)
@pytest.mark.parametrize(
  'shape', [b'(I1099511627776\nt', b'(I268435456\nt', b'(I1\nI0\nt', b't']
)
def test_an_array_must_start_out_empty(tmp_path, core, shape):
  shape = shape if len(shape) > 1 else b'(t'
  message = refusal(
    pickles.load_arrays, tmp_path / 'a', reconstruct(core, shape)
  )
  assert 'it holds an array that does not start out empty, and' in message
  message = refusal(
    pickles.load_arrays,
    tmp_path / 'a',
    reconstruct(core, b'(I0\nt', kind=b'I1\n'),
  )
  assert 'it holds an array that does not start out empty, and' in message


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize(
  'data',
  [
    b'K\x01r' + struct.pack('<I', 2**31 - 1) + b'.',
    b'K\x01r' + struct.pack('<I', 2**26) + b'.',
    b'K\x01q\xff.',
    b'I1\np100000000\n.',
  ],
)
def test_a_huge_memo_takes_no_memory(tmp_path, data):
  assert load(tmp_path, data) == 1


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize(
  'data',
  [
    *(
      opcode + struct.pack('<Q', size) + b'abc.'
      # BINBYTES8, BYTEARRAY8, BINUNICODE8
      for opcode in (b'\x8e', b'\x96', b'\x8d')
      for size in (2**30, 2**40)
    ),
    b'B' + struct.pack('<I', 2**30) + b'abc.',
    b'T' + struct.pack('<i', 2**30) + b'abc.',
    b'X' + struct.pack('<I', 2**30) + b'abc.',
    b'\x8b' + struct.pack('<i', 2**30) + b'abc.',
  ],
  ids=range(10),
)
def test_a_claimed_length_takes_no_memory(tmp_path, data):
  message = refusal(pickles.load_arrays, tmp_path / 'a', data)
  assert message.endswith(
    'is not a pickle, or is damaged (it breaks off). Write it again.'
  )


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize('protocol', [2, 4])
def test_a_state_with_a_huge_shape_is_refused(tmp_path, protocol):
  data = pickle.dumps(np.zeros(258, np.int8), protocol)
  # 258, as BININT2 and as BININT.
  assert data.count(b'M\x02\x01') == 1
  data = data.replace(b'M\x02\x01', b'J\x00\x00\x00\x40')
  # The frame has become two bytes longer.
  at = data.find(b'\x95')
  if protocol == 4:
    size = struct.unpack_from('<Q', data, at + 1)[0] + 2
    data = data[: at + 1] + struct.pack('<Q', size) + data[at + 9 :]
  message = refusal(pickles.load_arrays, tmp_path / 'a', data)
  assert 'or is damaged (ValueError: buffer size does not match' in message


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_truncated_pickle_is_an_error(tmp_path, protocol):
  data = pickle.dumps({'a': np.arange(5.0), 'b': [1, 'x']}, protocol)
  for size in range(1, len(data)):
    message = refusal(pickles.load_arrays, tmp_path / 'a', data[:size])
    # Half a name is refused as a name.
    assert ' or is damaged (' in message or ' is refused: ' in message
  assert 'or is damaged (' in refusal(
    pickles.load_arrays, tmp_path / 'a', data[:-1]
  )


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_damaged_bytes_raise_nothing_but_user_errors(tmp_path, protocol):
  data = pickle.dumps({'a': ARRAY, 'b': [1, 'x', b'y']}, protocol)
  random, refused = np.random.default_rng(protocol), 0
  for _ in range(150):
    damaged = bytearray(data)
    damaged[random.integers(len(data))] ^= 1 << random.integers(8)
    try:
      load(tmp_path, damaged)
    except errors.UserError:
      refused += 1
  assert refused


@pytest.mark.parametrize(
  'data', [b'', b'\xff\xd8\xff\xe0', b'{"a": 1}', b'.', b'K\x01', b'\x80\x09.']
)
def test_what_is_no_pickle_is_said_so(tmp_path, data):
  message = refusal(pickles.load_arrays, tmp_path / 'a', data)
  assert 'is not a pickle, or is damaged (' in message
  assert message.endswith('). Write it again.')


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
  path = tmp_path / 'nothing'
  with pytest.raises(errors.UserError) as caught:
    pickles.load_arrays(path)
  assert str(caught.value) == f'cannot read {path}: No such file or directory.'
  with pytest.raises(errors.UserError) as caught:
    pickles.load_arrays(tmp_path)
  assert str(caught.value) == f'cannot read {tmp_path}: Is a directory.'


@pytest.mark.parametrize('levels', [60, 1_000_000])
def test_a_tuple_is_no_key(tmp_path, levels):
  # Hashed, the deep one overflows the stack; the shared one never ends.
  grow = b'\x85' if levels > 60 else b'q\x00h\x00\x86'
  data = b'\x80\x03}K\x01' + grow * levels + b'K\x01s.'
  (tmp_path / 'p').write_bytes(data)
  with pytest.raises(errors.UserError, match='a tuple as the key of a dict'):
    pickles.load_arrays(tmp_path / 'p')


def test_sets_and_values_without_size_are_refused(tmp_path):
  (tmp_path / 'p').write_bytes(pickle.dumps({'a': {1, 2}}, 4))
  with pytest.raises(errors.UserError, match='the opcode EMPTY_SET'):
    pickles.load_arrays(tmp_path / 'p')
  data = pickle.dumps(np.zeros(3, 'S1'), 2).replace(b'S1', b'S0')
  (tmp_path / 'p').write_bytes(data)
  with pytest.raises(errors.UserError, match=r'arrays of dtype \|S0'):
    pickles.load_arrays(tmp_path / 'p')
