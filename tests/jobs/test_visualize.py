# SPDX-License-Identifier: Apache-2.0
"""The job `visualize`, run as a user does; its page in a browser."""

import base64
import io
import json
import re
import runpy

import chromium
import matplotlib
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from makers import run_program
from PIL import Image

import resnet_jax
from resnet_jax import weights
from resnet_jax.jobs import visualize
from resnet_jax.models import resnet
from resnet_jax.system import errors, files
from resnet_jax.views import report_folder
from resnet_jax.weights import torch_names

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')

LAYERS = ('conv1_bn', 'res3_1_branch2b_bn', 'res5_2_addto')
# In the order of a folder's images.
NAMES = (
  '"><script>alert(1)</script>.png',
  '</script><script>alert(2)<!--.png',
  '<img src=x onerror=alert(3)>.png',
  'broken.png',
  "c d's &amp; \u2028.png",
)
CLASS = '<b onmouseover=alert(4)>$x^2$ {} "\''
SIZE = {'crop_size': 64, 'resize_size': 72}
FLAGS = (
  '--config=configs/resnet.py:18,weights=random,crop_size=64,resize_size=72',
  '--job=visualize',
)


def _run(folder, *flags):
  return run_program(folder, *FLAGS, *flags)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The result of one run: hostile names, and one broken image."""
  folder = tmp_path_factory.mktemp('visualize')
  random = np.random.default_rng(0)
  for name in NAMES:
    path = folder / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((120, 90)).save(path)
  (folder / 'images/broken.png').write_bytes(b'\x89PNG broken')
  classes = ''.join(f'{CLASS.format(i)}\n' for i in range(1000))
  (folder / 'classes.txt').write_text(classes)
  # An earlier report, which is replaced.
  (folder / 'report/009_old').mkdir(parents=True)
  (folder / 'report/009_old/grad_cam.png').touch()
  (folder / 'report/report.html').touch()
  done = _run(
    folder,
    '--config.data=images',
    '--config.class_names=classes.txt',
    '--config.on_error=record',
    f'--config.map_layers={",".join(LAYERS)},avgpool',
    '--config.map_count=9',
  )
  assert done.returncode == 3, done.stderr
  (folder / 'stderr').write_text(done.stderr)
  return folder


@pytest.fixture(scope='module')
def entries(folder):
  """The entries of the images in the page."""
  text = (folder / 'report/report.html').read_text()
  found = re.findall(r'class="entry">(.*?)</script>', text)
  return [json.loads(part) for part in found]


@pytest.fixture(scope='module')
def model():
  return resnet_jax.load('resnet18', weights='random', **SIZE)


def _config(**settings):
  make = runpy.run_path(str(ROOT / 'configs/resnet.py'))['get_config']
  config = make('18,weights=random,crop_size=64,resize_size=72')
  config.update(settings)
  return config


def _image(uri):
  return Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1])))


def test_it_announces_its_files_and_writes_them(folder):
  said = (folder / 'stderr').read_text()
  assert 'Traceback' not in said
  assert f'maps: the 9 strongest of {", ".join(LAYERS)}' in said
  assert 'NOTE: avgpool: no positions, so no maps' in said
  assert 'Grad-CAM: res5_2_addto, for the predicted class' in said
  assert 'page: at most 32 MB, maps at most 112 pixels a side' in said
  assert 'to write: the page and at most 26 PNG files, to report' in said
  assert 'FAILED: images/broken.png: ' in said
  assert '1 image could not be read' in said
  assert re.search(r'the report is report/report.html \(0\.\d MB\)', said)
  report = folder / 'report'
  assert not (folder / 'report.part').exists()
  assert sorted(path.name for path in report.iterdir()) == [
    '001_script',
    '002_script_script_alert_2',
    '003_img_src_x_onerror_alert_3',
    '005_c_d_s_amp',
    'filters.png',
    'report.html',
  ]
  plots = {f'maps_{name}.png' for name in LAYERS}
  plots |= {'grad_cam.png', 'predictions.png'}
  for path in report.glob('0*'):
    assert {file.name for file in path.iterdir()} == plots
    for file in path.iterdir():
      assert np.asarray(Image.open(file)).std() > 10


def test_the_page_holds_the_values_of_the_network(folder, entries, model):
  assert [entry['key'] for entry in entries] == list(NAMES)
  for entry in entries:
    path = folder / 'images' / entry['key']
    if entry['key'] == 'broken.png':
      assert 'formats JPEG' in entry['reason']
      assert not entry['layers']
      assert 'image' not in entry
      continue
    best = model.predict(path).best
    assert [shown['label'] for shown in entry['best']] == [
      score.label for score in best
    ]
    assert [shown['probability'] for shown in entry['best']] == pytest.approx(
      [score.probability for score in best], rel=1e-3
    )
    first = entry['best'][0]
    assert first['name'] == CLASS.format(first['label'])
    crop = np.asarray(_image(entry['image'])).astype(float)
    assert np.abs(crop - model.crops(path)[0]).mean() < 8

    cam = model.grad_cam(path)[0]
    assert entry['cam']['name'] == f'{first["label"]} {first["name"]}'
    assert float(entry['cam']['peak']) == pytest.approx(cam.max(), rel=0.01)
    heat = np.asarray(_image(entry['cam']['png']))
    assert heat.shape == (56, 56)
    corners = heat[np.ix_([0, -1], [0, -1])]
    np.testing.assert_allclose(corners, 254 * cam / cam.max(), atol=2)

    features = model.features(path, LAYERS)
    for name in LAYERS:
      values = features[name][0].astype(np.float64)
      rms = np.sqrt((values**2).mean(axis=(1, 2)))
      shown = entry['layers'][name]
      assert shown['channels'] == np.argsort(-rms)[:9].tolist()
      assert float(shown['strengths'][0]) == pytest.approx(rms.max(), rel=0.01)
      sheet = np.asarray(_image(shown['png'])).astype(float) - 127
      rows = 3 * values.shape[1]
      assert sheet.shape == (rows, rows)
      limit = float(shown['limit'])
      last = np.clip(values[shown['channels'][8]] / limit, -1, 1)
      side = values.shape[1]
      np.testing.assert_allclose(sheet[-side:, -side:], 127 * last, atol=2)


def test_the_page_identifies_the_run(folder):
  text = (folder / 'report/report.html').read_text()
  digest = weights.digest(weights.untrained(resnet.published(18), 0).parameters)
  for fact in (
    digest,
    'ResNet-18, 1000 classes, stride in 1x1, stem pool ceil, epsilon 1e-05',
    'shorter side to 72 (lanczos), centre crop 64x64, BGR, minus (103.939,',
    'random, seed 0',
    'matplotlib 3.',
    '<th scope="row">Device</th><td>cpu',
    '<th scope="row">map_count</th><td>9</td>',
    'UNTRAINED',
  ):
    assert fact in text
  assert re.search(r'20\d\d-\d\d-\d\d \d\d:\d\d UTC', text)
  # Nothing is loaded: every address is data, or the name of a standard.
  assert not re.search(r'(src|href)="(?!data:)', text)
  assert 'http:' not in text
  assert 'https:' not in text


def test_a_headless_network_predicts_nothing(
  folder, tmp_path, monkeypatch, capsys
):
  held = weights.untrained(resnet.ResNet(18, 0), 2)
  stored = {}
  for theirs, ours in torch_names.torchvision(18).items():
    if ours in held.parameters:
      axes = {4: (3, 2, 0, 1)}.get(held.parameters[ours].ndim, (0,))
      array = held.parameters[ours].transpose(axes)
      stored[theirs] = np.ascontiguousarray(array)
  safetensors.numpy.save_file(stored, tmp_path / 'w.safetensors')
  monkeypatch.chdir(tmp_path)
  data = str(folder / 'images' / NAMES[2])
  config = _config(weights='w.safetensors', data=data)
  assert visualize.run(config) == 0
  said = capsys.readouterr().err
  assert 'NOTE: These weights have no head (no classifier), so no' in said
  text = (tmp_path / 'report/report.html').read_text()
  (entry,) = re.findall(r'class="entry">(.*?)</script>', text)
  assert 'cam' not in json.loads(entry)
  assert json.loads(entry)['best'] == []
  assert 'none: there is no classifier' in text
  names = {path.name for path in (tmp_path / 'report').glob('*/*')}
  assert names == {
    f'maps_{name}.png'
    for name in ('conv1_bn', *(f'res{s}_2_addto' for s in (2, 3, 4, 5)))
  }
  config.cam_class = '5'
  with pytest.raises(errors.UserError, match='no class for Grad-CAM'):
    visualize.run(config)


def test_a_class_and_a_layer_can_be_chosen(
  folder, model, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'list').write_text(f'{folder / "images" / NAMES[2]} 7\n')
  config = _config(
    data='list',
    cam_class='n02123045',
    cam_layer='layer3.1',
    map_layers='pool1',
  )
  assert visualize.run(config) == 0
  said = capsys.readouterr().err
  assert 'Grad-CAM: res4_2_addto, for 281 tabby, tabby cat' in said
  text = (tmp_path / 'report/report.html').read_text()
  (part,) = re.findall(r'class="entry">(.*?)</script>', text)
  cam = model.grad_cam(folder / 'images' / NAMES[2], 281, 'res4_2_addto')
  entry = json.loads(part)
  assert entry['trueClass'] == '7 cock'
  assert entry['cam']['name'] == '281 tabby, tabby cat'
  assert float(entry['cam']['peak']) == pytest.approx(cam.max(), rel=0.01)
  assert list(entry['layers']) == ['pool1']


# ------------------------------------------------------------------ messages


def test_a_broken_image_ends_it_and_leaves_no_report(folder, tmp_path):
  done = _run(
    tmp_path, f'--config.data={folder / "images"}', '--config.report=new'
  )
  assert done.returncode == 1
  assert 'images/broken.png: it is in none of the formats' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'multi_crop': True}, 'visualize needs a single crop; leave multi_crop o'),
    ({'map_count': 0}, 'map_count=0 is not between 1 and 64'),
    (
      {'map_layers': 'avgpool,logits'},
      'have no positions, so no maps. All layers',
    ),
    ({'map_layers': 'res9'}, "ResNet-18 has no layer 'res9'"),
    ({'report': ''}, "report='': name a folder of its own"),
    ({'report': 'list'}, 'report=list is a file; name a folder'),
    ({'report': 'mine'}, 'mine holds something that is not a report of this'),
    (
      {'data': 'list'},
      r'201 images listed in .*: this job shows 1 to 200. Give',
    ),
    ({'cam_class': 'tiger'}, "cam_class='tiger' is none of these weights' 10"),
    ({'cam_class': '1000'}, r'Give an index \(0 to 999\), a WordNet id such'),
    ({'cam_layer': 'logits'}, 'logits has none. Choose for example res5_2_add'),
    ({'map_layers': '*', 'data': '200'}, '200 images with 16 maps of each'),
  ],
)
def test_settings_are_refused(tmp_path, monkeypatch, settings, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'list').write_text('x.png\n' * 201)
  (tmp_path / '200').write_text('x.png\n' * 200)
  (tmp_path / 'one').write_text('x.png\n')
  (tmp_path / 'mine/photos').mkdir(parents=True)
  config = _config(data='one', on_error='record')
  config.update(settings)
  with pytest.raises(errors.UserError, match=message):
    visualize.run(config)


def test_a_report_is_replaced_when_the_new_one_is_whole(tmp_path):
  target = report_folder.checked(str(tmp_path / 'r'))
  for text in ('old', 'new'):
    report_folder.create(target)
    (files.part(target) / report_folder.PAGE).write_text(text)
    assert (target.exists(), text) in ((False, 'old'), (True, 'new'))
    report_folder.publish(target)
  assert (target / report_folder.PAGE).read_text() == 'new'
  assert [path.name for path in tmp_path.iterdir()] == ['r']
  # What appeared in it meanwhile is not removed.
  report_folder.create(target)
  (target / 'notes.txt').touch()
  with pytest.raises(errors.UserError, match=r'not a report .*: notes.txt'):
    report_folder.publish(target)
  assert (target / 'notes.txt').exists()


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope='module')
def browser():
  if not chromium.program():
    pytest.skip('Chromium is not installed: the report page in a browser')
  with chromium.opened() as browser:
    yield browser


@pytest.fixture
def opened(browser, folder):
  """The page with its first maps drawn; the console must stay empty."""
  browser.complaints.clear()
  browser.open(folder / 'report/report.html')
  browser.wait("document.querySelectorAll('#maps canvas').length == 9")
  yield browser
  assert browser.complaints == []


def _text(browser, name):
  return browser.value(f"document.getElementById('{name}').textContent")


def test_a_click_shows_the_layers_own_maps(opened, folder, model):
  assert _text(opened, 'layer') == f'Maps of {LAYERS[-1]}'
  for layer in (LAYERS[1], LAYERS[0], LAYERS[2]):
    opened.click(f'button[data-layer={layer}]')
    assert _text(opened, 'layer') == f'Maps of {layer}'
    values = model.features(folder / 'images' / NAMES[0], layer)[0]
    side = values.shape[1]
    opened.wait(
      "document.querySelector('#maps canvas').getAttribute('aria-label')"
      f".includes('{layer}')"
    )
    rms = np.sqrt((values.astype(np.float64) ** 2).mean(axis=(1, 2)))
    for place, channel in enumerate(np.argsort(-rms)[:9]):
      figure = f"document.querySelectorAll('#maps figure')[{place}]"
      caption = opened.value(f'{figure}.textContent')
      assert caption.startswith(f'#{channel} · ')
      found = opened.value(
        f"[...{figure}.querySelector('canvas').getContext('2d')"
        f'.getImageData(0, 0, {side}, {side}).data]'
      )
      found = np.array(found).reshape(side, side, 4)[..., :3]
      limit = float(_text(opened, 'high'))
      share = np.clip(values[channel] / limit, -1, 1)
      expected = 255 * matplotlib.colormaps['RdBu_r'](0.5 + share / 2)[..., :3]
      assert np.abs(found - expected).max() < 8
    pressed = 'button.node[aria-pressed=true]'
    assert opened.value(
      f"[...document.querySelectorAll('{pressed}')].map(b => b.dataset.layer)"
    ) == [layer]
  assert 'maps_res5_2_addto.png' in _text(opened, 'maps-file')


def test_layers_without_maps_are_no_buttons(opened):
  assert opened.value(
    "[...document.querySelectorAll('button.node')].map(b => b.dataset.layer)"
  ) == list(LAYERS)
  opened.click('#network span.node.none')
  assert _text(opened, 'layer') == f'Maps of {LAYERS[-1]}'
  looks = "getComputedStyle(document.querySelector('#network {}')).{}".format
  for what in ('borderTopStyle', 'backgroundColor', 'cursor'):
    with_maps = opened.value(looks('button.node', what))
    assert with_maps != opened.value(looks('span.none', what))


def test_the_keyboard_reaches_everything(opened):
  opened.value("document.getElementById('filter').focus()")
  opened.press('Tab')
  opened.press('ArrowRight')
  opened.press('ArrowDown')
  opened.press('Enter')
  assert _text(opened, 'key') == NAMES[2]
  assert _text(opened, 'announced') == f'{NAMES[2]} is shown'
  opened.press('End')
  opened.press('Enter')
  assert _text(opened, 'key') == NAMES[4]
  opened.press('Tab')
  assert opened.value('document.activeElement.id') == 'strength'
  opened.press('ArrowLeft')
  assert opened.value("document.getElementById('heat').style.opacity") == '0.99'
  opened.press('Tab')
  focused = 'document.activeElement.dataset.layer'
  assert opened.value(focused) == LAYERS[-1]
  outline = 'getComputedStyle(document.activeElement).outlineStyle'
  assert opened.value(outline) == 'solid'
  opened.press('ArrowLeft')
  assert opened.value(focused) == LAYERS[1]
  opened.press('Enter')
  assert _text(opened, 'layer') == f'Maps of {LAYERS[1]}'
  opened.press('Home')
  opened.press('Enter')
  assert _text(opened, 'layer') == f'Maps of {LAYERS[0]}'
  # The group is one stop.
  opened.press('Tab')
  assert opened.value('document.activeElement.tagName') == 'SUMMARY'
  opened.press('Tab', shift=True)
  assert opened.value(focused) == LAYERS[0]


def test_hostile_names_do_nothing(opened, entries):
  scripts = opened.value('document.scripts.length')
  assert scripts == 3 + len(NAMES)
  for number, name in enumerate(NAMES):
    opened.click(f'#images button:nth-child({number + 1})')
    assert _text(opened, 'key') == name
    if entries[number]['best']:
      label = entries[number]['best'][0]['label']
      assert f'{label} {CLASS.format(label)}' in _text(opened, 'best')
      assert CLASS.format(label) in _text(opened, 'cam-text')
  assert opened.value("document.querySelectorAll('img[src=x], b').length") == 0
  assert opened.value('document.scripts.length') == scripts


def test_foreign_scripts_are_refused_by_the_page(browser, folder):
  browser.open(folder / 'report/report.html')
  browser.complaints.clear()
  browser.value(
    "document.body.insertAdjacentHTML('beforeend', '<img src=x"
    ' onerror="window.wrong = 1"><img src="https://127.0.0.1/x.png">\')'
  )
  browser.value(
    'document.head.append(Object.assign(document.createElement("script"),'
    ' {textContent: "window.wrong = 2"}))'
  )
  browser.wait('performance.now() > 0')
  assert browser.value('window.wrong') is None
  assert 'Content Security Policy' in ' '.join(browser.complaints)


def test_an_image_that_failed_is_reported(opened):
  opened.click('#images button:nth-child(4)')
  assert _text(opened, 'key') == 'broken.png'
  assert 'It could not be read: it is in none of the' in _text(opened, 'reason')
  assert opened.value("document.getElementById('seen').hidden")
  assert opened.value("document.getElementById('maps-shown').hidden")
  opened.click('#images button:nth-child(5)')
  assert opened.value("document.getElementById('reason').hidden")
  assert not opened.value("document.getElementById('seen').hidden")


def test_the_filter_finds_names_and_classes(opened, entries):
  opened.value("document.getElementById('filter').focus()")
  opened.type("C D'S")
  shown = (
    "[...document.querySelectorAll('#images button')]"
    '.filter(b => b.offsetParent).length'
  )
  assert opened.value(shown) == 1
  assert _text(opened, 'count') == '1 of 5'
  opened.value("document.getElementById('filter').select()")
  label = entries[0]['best'][0]['label']
  opened.type(f'$x^2$ {label} ')
  assert opened.value(shown) == sum(
    bool(entry['best']) and entry['best'][0]['label'] == label
    for entry in entries
  )


def test_a_screen_reader_finds_names_for_everything(opened):
  missing = opened.value(
    "[...document.querySelectorAll('img')].filter("
    "i => i.offsetParent && !i.alt && !i.closest('button')).length"
  )
  assert missing == 0
  levels = opened.value(
    "[...document.querySelectorAll('h1,h2,h3,h4')]"
    '.filter(h => h.offsetParent).map(h => Number(h.tagName[1]))'
  )
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert max(np.diff(levels)) == 1
  assert opened.value(
    "[...document.querySelectorAll('input')].every(i => i.labels.length)"
  )
  assert opened.value(
    "[...document.querySelectorAll('[role=toolbar], canvas')]"
    ".every(e => e.getAttribute('aria-label'))"
  )
  assert opened.value('document.documentElement.lang') == 'en'


@pytest.mark.parametrize('width', [1280, 390, 320])
def test_no_width_scrolls_sideways(browser, folder, width):
  browser.open(folder / 'report/report.html', width)
  browser.wait("document.querySelectorAll('#maps canvas').length == 9")
  assert browser.value('document.documentElement.scrollWidth') <= width
  browser.open(folder / 'report/report.html')


def test_dark_pages_are_dark(opened):
  ground = 'getComputedStyle(document.body).backgroundColor'
  light = opened.value(ground)
  opened.prefer('dark')
  dark = opened.value(ground)
  opened.prefer('light')
  assert opened.value(ground) == light
  red, red_dark = (int(re.findall(r'\d+', text)[0]) for text in (light, dark))
  assert red > 200
  assert red_dark < 60
