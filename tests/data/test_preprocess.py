# SPDX-License-Identifier: Apache-2.0
"""Decoding, resizing, cropping and the mean, against direct computations."""

import concurrent.futures
import io
import math
import pickle
import re
import resource
import struct
import sys
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from makers import user_error
from PIL import Image

from resnet_jax.data import crops, decoding, preprocess
from resnet_jax.data import mean as mean_lib
from resnet_jax.system import errors

THREE = mean_lib.MEAN_BGR
FILTERS = {
  'lanczos': Image.Resampling.LANCZOS,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


def noise(*shape, dtype=np.uint8, high=256):
  return np.random.default_rng(0).integers(0, high, shape, dtype)


def photo(width=61, height=47):
  """Smooth, so that JPEG and the filters have something to do."""
  coarse = Image.fromarray(noise(7, 9, 3))
  return coarse.resize((width, height), Image.Resampling.BICUBIC)


def saved(image, format_, **options):
  if not isinstance(image, Image.Image):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, format_, **options)
  return file.getvalue()


def decoded(data):
  image = decoding.decode(data)
  assert image.mode == 'RGB'
  return np.asarray(image)


def reason(data):
  with pytest.raises(decoding.ImageError) as caught:
    decoding.decode(data)
  return str(caught.value)


def png(width, height, depth, colour, rows=b''):
  """A PNG made by hand, of kinds that Pillow does not write."""

  def chunk(kind, data):
    check = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + check

  header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )


# ------------------------------------------------------- resizing, cropping


@pytest.mark.parametrize(
  ('size', 'resized'),
  [
    ((500, 375), (341, 256)),
    ((375, 500), (256, 341)),
    ((300, 300), (256, 256)),
    ((256, 256), (256, 256)),
    ((224, 224), (256, 256)),
    ((5, 3), (427, 256)),
    ((33, 99), (256, 768)),
    ((481, 321), (384, 256)),
    # Half a pixel goes up, to odd as to even: 256.5 and 257.5.
    ((513, 512), (257, 256)),
    ((512, 515), (256, 258)),
    ((1, 2), (256, 512)),
  ],
)
def test_the_shorter_side_becomes_256(size, resized):
  scale = 256 / min(size)
  assert resized == tuple(math.floor(side * scale + 0.5) for side in size)
  image = photo(*size)
  pixels = np.asarray(image.resize(resized, Image.Resampling.LANCZOS))
  top, left = (resized[1] - 224) // 2, (resized[0] - 224) // 2
  expected = pixels[None, top : top + 224, left : left + 224]
  found = crops.cut(image, preprocess.Preprocess(THREE))
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ('size', 'resize_size', 'crop_size'),
  [((64, 97), 64, 64), ((97, 64), 65, 32), ((50, 40), 41, 40)],
)
def test_other_sizes_and_odd_margins(size, resize_size, crop_size):
  how = preprocess.Preprocess(
    THREE, resize_size=resize_size, crop_size=crop_size
  )
  scale = resize_size / min(size)
  width, height = (math.floor(side * scale + 0.5) for side in size)
  pixels = np.asarray(photo(*size).resize((width, height), 1))
  expected = pixels[(height - crop_size) // 2 :, (width - crop_size) // 2 :][
    :crop_size, :crop_size
  ]
  [found] = crops.cut(photo(*size), how)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('size', [(500, 100), (100, 500), (224, 224), (7, 3)])
def test_squash_takes_the_whole_image(size):
  how = preprocess.Preprocess(THREE, resize='squash')
  across = photo(*size).resize((224, size[1]), Image.Resampling.LANCZOS)
  expected = across.resize((224, 224), Image.Resampling.LANCZOS)
  found = crops.cut(photo(*size), how)
  np.testing.assert_array_equal(found, np.asarray(expected)[None])
  assert (how.cuts, how.crops) == (1, 1)


@pytest.mark.parametrize('interpolation', preprocess.INTERPOLATIONS)
@pytest.mark.parametrize('rounding', preprocess.ROUNDINGS)
@pytest.mark.parametrize(
  'size',
  # Larger and smaller; landscape, portrait, square; as it is; one that is
  # twice as long as it is high; a long and thin one.
  [(150, 113), (71, 97), (40, 40), (64, 64), (81, 64), (192, 96), (700, 3)],
)
@pytest.mark.parametrize('resize_size', [64, 72, 128])
def test_resizing_the_crop_alone_gives_the_same_pixels(
  interpolation, rounding, size, resize_size
):
  how = preprocess.Preprocess(
    THREE,
    resize_size=resize_size,
    crop_size=51,
    interpolation=interpolation,
    rounding=rounding,
  )
  image = Image.fromarray(noise(*size[::-1], 3))
  half = 0.5 if rounding == 'nearest' else 0
  width, height = (
    math.floor(side * resize_size / min(size) + half) for side in size
  )
  filter_ = FILTERS[interpolation]
  across = image.resize((width, size[1]), filter_)
  resized = across.resize((width, height), filter_)
  whole = math.floor if rounding == 'nearest' else round
  top, left = (whole((side - 51) / 2) for side in (height, width))
  [found] = crops.cut(image, how)
  np.testing.assert_array_equal(
    found, np.asarray(resized)[top : top + 51, left : left + 51]
  )


@pytest.mark.parametrize(
  ('size', 'resize_size', 'across', 'down'),
  [
    # A side that becomes 256 keeps its scale without rounding.
    ((500, 375), 256, 341, 224),
    ((375, 500), 256, 224, 341),
    ((300, 300), 256, 224, 224),
    ((600, 300), 256, 224, 224),
    ((500, 375), 232, 309, 232),
    # 240 times 70,001 does not fit into 24 bits.
    ((70001, 70003), 256, 256, 256),
  ],
)
def test_no_more_is_resized_than_gives_the_same_pixels(
  size, resize_size, across, down, monkeypatch
):
  sizes = []

  def noting(image, size, *_):
    sizes.append(size)
    return Image.new('RGB', (size[0], 256))

  monkeypatch.setattr(Image.Image, 'resize', noting)
  image = Image.Image()
  image._size = size
  how = preprocess.Preprocess(THREE, resize_size=resize_size)
  crops.cut(image, how)
  assert sizes == [(across, size[1]), (224, down)]


@pytest.mark.parametrize(
  ('change', 'resized', 'offsets'),
  [
    ({}, (32, 113), [(40, 0)]),
    ({'resize': 'squash'}, (32, 32), [(0, 0)]),
    (
      {'multi_crop': True},
      (32, 113),
      [(0, 0), (0, 0), (81, 0), (81, 0), (40, 0)],
    ),
  ],
)
def test_an_image_is_resized_across_and_then_down(change, resized, offsets):
  # Pillow 13 itself takes the height of such an image first, earlier ones the
  # width.
  how = preprocess.Preprocess(
    THREE, **{'resize_size': 32, 'crop_size': 32, **change}
  )
  image = Image.fromarray(noise(145, 41, 3))
  orders = (32, 145), (41, resized[1])
  lanczos = Image.Resampling.LANCZOS
  across, down = (
    np.asarray(image.resize(first, lanczos).resize(resized, lanczos))
    for first in orders
  )
  assert (across != down).any()
  np.testing.assert_array_equal(
    crops.cut(image, how),
    [across[top : top + 32, left : left + 32] for top, left in offsets],
  )


@pytest.mark.parametrize('resize', ['short_side', 'squash'])
def test_interpolations_are_pillows_and_differ(resize):
  image, found = photo(90, 70), {}
  for name, filter_ in FILTERS.items():
    how = preprocess.Preprocess(
      THREE, resize, resize_size=48, crop_size=32, interpolation=name
    )
    [found[name]] = crops.cut(image, how)
    if resize == 'squash':
      expected = np.asarray(image.resize((32, 32), filter_))
    else:
      expected = np.asarray(image.resize((62, 48), filter_))[8:40, 15:47]
    np.testing.assert_array_equal(found[name], expected)
  assert set(FILTERS) == set(preprocess.INTERPOLATIONS)
  assert len({pixels.tobytes() for pixels in found.values()}) == 3


@pytest.mark.parametrize('size', [(20000, 2), (2, 20000)])
def test_extreme_shapes_are_an_error_unless_squashed(size):
  image = Image.new('RGB', size, 'red')
  with pytest.raises(decoding.ImageError) as caught:
    crops.cut(image, preprocess.Preprocess(THREE))
  message = str(caught.value)
  resized = '2560000x256' if size[0] > size[1] else '256x2560000'
  assert message.startswith(
    f'of {size[0]}x{size[1]} pixels it would be resized to {resized}, which is'
    ' more than 26214400 pixels'
  )
  assert message.endswith('crop it, or use resize=squash')
  squash = preprocess.Preprocess(THREE, resize='squash')
  [found] = crops.cut(image, squash)
  assert (found == (255, 0, 0)).all()


def test_what_a_squashed_image_becomes_in_between_is_limited():
  squash = preprocess.Preprocess(THREE, resize='squash')
  with pytest.raises(decoding.ImageError) as caught:
    crops.cut(Image.new('L', (1, 120000)), squash)
  assert str(caught.value) == (
    'of 1x120000 pixels it would be resized to 224x120000 first, which is more'
    ' than 26214400 pixels; crop it'
  )
  # Of one that has half as many itself it is no matter.
  wide = Image.new('RGB', (112, 120000), 'red')
  assert (crops.cut(wide, squash) == (255, 0, 0)).all()


# -------------------------------------------------- the network's own input


def original(image, mean, crop):
  """Ten crops by the original's order of work, CHW and one at a time."""
  pixels = np.asarray(image)
  height, width = pixels.shape[:2]
  bottom, right = height - crop, width - crop
  places = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
  places.append((bottom // 2, right // 2))
  crops = []
  for mirrored in (False, True):
    for top, left in places:
      x = pixels[top : top + crop, left : left + crop].astype(np.float32)
      x = x.transpose(2, 0, 1)
      if mirrored:
        x = x[:, :, ::-1]
      crops.append(x[[2, 1, 0], :, :] - mean)
  return np.stack(crops)


def means(crop):
  flat = noise(3, crop, crop, high=200).astype(np.float32)
  return [THREE, mean_lib.MeanImage(flat, 'a mean of pixels')]


@pytest.mark.parametrize('which', [0, 1], ids=['three', 'pixels'])
def test_ten_crops_in_the_originals_order_and_arithmetic(which):
  mean = means(64)[which]
  how = preprocess.Preprocess(
    mean, resize_size=73, crop_size=64, multi_crop=True
  )
  image = photo(110, 90)
  resized = image.resize((89, 73), Image.Resampling.LANCZOS)
  values = mean_lib.as_array(mean)
  expected = original(resized, values, 64)
  cuts = crops.cut(image, how)
  assert cuts.shape == (5, 64, 64, 3) == (how.cuts, 64, 64, 3)
  found = crops.normalise(cuts[None], values, True, np)
  assert found.shape == (10, 64, 64, 3) == (how.crops, 64, 64, 3)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), expected)


def test_crops_of_several_images_stay_together():
  cuts = noise(2, 5, 32, 32, 3)
  both = crops.normalise(cuts, mean_lib.as_array(THREE), True, np)
  for number in range(2):
    alone = crops.normalise(cuts[[number]], mean_lib.as_array(THREE), True, np)
    np.testing.assert_array_equal(both[10 * number : 10 * number + 10], alone)


def test_one_crop_is_bgr_minus_the_mean():
  pixels = np.zeros((1, 1, 32, 32, 3), np.uint8)
  pixels[...] = (10, 20, 30)
  found = crops.normalise(pixels, mean_lib.as_array(THREE), False, np)
  assert found.shape == (1, 32, 32, 3)
  bgr = np.float32([30, 20, 10]) - np.float32([103.939, 116.779, 123.68])
  np.testing.assert_array_equal(found, np.broadcast_to(bgr, found.shape))


def test_a_mean_of_pixels_is_not_mirrored_with_the_crops():
  mean = means(32)[1].values
  cuts = noise(1, 5, 32, 32, 3)
  found = crops.normalise(cuts, mean, True, np)
  # Image and mean mirrored together would be this.
  together = found[:5, :, ::-1]
  assert not np.array_equal(found[5:], together)
  restored = found + mean.transpose(1, 2, 0)
  np.testing.assert_array_equal(restored[5:], restored[:5, :, ::-1])


@pytest.mark.parametrize('multi_crop', [False, True])
@pytest.mark.parametrize('which', [0, 1], ids=['three', 'pixels'])
def test_jax_computes_what_numpy_does(multi_crop, which):
  mean = mean_lib.as_array(means(32)[which])
  cuts = noise(3, 5 if multi_crop else 1, 32, 32, 3)
  expected = crops.normalise(cuts, mean, multi_crop, np)
  jitted = jax.jit(lambda c, m: crops.normalise(c, m, multi_crop, jnp))
  found = jitted(cuts, mean)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * 255)


# ------------------------------------------------------- kinds of images


@pytest.mark.parametrize('format_', ['PNG', 'BMP', 'TIFF', 'PPM', 'WEBP'])
def test_rgb_is_kept(format_):
  pixels = noise(5, 7, 3)
  options = {'lossless': True} if format_ == 'WEBP' else {}
  found = decoded(saved(pixels, format_, **options))
  np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize('format_', ['PNG', 'BMP', 'TIFF', 'PPM', 'GIF'])
def test_grey_becomes_three_equal_channels(format_):
  pixels = noise(5, 7)
  expected = np.stack([pixels] * 3, -1)
  np.testing.assert_array_equal(decoded(saved(pixels, format_)), expected)


@pytest.mark.parametrize('format_', ['PNG', 'BMP', 'TIFF', 'GIF'])
def test_one_bit_becomes_black_and_white(format_):
  bits = noise(5, 7, high=2).astype(bool)
  expected = np.stack([bits * np.uint8(255)] * 3, -1)
  np.testing.assert_array_equal(decoded(saved(bits, format_)), expected)


@pytest.mark.parametrize(
  ('format_', 'transparency'),
  [
    ('PNG', None),
    ('PNG', 3),
    ('PNG', bytes(range(0, 256, 16))),
    ('GIF', None),
    ('GIF', 3),
    ('BMP', None),
    ('TIFF', None),
  ],
)
def test_palettes_give_their_colours_transparent_or_not(format_, transparency):
  colours, indices = noise(16, 3), noise(5, 7, high=16)
  indices.flat[:16] = range(16)
  image = Image.fromarray(indices)
  image.putpalette(colours.tobytes())
  options = {} if transparency is None else {'transparency': transparency}
  data = saved(image, format_, **options)
  assert Image.open(io.BytesIO(data)).mode == 'P'
  assert ('transparency' in Image.open(io.BytesIO(data)).info) == bool(options)
  np.testing.assert_array_equal(decoded(data), colours[indices])


@pytest.mark.parametrize(
  ('format_', 'options'),
  [
    ('PNG', {}),
    ('TIFF', {}),
    ('WEBP', {'lossless': True, 'exact': True}),
  ],
)
def test_alpha_is_dropped_and_the_colours_below_kept(format_, options):
  pixels = noise(5, 7, 4)
  pixels[:2, :, 3] = 0
  data = saved(pixels, format_, **options)
  assert Image.open(io.BytesIO(data)).mode == 'RGBA'
  np.testing.assert_array_equal(decoded(data), pixels[..., :3])


def test_alpha_of_grey_is_dropped_too():
  pixels = noise(5, 7, 2)
  pixels[:2, :, 1] = 0
  data = saved(Image.frombytes('LA', (7, 5), pixels.tobytes()), 'PNG')
  expected = np.repeat(pixels[..., :1], 3, -1)
  np.testing.assert_array_equal(decoded(data), expected)


def test_a_cmyk_jpeg_is_converted_by_the_formula():
  data = saved(photo().convert('CMYK'), 'JPEG', quality=95)
  image = Image.open(io.BytesIO(data))
  assert image.mode == 'CMYK'
  inks = np.asarray(image).astype(np.float64) / 255
  expected = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
  np.testing.assert_allclose(decoded(data), expected, rtol=0, atol=1)
  # And it is the image: not its negative.
  difference = decoded(data).astype(float) - np.asarray(photo())
  assert np.abs(difference).mean() < 10


def pgm(values):
  height, width = values.shape
  header = f'P5\n{width} {height}\n65535\n'.encode()
  return header + values.astype('>u2').tobytes()


def big_endian_tiff(values):
  height, width = values.shape
  image = Image.frombytes(
    'I;16B', (width, height), values.astype('>u2').tobytes()
  )
  return saved(image, 'TIFF')


@pytest.mark.parametrize(
  'encode',
  [
    lambda values: saved(values, 'PNG'),
    lambda values: saved(values, 'TIFF'),
    big_endian_tiff,
    pgm,
  ],
  ids=['png', 'tiff', 'tiff-big-endian', 'pgm'],
)
def test_of_16_bits_of_grey_the_upper_8_are_taken(encode):
  values = noise(5, 7, dtype=np.uint16, high=1 << 16)
  values[0, :4] = 0, 255, 256, 65535
  expected = np.stack([values >> 8] * 3, -1).astype(np.uint8)
  np.testing.assert_array_equal(decoded(encode(values)), expected)


def test_of_16_bits_of_colour_the_upper_8_are_taken():
  values = noise(5, 7, 3, dtype=np.uint16, high=1 << 16)
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
  found = decoded(png(7, 5, 16, 2, rows))
  np.testing.assert_array_equal(found, (values >> 8).astype(np.uint8))


@pytest.mark.parametrize('type_', [np.int32, np.uint32])
def test_of_32_bits_no_white_is_known(type_):
  values = np.array([[0, 65535], [255, 7]], type_)
  assert reason(saved(values, 'TIFF')) == (
    'values of 32 bits have no agreed white; store it as grey or RGB of 8 bits'
  )


def test_floating_point_is_refused():
  assert reason(saved(np.ones((3, 4), np.float32), 'TIFF')) == (
    'floating-point values have no agreed white; store it as grey or RGB of'
    ' 8 bits'
  )


@pytest.mark.parametrize('orientation', [2, 3, 6, 8])
def test_exif_orientation_is_ignored(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = saved(photo(), 'JPEG', quality=90, exif=exif)
  assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
  upright = decoded(saved(photo(), 'JPEG', quality=90))
  assert upright.shape == (47, 61, 3)
  np.testing.assert_array_equal(decoded(data), upright)


def test_a_progressive_jpeg_is_the_baseline_one():
  baseline = saved(photo(), 'JPEG', quality=90)
  progressive = saved(photo(), 'JPEG', quality=90, progressive=True)
  assert Image.open(io.BytesIO(progressive)).info['progressive']
  np.testing.assert_array_equal(decoded(progressive), decoded(baseline))
  difference = decoded(progressive).astype(float) - np.asarray(photo())
  assert np.abs(difference).mean() < 5


@pytest.mark.parametrize(
  ('format_', 'options'), [('GIF', {}), ('WEBP', {'lossless': True})]
)
def test_an_animation_gives_its_first_frame(format_, options):
  red, blue = (Image.new('RGB', (8, 6), colour) for colour in ('red', 'blue'))
  data = saved(
    red, format_, save_all=True, append_images=[blue, red], **options
  )
  image = Image.open(io.BytesIO(data))
  assert getattr(image, 'n_frames', 1) > 1
  assert (decoded(data) == (255, 0, 0)).all()
  # Of an open image, too, if that is where it stands.
  assert (decoded(image) == (255, 0, 0)).all()


def test_of_several_images_in_a_jpeg_the_first_is_taken():
  other = Image.new('RGB', (61, 47), 'blue')
  options = {'save_all': True, 'append_images': [other], 'quality': 90}
  data = saved(photo(), 'MPO', **options)
  assert Image.open(io.BytesIO(data)).format == 'MPO'
  alone = decoded(saved(photo(), 'JPEG', quality=90))
  np.testing.assert_array_equal(decoded(data), alone)


def test_a_pillow_image_is_taken_as_it_is():
  pixels = noise(5, 7, 4)
  found = decoded(Image.fromarray(pixels))
  np.testing.assert_array_equal(found, pixels[..., :3])


# -------------------------------------------------------- damaged images


@pytest.mark.parametrize('share', [0.3, 0.6, 0.9])
@pytest.mark.parametrize(
  ('format_', 'options'),
  [('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {})],
)
def test_truncated_images_are_errors(format_, options, share):
  data = saved(noise(60, 60, 3), format_, **options)
  assert 'truncated' in reason(data[: int(share * len(data))])


def eps():
  return saved(Image.new('RGB', (4, 4)), 'EPS')


@pytest.mark.parametrize(
  'data',
  [
    b'no image at all\n',
    b'\xff\xd8\xff',
    eps(),
    saved(noise(8, 8, 3), 'TGA'),
    png(0, 5, 8, 2),
  ],
  ids=['text', 'jpeg', 'eps', 'tga', 'no-pixels'],
)
def test_other_formats_are_refused_and_the_admitted_ones_named(data):
  assert reason(data) == (
    f'it is in none of the formats {", ".join(decoding.FORMATS)}'
  )


def test_an_empty_file_and_an_empty_image_are_errors():
  assert reason(b'') == 'the file is empty'
  assert reason(Image.new('RGB', (0, 5))) == 'it has no pixels'


def test_a_decompression_bomb_is_refused_before_memory_is_taken():
  bomb = png(60000, 60000, 8, 2, bytes(1 << 16))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  message = reason(bomb)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert '3600000000 pixels' in message
  assert 'decompression bomb' in message
  # In kilobytes, on macOS in bytes.
  unit = 1 if sys.platform == 'darwin' else 1024
  assert (after - before) * unit < 64 << 20


def test_damage_raises_nothing_but_image_errors():
  random, failed = np.random.default_rng(0), 0
  for format_ in ('JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'BMP', 'PPM'):
    data = saved(photo(20, 16), format_)
    for _ in range(40):
      damaged = bytearray(data)
      for place in random.integers(len(data), size=4):
        damaged[place] = random.integers(256)
      try:
        decoding.decode(bytes(damaged))
      except decoding.ImageError as error:
        failed += bool(str(error))
  assert failed > 20


def test_decoding_in_threads_leaves_warnings_as_they_were():
  data = saved(noise(200, 200, 3), 'PNG')
  before = list(warnings.filters)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len(list(pool.map(decoding.decode, [data] * 100))) == 100
  assert warnings.filters == before
  with pytest.warns(UserWarning, match='still heard'):
    warnings.warn('still heard', stacklevel=1)


def test_warnings_of_an_image_are_no_errors(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 30)
  data = saved(noise(5, 7, 3), 'PNG')
  with pytest.warns(Image.DecompressionBombWarning):
    Image.open(io.BytesIO(data))
  assert decoded(data).shape == (5, 7, 3)


# ---------------------------------------------------------------- the mean

VALUES = noise(3, 32, 32).astype(np.float32) / 3
NEEDED = '3072 finite ones are needed, (3, 32, 32) in BGR order'


def python_2_protocol_0(values):
  raw = ''.join(f'\\x{byte:02x}' for byte in values.tobytes())
  return (
    "(dp1\nS'data_mean'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n"
    "(cnumpy\nndarray\np4\n(I0\ntp5\nS'b'\np6\ntp7\nRp8\n"
    f"(I1\n(L{values.size}L\ntp9\ncnumpy\ndtype\np10\n(S'f4'\np11\nI0\nI1\n"
    "tp12\nRp13\n(I3\nS'<'\np14\nNNNI-1\nI-1\nI0\ntp15\nbI00\n"
    f"S'{raw}'\np16\ntp17\nbs."
  ).encode('ascii')


def python_2_protocol_2(values):
  raw = values.tobytes()
  return (
    b'\x80\x02}q\x01U\tdata_meanq\x02cnumpy.core.multiarray\n_reconstruct\n'
    b'q\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08'
    b'(K\x01M' + struct.pack('<H', values.size) + b'\x85q\tcnumpy\ndtype\n'
    b'q\nU\x02f4q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01<q\x0eNNN'
    b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89'
    b'T' + struct.pack('<i', len(raw)) + raw + b'q\x10tq\x11bs.'
  )


def npz(compressed=False, **arrays):
  file = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(file, **arrays)
  return file.getvalue()


def mean_of(tmp_path, data, crop_size=32):
  path = tmp_path / 'mean.meta'
  path.write_bytes(data)
  return mean_lib.parse_mean(str(path), crop_size)


def mean_error(tmp_path, data):
  message = user_error(mean_of, tmp_path, data)
  assert message.startswith(f'{tmp_path / "mean.meta"}')
  return message


@pytest.mark.parametrize(
  ('text', 'values'),
  [
    ('103.939,116.779,123.68', (103.939, 116.779, 123.68)),
    ('0,0,0', (0, 0, 0)),
    (' 1, 2.5 ,-3e1', (1, 2.5, -30)),
  ],
)
def test_a_mean_of_three_values(text, values):
  mean = mean_lib.parse_mean(text, 224)
  assert mean == values
  array = mean_lib.as_array(mean)
  assert array.dtype == np.float32
  expected = np.array(values, np.float32).reshape(3, 1, 1)
  np.testing.assert_array_equal(array, expected)
  assert mean_lib.describe(mean) == str(values)


@pytest.mark.parametrize(
  'text',
  ['1,2', '1,2,3,4', '5', 'nan,1,2', '1,inf,2', '1e60,1,1', '-inf,0,0'],
)
def test_other_numbers_are_no_mean(text):
  assert user_error(mean_lib.parse_mean, text, 224) == (
    f"mean='{text}' is neither three finite values, BGR, such as"
    ' 103.939,116.779,123.68, nor a file.'
  )


@pytest.mark.parametrize(
  'data',
  [
    npz(data_mean=VALUES),
    npz(data_mean=VALUES.ravel()),
    npz(compressed=True, data_mean=VALUES, other=np.ones(3)),
    npz(data_mean=np.asfortranarray(VALUES)),
    npz(data_mean=VALUES.astype('>f4')),
    npz(data_mean=VALUES.astype(np.float64)),
    python_2_protocol_0(VALUES),
    python_2_protocol_2(VALUES),
  ],
  ids=[
    'npz',
    'npz-flat',
    'npz-compressed',
    'npz-fortran',
    'npz-big-endian',
    'npz-float64',
    'python2-0',
    'python2-2',
  ],
)
def test_a_mean_file_is_read(tmp_path, data):
  mean = mean_of(tmp_path, data)
  assert mean.values.dtype == np.float32
  np.testing.assert_array_equal(mean.values, VALUES)
  assert re.fullmatch(
    r'mean file mean\.meta \(3x32x32, sha256 [0-9a-f]{16}\)', mean.description
  )
  preprocess.Preprocess(mean, resize_size=32, crop_size=32)


@pytest.mark.parametrize('dtype', [np.uint8, np.int64])
def test_whole_numbers_are_a_mean_too(tmp_path, dtype):
  values = noise(3, 32, 32).astype(dtype)
  mean = mean_of(tmp_path, npz(data_mean=values))
  assert mean.values.dtype == np.float32
  np.testing.assert_array_equal(mean.values, values)


@pytest.mark.parametrize(
  'encode',
  [lambda v: npz(data_mean=v), python_2_protocol_0, python_2_protocol_2],
)
def test_a_mean_of_another_size_says_which_one_is_needed(tmp_path, encode):
  message = mean_error(tmp_path, encode(VALUES[:, :31].ravel()))
  assert 'data_mean holds 2976 values of shape (2976,)' in message
  assert NEEDED in message
  assert 'set crop_size to the size they are for' in message


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e60])
def test_a_mean_file_must_be_finite(tmp_path, value):
  values = VALUES.astype(np.float64)
  values[1, 2, 3] = value
  assert NEEDED in mean_error(tmp_path, npz(data_mean=values))


@pytest.mark.parametrize(
  'data',
  [
    npz(mean=VALUES),
    npz(data_mean=VALUES.astype(str)),
    npz(data_mean=VALUES > 1),
    python_2_protocol_2(VALUES).replace(b'data_mean', b'mean_data'),
    python_2_protocol_0(VALUES).replace(b'data_mean', b'mean_data'),
    b"(dS'data_mean'\nI1\ns.",
    b'I1\n.',
  ],
)
def test_a_file_without_data_mean_is_no_mean(tmp_path, data):
  message = mean_error(tmp_path, data)
  assert message.endswith("holds no array of numbers 'data_mean'.")


def zipped(member, name='data_mean.npy', **options):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', **options) as archive:
    # Without the time: two workers have to find tests of the same names.
    archive.writestr(zipfile.ZipInfo(name), member, archive.compression)
  return file.getvalue()


def npy_header(text, version=b'\x01\x00'):
  text = text.ljust(117) + '\n'
  return b'\x93NUMPY' + version + struct.pack('<H', 118) + text.encode()


def claim(shape, descr='<f4'):
  header = {'descr': descr, 'fortran_order': False, 'shape': shape}
  return npy_header(repr(header)) + bytes(64)


@pytest.mark.parametrize(
  ('data', 'what'),
  [
    (npz(data_mean=np.array([None, 1], object)), 'an OBJECT array'),
    (zipped(claim((2**40,))), 'cannot reshape array of size 16'),
    (zipped(claim((2**20, 2**10))), 'cannot reshape array of size 16'),
    (zipped(claim((3, 1), '|O')), 'an OBJECT array'),
    (zipped(npy_header('{}')), 'Header'),
    (zipped(npy_header('__import__("os")')), 'malformed node'),
    (zipped(npy_header('{}', b'\x09\x00')), 'EOF: reading array header'),
    (zipped(b'text'), 'magic'),
    (zipped(b''), ''),
  ],
)
def test_arrays_that_make_no_sense_are_refused(tmp_path, data, what):
  tracemalloc.start()
  try:
    message = mean_error(tmp_path, data)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
  finally:
    tracemalloc.stop()
  assert 'is a damaged npz file: ' in message
  assert what in message


def test_a_member_that_is_stated_to_be_huge_is_not_read(tmp_path):
  data = bytearray(npz(data_mean=VALUES))
  # The size, in the archive's directory.
  struct.pack_into('<I', data, data.rindex(b'PK\1\2') + 24, 1 << 27)
  message = mean_error(tmp_path, data)
  assert 'its member data_mean.npy states 134217728 bytes' in message


def test_a_huge_file_is_not_read(tmp_path):
  path = tmp_path / 'mean.meta'
  with open(path, 'wb') as file:
    file.truncate((1 << 26) + 1)
  message = user_error(mean_lib.parse_mean, str(path), 32)
  assert message == f'{path} is too large for a mean file.'


def test_no_damage_of_an_npz_goes_unexplained(tmp_path):
  data = npz(compressed=True, data_mean=np.tile(np.float32([1, 2, 3]), 1024))
  damaged = 0
  for place in range(len(data)):
    changed = bytearray(data)
    changed[place] ^= 0x11
    try:
      mean = mean_of(tmp_path, bytes(changed))
    except errors.UserError as error:
      damaged += 'is a damaged npz file: ' in str(error)
    else:
      assert mean.values.ravel()[:3].tolist() == [1, 2, 3]
  assert damaged > len(data) / 4


@pytest.mark.parametrize('size', [4, 40, 2000, 12000])
def test_a_truncated_npz_is_an_error(tmp_path, size):
  data = npz(data_mean=VALUES)
  assert len(data) > 12000
  message = mean_error(tmp_path, data[:size])
  assert 'is a damaged npz file: ' in message


def test_a_mean_that_runs_code_is_refused(tmp_path):
  message = mean_error(tmp_path, b"cos\nsystem\n(S'true'\ntR.")
  assert 'is refused: it holds os.system' in message


@pytest.mark.parametrize(
  'name', ['nothing', 'nothing.npz', '', 'x' * 300, '1,2,three', '~nobody!/a']
)
def test_a_missing_mean_file_says_what_to_give(tmp_path, name, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert user_error(mean_lib.parse_mean, name, 32) == (
    f"mean='{name or '.'}': there is no such file. Give a file (npz or pickle"
    ' with data_mean, or binaryproto) or three values in BGR order:'
    ' 103.939,116.779,123.68.'
  )


# ----------------------------------------------------------- the settings


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'multi_crop': True, 'resize': 'squash'},
      'multi_crop=true needs resize=short_side: with resize=squash an image is'
      ' no larger than one crop.',
    ),
    (
      {'resize_size': 223},
      'resize_size=223 is not between crop_size=224 and 8192.',
    ),
    (
      {'resize_size': 8193},
      'resize_size=8193 is not between crop_size=224 and 8192.',
    ),
    ({'crop_size': 31}, 'crop_size=31 is not between 32 and 4096.'),
    ({'crop_size': 4097}, 'crop_size=4097 is not between 32 and 4096.'),
    (
      {'interpolation': 'lancos'},
      "unknown interpolation 'lancos'. Did you mean 'lanczos'? Allowed:"
      ' lanczos, bilinear, bicubic.',
    ),
    (
      {'interpolation': 'xyz'},
      "unknown interpolation 'xyz'. Allowed: lanczos, bilinear, bicubic.",
    ),
    (
      {'resize': 'shortside'},
      "unknown resize 'shortside'. Did you mean 'short_side'? Allowed:"
      ' short_side, squash, none.',
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
  assert user_error(preprocess.Preprocess, THREE, **options) == message


def test_a_mean_of_another_size_than_the_crop_is_refused():
  mean = mean_lib.MeanImage(VALUES, 'mean file mean.meta')
  assert user_error(preprocess.Preprocess, mean) == (
    'mean file mean.meta has the shape (3, 32, 32); crops of 224x224 need'
    ' (3, 224, 224), or three values: mean=103.939,116.779,123.68'
  )


def test_squash_needs_no_resize_size():
  how = preprocess.Preprocess(THREE, 'squash', resize_size=1, crop_size=300)
  assert crops.cut(photo(), how).shape == (1, 300, 300, 3)


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({}, 'shorter side to 256 (lanczos), centre crop 224x224'),
    (
      {'resize_size': 320, 'crop_size': 288, 'interpolation': 'bicubic'},
      'shorter side to 320 (bicubic), centre crop 288x288',
    ),
    (
      {'multi_crop': True},
      'shorter side to 256 (lanczos), ten crops of 224x224 averaged',
    ),
    ({'resize': 'squash'}, 'whole image resized to 224x224 (lanczos)'),
  ],
)
def test_described_in_one_line(options, expected):
  assert preprocess.Preprocess(THREE, **options).describe() == (
    f'{expected}, BGR, minus (103.939, 116.779, 123.68)'
  )


@pytest.mark.parametrize('shape', [(4, 32, 24), (32, 32, 3), (32, 3, 32)])
def test_a_mean_in_another_order_is_refused(tmp_path, shape):
  np.savez(tmp_path / 'm.npz', data_mean=np.ones(shape, np.float32))
  with pytest.raises(errors.UserError, match=r'3072 values of shape \('):
    mean_lib.parse_mean(str(tmp_path / 'm.npz'), 32)


def _archive(path, members):
  with tarfile.open(path, 'w:gz') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def test_the_published_archive_of_the_mean_is_read(tmp_path):
  values = np.arange(3 * 32 * 32, dtype=np.float32)
  data = pickle.dumps({'data_mean': values}, protocol=2)
  path = _archive(
    tmp_path / 'm.tar.gz', {'mean_meta_224/mean.meta': data, 'x': b'y'}
  )
  mean = mean_lib.parse_mean(str(path), 32)
  np.testing.assert_array_equal(mean.values.ravel(), values)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  message = user_error(mean_lib.parse_mean, str(path), 32)
  assert 'cut off' in message
  path = _archive(tmp_path / 'n.tar.gz', {'other': b'y'})
  message = user_error(mean_lib.parse_mean, str(path), 32)
  assert 'is an archive without mean.meta' in message


def test_a_mean_archive_with_code_is_refused(tmp_path):
  data = b"cos\nsystem\n(S'true'\ntR."
  path = _archive(tmp_path / 'm.tar.gz', {'mean_meta_224/mean.meta': data})
  message = user_error(mean_lib.parse_mean, str(path), 32)
  assert 'is refused: it holds os.system' in message


@pytest.mark.parametrize('what', ['mean', 'std'])
def test_the_scale_of_torch_is_noticed(what):
  parse = {'mean': lambda t: mean_lib.parse_mean(t, 32)}.get(
    what, mean_lib.parse_std
  )
  message = user_error(parse, '0.485,0.456,0.406')
  assert f'Give {what}=123.675,116.28,103.53' in message
