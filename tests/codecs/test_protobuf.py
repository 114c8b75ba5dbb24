# SPDX-License-Identifier: Apache-2.0
"""The wire format, and mean images in it."""

import struct
import tracemalloc

import numpy as np
import pytest

from resnet_jax.codecs import blob, protobuf
from resnet_jax.system import errors


def varint(value):
  low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
  return low + (varint(value >> 7) if value > 0x7F else b'')


def integer(number, value):
  return varint(number << 3) + varint(value)


def data(number, content):
  return varint(number << 3 | 2) + varint(len(content)) + content


def read(message):
  return list(protobuf.fields(memoryview(message)))


def image(values, *, packed=True, shape=None):
  legacy = b''.join(
    integer(n, size) for n, size in enumerate(shape or values.shape, 1)
  )
  if packed:
    return legacy + data(5, values.astype('<f4').tobytes())
  return legacy + b''.join(
    b'\x2d' + struct.pack('<f', value) for value in values.ravel()
  )


# --------------------------------------------------------------- the format


@pytest.mark.parametrize(
  'value', [0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1]
)
def test_integers_of_all_sizes(value):
  (field,) = read(integer(3, value))
  assert (field.number, field.integer()) == (3, value)


def test_a_message_of_all_wire_types():
  message = (
    integer(1, 150)
    + data(2, b'testing')
    + b'\x1d'
    + struct.pack('<f', 1.5)
    + b'\x21'
    + struct.pack('<d', 2.5)
    + data(2**29 - 1, b'')
  )
  one, two, three, four, five = read(message)
  # The first one is the example of the format's documentation.
  assert message[:3] == b'\x08\x96\x01'
  assert one.integer() == 150
  assert two.text() == 'testing'
  assert three.float32() == 1.5
  assert bytes(four.fixed(protobuf.FIXED64)) == struct.pack('<d', 2.5)
  assert five.number == 2**29 - 1
  assert bytes(five.message()) == b''


def test_repeated_values_packed_or_not():
  (packed,) = read(data(1, varint(3) + varint(300)))
  assert packed.integers(2) == [3, 300]
  (single,) = read(integer(1, 300))
  assert single.integers(2) == [300]
  with pytest.raises(ValueError, match='field 1 has more than 1 values'):
    packed.integers(1)
  (uneven,) = read(data(5, b'12345'))
  with pytest.raises(ValueError, match='5 bytes, not a multiple of 4'):
    uneven.fixed(protobuf.FIXED32)


@pytest.mark.parametrize(
  ('message', 'fault'),
  [
    (b'\x08' + b'\x80' * 10 + b'\x01', 'more than 10 bytes'),
    (b'\x08' + b'\xff' * 9 + b'\x02', 'more than 64 bits'),
    (b'\x08\x80\x80', 'breaks off in an integer'),
    (b'\x80', 'breaks off in an integer'),
    (b'\x08', 'breaks off in an integer'),
    (b'\x0b\x0c', 'field 1 is a group'),
    (b'\x0c', 'field 1 is a group'),
    (b'\x0e', 'field 1 has the wire type 6'),
    (b'\x0f', 'field 1 has the wire type 7'),
    (b'\x00\x01', 'a field has the number 0'),
    (varint(2**29 << 3) + b'\0', 'a field has the number 536870912'),
    (b'\x12\x05abcd', 'field 2 needs 5 bytes, and 4 are left'),
    (b'\x12' + varint(2**64 - 1), '18446744073709551615 bytes, and 0'),
    (b'\x15abc', 'field 2 needs 4 bytes, and 3 are left'),
    (b'\x11abcdefg', 'field 2 needs 8 bytes, and 7 are left'),
  ],
)
def test_what_is_no_message_says_why(message, fault):
  with pytest.raises(ValueError, match=fault):
    read(message)


def test_a_value_of_another_kind_is_an_error():
  number, text = read(integer(1, 5) + data(2, b'\xff'))
  with pytest.raises(
    ValueError, match='field 1 is an integer, not a string of'
  ):
    number.text()
  with pytest.raises(
    ValueError, match='field 2 is a string of bytes, not an int'
  ):
    text.integer()
  with pytest.raises(ValueError, match='field 2 is not UTF-8'):
    text.text()
  with pytest.raises(ValueError, match='field 2 is a string of bytes, not 4'):
    text.float32()


def test_any_cut_of_a_message_is_read_or_refused():
  message = integer(1, 2**40) + data(2, b'name') + b'\x1dabcd'
  ends = {7, 13, 18}  # of fields
  for end in range(1, len(message)):
    if end in ends:
      read(message[:end])
    else:
      with pytest.raises(ValueError, match=r'breaks off|are left'):
        read(message[:end])


# ------------------------------------------------------------ mean images


@pytest.mark.parametrize('size', [224, 256])
@pytest.mark.parametrize('packed', [True, False])
def test_a_mean_image(tmp_path, size, packed):
  shape = (1, 3, size, size) if packed else (1, 3, 8, 16)
  values = np.random.default_rng(0).uniform(90, 130, shape).astype('<f4')
  path = tmp_path / 'mean.binaryproto'
  path.write_bytes(image(values, packed=packed))
  assert blob.recognise(path)
  mean = blob.read_mean(path)
  assert mean.dtype == np.float32
  np.testing.assert_array_equal(mean, values[0])


def test_a_mean_image_as_newer_caffe_writes_it(tmp_path):
  values = np.random.default_rng(0).uniform(90, 130, (3, 4, 5))
  path = tmp_path / 'mean.binaryproto'
  shape = data(7, data(1, b'\x03\x04\x05'))
  path.write_bytes(data(8, values.astype('<f8').tobytes()) + shape)
  np.testing.assert_array_equal(blob.read_mean(path), values.astype(np.float32))
  unpacked = data(7, integer(1, 3) + integer(1, 4) + integer(1, 5))
  path.write_bytes(data(5, values.astype('<f4').tobytes()) + unpacked)
  assert blob.recognise(path)
  np.testing.assert_array_equal(blob.read_mean(path), values.astype(np.float32))


def test_pickles_and_archives_are_no_mean_images(tmp_path):
  for number, beginning in enumerate((b'\x80\x02}', b'(dp0', b'PK\3\4', b'')):
    path = tmp_path / str(number)
    path.write_bytes(beginning)
    assert not blob.recognise(path)
  assert not blob.recognise(tmp_path / 'none')


GOOD = np.full((1, 3, 4, 4), 100.0)


@pytest.mark.parametrize(
  ('content', 'fault'),
  [
    (image(GOOD)[:-1], 'field 5 needs 192 bytes, and 191 are left'),
    (image(GOOD, shape=(1, 3, 4, 5)), r'shape \(1, 3, 4, 5\) holds 48'),
    (image(GOOD, shape=(2**62, 2**62, 2**62, 2**62)), 'holds 48 values'),
    (image(GOOD, shape=(1, 3, 2**64 - 1, 1)), 'holds 48 values'),
    (image(GOOD) + data(7, data(1, b'\x03')), 'states its shape twice'),
    (data(7, b'') + data(7, b''), 'states its shape twice'),
    (image(GOOD) + data(8, b'\0' * 8), 'both float32 and float64'),
    (data(7, data(1, b'\1' * 33)), 'more than 32'),
    (data(7, integer(1, 1) * 33), 'more than 32'),
    (image(GOOD[:, :1]), 'a mean image is'),
    (image(GOOD, shape=(3, 1, 4, 4)), 'a mean image is'),
    (image(GOOD[..., :0]), 'a mean image is'),
    (image(GOOD * np.nan), 'non-finite'),
    (
      data(7, data(1, b'\3\1\1')) + data(8, struct.pack('<3d', 1e300, 1, 1)),
      'non-finite',
    ),
    (b'', 'holds 0 values'),
  ],
)
def test_a_damaged_mean_image_says_why(tmp_path, content, fault):
  path = tmp_path / 'mean.binaryproto'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match=fault) as caught:
    blob.read_mean(path)
  assert str(path) in str(caught.value)


def test_a_missing_mean_image(tmp_path):
  with pytest.raises(
    errors.UserError, match=r'cannot read .*none: No such file'
  ):
    blob.read_mean(tmp_path / 'none')


def test_values_one_by_one_take_no_more_memory_than_the_file(tmp_path):
  path = tmp_path / 'mean.binaryproto'
  content = image(np.ones((1, 3, 100, 100)), packed=False)
  path.write_bytes(content)
  tracemalloc.start()
  blob.read_mean(path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 * len(content)
