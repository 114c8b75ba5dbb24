# SPDX-License-Identifier: Apache-2.0
"""An image that devices share, against the same image on one device."""

import concurrent.futures
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnet_jax.data.preprocess import Preprocess
from resnet_jax.engine import programs, runner
from resnet_jax.models import resnet, sharing, structure
from resnet_jax.models.variant import Variant
from resnet_jax.weights import random

DEVICES = tuple(jax.local_devices())
SHARE = sharing.Share


@pytest.mark.parametrize(
  ('depth', 'height', 'devices', 'expected'),
  [
    # Rows of res2 on a device: 28, then 14 and 7, which does not divide.
    (50, 224, 2, SHARE(2, 5)),
    (50, 224, 3, SHARE(2, 5)),
    (50, 224, 4, SHARE(4, 4)),
    (50, 224, 8, SHARE(4, 4)),
    (18, 256, 2, SHARE(2, 6)),
    (18, 32, 2, SHARE(2, 5)),
    # 104 rows are four times 26, and 26 are not four times any.
    (50, 104, 4, SHARE(2, 3)),
    (50, 100, 2, sharing.ALONE),
    (50, 224, 1, sharing.ALONE),
    # A CIFAR network takes less time than the exchange.
    (20, 32, 2, sharing.ALONE),
  ],
)
def test_how_devices_can_share_an_image(depth, height, devices, expected):
  assert sharing.possible(depth, Variant(), height, devices) == expected


def parameters(module):
  """Random, with offsets, so that no row or channel looks like another."""
  generator = np.random.default_rng(1)
  return {
    name: array + generator.normal(0, 0.1, array.shape).astype(np.float32)
    if name.endswith(('/bias', '/mean'))
    else array
    for name, array in random.initialise(module, 0).items()
  }


def values(module, devices, layers, size, arithmetic='float32', **keywords):
  """Of one image."""
  execution = runner.Execution(devices, arithmetic)
  preprocess = Preprocess((1.0, 2.0, 3.0))
  run = runner.Runner(
    module,
    parameters(module),
    layers,
    preprocess,
    execution=execution,
    **keywords,
  )
  shape = (1, 1, *size, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  return run.fetch(run(images))


def assert_close(found, expected):
  for name, value in found.items():
    assert value.shape == expected[name].shape
    error = np.abs(value - expected[name]).max()
    assert error < 5e-4 * np.sqrt(np.mean(expected[name] ** 2)), name


@pytest.mark.parametrize(
  ('depth', 'size', 'variant'),
  [
    # Rows to the end; rows, then channels; channels from res3 on.
    (18, (64, 32), Variant()),
    (18, (32, 48), Variant(stem_pool='pad1')),
    (
      50,
      (40, 32),
      Variant(stride_in='3x3', stem_pool='pad1', inner_width=128, groups=32),
    ),
  ],
)
def test_a_shared_image_has_the_values_of_one_device(depth, size, variant):
  module = resnet.ResNet(depth, 10, variant)
  # Of every kind and stage; 5 is no multiple of the values of a block.
  layers = ['input', 'pool1', *resnet.value_names(module)[1::5], 'output']
  layers = [name for name in dict.fromkeys(layers) if 'pad' not in name]
  one = values(module, DEVICES[:1], layers, size, 'direct')
  assert_close(values(module, DEVICES, layers, size), one)
  # Folded, which the layers above are not.
  assert_close(values(module, DEVICES, ['output'], size), one)


def test_a_convolutions_own_bias_is_shared_with_it():
  units = {unit.name for unit in structure.units(50, Variant())}
  module = resnet.ResNet(50, 10, biases=frozenset(units))
  layers = ['res5_2_branch2c_conv', 'res5_3_addto', 'output']
  one = values(module, DEVICES[:1], layers, (32, 32), 'direct')
  assert_close(values(module, DEVICES, layers, (32, 32)), one)


def test_four_devices_share_an_image():
  code = (
    'import jax\n'
    'jax.config.update("jax_num_cpu_devices", 4)\n'
    'import test_sharing as t\n'
    'module = t.resnet.ResNet(18, 10)\n'
    'layers = ["res2_2_addto", "res4_1_branch2a_bn", "output"]\n'
    'assert len(t.DEVICES) == 4\n'
    'one = t.values(module, t.DEVICES[:1], layers, (48, 32), "direct")\n'
    't.assert_close(t.values(module, t.DEVICES, layers, (48, 32)), one)\n'
  )
  subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    env={'PYTHONPATH': f'{__file__.rpartition("/")[0]}:.', 'PATH': ''},
  )


@pytest.mark.parametrize(
  ('images', 'may_share', 'working', 'sharing_them'),
  [(1, True, 2, True), (1, False, 1, False), (2, True, 2, False)],
)
def test_fewer_images_than_devices_are_shared(
  images, may_share, working, sharing_them
):
  how = programs.plan(
    resnet.ResNet(50),
    DEVICES,
    1,
    (images, 1, 224, 224, 3),
    may_share=may_share,
  )
  assert (how.deal.devices, how.deal.sharing) == (working, sharing_them)
  assert how.deal.rounds == 1


def test_images_are_shared_one_at_a_time():
  """Else devices of several wait for one another, and XLA ends the process."""
  module = resnet.ResNet(18, 10)
  runners = [
    runner.Runner(
      module,
      parameters(module),
      [layer],
      Preprocess((1.0, 2.0, 3.0)),
      execution=runner.Execution(DEVICES),
    )
    for layer in ('res2_1_addto', 'res2_2_addto')
  ]
  one, many = (np.zeros((n, 1, 64, 64, 3), np.uint8) for n in (1, 32))
  expected = [run.fetch(run(one)) for run in runners]

  def work(number):
    run = runners[number % 2]
    # A batch is still being computed when the next image begins.
    results = [run(many), *(run(one) for _ in range(8))]
    return [run.fetch(result) for result in results[1:]]

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for number, found in enumerate(pool.map(work, range(8))):
      for got in found:
        np.testing.assert_equal(got, expected[number % 2])


def test_the_failure_of_another_program_is_not_the_images():
  class Failed:
    """The value of a batch that did not fit into the memory."""

    def block_until_ready(self):
      """Fails."""
      raise MemoryError

  other = Failed()
  programs._started.append(weakref.ref(other))
  module = resnet.ResNet(18, 10)
  assert values(module, DEVICES, ['pool1'], (32, 32))['pool1'].any()
  assert not programs._started


def test_the_parameters_of_a_cpu_are_one_copy():
  module = resnet.ResNet(18, 10)
  shared = {}
  values(module, DEVICES, ['output'], (32, 32), shared=shared)
  whole = [a for block, a in shared.items() if block.spec == PartitionSpec()]
  assert len(whole) > 10
  for arrays in whole:
    assert len(arrays) == len(DEVICES)
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == 1
