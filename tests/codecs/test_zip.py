# SPDX-License-Identifier: Apache-2.0
"""The members of zip archives: bounds, damage, and attacks."""

import io
import struct
import zipfile
import zlib

import pytest
from makers import zip_of

from resnet_jax.codecs import faults
from resnet_jax.codecs import zip as zip_lib

TWO = [('a', b'first'), ('b', b'second')]
LIMIT = 1 << 16


def read(data):
  """Every member."""
  archive = zip_lib.Archive(io.BytesIO(data), LIMIT)
  return [(name, archive.read(name)) for name in archive.members]


def deflated(data, method=zipfile.ZIP_DEFLATED):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', method) as made:
    made.writestr('a', data)
  return file.getvalue()


@pytest.mark.parametrize('wide', [False, True])
def test_stored_members_are_read(wide):
  assert read(zip_of(TWO, wide=wide)) == TWO


def test_a_checksum_of_zero_is_none():
  assert read(zip_of(TWO, {'a': {'crc': 0}})) == TWO


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    ({'crc': 1}, "Bad CRC-32 for 'b'"),
    ({'method': 8}, "'b' is compressed or encrypted, not stored as is"),
    ({'flags': 1}, "'b' is compressed or encrypted"),
    ({'packed': 1}, "'b' is compressed or encrypted"),
    ({'header': 1}, "'b' is not where the zip directory has it"),
    ({'header': 1 << 31}, 'which lie outside the file'),
    ({'header': 0xFFFFFFFF}, 'which lie outside the file'),
    (
      {'size': 1 << 31, 'packed': 1 << 31},
      "its entry 'b' has 2147483648 bytes, which lie outside the file",
    ),
    ({'name': b'a'}, "it has two entries 'a'"),
    ({'name': b'\xff', 'flags': 1 << 11}, "'utf-8' codec can't decode"),
  ],
)
def test_entries_that_cannot_be(damage, message):
  with pytest.raises(ValueError, match=message):
    read(zip_of(TWO, {'b': damage}))


def test_a_zip64_offset_outside_the_file():
  data = zip_of(TWO, {'b': {'header': (1 << 64) - 1}}, wide=True)
  with pytest.raises(ValueError, match="'b' has 6 bytes, which lie outside"):
    read(data)


END = struct.Struct('<4s4H2LH')


@pytest.mark.parametrize(
  ('length', 'offset', 'message'),
  [
    (99, None, 'Bad magic number for central directory'),
    (None, 9, 'is not where the zip directory has it'),
    (1 << 31, None, 'Bad offset for central directory'),
    (None, 1 << 31, 'which lie outside the file'),
  ],
)
def test_the_end_of_an_archive(length, offset, message):
  whole = zip_of(TWO)
  *head, size, start, comment = END.unpack(whole[-22:])
  end = END.pack(*head, length or size, offset or start, comment)
  with pytest.raises(ValueError, match=message):
    read(whole[:-22] + end)


def test_every_truncated_archive_is_damaged():
  whole = zip_of(TWO)
  for size in range(len(whole)):
    with pytest.raises(ValueError, match='File is not a zip file'):
      read(whole[:size])


def test_a_large_directory_is_not_read():
  members = [(f'{number:0200}', b'') for number in range(400)]
  with pytest.raises(ValueError, match='its zip directory has 98400 bytes, mo'):
    read(zip_of(members))


def test_members_are_inflated_up_to_a_limit():
  archive = zip_lib.Archive(io.BytesIO(deflated(bytes(1000))), LIMIT)
  assert archive.inflate('a', 1000) == bytes(1000)
  with pytest.raises(faults.RefusedError, match='a states 1000 bytes'):
    archive.inflate('a', 999)
  with pytest.raises(ValueError, match="no item named 'b'"):
    archive.inflate('b', 1000)
  other = deflated(b'-', zipfile.ZIP_BZIP2)
  archive = zip_lib.Archive(io.BytesIO(other), LIMIT)
  with pytest.raises(faults.RefusedError, match='by method 12; '):
    archive.inflate('a', 1000)


def test_a_member_that_is_not_what_it_states():
  bomb = zlib.compress(bytes(1 << 20), wbits=-15)
  stated = {'size': 9, 'crc': zlib.crc32(bytes(9))}
  data = zip_of([('a', bomb)], {'a': stated}, method=8)
  # No more is inflated than is stated.
  archive = zip_lib.Archive(io.BytesIO(data), LIMIT)
  assert archive.inflate('a', 9) == bytes(9)
  stated = {'size': 2 << 20, 'crc': zlib.crc32(bytes(1 << 20))}
  data = zip_of([('a', bomb)], {'a': stated}, method=8)
  archive = zip_lib.Archive(io.BytesIO(data), LIMIT)
  with pytest.raises(ValueError, match='a has 1048576 bytes, not 2097152'):
    archive.inflate('a', 2 << 20)


def test_an_archive_is_known_by_a_member(tmp_path):
  path, data = tmp_path / 'a.zip', zip_of(TWO)
  path.write_bytes(data)
  for name, length, expected in (
    ('a', len(data), True),
    ('b', len(data), True),
    ('c', len(data), False),
    # Cut off, it is known by the first.
    ('a', 40, True),
    ('b', 40, False),
  ):
    path.write_bytes(data[:length])
    head = path.read_bytes()[:512]
    found = zip_lib.holds(path, head, name.__eq__, LIMIT)
    assert found == expected, (name, length)
  assert not zip_lib.holds(path, b'', 'a'.__eq__, LIMIT)
