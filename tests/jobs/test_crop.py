# SPDX-License-Identifier: Apache-2.0
"""The job `crop`, and its crops as data of every other job."""

import json
import shutil

import numpy as np
import pytest
import zarr
from conftest import make_image_folder
from makers import Started, config_of, contents, run_program, user_error
from PIL import Image

import resnet_jax
from resnet_jax import jobs
from resnet_jax.data import crops, preprocess, sources

pytestmark = pytest.mark.filterwarnings('ignore:UNTRAINED')

SMALL = '18,weights=random,resize_size=40,crop_size=32,batch_size=3'
KEYS = ['a.png', 'b.jpg', 'c d.png', 'e.png', 'f.png', 'x/a.png', 'x/g.png']


@pytest.fixture
def listed(image_folder):
  """A list of the images, with labels, one of them broken."""
  whole = (image_folder / 'f.png').read_bytes()
  (image_folder / 'f.png').write_bytes(whole[: len(whole) // 2])
  path = image_folder / 'all.list'
  lines = (f'"{key}" {n}' for n, key in enumerate(KEYS))
  path.write_text('\n'.join(lines))
  return path


def run(job, status, **settings):
  assert jobs.run(job, config_of(SMALL, **settings)) == status


def made(data, folder, status=0, **settings):
  """The folder of the crops of images."""
  path = folder / 'crops.zarr'
  run('crop', status, data=str(data), crops=str(path), **settings)
  return path


def extracted(data, out, status=0, **settings):
  """The files of the features of images; of the record only what determines."""
  run('extract', status, data=str(data), output_dir=str(out), **settings)
  files = contents(out)
  group = json.loads(files.pop('zarr.json'))
  return files, group['attributes']['settings']


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'multi_crop': True},
    {'decode': 'scaled', 'interpolation': 'bilinear'},
    {'resize': 'squash', 'channels': 'RGB', 'mean': '1,2,3', 'std': '3,2,1'},
  ],
  ids=str,
)
def test_features_are_those_of_the_images_to_the_bit(
  tmp_path, listed, settings
):
  record = {'on_error': 'record'}
  path = made(listed, tmp_path, 3, **settings, **record)
  found, expected = (
    extracted(data, tmp_path / name, 3, **settings, **record)
    for name, data in (('from_crops', path), ('from_images', listed))
  )
  assert found == expected
  features = resnet_jax.load_features(tmp_path / 'from_crops')
  assert list(features.labels) == list(range(7))
  assert list(features.status) == [1, 1, 1, 1, 2, 1, 1]
  assert 'truncated' in features.reasons[4]


@pytest.mark.parametrize('multi_crop', [False, True])
def test_any_reader_of_zarr_has_the_pixels(tmp_path, image_folder, multi_crop):
  path = made(image_folder, tmp_path, multi_crop=multi_crop)
  theirs = zarr.open_group(path, mode='r')
  own = preprocess.Preprocess(
    resize_size=40, crop_size=32, multi_crop=multi_crop
  )
  expected = [
    crops.crops_of((image_folder / key).read_bytes(), own) for key in KEYS
  ]
  expected = np.stack(expected) if multi_crop else np.concatenate(expected)
  np.testing.assert_array_equal(theirs['crops'][:], expected)
  names = theirs['crops'].metadata.dimension_names
  assert names == ('row', *(['cut'] if multi_crop else []), 'y', 'x', 'rgb')
  assert list(theirs['keys'][:]) == KEYS
  assert set(theirs['status'][:]) == {1}
  assert list(theirs['sizes'][:]) == [
    (image_folder / key).stat().st_size for key in KEYS
  ]
  assert theirs.attrs['settings']['preprocessing'] == {
    'resize': 'short_side',
    'resize_size': 40,
    'crop_size': 32,
    'multi_crop': multi_crop,
    'interpolation': 'lanczos',
    'rounding': 'nearest',
    'decode': 'exact',
  }


@pytest.mark.parametrize('marker', ['zarr.json', 'status/c/0'])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, marker):
  make_image_folder(tmp_path)
  arguments = (
    '--job=crop',
    f'--config=configs/resnet.py:{SMALL},data=images,threads=1',
  )
  process = Started(tmp_path, *arguments)
  process.wait_until((tmp_path / 'crops.zarr.part' / marker).exists)
  process.kill()
  resumed = run_program(tmp_path, *arguments, check=0)
  assert 'resuming after' in resumed.stderr or 'finished' in resumed.stderr
  found = contents(tmp_path / 'crops.zarr')
  shutil.rmtree(tmp_path / 'crops.zarr')
  run_program(tmp_path, *arguments, check=0)
  assert found == contents(tmp_path / 'crops.zarr')
  again = run_program(tmp_path, *arguments, check=0)
  assert 'is finished already; nothing to do' in again.stderr


def test_a_run_that_an_image_stopped_resumes(tmp_path, listed, monkeypatch):
  monkeypatch.chdir(tmp_path)
  arguments = {'data': str(listed), 'crops': 'crops.zarr'}
  message = user_error(run, 'crop', 0, **arguments)
  assert message.startswith(f'cannot read the image {listed.parent}/f.png: ')
  assert sorted(contents(tmp_path / 'crops.zarr.part')) != []
  for path in ('crops.zarr', 'crops.zarr.part'):
    message = user_error(run, 'predict', 0, data=path)
    assert message.startswith(f'{path} is not finished: ')
    assert message.endswith('Start the same crop job again; it resumes.')
  message = user_error(run, 'crop', 0, **arguments, interpolation='bilinear')
  assert "interpolation is 'lanczos' there, 'bilinear' now" in message
  assert 'Choose another crops, remove it, or use its settings.' in message
  run('crop', 3, **arguments, on_error='record')
  run('crop', 3, **arguments, on_error='record')


def test_an_image_that_could_not_be_read_stays_such(tmp_path, listed, capsys):
  path = made(listed, tmp_path, 3, on_error='record')
  assert (
    '1 image could not be read: jobs on these crops need on_error=record, too'
    in capsys.readouterr().err
  )
  for job in ('extract', 'predict'):
    message = user_error(
      run, job, 0, data=str(path), output_dir=str(tmp_path / 'out')
    )
    assert message.startswith(f'cannot read the image {path}:f.png: image file')
    assert 'Replace it, make the crops again or leave it out' in message
  run('predict', 3, data=str(path), on_error='record')
  assert f'FAILED: {path}:f.png: image file' in capsys.readouterr().err


# As its value in the crops, and in the run that is to take them.
@pytest.mark.parametrize(
  ('there', 'here', 'stated'),
  [
    (
      {},
      {'interpolation': 'bilinear', 'rounding': 'torchvision'},
      "interpolation is 'lanczos' there, 'bilinear' here; rounding is 'nearest'"
      " there, 'torchvision' here. To take them as they are, set"
      " interpolation='lanczos', rounding='nearest'; for this",
    ),
    (
      {},
      {'resize_size': 48, 'crop_size': 40},
      'resize_size is 40 there, 48 here; crop_size is 32 there, 40 here.',
    ),
    ({}, {'resize': 'none'}, "resize is 'short_side' there, 'none' here."),
    ({}, {'multi_crop': True}, 'multi_crop is False there, True here.'),
    ({'decode': 'scaled'}, {}, "decode is 'scaled' there, 'exact' here."),
  ],
)
def test_another_preprocessing_is_refused_by_name(
  tmp_path, image_folder, there, here, stated
):
  path = made(image_folder, tmp_path, **there)
  for job in ('extract', 'predict', 'crop'):
    message = user_error(
      run,
      job,
      0,
      data=str(path),
      crops=str(tmp_path / 'others'),
      output_dir=str(tmp_path / 'out'),
      **here,
    )
    assert message.startswith(
      f'{path} holds crops of another preprocessing: {stated}'
    )
    assert 'with --job=crop. mean, std and channels may be any.' in message
  assert not (tmp_path / 'out.part').exists()
  assert not (tmp_path / 'others.part').exists()


def test_what_has_no_effect_on_pixels_may_differ(tmp_path, image_folder):
  path = made(image_folder, tmp_path, resize='squash')
  run('predict', 0, data=str(path), resize='squash', rounding='torchvision')
  message = user_error(run, 'predict', 0, data=str(path), decode='scaled')
  assert "resize is 'squash' there, 'short_side' here" in message
  assert 'resize_size' not in message


def test_a_second_network_takes_the_same_crops(tmp_path, image_folder):
  path = made(image_folder, tmp_path)
  others = {'layer_num': 34, 'seed': 1, 'channels': 'RGB', 'mean': '1,2,3'}
  found, expected = (
    extracted(data, tmp_path / name, **others)
    for name, data in (('from_crops', path), ('from_images', image_folder))
  )
  assert found == expected


def test_a_run_over_images_goes_on_over_their_crops(
  tmp_path, image_folder, capsys
):
  path = made(image_folder, tmp_path)
  out = tmp_path / 'out'
  first = extracted(image_folder, out)
  capsys.readouterr()
  assert extracted(path, out) == first
  assert 'is finished already; nothing to do' in capsys.readouterr().err


def test_the_items_are_those_of_the_images(tmp_path):
  """Folders of WordNet ids, one of which has none; and a list."""
  picture = Image.effect_noise((50, 40), 90).convert('RGB')
  for name in ('n01440764/a.png', 'n01443537/b.png', 'other/c.png'):
    (tmp_path / name).parent.mkdir()
    picture.save(tmp_path / name)
  (tmp_path / 'some.list').write_text('n01440764/a.png 3\nother/c.png\n')
  fields = ('key', 'label', 'size', 'named', 'is_stray')
  for number, data in enumerate(
    (tmp_path, tmp_path / 'n01440764', tmp_path / 'some.list')
  ):
    folder = tmp_path.parent / f'{tmp_path.name}_{number}'
    folder.mkdir()
    expected, found = (
      [
        [getattr(item, field) for field in fields]
        for item in sources.open_source(str(path)).items
      ]
      for path in (data, made(data, folder))
    )
    assert found == expected


def test_labels_of_crops_are_evaluated_as_those_of_the_images(
  tmp_path, image_folder, capsys
):
  names = ['n01440764', 'n01443537']
  for number, key in enumerate(KEYS):
    target = tmp_path / 'labelled' / names[number % 2] / f'{number}.png'
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(image_folder / key).save(target)
  path = made(tmp_path / 'labelled', tmp_path)
  results = {}
  for name, data in (('images', tmp_path / 'labelled'), ('crops', path)):
    folder = tmp_path / name
    run('evaluate', 0, data=str(data), results=str(folder))
    results[name] = json.loads((folder / 'results.json').read_text())
  for key in ('labels', 'images_sha256', 'weights_sha256', 'failed'):
    assert results['crops'][key] == results['images'][key]
  assert '7 images in the crops' in capsys.readouterr().err


def test_crops_are_shown_as_their_images(tmp_path, image_folder):
  images = image_folder / 'x'
  path = made(images, tmp_path)
  plots = []
  for number, data in enumerate((path, images)):
    report = tmp_path / f'report_{number}'
    run(
      'visualize',
      0,
      data=str(data),
      report=str(report),
      map_layers='pool1',
      map_count=1,
    )
    found = contents(report)
    assert 'report.html' in found
    plots.append({k: v for k, v in found.items() if k.endswith('.png')})
  assert plots[0] == plots[1]
  assert '001_a/maps_pool1.png' in plots[0]


def test_crops_of_crops_are_the_same(tmp_path, image_folder):
  path = made(image_folder, tmp_path)
  run('crop', 0, data=str(path), crops=str(tmp_path / 'copy'))
  copy, first = contents(tmp_path / 'copy'), contents(path)
  assert copy.keys() == first.keys()
  # It states where the images were.
  assert [name for name in copy if copy[name] != first[name]] == ['zarr.json']


def test_a_notebook_takes_crops(tmp_path, image_folder):
  path = made(image_folder, tmp_path)
  model = resnet_jax.load(
    'resnet18', weights='random', resize_size=40, crop_size=32
  )
  found, expected = (
    list(model.stream(data, 'avgpool')) for data in (path, image_folder)
  )
  assert [batch.keys for batch, _ in found] == [KEYS]
  np.testing.assert_array_equal(found[0][0].images, expected[0][0].images)
  np.testing.assert_array_equal(
    found[0][1]['avgpool'], expected[0][1]['avgpool']
  )
  # In another order, twice, and with images among them.
  items = sources.open_source(str(path)).items
  chosen = [items[5], items[6], items[0], image_folder / 'e.png', items[0]]
  paths = [image_folder / KEYS[n] for n in (5, 6, 0, 3, 0)]
  np.testing.assert_array_equal(model.crops(chosen), model.crops(paths))
  message = user_error(model.features, path, 'avgpool')
  assert 'model.stream(FOLDER, layers) takes one' in message
  other = resnet_jax.load('resnet18', weights='random', crop_size=32)
  message = user_error(other.features, chosen, 'avgpool')
  assert 'resize_size is 40 there, 256 here' in message


def test_weights_that_a_config_names_need_not_be_read(
  tmp_path, image_folder, monkeypatch
):
  """Of a published checkpoint only the preprocessing is needed."""
  monkeypatch.setenv('RESNET_JAX_CACHE', str(tmp_path / 'cache'))
  path = made(image_folder, tmp_path, weights='torchvision.v1', layer_num=50)
  stated = zarr.open_group(path, mode='r').attrs['settings']['preprocessing']
  assert stated['interpolation'] == 'bilinear'
  assert stated['rounding'] == 'torchvision'
  assert not (tmp_path / 'cache').exists()


def test_places_that_cannot_be_written_to(tmp_path, image_folder, monkeypatch):
  settings = {'data': str(image_folder)}
  (tmp_path / 'file').write_text('')
  message = user_error(run, 'crop', 0, **settings, crops=f'{tmp_path}/file/x')
  assert message.startswith(f'cannot write crops to {tmp_path}/file/x.part: ')
  message = user_error(run, 'crop', 0, **settings, crops=str(image_folder))
  assert 'Choose another crops.' in message
  message = user_error(run, 'crop', 0, **settings, crops='')
  assert "crops='': name a folder of its own" in message
  usage = shutil.disk_usage(image_folder)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=99))
  message = user_error(run, 'crop', 0, **settings, crops=str(tmp_path / 'new'))
  assert '99 are free there. Make room, choose another crops, ' in message
