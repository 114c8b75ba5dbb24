# SPDX-License-Identifier: Apache-2.0
"""PyTorch checkpoints made by hand: their structure, damage, and attacks."""

import io
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from makers import refusal, zip_of
from torch_files import (
  SYSTEM,
  built,
  call,
  ordered,
  pickled,
  row_file,
  storage,
  tensor,
  value,
  zip_file,
)

from resnet_jax.codecs import pickles
from resnet_jax.models import resnet
from resnet_jax.models.variant import Variant
from resnet_jax.system import errors
from resnet_jax.weights import assemble, torch, torch_names, torch_tensors

OPTIONS = assemble.Options()
MODEL = resnet.ResNet(18, 1, variant=Variant(stride_in='3x3', stem_pool='pad1'))


def read(path):
  assert torch.recognise(path, path.read_bytes()[:512])
  return torch.load(path, OPTIONS)


@pytest.fixture
def load(tmp_path):
  def run(data):
    path = tmp_path / 'model.pth'
    path.write_bytes(data)
    return read(path)

  return run


@pytest.fixture(scope='module')
def network():
  """Every tensor of ResNet-18 with one class, as a file has it."""
  random = np.random.default_rng(0)
  shapes, arrays = resnet.parameter_shapes(MODEL), {}
  for name, ours in torch_names.torchvision(18).items():
    shape = assemble.TORCH_LAYOUT.stored(shapes[ours])
    arrays[name] = random.uniform(0.1, 1, shape).astype('<f4')
  return arrays


def state_of(network):
  keys = {name: str(i) for i, name in enumerate(network)}
  state = {n: tensor(keys[n], a.shape) for n, a in network.items()}
  return state, {keys[n]: a.tobytes() for n, a in network.items()}


def assert_holds(loaded, network):
  for name, ours in torch_names.torchvision(18).items():
    axes = assemble.TORCH_LAYOUT.axes(network[name].ndim)
    np.testing.assert_array_equal(
      loaded.parameters[ours], network[name].transpose(axes)
    )


# ------------------------------------------------------------------ structure


def test_both_forms_without_pytorch(load, network):
  state, raw = state_of(network)
  for wide in (False, True):
    loaded = load(zip_file(ordered(state), raw, wide=wide))
    assert loaded.module == MODEL
    assert_holds(loaded, network)
  counted = {key: (len(data) // 4, data) for key, data in sorted(raw.items())}
  assert_holds(load(row_file(ordered(state), counted)), network)


def test_what_python_2_wrote(load, network):
  state, raw = state_of(network)
  pairs = [[name, made] for name, made in state.items()]
  assert_holds(
    load(zip_file(call('collections.OrderedDict', pairs), raw)), network
  )


def test_parts_that_are_not_needed_may_be_absent(load, network):
  state, raw = state_of(network)
  data = [(f'm/data/{key}', values) for key, values in raw.items()]
  # No byte order, as before 2.1; no checksums, as PyTorch can be told; and a
  # counter, which old files do not have.
  state['bn1.num_batches_tracked'] = tensor('n', (), kind='Long')
  members = [('m/data.pkl', pickled(state)), *data, ('m/data/n', bytes(8))]
  unsummed = {name: {'crc': 0} for name, _ in members}
  loaded = load(zip_of(members, unsummed))
  assert_holds(loaded, network)
  assert len(loaded.parameters) == 102


def test_a_pickle_that_is_not_first_is_found(load, network):
  state, raw = state_of(network)
  data = [(f'm/data/{key}', values) for key, values in raw.items()]
  assert_holds(load(zip_of([*data, ('m/data.pkl', pickled(state))])), network)


@pytest.fixture
def little_memory():
  """Checks that a test claims less than 24 megabytes at once."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < 24 << 20
  finally:
    tracemalloc.stop()


# ------------------------------------------------------ refused and not read


EXECUTED = 'executed'
ADVICE = "torch.save(model.state_dict(), 'clean.pth')."


@pytest.mark.parametrize(
  ('contents', 'what'),
  [
    (call('os.system', f'echo > {EXECUTED}'), 'os.system'),
    (call('__builtin__.eval', '1'), 'builtins.eval'),
    (call('argparse.Namespace'), 'argparse.Namespace'),
    (b'cmy.models\nNet\n)\x81', 'my.models.Net'),
    (call('torch.load', 'x'), 'torch.load'),
    (call('torch.storage._load_from_bytes', 'x'), 'torch.storage._load_from_'),
    (call('torch._utils._rebuild_tensor_v3'), 'torch._utils._rebuild_tensor'),
    (call('torch.UntypedStorage', 9), 'torch.UntypedStorage'),
    (call('numpy.core.multiarray._reconstruct'), 'numpy.core.multiarray._re'),
    (b"(S'x'\nios\nsystem\n", 'os.system'),
    (b'Pstorage\n', 'the opcode PERSID'),
    (b'\x82\1', 'the opcode EXT1'),
    (b'\x8f', 'a set'),
    (value(('module', 1)) + b'Q', 'a persistent id that names no storage'),
    (storage('0', 1, view=(('1', 0, 1),)), 'a persistent id that names no'),
    (b'c\x1b[2J' + b'x' * 9999 + b'\n\xc3\xa9\n', '\\x1b[2Jxxx'),
  ],
)
def test_what_is_no_tensor_is_refused_by_name(
  tmp_path, monkeypatch, contents, what
):
  monkeypatch.chdir(tmp_path)
  for form in (zip_file, row_file):
    message = refusal(read, tmp_path / 'model.pth', form(contents))
    assert 'is refused: it holds ' in message
    assert what in message
    assert 'and only tensors and containers are read' in message
    assert message.endswith(ADVICE)
    assert not (tmp_path / EXECUTED).exists()


# What training programs store beside a state dict; the opcodes that make it.
BESIDE = {
  'args': built('argparse.Namespace', b')\x81', {'lr': 0.1, 'arch': 'x'}),
  'old args': call('copy_reg._reconstructor', built('my.Args', b''), 1, None),
  'keywords': built('my.Args', b')}\x92', ({'a': 1}, {'b': 2})),
  'accuracy': call(
    'numpy._core.multiarray.scalar',
    built('numpy.dtype', value(('f8', False, True)) + b'R', (3, '<', None)),
    'x' * 8,
  ),
  'milestones': call('collections.Counter', {30: 1}),
  'filled': call('collections.defaultdict', built('builtins.list', b''))
  + b'(K\1]u',
  'listed': built('my.List', b')\x81') + b'(K\1K\2e' + b'K\3a',
  'set': b'\x8f(K\1\x90',
  'frozen set': b'(K\1\x91',
  'of python 2': b'(ios\nsystem\n',
  'as an object': b'(cos\nsystem\n' + value('echo') + b'o',
  'called': call('os.system', f'echo > {EXECUTED}'),
  'keys': b'}' + value((1, 2)) + value(3) + b's',
  'type': built('torch.float32', b''),
  'repeated': tensor('0', (9, 9), strides=(0, 0), count=64),
  # Of a type that is newer than the named storages; of 16 bits.
  'newer': call(
    'torch._utils._rebuild_tensor_v3',
    *(storage('new', 4, kind='Untyped'), 0, (2,), (1,), False, {}),
    built('torch.uint16', b''),
  ),
  'negative': tensor('0', (1,), count=64, more=({'neg': True},)),
}


def test_what_is_no_tensor_is_left_out_and_not_executed(
  tmp_path, monkeypatch, network
):
  monkeypatch.chdir(tmp_path)
  state, raw = state_of(network)
  key = next(iter(state))
  assert network[key].shape[0] == 64
  beside = dict(BESIDE)
  for name in ('repeated', 'negative'):
    beside[name] = beside[name].replace(b'K@', value(network[key].size))
  path = tmp_path / 'model.pth'
  counted = {key: (len(data) // 4, data) for key, data in sorted(raw.items())}
  raw['new'], counted['new'] = bytes(4), (4, bytes(4))
  for data in (
    zip_file({'state_dict': state} | beside, raw),
    row_file({'state_dict': state} | beside, counted),
  ):
    path.write_bytes(data)
    loaded = read(path)
    assert_holds(loaded, network)
    assert not (tmp_path / EXECUTED).exists()
    (note,) = [n for n in loaded.notes if n.startswith('Also in the file')]
    for name, what in (
      ('args', 'argparse.Namespace'),
      ('old args', 'my.Args'),
      ('accuracy', 'numpy._core.multiarray.scalar'),
      ('set', 'a set'),
      ('of python 2', 'os.system'),
      ('called', 'os.system'),
      ('newer', 'torch._utils._rebuild_tensor_v3'),
      ('negative', 'a tensor with a conjugate or negative bit'),
    ):
      assert f"'{name}' ({what})" in note


def test_a_parameter_that_has_attributes_is_a_tensor(load, network):
  state, raw = state_of(network)
  state['fc.bias'] = call(
    'torch._utils._rebuild_parameter_with_state',
    *(state['fc.bias'], True, {}, {'tag': 1}),
  )
  assert_holds(load(zip_file(state, raw)), network)


def test_a_tar_archive_is_refused_by_name(tmp_path):
  head = b'sys_info'.ljust(257, b'\0') + b'ustar\x0000'
  message = refusal(read, tmp_path / 'model.pth', head.ljust(10240, b'\0'))
  assert 'is a tar archive of PyTorch 0.1, which is not' in message
  assert 'resnet50-0676ba61.pth' in message


def test_torchscript_is_refused_by_name(tmp_path):
  data = zip_of([('m/data.pkl', pickled({})), ('m/constants.pkl', b'')])
  assert 'it holds a TorchScript program, and' in refusal(
    read, tmp_path / 'model.pth', data
  )


def test_big_endian_values_are_refused(tmp_path):
  big = [('m/data.pkl', pickled({})), ('m/byteorder', b'big')]
  assert 'it holds values that are not little-endian' in refusal(
    read, tmp_path / 'model.pth', zip_of(big)
  )
  big = row_file({}, system=SYSTEM | {'little_endian': False})
  assert 'it holds values that are not little-endian' in refusal(
    read, tmp_path / 'model.pth', big
  )


@pytest.mark.parametrize(
  ('contents', 'message'),
  [
    ([1, 2], "(up to 16 in one another); it holds '0', '1'. If you"),
    (tensor('0', (1,)), 'holds a Tensor, not a state dict'),
    ({}, 'holds no state dict: no tensor has a name in it'),
    (
      {'epoch': 3, 'net': {}, 9**9999: 0},
      "it holds 'epoch', 'net', '(int)'. If you",
    ),
    ({f'{i}': i for i in range(25)}, "'19' and 5 more. If"),
    ({'state_dict': 3, 'model': [1]}, "it holds 'state_dict', 'model'. If"),
    ({'a': storage('0', 1)}, "it holds 'a'. If"),
  ],
)
def test_without_a_state_dict_it_says_what_is_there(
  tmp_path, contents, message
):
  text = refusal(
    read,
    tmp_path / 'model.pth',
    zip_file(contents, {'0': bytes(4)} if b'Q' in value(contents) else {}),
  )
  assert message in text
  assert text.endswith(ADVICE)


def test_what_is_something_else_is_not_recognised(tmp_path):
  path = tmp_path / 'x'
  keras = zip_of([('config.json', b'{}'), ('model.weights.h5', b'')])
  others = [
    b'',
    b'\x89HDF\r\n\x1a\n',
    pickle.dumps({'data_mean': 1}, 2),
    pickle.dumps({'data_mean': 1}, 4),
    keras,
    keras[:40],
    b'PK\3\4',
    b'_res2.w0'.ljust(257, b'\0') + b'ustar\x0000',
  ]
  for data in others:
    path.write_bytes(data)
    assert not torch.recognise(path, data[:512])
  assert not torch.recognise(tmp_path, b'')
  assert not torch.recognise(tmp_path / 'nothing', keras[:512])
  path.write_bytes(b'N.N.N.')
  with pytest.raises(errors.UserError, match="not begin as PyTorch's files"):
    torch.load(path, OPTIONS)
  with pytest.raises(errors.UserError, match='No such file'):
    torch.load(tmp_path / 'nothing', OPTIONS)


# --------------------------------------------------------- damage and attacks


HUGE = 1 << 40


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize('form', [zip_file, row_file])
@pytest.mark.parametrize(
  ('contents', 'message'),
  [
    (
      tensor('0', (HUGE,), count=4),
      f'{HUGE} values that ends at value {HUGE} h',
    ),
    (tensor('0', (2, 3), count=5), 'a tensor of 6 values that ends at value 6'),
    (
      tensor('0', (4,), offset=1, count=4),
      'that ends at value 5 has a storage',
    ),
    (tensor('0', (2, 2), strides=(HUGE, 1), count=4), 'has a storage of 4'),
    # Windows that overlap: many values of few.
    (tensor('0', (3, 3), strides=(1, 1), count=5), 'a tensor of 9 values that'),
    (tensor('0', (0,), offset=5, count=4), 'a tensor of 0 values that ends at'),
    (
      tensor('0', (-1,), count=4),
      'a size, a stride or an offset is out of range',
    ),
    (
      tensor('0', (4,), strides=(-1,), count=4),
      'a size, a stride or an offset is out of range',
    ),
    (
      tensor('0', (4,), offset=-1, count=4),
      'a size, a stride or an offset is out of range',
    ),
    (
      tensor('0', (True,), count=4),
      'a size, a stride or an offset is out of range',
    ),
    (
      tensor('0', (1.0,), strides=(1,), count=4),
      'a size, a stride or an offset is out of range',
    ),
    (tensor('0', (1,) * 9), 'a tensor does not have 0 to 8 dimensions'),
    (
      tensor('0', (4,), strides=(), count=4),
      'not have one stride per dimension',
    ),
    (tensor('0', (), count=9**9999), 'an offset is out of range'),
    (
      tensor('0', (), count=-1),
      'a size, a stride or an offset is out of range',
    ),
    (
      {'a': tensor('0', (1,)), 'b': tensor('0', (2,))},
      "storage '0' has two sizes or two types",
    ),
    (
      {'a': tensor('0', (1,)), 'b': tensor('0', (1,), kind='Half')},
      "storage '0' has two sizes or two types",
    ),
    (
      call('torch._utils._rebuild_tensor_v2', 3, 0, (), (), False, {}),
      'a tensor does not view a storage',
    ),
    (b'ctorch\nFloatStorage\n)R', 'object is not callable'),
    (b'X' + struct.pack('<I', 1 << 31) + b'\xff', 'its pickle: UnicodeDecode'),
    (b'\x96' + struct.pack('<Q', 1 << 40), 'its pickle: it breaks off'),
  ],
)
def test_tensors_that_cannot_be_are_damage(tmp_path, form, contents, message):
  text = refusal(read, tmp_path / 'model.pth', form(contents))
  assert 'is damaged: ' in text
  assert message in text
  assert text.endswith('Get it again.')


@pytest.mark.usefixtures('little_memory')
def test_values_copied_again_and_again_are_refused(tmp_path):
  # Two bytes name a list again; each call would make a dict of all of it.
  pairs = value([[str(i), i] for i in range(500)]) + b'q\0'
  calls = b'(ccollections\nOrderedDict\nq\1' + b'h\1h\0\x85R' * 2000 + b't'
  text = refusal(read, tmp_path / 'model.pth', zip_file(value((pairs, calls))))
  assert 'it holds values that are copied again and again, and' in text
  # Numbers of a tensor, in a tuple of any length.
  many = value((1,) * 5000) + b'q\0'
  rebuild = b'ctorch._utils\n_rebuild_tensor_v2\nq\1'
  made = b'h\1(' + storage('0', 1) + b'K\0h\0h\0\x89}tR'
  text = refusal(
    read, tmp_path / 'model.pth', zip_file(value((many, rebuild + made)))
  )
  assert 'a tensor does not have 0 to 8 dimensions' in text


@pytest.mark.usefixtures('little_memory')
def test_a_long_key_is_not_copied_for_every_tensor(tmp_path):
  made = tensor('0', ()) + b'q\0'
  state = (
    b'}('
    + value('n')
    + made
    + b''.join(value(f'{number}') + b'h\0' for number in range(50_000))
  )
  data = zip_file({'k' * 1_000_000: state + b'u'}, {'0': bytes(4)})
  assert 'its state dict is under a name of 1000001 letters' in refusal(
    read, tmp_path / 'model.pth', data
  )


@pytest.mark.usefixtures('little_memory')
def test_dicts_named_again_and_again_are_read_once(tmp_path):
  # Each names the one before it a thousand times.
  inner = value({'n': tensor('0', ())}) + b'q\0'
  for level in range(1, 5):
    again = b'h' + bytes([level - 1])
    pairs = b''.join(value(f'{i}') + again for i in range(1000))
    inner = b'}(' + value('first') + inner + pairs + b'uq' + bytes([level])
  data = zip_file(inner, {'0': bytes(4)})
  assert 'does not hold a plain ResNet' in refusal(
    read, tmp_path / 'model.pth', data
  )


@pytest.mark.usefixtures('little_memory')
def test_a_text_encoded_again_and_again_is_refused(tmp_path):
  text = b'X' + struct.pack('<I', 100_000) + b'a' * 100_000 + b'q\0'
  encode = b'c_codecs\nencode\nq\1' + value('latin1') + b'q\2'
  data = b'\x80\x02(' + text + encode + b'h\1h\0h\2\x86R' * 2000 + b't.'
  (tmp_path / 'p').write_bytes(data)
  with pytest.raises(errors.UserError, match='copied again and again'):
    pickles.load_arrays(tmp_path / 'p')


def test_a_pickle_has_a_largest_size(tmp_path):
  large = b'N0' * (torch_tensors.MAX_PICKLE // 2) + b'}'
  text = refusal(read, tmp_path / 'model.pth', zip_file(large))
  assert 'it holds a pickle of 4194308 bytes, more than 4194304' in text
  text = refusal(read, tmp_path / 'model.pth', row_file(large))
  assert 'it holds a pickle of more bytes than 4194304' in text


ONE = {'a': tensor('0', (4,))}


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize(
  ('file', 'message'),
  [
    (zip_file(ONE), "storage '0' has no bytes, where 16 are expected"),
    (zip_file(ONE, {'0': bytes(15)}), "storage '0' has 15 bytes, where 16"),
    (zip_file(ONE, {'0': bytes(17)}), "storage '0' has 17 bytes, where 16"),
    (
      zip_file({'a': tensor('0', (HUGE,))}, {'0': bytes(4)}),
      f"storage '0' has 4 bytes, where {4 * HUGE} are expected",
    ),
    (zip_of([('m/data.pkl', b'')]), 'its pickle: it breaks off'),
    (
      zip_of([('m/data.pkl', b''), ('n/data.pkl', b'')]),
      'it has 2 members data.pkl, not one',
    ),
    # Compressed by that much.
    (
      zip_file({}, damage={'m/byteorder': {'size': (1 << 64) - 1}}, wide=True),
      'not little-endian',
    ),
  ],
)
def test_archives_that_cannot_be(tmp_path, file, message):
  text = refusal(read, tmp_path / 'model.pth', file)
  assert message in text


def test_a_large_directory_is_not_read(tmp_path):
  members = [(f'm/{number:050000}', b'') for number in range(90)]
  text = refusal(
    read,
    tmp_path / 'model.pth',
    zip_of([('m/data.pkl', pickled({})), *members]),
  )
  assert 'its zip directory has 4504376 bytes, more than 4194304' in text


def test_strides_that_are_not_used_may_be_any_number(tmp_path):
  strides = ((1 << 63) - 1,) * 2
  state = {
    'one': tensor('0', (1, 1), strides=strides, count=1),
    'none': tensor('0', (0, 2), strides=strides, count=1),
  }
  # Both are read; the file holds no ResNet.
  assert 'does not hold a plain ResNet' in refusal(
    read, tmp_path / 'model.pth', zip_file(state, {'0': bytes(4)})
  )
  contents = torch_tensors.Storages()
  found = torch_tensors.unpickle(io.BytesIO(pickled(state)), contents)
  contents.set_reader(lambda storage: bytes(storage.size))
  assert found['one'].read().shape == (1, 1)
  assert found['none'].read().shape == (0, 2)


@pytest.mark.usefixtures('little_memory')
@pytest.mark.parametrize(
  ('file', 'message'),
  [
    (row_file({}, version=1000), "does not begin as PyTorch's files do"),
    (row_file({}, system=[1]), "does not begin as PyTorch's files do"),
    (row_file(ONE), 'its storages are not those that its tensors name'),
    (row_file(ONE, keys=7), 'its storages are not those that its tensors name'),
    (
      row_file(ONE, {'0': (4, bytes(16)), '1': (0, b'')}),
      'its storages are not those that its tensors name',
    ),
    (row_file(ONE, {'0': (4, bytes(15))}), "it breaks off in storage '0'"),
    (row_file(ONE, {'0': (4, bytes(17))}), '1 bytes follow its last storage'),
    (row_file(ONE, {'0': (5, bytes(16))}), "storage '0' has 5 values, where 4"),
    (
      row_file({'a': tensor('0', (HUGE,))}, {'0': (HUGE, bytes(16))}),
      "it breaks off in storage '0'",
    ),
  ],
)
def test_old_files_that_cannot_be(tmp_path, file, message):
  text = refusal(read, tmp_path / 'model.pth', file)
  assert 'is damaged: ' in text
  assert message in text


def small(form):
  state = {'conv1.weight': tensor('0', (2, 3)), 'n': [1, 'x', None]}
  raw = struct.pack('<6f', *range(6))
  return form(state, {'0': (6, raw) if form is row_file else raw})


@pytest.mark.parametrize('form', [zip_file, row_file])
def test_every_truncated_file_is_damaged(tmp_path, form):
  data = small(form)
  # Whole, the tensor is read, and is no ResNet.
  assert 'does not hold a plain ResNet' in refusal(
    read, tmp_path / 'model.pth', data
  )
  for size in range(60, len(data)):
    message = refusal(read, tmp_path / 'model.pth', data[:size])
    assert ' is damaged: ' in message or ' is refused: ' in message


@pytest.mark.parametrize('form', [zip_file, row_file])
def test_flipped_bits_raise_nothing_but_user_errors(tmp_path, form):
  data, random = small(form), np.random.default_rng(0)
  path = tmp_path / 'model.pth'
  for _ in range(400):
    damaged = bytearray(data)
    for _ in range(random.integers(1, 4)):
      damaged[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(damaged)
    if torch.recognise(path, bytes(damaged[:512])):
      with pytest.raises(errors.UserError):
        torch.load(path, OPTIONS)


def test_a_flipped_value_is_noticed(tmp_path, network):
  state, raw = state_of(network)
  data = bytearray(zip_file(state, raw))
  data[len(data) // 2] ^= 1
  assert 'Bad CRC-32 for ' in refusal(read, tmp_path / 'model.pth', bytes(data))
