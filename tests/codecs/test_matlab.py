# SPDX-License-Identifier: Apache-2.0
"""MATLAB's files: as SciPy and as MATLAB write them, and hostile ones."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import scipy.io

from resnet_jax.codecs import matlab

MOST = 1 << 20
FIELDS = ('id', 'name')


def _saved(**options):
  array = np.array(
    [(1, 'kit fox', [1, 2]), (2, 'fuchs, grün', [3])],
    [('id', object), ('name', object), ('children', object)],
  )
  file = io.BytesIO()
  scipy.io.savemat(file, {'x': 3.5, 'found': array}, **options)
  return file.getvalue()


def _element(kind, data, order='<'):
  if 0 < len(data) <= 4:
    # A small one.
    tag = struct.pack(f'{order}I', len(data) << 16 | kind)
    return tag + data.ljust(4, b'\0')
  head = struct.pack(f'{order}II', kind, len(data))
  return head + data + bytes(-len(data) % 8)


def _matrix(kind, sizes, name, *parts, order='<'):
  data = _element(6, struct.pack(f'{order}II', kind, 0), order)
  data += _element(5, struct.pack(f'{order}{len(sizes)}i', *sizes), order)
  data += _element(1, name, order) + b''.join(parts)
  return _element(14, data, order)


def _file(*elements, order='<', compressed=False):
  mark = {'<': b'IM', '>': b'MI'}[order]
  body = b''.join(elements)
  if compressed:
    body = zlib.compress(body)
    body = struct.pack(f'{order}II', 15, len(body)) + body
  head = b'MATLAB 5.0 MAT-file'.ljust(124)
  return head + struct.pack(f'{order}H', 0x0100) + mark + body


def _structures(rows, order='<', count=None):
  """As MATLAB writes them: short numbers, and texts of two bytes a letter."""
  code = {'<': 'utf-16-le', '>': 'utf-16-be'}[order]
  parts = [
    _element(5, struct.pack(f'{order}i', 8), order),
    _element(1, b'id'.ljust(8, b'\0') + b'name'.ljust(8, b'\0'), order),
  ]
  for number, name in rows:
    short = _element(4, struct.pack(f'{order}H', number), order)
    parts.append(_matrix(6, (1, 1), b'', short, order=order))
    text = _element(4, name.encode(code), order)
    parts.append(_matrix(4, (1, len(name)), b'', text, order=order))
  sizes = (len(rows) if count is None else count, 1)
  return _matrix(2, sizes, b'found', *parts, order=order)


@pytest.mark.parametrize('compressed', [False, True])
def test_what_scipy_writes(compressed):
  data = _saved(do_compression=compressed)
  expected = [(1, 'kit fox'), (2, 'fuchs, grün')]
  assert matlab.structures(data, 'found', FIELDS, MOST) == expected
  turned = [(name, number) for number, name in expected]
  assert matlab.structures(data, 'found', FIELDS[::-1], MOST) == turned


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('compressed', [False, True])
def test_what_matlab_writes(order, compressed):
  rows = [(7, 'kit fox'), (65535, 'grün'), (0, 'ab')]
  found = _structures(rows, order)
  data = _file(found, order=order, compressed=compressed)
  assert matlab.structures(data, 'found', FIELDS, MOST) == rows
  if order == '<':
    # SciPy sees the same file.
    seen = scipy.io.loadmat(
      io.BytesIO(data), squeeze_me=True, uint16_codec='utf-16-le'
    )['found']
    assert [
      (int(i), str(n)) for i, n in zip(*(seen[f] for f in FIELDS), strict=True)
    ] == rows


def _nested(depth):
  data = b''
  for _ in range(depth):
    data = _matrix(1, (1, 1), b'', data)
  return data


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'not a Level 5'),
    (_file(_structures([(1, 'a')], count=2**31 - 1)), 'breaks off'),
    (_file(_structures([(1, 'a')], count=-1)), 'impossible dimensions'),
    (_file(_matrix(1, (2**31 - 1, 9), b'found')), 'has no found with id'),
    (_file(_matrix(2, (1, 1), b'found')), 'a structure breaks off'),
    (_file(_element(14, bytes(16))[:12]), 'an element of 16 bytes breaks'),
    (_file(bytes(2 * MOST), compressed=True), 'more than 1048576 bytes'),
    (_file(_structures([(1, 'a')]), compressed=True)[:-9], 'breaks off'),
    # Elements in elements: a reader that descends overflows its stack.
    (_file(_nested(2000)), 'has no found with id'),
    (_file(_matrix(2, (1, 1), b'found', _element(5, b'\x08\0\0\0'),
      _element(1, b'id'.ljust(8, b'\0') + b'name'.ljust(8, b'\0')),
      _nested(2000), _nested(1))), 'neither a number nor a text'),
  ],
)  # fmt: skip
def test_hostile_files(data, message):
  with pytest.raises(ValueError, match=message):
    matlab.structures(data, 'found', FIELDS, MOST)


def test_damaged_bytes_are_an_error_or_values():
  whole = _saved()
  random = np.random.default_rng(0)
  for _ in range(500):
    damaged = bytearray(whole)
    for place in random.integers(124, len(whole), 3).tolist():
      damaged[place] ^= int(random.integers(1, 256))
    with contextlib.suppress(ValueError):
      matlab.structures(bytes(damaged), 'found', FIELDS, MOST)
