# SPDX-License-Identifier: Apache-2.0
"""The archive in which Paddle's directories were published.

`resnet_50.tar.gz`: a tar of the directory of `paddle`, packed by gzip.  It is
read twice: once for names and sizes, to the end, so that gzip's checksum has
been seen; and once, when these are known to be those of a ResNet, for the
values.  Nothing is unpacked to the disk.  Source: RFC 1952 (gzip).
"""

import functools
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from resnet_jax.codecs import faults, tar
from resnet_jax.system import files
from resnet_jax.weights import assemble, paddle

_GZIP = b'\x1f\x8b'
# Weights do not pack to less than nine tenths; a few headers may.
_MAX_RATIO, _MIN_UNPACKED = 20, 1 << 20
_MAX_FOLDERS = 2


def recognise(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file begins as a tar, packed by gzip or not."""
  del path
  if head.startswith(_GZIP):
    try:
      head = zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
      return False
  if not tar.is_tar(head):
    return False
  # A folder or an extended header, or a name: PyTorch once wrote tars without
  # a folder.
  name = head[:100].partition(b'\0')[0].decode(errors='replace')
  return head[156] in b'xg5' or '/' in name or name in paddle.known_files()


def load(path: pathlib.Path, options: assemble.Options) -> assemble.Loaded:
  """Reads an archive.

  Raises:
    UserError: it is damaged, holds anything but the files of a ResNet, or
      files that `paddle.load` refuses.
  """
  # Read once all names and sizes are known to be right.
  contents = functools.cache(
    lambda: {name: data for name, _, data in _files(path, keep=True)}
  )

  def file(name: str, size: int) -> paddle.ParameterFile:
    return paddle.ParameterFile(size, lambda: contents()[name])

  found: dict[str, paddle.ParameterFile] = {}
  with faults.reported(path):
    for name, size, _ in _files(path, keep=False):
      if name in found:
        raise faults.RefusedError(f'it holds {name} twice')
      found[name] = file(name, size)
  return paddle.load_files(path, found, 'Paddle archive (tar)', options)


def _files(path: pathlib.Path, keep: bool) -> Iterator[tuple[str, int, bytes]]:
  """The files of an archive: name without folder, size, and bytes if kept.

  Raises:
    UserError: the archive is damaged, or holds something else.
  """
  with faults.reported(path), files.opened(path) as file:
    packed = file.read(2) == _GZIP
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream: BinaryIO = file
    if packed:
      stream = cast(BinaryIO, gzip.GzipFile(fileobj=file))
      end = _MAX_RATIO * end + _MIN_UNPACKED
    try:
      for member in tar.members(stream, path, end):
        if name := _name(member):
          stream.seek(member.offset)
          yield name, member.size, stream.read(member.size) if keep else b''
    except EOFError as error:
      raise ValueError('it breaks off') from error
    except (gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(error) from error


def _name(member: tar.Member) -> str:
  """The name of a file without its folders; '' of a folder."""
  parts = member.name.split('/')
  why = ''
  if member.kind == 'special':
    why = 'a link, a device or a sparse file'
  elif member.kind == 'folder':
    return ''
  elif '' in parts or len(parts) > 1 + _MAX_FOLDERS:
    why = f'which is not a path of at most {_MAX_FOLDERS} folders'
  elif parts[-1] not in paddle.known_files():
    why = 'which is not a file of a ResNet'
  if why:
    raise faults.RefusedError(f'it holds {member.name[:99]}, {why}')
  return parts[-1]
