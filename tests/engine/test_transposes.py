# SPDX-License-Identifier: Apache-2.0
"""Values from the devices' order into the one that is kept."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.engine import transposes

MESH = Mesh(np.array(jax.devices()[:2]), ('images',))


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
  'spec', [PartitionSpec(), PartitionSpec(None, 'images')]
)
@pytest.mark.parametrize(
  'shape',
  # Of fewer pixels than a block, of some blocks, and with a rest.
  [(1, 2, 1, 1, 7), (3, 4, 16, 8, 5), (2, 6, 9, 15, 33), (1, 2, 3, 4, 1)],
)
def test_every_value_finds_its_place(shape, spec, dtype):
  values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
  there = jax.device_put(values, NamedSharding(MESH, spec))
  found = transposes.fetched({'a': there})
  assert list(found) == ['a']
  assert found['a'].dtype == dtype
  assert found['a'].flags.c_contiguous
  np.testing.assert_array_equal(found['a'], values.transpose(0, 1, 4, 2, 3))
