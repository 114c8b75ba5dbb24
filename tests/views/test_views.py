# SPDX-License-Identifier: Apache-2.0
"""Plots and the parts of the page, from arrays."""

import io
import json
import re
import sys

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from resnet_jax import views
from resnet_jax.models import resnet
from resnet_jax.system import errors
from resnet_jax.views import colours, graph, maps, page, page_network


def _pixels(figure):
  file = io.BytesIO()
  figure.savefig(file)
  return np.asarray(Image.open(file).convert('RGB'))


def _texts(figure):
  own = [text.get_text() for text in figure.texts]
  return ' '.join(
    own + [text.get_text() for axes in figure.axes for text in axes.texts]
  )


def _values():
  """Eight channels of 4x4, of which 5 is the strongest, then 2 and 6."""
  values = np.zeros((8, 4, 4), np.float32)
  values[2], values[5, 0, 0], values[6] = -1.0, 40.0, 1.0
  return values


# --------------------------------------------------------------------- maps


def test_the_strongest_channels_come_first_and_equals_by_number():
  chosen = maps.strongest(_values(), 4)
  assert chosen.channels == (5, 2, 6, 0)
  assert chosen.strengths == (10.0, 1.0, 1.0, 0.0)
  assert (chosen.low, chosen.high, chosen.total) == (-1.0, 40.0, 8)
  # 99.5% of the 64 values shown: the peak lies beyond.
  assert chosen.limit == np.percentile(np.abs(chosen.values), 99.5) < 40
  assert chosen.clipped == 'max'
  assert chosen.describe().startswith('The 4 strongest of 8 channels, by root')
  assert (
    'values -1 to 40, white is 0; the colours end at ±' in chosen.describe()
  )
  assert maps.strongest(_values(), 64).describe().startswith('All of 8')


def test_a_dead_layer_is_described_as_such():
  chosen = maps.strongest(np.zeros((3, 2, 2)))
  assert chosen.describe() == 'All of 3 channels; all values are 0'
  assert (
    colours.diverging(chosen.values, chosen.limit) == colours.MIDDLE
  ).all()


def test_values_that_cannot_be_shown_are_an_error():
  values = _values()
  values[0, 0, 0] = np.inf
  with pytest.raises(errors.UserError, match='values of a layer are not fin'):
    maps.strongest(values)
  with pytest.raises(errors.UserError, match='65 maps: 1 to 64 can be shown'):
    maps.strongest(_values(), 65)
  with pytest.raises(errors.UserError, match=r'\(3, 3, 4, 8\) is not the ker'):
    views.filters(np.zeros((3, 3, 4, 8)))


def test_neighbours_are_the_others_by_their_cosine():
  features = np.array([[1, 0], [0, 2], [3, 3], [5, 0]], np.float32)
  order, cosines = maps.nearest(features, 2)
  assert order.tolist() == [[3, 2], [2, 0], [0, 1], [0, 2]]
  half = np.sqrt(0.5)
  np.testing.assert_allclose(cosines[:, 0], [1, half, half, 1])
  # No more than there are.
  assert maps.nearest(features, 9)[0].shape == (4, 3)


def test_a_neighbour_that_cannot_be_named_is_an_error():
  with pytest.raises(
    errors.UserError, match='1 images, 2 neighbours: images must be 2'
  ):
    maps.nearest(np.ones((1, 3)), 2)
  with pytest.raises(errors.UserError, match='all 0 or not finite'):
    maps.nearest(np.array([[1.0, 0.0], [0.0, 0.0]]), 1)
  with pytest.raises(errors.UserError, match='2 images, 2 rows of features a'):
    views.neighbours(
      np.zeros((2, 32, 32, 3), np.uint8), np.ones((2, 3)), ['a.png']
    )


def test_neighbours_stand_beside_their_image():
  images = np.zeros((3, 40, 40, 3), np.uint8)
  images[0, :, :, 0] = images[1, :, :, 1] = images[2, :, :, 2] = 255
  features = np.array([[1, 0.1], [0, 1], [1, 0]])
  figure = views.neighbours(images, features, ['red', 'green', '$blue$'])
  texts = _texts(figure)
  assert 'red $blue$  0.995 green  0.100 green red  0.100' in texts
  shown = _pixels(figure)
  # The first row: red, blue, green.
  row = shown[34 + 22 + 4 + 15 + 50]
  assert row[14 + 50].tolist() == [255, 0, 0]
  assert row[14 + 120 + 50].tolist() == [0, 0, 255]
  assert row[14 + 240 + 50].tolist() == [0, 255, 0]


def test_tiles_lie_row_by_row():
  cells = np.arange(5)[:, None, None] * np.ones((5, 2, 3), int)
  grid = maps.tiled(cells, 2)
  assert grid[::2, ::3].tolist() == [[0, 1], [2, 3], [4, 0]]
  assert grid.shape == (6, 6)


def test_smaller_maps_are_averages_and_larger_ones_smooth():
  values = np.arange(16.0).reshape(4, 4)
  assert maps.resized(values, 2, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]
  larger = maps.resized(np.array([[0.0, 1.0]]), 1, 8)[0]
  assert (np.diff(larger) >= 0).all()
  assert 0 < larger[3] < larger[4] < 1


# ------------------------------------------------------------------- colours


def test_zero_is_white_and_signs_are_blue_and_red():
  table = colours.palette(colours.DIVERGING)
  below, zero, above = table[colours.diverging(np.array([-9, 0, 9]), 3.0)]
  assert zero.min() > 240
  assert np.ptp(zero) < 4
  assert below[2] > below[0] + 40
  assert above[0] > above[2] + 40
  library = matplotlib.colormaps['RdBu_r']
  place = colours.diverging(np.array([1.0]), 4.0)[0]
  expected = np.array(library(0.5 + 0.5 / 4)[:3]) * 255
  assert np.abs(table[place] - expected).max() < 4


def test_nothing_hot_leaves_the_image_alone():
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  assert (colours.overlaid(image, np.zeros((8, 8)), 0.0) == image).all()
  hot = colours.overlaid(image, np.ones((8, 8)), 1.0)
  bright = colours.palette(colours.HEAT)[-1]
  assert np.abs(hot - (0.25 * image + 0.75 * bright)).max() < 2


@pytest.mark.parametrize('channels', ['BGR', 'RGB'])
def test_filters_have_the_colours_that_they_respond_to(channels):
  kernel = np.zeros((3, 3, 3, 2), np.float32)
  # The first responds to blue in the middle, the second against red on the
  # left.
  kernel[1, 1, channels.index('B'), 0] = 0.2
  kernel[:, 0, channels.index('R'), 1] = -5.0
  first, second = maps.true_colours(kernel, channels)
  assert first[1, 1].tolist() == [128, 128, 255]
  assert first[0, 0].tolist() == [128, 128, 128]
  assert second[2, 0].tolist() == [1, 128, 128]
  figure = views.filters(kernel, channels=channels)
  assert '#0  ±0.2' in _texts(figure)
  assert '#1  ±5' in _texts(figure)
  pixels = _pixels(figure)
  assert (pixels == [128, 128, 255]).all(axis=-1).sum() == 21 * 21
  assert (pixels == [1, 128, 128]).all(axis=-1).sum() == 3 * 21 * 21


# ------------------------------------------------------------------- figures


def test_a_map_has_the_colours_of_its_values_and_a_labelled_scale():
  values = np.zeros((2, 4, 4), np.float32)
  values[1, :2] = 2.0
  values[0, 3] = -1.0
  figure = views.feature_maps(values, title='res9')
  pixels = _pixels(figure)
  table = colours.palette(colours.DIVERGING)
  for value, cells in ((2.0, 8), (-1.0, 4)):
    colour = table[colours.diverging(np.array(value), 2.0)]
    found = (pixels == colour).all(axis=-1).sum()
    assert cells * 28 * 28 <= found < cells * 28 * 28 + 300
  text = _texts(figure)
  assert 'res9' in text
  assert '#1  rms 1.41' in text
  assert '#0  rms 0.5' in text
  scale = figure.axes[-1]
  assert scale.get_ylim() == (-2.0, 2.0)


def test_several_images_are_one_too_many():
  with pytest.raises(errors.UserError, match=r'such as features\[0\]'):
    views.feature_maps(np.zeros((1, 2, 4, 4)))
  with pytest.raises(errors.UserError, match=r'such as crops\[0\] and cam'):
    views.grad_cam(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2, 2)))


def test_grad_cam_shows_the_image_and_the_scale():
  image = np.full((64, 64, 3), 90, np.uint8)
  cam = np.zeros((2, 2))
  figure = views.grad_cam(image, cam, title='n: $5')
  assert '2x2 positions, enlarged; 0 everywhere: nothing' in _texts(figure)
  assert 'n: $5' in _texts(figure)
  assert (_pixels(figure) == 90).all(axis=-1).sum() == 2 * 256 * 256
  cam[0, 0] = 0.5
  figure = views.grad_cam(image, cam)
  assert '0 everywhere' not in _texts(figure)
  assert figure.axes[-1].get_ylim() == (0.0, 0.5)
  shown = np.asarray(figure.axes[1].images[0].get_array())
  assert np.abs(shown[-1, -1] - 90.0).max() <= 1
  assert shown[0, 0, 0] > 180


def test_bars_are_as_long_as_probabilities_and_names_are_no_formulas():
  figure = views.bars(['$x^2$', 'cat'], [0.75, 0.2], marked=[False, True])
  axes = figure.axes[0]
  assert [bar.get_width() for bar in axes.patches] == [0.75, 0.2]
  assert axes.get_xlim() == (0, 1)
  assert '$x^2$' in _texts(figure)
  assert 'cat  (true class)' in _texts(figure)
  assert '75.00%' in _texts(figure)
  assert _pixels(figure).std() > 0


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(errors.UserError, match=r"'resnet-jax-zoo\[views\]'"):
    views.bars(['a'], [1.0])


# ----------------------------------------------------------------- the page


def _noise_entry(shapes, count, side):
  random = np.random.default_rng(0)
  layers = {
    f'res{i}_1_branch2a_conv': maps.strongest(
      random.normal(size=(min(channels, count), *size)), count
    )
    for i, (channels, *size) in enumerate(shapes)
  }
  predicted = page.PredictedClass(999, 'n' * 5000, 0.123456789)
  result = page.ImageResult(
    'k' * 5000,
    '200_' + 'k' * 60,
    crop=random.integers(0, 256, (224, 224, 3), np.uint8),
    true_class='s' * 5000,
    best=(predicted,) * 5,
    cam=random.uniform(size=(56, 56)),
    cam_class='c' * 5000,
    layers=layers,
  )
  return page.entry(result, side)


def test_even_noise_does_not_make_the_page_larger_than_promised():
  shapes = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (2048, 7, 7)]
  side = page.map_side(shapes, 16, 200)
  assert side == 28
  entry = _noise_entry(shapes, 16, side)
  network = graph.build(resnet.ResNet(152), 32, 32)
  everything = [node.name for node in network.nodes]
  kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 64))
  filters = maps.true_colours(kernel, 'BGR')
  overview = page.Overview(
    't', [], network, everything, filters, '', '', [], {}
  )
  whole = page.document(overview, [])
  assert len(whole.encode()) + 200 * len(page._json(entry)) < page.MAX_BYTES
  assert (
    len(page.document(overview, [entry]).encode()) - len(whole.encode())
    < len(page._json(entry)) + len(entry['thumbnail']) + 1000
  )


def test_map_sizes_in_the_page_follow_the_number_of_images():
  shapes = [(64, 112, 112), (256, 56, 56), (2048, 7, 7)]
  sides = [page.map_side(shapes, 16, count) for count in (1, 100, 200)]
  assert sides == [112, 56, 28]
  with pytest.raises(errors.UserError, match=r'200 images with 16 maps of ea'):
    page.map_side([(64, 112, 112)] * 500, 16, 200)


def test_json_in_the_page_closes_no_script():
  text = page._json({'a': '</script><!--&\u2028\u2029'})
  assert re.fullmatch(r'[ -~]*', text)
  assert not set('<>&') & set(text)
  assert json.loads(text) == {'a': '</script><!--&\u2028\u2029'}


@pytest.mark.parametrize('depth', [20, 18, 152])
def test_the_diagram_has_every_layer_once_and_every_connection(depth):
  model = resnet.published(depth)
  network = graph.build(model, 32, 32)
  shown = {'conv1_bn', 'res2_1_addto'}
  text = page_network.diagram(network, shown)
  titles = re.findall(r'title="(\w+): ', text)
  assert titles == [node.name for node in network.nodes]
  assert set(re.findall(r'data-layer="(\w+)"', text)) == shown
  # Not drawn: from a convolution to its batch norm in the same box.  Drawn
  # besides: what leaves each card at its end.
  cards = text.count('class="card"')
  boxed = sum(node.kind == 'batch norm' for node in network.nodes)
  assert text.count('<path') == len(network.edges) - boxed + cards
  heavy = sum(
    edge.shortcut and not edge.end.endswith('_bn') for edge in network.edges
  )
  assert text.count('<path class="shortcut') == heavy
  assert text.count('padded') == (2 if depth == 20 else 0)
  blocks = {node.block for node in network.nodes} - {''}
  assert re.findall(r'<h4>(\w+)</h4>', text) == list(
    dict.fromkeys(node.block for node in network.nodes if node.block)
  )
  assert cards == len(blocks) + 2


def _luminance(colour):
  if len(colour) == 4:
    colour = '#' + ''.join(2 * digit for digit in colour[1:])
  parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
  ]
  return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_colours_have_enough_contrast():
  """WCAG 2.2, 1.4.3: 4.5 to 1 for text; 1.4.11: 3 to 1 for the rest."""
  style = (ROOT / 'resnet_jax/views/page.css').read_text()
  themes = re.findall(r':root \{(.*?)\}', style, re.S)
  assert len(themes) == 2
  for theme in themes:
    colour = dict(re.findall(r'--([\w-]+): (#\w+)', theme))
    for front, back, least in (
      ('ink', 'paper', 4.5),
      ('ink', 'panel', 4.5),
      ('ink', 'tint', 4.5),
      ('ink', 'warn', 4.5),
      ('quiet', 'paper', 4.5),
      ('quiet', 'panel', 4.5),
      ('on-accent', 'accent', 4.5),
      ('accent', 'panel', 3),
      ('accent', 'tint', 3),
      ('shortcut', 'paper', 3),
      ('shortcut', 'tint', 3),
    ):
      high, low = sorted(
        (_luminance(colour[front]), _luminance(colour[back])), reverse=True
      )
      ratio = (high + 0.05) / (low + 0.05)
      assert ratio >= least, f'{front} on {back}: {ratio:.2f}'
