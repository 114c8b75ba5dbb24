# SPDX-License-Identifier: Apache-2.0
"""Label files of every form, what does not fit, and wrong orders found out."""

import json

import imagenet_forms as forms
import numpy as np
import pytest
import scipy.io
from makers import user_error

from resnet_jax.data import sources, truth
from resnet_jax.data.truth import devkit

IMAGES = forms.images()
LABELS = tuple(frozenset([one.label]) for one in IMAGES)


def items_of(keys, labels=None):
  """Items that fail when they are read: no label may need that."""
  labels = labels or [sources.NO_LABEL] * len(keys)
  return [
    sources.Item(key, f'in/{key}', label, unread)
    for key, label in zip(keys, labels, strict=True)
  ]


def unread():
  raise AssertionError('an image was read')


ITEMS = items_of([one.name for one in IMAGES])


def error_of(text, items=ITEMS, wnids=forms.WNIDS):
  return user_error(truth.load, str(text), items, wnids)


def write(tmp_path, text, name='labels.txt'):
  path = tmp_path / name
  path.write_text(text, 'utf-8')
  return path


# ------------------------------------------------------------- label files

FILES = {
  'val': lambda root: forms.val_txt(root / 'val.txt', IMAGES),
  'shuffled': lambda root: forms.val_txt(root / 'val.txt', IMAGES[::-1]),
  'devkit': lambda root: forms.devkit(root, IMAGES),
  'tensorflow': lambda root: forms.synset_labels(root / 's.txt', IMAGES),
  'real': lambda root: forms.real_json(root / 'real.json', LABELS),
  'numbers': lambda root: write(
    root,
    ''.join(f'{row} {one.label}\n' for row, one in enumerate(IMAGES, 1)),
  ),
}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize(
  'key',
  [
    lambda one: one.name,
    lambda one: f'val/{one.name}',
    lambda one: f'{one.wnid}/{one.name}',
    lambda one: f'{one.stem}.jpg',
    lambda one: f'{one.stem}_{one.wnid}.JPEG',
  ],
)
@pytest.mark.parametrize('turned', [False, True])
def test_every_form_gives_the_same_answers(tmp_path, name, key, turned):
  step = -1 if turned else 1
  items = items_of([key(one) for one in IMAGES[::step]])
  path = FILES[name](tmp_path)
  found = truth.load(str(path), items, forms.WNIDS)
  assert found.answers == LABELS[::step]
  assert found.name == path.stem
  assert found.description.startswith(f'24 images labelled by {path}: ')


@pytest.mark.parametrize('form', ['folder', 'tar', 'parquet'])
@pytest.mark.parametrize('name', FILES)
def test_every_form_of_labels_fits_every_form_of_images(tmp_path, form, name):
  if form == 'parquet':
    pytest.importorskip('pyarrow')
  data = {'folder': forms.folder, 'tar': forms.tar, 'parquet': forms.parquet}
  source = sources.open_source(str(data[form](tmp_path / 'data', IMAGES)))
  path = FILES[name](tmp_path)
  found = truth.load(str(path), source.items, forms.WNIDS)
  assert found.answers == LABELS


def test_lines_go_by_the_sources_order_where_names_have_no_number(tmp_path):
  items = items_of([f'{letter}.png' for letter in 'cab'])
  path = write(tmp_path, '\n'.join(forms.WNIDS[i] for i in (5, 0, 999)))
  found = truth.load(str(path), items, forms.WNIDS)
  assert found.answers == ({5}, {0}, {999})


def test_names_may_hold_blanks_and_quotes_and_paths(tmp_path):
  keys = ['a/x.png', 'b/x.png', 'my dog 5', 'c.png']
  path = write(tmp_path, 'b/x.png 1\n./a/x.png  2\r\n\n"my dog 5"\t3\nc.png 4')
  found = truth.load(str(path), items_of(keys), ())
  assert found.answers == ({2}, {1}, {3}, {4})


def test_real_labels_leave_images_out_and_allow_any_of_several(tmp_path):
  answers = [[one.label, 3] for one in IMAGES]
  answers[4], answers[9], answers[10] = [], [], [1, 2, 999]
  path = forms.real_json(tmp_path / 'real.json', answers)
  found = truth.load(str(path), ITEMS, forms.WNIDS)
  assert found.name == 'real'
  assert found.answers == tuple(map(frozenset, answers))
  assert found.description == (
    f'22 images labelled by {path}: lists of labels (ReaL); 2 images'
    ' without a label left out'
  )


def test_the_devkits_ids_are_not_labels(tmp_path):
  # The first three ids of the real kit, and what they are.
  first = ['n02119789', 'n02100735', 'n02110185']
  rest = [wnid for wnid in forms.WNIDS if wnid not in first]
  order = [forms.WNIDS.index(wnid) for wnid in first + rest]
  forms.meta_mat(tmp_path / 'meta.mat', order)
  found = devkit.label_of_id(tmp_path / 'meta.mat', forms.WNIDS)
  assert found[:3].tolist() == [278, 212, 250]
  assert found.tolist() == order
  path = write(tmp_path, '2\n1\n3\n')
  items = items_of(['a', 'b', 'c'])
  answers = truth.load(str(path), items, forms.WNIDS).answers
  assert answers == ({212}, {278}, {250})


@pytest.mark.parametrize(
  ('text', 'wnids'),
  [('0\n7\n999\n', forms.WNIDS), ('1\n7\n9', ('a',) * 10), ('3\n2\n1\n', ())],
)
def test_numbers_that_cannot_be_ids_are_labels(tmp_path, text, wnids):
  found = truth.load(str(write(tmp_path, text)), items_of('abc'), wnids)
  assert found.answers == tuple(frozenset([int(n)]) for n in text.split())
  assert found.description.endswith('one label per line')


@pytest.mark.parametrize(
  'wnids', [(), tuple(f'class {n}' for n in range(1000))]
)
def test_ids_are_no_labels_of_a_network_without_wordnet_ids(tmp_path, wnids):
  path = forms.devkit(tmp_path, IMAGES)
  message = error_of(path, wnids=wnids)
  assert 'has meta.mat beside it, so its numbers are ILSVRC ids' in message


# ----------------------------------------------------- own labels and folders


def test_the_sources_own_labels():
  items = items_of('abc', [5, 0, 999])
  found = truth.load('', items, forms.WNIDS)
  assert found == truth.LabelSet(
    'labels', ({5}, {0}, {999}), '3 images labelled by their source'
  )


def test_images_without_a_label_of_their_own_are_counted():
  assert error_of('', items_of('abcde', [1, -1, -1, -1, -1])).startswith(
    '4 of 5 images have no label in the data: in/b, in/c, in/d and 1 more.'
  )


FLOWERS = ('daisy', 'rose', 'tulip')


@pytest.mark.parametrize(
  ('folders', 'wnids', 'labels', 'how'),
  [
    (['n01443537', 'n01440764'], forms.WNIDS, [1, 0], 'named as the classes'),
    (['tulip', 'daisy'], FLOWERS, [2, 0], 'named as the classes'),
    (['999', '10', '2'], forms.WNIDS, [999, 10, 2], 'named by the numbers of'),
    (['10', '2', '1'], (), [10, 2, 1], 'named by the numbers of'),
    (['truck', 'airplane', 'cat'], (), [2, 0, 1], 'in alphabetical order'),
    (['x/c', 'x/a', 'x/b'], ('0', '1', '2'), [2, 0, 1], 'in alphabetical'),
  ],
)
def test_folders(folders, wnids, labels, how):
  items = items_of([f'{name}/{n}.png' for name in folders for n in 'ab'])
  found = truth.load('folders', items, wnids)
  assert [min(answer) for answer in found.answers[::2]] == labels
  assert found.answers[::2] == found.answers[1::2]
  assert found.name == 'folders'
  assert f'by their {len(folders)} folders, {how}' in found.description


def test_imagenet_v2_on_disk(tmp_path):
  # Sorted as text, 10 would come before 2.
  data = forms.class_folders(tmp_path, IMAGES, lambda one: str(one.label))
  source = sources.open_source(str(data))
  found = truth.load('folders', source.items, forms.WNIDS)
  label_of = {f'{one.label}/{one.name}': one.label for one in IMAGES}
  expected = [{label_of[item.key]} for item in source.items]
  assert list(found.answers) == expected


@pytest.mark.parametrize(
  ('keys', 'wnids', 'message'),
  [
    (['a.png', 'x/b.png'], (), '1 of 2 images in no folder that could'),
    (['1/a', '01/b'], (), 'of the folders 01, 1 two are the same number'),
    (
      ['1000/a'],
      forms.WNIDS,
      'label 1000 of in/1000/a is out of range (0 to 9',
    ),
    (
      ['n01440764/a', 'n99999999/b', 'tench/c'],
      forms.WNIDS,
      '1 of 3 folders is named by the WordNet ids (such as n02123045) of the'
      " 1000 classes; 'n99999999', 'tench' are not. Rename",
    ),
    (
      ['daisy/a', 'roze/b', 'tulip/c'],
      FLOWERS,
      "2 of 3 folders are named by the names of the 3 classes; 'roze' is not."
      " Did you mean 'rose'? Rename",
    ),
    (['a/a', 'b/b'], ('class 0',), 'there are 2 folders and 1 classes'),
  ],
)
def test_folders_that_do_not_fit(keys, wnids, message):
  assert message in error_of('folders', items_of(keys), wnids)


# --------------------------------------------------------------- mismatches


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('there', [IMAGES[:-1], [*IMAGES, IMAGES[0]]])
def test_another_number_of_images_is_an_error(tmp_path, name, there):
  keys = [one.name for one in IMAGES[: len(there)]]
  keys += ['ILSVRC2012_val_00000025.JPEG'] * (len(there) - len(keys))
  path = FILES[name](tmp_path)
  assert error_of(path, items_of(keys)).startswith(
    f'the label file {path} has labels for 24 images, and there are'
    f' {len(there)}.'
  )


def test_the_images_on_one_side_only_are_named(tmp_path):
  path = FILES['val'](tmp_path)
  message = error_of(path, items_of([*(o.name for o in IMAGES[5:]), 'a.jpg']))
  assert ' Without a label: a.jpg.' in message
  assert (
    ' Without an image: ILSVRC2012_val_00000001.JPEG,'
    ' ILSVRC2012_val_00000002.JPEG, ILSVRC2012_val_00000003.JPEG and 2 more.'
  ) in message


@pytest.mark.parametrize('keys', [['a', 'b'], ['a'], ['x.jpg', 'y.jpg']])
def test_unknown_names_are_an_error(tmp_path, keys):
  path = write(tmp_path, ''.join(f'q{key} 1\n' for key in keys), 'val.txt')
  message = error_of(path, items_of(keys))
  assert message.startswith(
    f'the label file {path} has no label for {len(keys)} of {len(keys)}'
    f' image{"s"[: len(keys) - 1]}: {", ".join(keys)}. It has labels for'
    f' q{keys[0]}'
  )


@pytest.mark.parametrize(
  'keys',
  [
    ['ILSVRC2012_val_00000001.JPEG', 'ILSVRC2012_val_00000003.JPEG'],
    ['ILSVRC2012_val_00000001.JPEG', 'a.JPEG'],
    ['ILSVRC2012_val_00000000.JPEG', 'ILSVRC2012_val_00000001.JPEG'],
    ['a/ILSVRC2012_val_00000001.JPEG', 'b/ILSVRC2012_val_00000001.JPEG'],
  ],
)
def test_numbers_that_are_not_those_of_the_lines_are_an_error(tmp_path, keys):
  path = forms.synset_labels(tmp_path / 's.txt', IMAGES[:2])
  assert f'the label file {path} lists labels by image number, 1 to 2' in (
    error_of(path, items_of(keys))
  )


@pytest.mark.parametrize('label', [1000, 999_999_999])
@pytest.mark.parametrize('form', ['pair', 'json', 'own'])
def test_a_label_out_of_range_is_an_error(tmp_path, label, form):
  items = items_of(['a'], [label])
  text = {'pair': f'a {label}', 'json': f'[[3, {label}]]', 'own': ''}[form]
  path = write(tmp_path, text) if text else ''
  message = error_of(path, items)
  assert f'the label {label} of in/a is out of range (0 to 999)' in message


def test_a_negative_label_is_out_of_range(tmp_path):
  path = write(tmp_path, '[[-1]]')
  assert 'the label -1 of in/a is out of range (0)' in error_of(
    path, items_of(['a']), ()
  )


def test_names_that_occur_twice_are_an_error(tmp_path):
  path = write(tmp_path, 'a 1\na 1\n')
  assert error_of(path, items_of('ab')) == (
    f'the label file {path} has a more than once. Leave the others out.'
  )
  path = write(tmp_path, 'a 1\nb 1\n')
  assert error_of(path, items_of('aa')) == (
    'the source has the image a more than once. Leave the others out.'
  )


def test_a_label_file_without_a_single_label_is_an_error(tmp_path):
  path = write(tmp_path, '[[], []]')
  assert error_of(path, items_of('ab')).startswith('no image has a label: ')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'begins with nothing'),
    ('a.jpg\n', "begins with 'a.jpg', which is not a label"),
    ('-5\n', "begins with '-5'"),
    ('1\n2\nn01440764\n', "has 'n01440764' in line 3, which is not a number"),
    ('n01440764\n\n5\n', "has '5' in line 3, which is not a WordNet id"),
    ('a 1\nb\n', "has 'b' in line 2, which is not NAME LABEL"),
    ('n99999999\n', 'gives image 1 the WordNet id n99999999'),
    ('1001\n', 'gives image 1 the ILSVRC id 1001, and they end at 1000'),
    ('[[1], 2]', 'is JSON, but not a list of lists of whole numbers'),
    ('[[1.0]]', 'not a list of lists of whole numbers'),
    ('[[true]]', 'not a list of lists of whole numbers'),
    ('{"a": [1]}', 'not a list of lists of whole numbers'),
    ('[[1]', 'begins as JSON and cannot be read'),
    ('[' * 100_000, 'begins as JSON and cannot be read'),
    ('[[' + '9' * 9999 + ']]', 'begins as JSON and cannot be read'),
  ],
)
def test_what_is_no_label_file(tmp_path, content, message):
  path = write(tmp_path, content)
  found = error_of(path, items_of(['a']))
  assert found.startswith(f'the label file {path}')
  assert message in found


def test_files_that_cannot_be_read(tmp_path):
  path = tmp_path / 'x'
  assert error_of(path).startswith(f"labels='{path}': there is no such file.")
  assert "'folders' takes" in error_of(tmp_path)
  path.write_bytes('größe 5'.encode('latin-1'))
  assert 'is not text in UTF-8' in error_of(path)
  with open(path, 'wb') as file:
    file.truncate((1 << 26) + 1)
  assert 'has more than 67108864 bytes' in error_of(path)


# ------------------------------------------------------------------ meta.mat


def test_ground_truth_without_its_meta_mat_is_an_error(tmp_path):
  path = forms.devkit(tmp_path, IMAGES)
  (tmp_path / 'meta.mat').unlink()
  message = error_of(path)
  assert message.startswith(f'{tmp_path / "meta.mat"} does not exist.')
  assert 'ILSVRC2012_devkit_t12.tar.gz' in message


def _bomb(path):
  # Zeros that are a thousand times smaller when they are compressed.
  scipy.io.savemat(
    path, {'x': np.zeros(1 << 27, np.uint8)}, do_compression=True
  )
  assert path.stat().st_size < 1 << 20


def _large(path):
  with open(path, 'wb') as file:
    file.truncate((1 << 24) + 1)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda path: path.write_bytes(b''), 'not a Level 5 MAT-file'),
    (lambda path: path.write_bytes(b'x' * 999), 'not a Level 5 MAT-file'),
    (_large, 'it has more than 16777216 bytes'),
    (_bomb, 'it breaks off, or unpacks to more than 16777216 bytes'),
    (lambda path: scipy.io.savemat(path, {'x': 1}), 'it has no synsets with'),
    (lambda path: scipy.io.savemat(path, {'synsets': 1}), 'it has no synsets'),
    (
      lambda path: forms.meta_mat(path, np.arange(999)),
      'has 999 classes without children',
    ),
    (
      lambda path: forms.meta_mat(path, [*range(999), 5]),
      'has 1000 classes without children, whose ids and WordNet ids are not',
    ),
  ],
)
def test_a_meta_mat_that_is_none(tmp_path, make, message):
  path = forms.devkit(tmp_path, IMAGES)
  make(tmp_path / 'meta.mat')
  found = error_of(path)
  assert str(tmp_path / 'meta.mat') in found
  assert message in found


def test_a_damaged_meta_mat_is_an_error_or_right(tmp_path):
  path = forms.devkit(tmp_path, IMAGES)
  meta = tmp_path / 'meta.mat'
  whole = meta.read_bytes()
  random = np.random.default_rng(0)
  for _ in range(30):
    damaged = bytearray(whole)
    for place in random.integers(128, len(whole), 3).tolist():
      damaged[place] ^= int(random.integers(1, 256))
    meta.write_bytes(damaged)
    assert str(meta) in error_of(path)
  meta.write_bytes(whole[: len(whole) // 2])
  assert 'cannot be read as the meta.mat' in error_of(path)


# ---------------------------------------------------------------- diagnosis

COUNT = 600
# Labels in the order of text.  Where a number stays in its place, an answer
# stays right; without those classes every wrong order is under 1%.
AS_TEXT = np.array(sorted(range(1000), key=str))
MOVED = np.flatnonzero(np.arange(1000) != AS_TEXT)
TRUE = np.random.default_rng(5).choice(MOVED, COUNT)
ORDER = forms.id_order()
# Right for seven images in ten.
PREDICTED = np.where(
  np.random.default_rng(6).random(COUNT) < 0.7,
  TRUE,
  np.random.default_rng(7).integers(0, 1000, COUNT),
)
KEYS = [f'{row:05d}.jpg' for row in range(COUNT)]


def diagnose(labels, keys=KEYS, predicted=PREDICTED, beside=()):
  found = truth.LabelSet('x', tuple(frozenset([int(n)]) for n in labels), '')
  return truth.diagnose(predicted, keys, found, forms.WNIDS, beside)


def test_right_labels_need_no_diagnosis():
  assert diagnose(TRUE) == ''
  few = np.where(np.arange(COUNT) < 20, TRUE, (TRUE + 400) % 1000)
  assert diagnose(few, predicted=TRUE) == ''


IDS = np.argsort(ORDER) + 1
RANK = np.argsort(AS_TEXT)


@pytest.mark.parametrize(
  ('labels', 'said'),
  [
    (IDS[TRUE], "the development kit's ILSVRC ids were taken for labels; if"),
    (IDS[TRUE] - 1, 'ILSVRC ids were taken for labels, less one; if'),
    (ORDER[TRUE], 'labels were mapped as though they were ILSVRC ids less one'),
    (
      ORDER[TRUE - 1],
      'labels were mapped as though they were ILSVRC ids; if',
    ),
    (TRUE + 1, 'they are one too large, as though counted from 1'),
    (TRUE - 1, 'they are one too small'),
    (RANK[TRUE], 'numbered class folders were sorted as text'),
    (AS_TEXT[TRUE], 'they are positions among numbered folders sorted as'),
  ],
)
def test_wrong_labels_are_found_out(tmp_path, labels, said):
  forms.meta_mat(tmp_path / 'meta.mat', ORDER)
  for beside in (tmp_path / 'ground_truth.txt', tmp_path):
    message = diagnose(labels, beside=['', str(beside)])
    assert message.startswith('the labels look wrong: ')
    assert said in message
    # As no table gives two labels the same, this is the share that is right.
    assert f'accuracy would be {np.mean(PREDICTED == TRUE):.2%}.' in message


def test_images_that_were_not_sorted_are_found_out():
  keys = [f'{n}.jpg' for n in range(COUNT)]
  as_text = sorted(range(COUNT), key=lambda n: keys[n])
  # The images as a folder gives them, the labels by number.
  message = diagnose(
    TRUE,
    keys=[keys[n] for n in as_text],
    predicted=PREDICTED[as_text],
  )
  assert 'the labels are in the order of the numbers in their names' in message
  # The images in another order, the labels by sorted names.
  mixed = np.random.default_rng(8).permutation(COUNT)
  message = diagnose(
    TRUE, keys=[KEYS[n] for n in mixed], predicted=PREDICTED[mixed]
  )
  assert 'the labels are in the order of their paths, and the images' in message
  # The labels in that other order, given to the images by sorted names.
  labels = np.empty_like(TRUE)
  labels[np.argsort(mixed)] = TRUE[mixed]
  message = diagnose(
    labels, keys=[KEYS[n] for n in mixed], predicted=PREDICTED[mixed]
  )
  assert 'the images are in the order of their paths, and the labels' in message


def test_ids_are_found_out_without_a_meta_mat(tmp_path):
  # The ground truth's first lines, and what val.txt says of the same images.
  known = {490: 65, 361: 970, 171: 230, 822: 809, 297: 516}
  order = devkit.published_label_of_id(forms.WNIDS)
  assert {number: order[number - 1] for number in known} == known
  assert sorted(order) == list(range(1000))
  labels = np.argsort(order)[TRUE] + 1
  (tmp_path / 'meta.mat').write_bytes(b'none')
  for beside in ('', str(tmp_path / 'truth.txt')):
    message = diagnose(labels, beside=[beside])
    assert "the development kit's ILSVRC ids were taken for labels;" in message
  assert devkit.published_label_of_id(forms.WNIDS[:-1]) is None


def test_what_no_known_order_explains_is_said():
  mixed = np.random.default_rng(9).permutation(1000)
  message = diagnose(mixed[TRUE])
  assert 'none of the known wrong orders explains it (best: ' in message
  assert '--job=predict' in message


def test_failed_images_and_several_answers(tmp_path):
  predicted = np.where(np.arange(COUNT) % 5 == 0, -1, PREDICTED)
  answers = tuple(
    frozenset() if row % 7 == 0 else frozenset([int(n) + 1, 2000])
    for row, n in enumerate(TRUE)
  )
  labels = truth.LabelSet('real', answers, '')
  counted = [r for r in range(COUNT) if r % 5 and r % 7]
  share = np.mean([PREDICTED[r] == TRUE[r] for r in counted])
  message = truth.diagnose(predicted, KEYS, labels, forms.WNIDS)
  assert message == (
    'the labels look wrong: they are one too large, as though counted from 1;'
    f' if so, the top-1 accuracy would be {share:.2%}.'
  )
  nothing = np.full(COUNT, -1)
  assert truth.diagnose(nothing, KEYS, labels, forms.WNIDS) == ''


def test_few_classes_and_few_images_are_not_over_interpreted():
  random = np.random.default_rng(0)
  for _ in range(30):
    true = random.integers(0, 10, 200)
    predicted = (true + 1 + random.integers(0, 9, 200)) % 10
    answers = tuple(frozenset([int(n)]) for n in true)
    labels = truth.LabelSet('x', answers, '')
    names = [f'{n}.png' for n in range(200)]
    message = truth.diagnose(predicted, names, labels, ('c',) * 10)
    assert 'none of the known wrong orders' in message
    assert 'ILSVRC ids' not in message
  assert 'none of the known' in diagnose(
    TRUE[:4] + 1, keys=KEYS[:4], predicted=TRUE[:4]
  )


def test_json_of_the_generator_is_what_real_json_is(tmp_path):
  path = forms.real_json(tmp_path / 'real.json', LABELS)
  assert json.loads(path.read_text()) == [[one.label] for one in IMAGES]
