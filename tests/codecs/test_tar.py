# SPDX-License-Identifier: Apache-2.0
"""The members of tar archives: names, sizes, damage, and attacks."""

import io
import tarfile

import pytest
from makers import raw_tar, user_error

from resnet_jax.codecs import tar

FOUR = [({'name': f'{size}.jpg'}, b'x' * size) for size in (700, 5, 512, 1300)]


def members(path):
  with open(path, 'rb') as file:
    return list(tar.members(file, path))


def contents(path):
  """Names and contents of the files."""
  found = []
  with open(path, 'rb') as file:
    for member in tar.members(file, path):
      if member.kind == 'file':
        file.seek(member.offset)
        found.append((member.name, file.read(member.size)))
  return found


@pytest.mark.parametrize(
  'format_', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize(
  'name',
  ['a.jpg', 'x/' * 60 + 'long.jpg', 'y' * 150 + '/grün 猫.jpg', './dot/a.jpg'],
)
def test_names_in_every_format_of_tar(tmp_path, format_, name):
  data = [('b.JPEG', b'second'), (name, b'first'), ('c.png', b'3' * 512)]
  path = tmp_path / 'a.tar'
  with tarfile.open(path, 'w', format=format_) as archive:
    folder = tarfile.TarInfo('x')
    folder.type = tarfile.DIRTYPE
    archive.addfile(folder)
    for key, content in data:
      info = tarfile.TarInfo(key)
      info.size = len(content)
      info.mtime = 1.5 if format_ == tarfile.PAX_FORMAT else 1
      try:
        archive.addfile(info, io.BytesIO(content))
      except ValueError:
        pytest.skip('this format cannot hold the name')
  assert contents(path) == [(k.removeprefix('./'), c) for k, c in data]


def test_members_beyond_eight_gigabytes_are_reached(tmp_path):
  # A file with a hole; its size is in base 256, as octal digits do not do.
  size = 9 << 30
  path = tmp_path / 'a.tar'
  head = tarfile.TarInfo('big.bin')
  head.size = size
  tail = tarfile.TarInfo('a.png')
  tail.size = 4
  with open(path, 'wb') as file:
    file.write(head.tobuf(tarfile.GNU_FORMAT))
    file.seek(512 + size)
    file.write(tail.tobuf(tarfile.GNU_FORMAT) + b'data' + bytes(508 + 1024))
  assert members(path) == [
    tar.Member('big.bin', 512, size, 'file'),
    tar.Member('a.png', 512 + size + 512, 4, 'file'),
  ]


@pytest.mark.parametrize(
  'name',
  ['/etc/a.jpg', '../a.jpg', 'x/../../a.jpg', 'x\\..\\a.jpg', 'C:\\a.jpg'],
)
def test_names_that_lead_out_are_refused(tmp_path, name):
  path = raw_tar(tmp_path / 'a.tar', ({'name': name}, b'-'))
  message = user_error(members, path)
  assert f'the name {name!r} is not a path relative to the archive' in message
  assert message.startswith(f'the tar archive {path} cannot be used: at byte 0')


def test_a_link_with_the_size_of_its_target_does_not_shift_the_rest(tmp_path):
  link = {'name': 'link', 'type': tarfile.LNKTYPE, 'linkname': 'a.jpg'}
  path = raw_tar(
    tmp_path / 'a.tar',
    ({**link, 'size': 700}, b''),
    ({'name': 'a.jpg'}, b'data'),
  )
  assert contents(path) == [('a.jpg', b'data')]


@pytest.mark.parametrize('size', [5, 1 << 40, (1 << 63) - 1])
def test_a_member_larger_than_the_archive_is_an_error(tmp_path, size):
  path = raw_tar(
    tmp_path / 'a.tar', ({'name': 'a.jpg', 'size': size}, b''), end=0
  )
  message = user_error(members, path)
  assert f'a.jpg has {size} bytes by its header, and the archive at' in message
  assert 'cut off or damaged' in message


def test_an_archive_cut_off_anywhere_is_an_error(tmp_path):
  whole = raw_tar(tmp_path / 'whole', *FOUR).read_bytes()
  end = len(whole.rstrip(b'\0'))
  end += -end % 512
  path = tmp_path / 'a.tar'
  for length in [512, 513, 1000, end // 2, end - 512, end - 1, end, end + 511]:
    path.write_bytes(whole[:length])
    assert 'cut off' in user_error(members, path), length
  # With the mark of the end, and without what pads a tape's record.
  path.write_bytes(whole[: end + 512])
  assert len(members(path)) == 4


def test_damage_anywhere_in_a_header_is_an_error(tmp_path):
  whole = bytearray(raw_tar(tmp_path / 'whole', *FOUR).read_bytes())
  second = 512 + 1024
  path = tmp_path / 'a.tar'
  for place in (0, 100, 130, 150, 257, 400):
    damaged = whole.copy()
    damaged[second + place] ^= 0x55
    path.write_bytes(damaged)
    message = user_error(members, path)
    assert f'at byte {second}: there is no header of a member' in message


def test_archives_behind_one_another_are_not_half_read(tmp_path):
  path = tmp_path / 'a.tar'
  parts = [raw_tar(tmp_path / n, *FOUR) for n in ('1', '2')]
  path.write_bytes(b''.join(part.read_bytes() for part in parts))
  assert 'its end is marked there, and more follows' in user_error(
    members, path
  )


@pytest.mark.parametrize(
  ('kind', 'data', 'message'),
  [
    (b'x', b'9 path=ab', 'an extended header is damaged'),
    (b'x', b'99 path=a\n', 'an extended header is damaged'),
    (b'x', b'3 path=a\n', 'an extended header is damaged'),
    (b'x', b'0 path=a\n', 'an extended header is damaged'),
    (b'x', b'12 size=-45\n', "b'-45' is not a size"),
    (b'x', b'16 path=../../a\n', 'is not a path relative'),
    (b'x', b'11 path=\xff\xfe\n', 'is not UTF-8'),
    (b'x', b'12 path=a\0b\n', 'is not a path relative'),
    (b'g', b'10 path=a\n', 'a header for all members states their path'),
    (b'L', b'y' * 5000, 'a name has 5000 bytes, more than 4096'),
    (b'L', b'z' * (2 << 20), 'an extended header claims 2097152 bytes'),
  ],
)
def test_hostile_extended_headers(tmp_path, kind, data, message):
  path = raw_tar(
    tmp_path / 'a.tar',
    ({'name': 'head', 'type': kind}, data),
    ({'name': 'a.jpg'}, b'-'),
  )
  assert message in user_error(members, path)


def test_an_extended_header_without_a_member_is_an_error(tmp_path):
  path = raw_tar(
    tmp_path / 'a.tar', ({'name': 'head', 'type': b'L'}, b'a.jpg\0')
  )
  assert 'no member follows an extended header' in user_error(members, path)
