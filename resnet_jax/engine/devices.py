# SPDX-License-Identifier: Apache-2.0
"""The devices, and how a batch is dealt out to them.

A CPU is several devices, one a core, each with a few crops at a time: on two
cores 1.4 times as fast as one device with all of them, because the threads of a
small program need not wait for one another, and the values between two layers
stay in the cache (docs/performance.md).
"""

import ctypes
import dataclasses
import os
import sys
from collections.abc import Sequence

import jax

from resnet_jax.system import cores, errors

# Each device holds a copy of the parameters; on more cores than this, a device
# has several threads.
_MOST_CPU_DEVICES = 8

# Crops that a core computes at once, and the most of a piece before the last
# stage.
_CPU_CROPS = 48
_CPU_PIECE = 3

# JAX's own default.
_UNSET = -1

# A device with one core does not split its products.
_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'

# glibc's numbers of `mallopt` parameters, and values that keep freed memory.
_MALLOPT = {'M_MMAP_THRESHOLD': -3, 'M_TRIM_THRESHOLD': -1, 'M_TOP_PAD': -2}
_KEPT_BYTES = {
  'M_MMAP_THRESHOLD': 1 << 30,
  'M_TRIM_THRESHOLD': 2 << 30,
  'M_TOP_PAD': 256 << 20,
}


def use_cores() -> None:
  """Has JAX show a CPU as one device a core; call it before JAX starts.

  Nothing changes if JAX has started, or has the setting.  Also has glibc keep
  freed memory: the values between layers take some tens of MB, which would
  otherwise go back to the system and return page fault by page fault with every
  batch (7% of the time of a ResNet-50).
  """
  there = cores.count()
  count = min(there, _MOST_CPU_DEVICES)
  if getattr(jax.config, 'jax_num_cpu_devices') != _UNSET:  # noqa: B009
    return
  try:
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:
    # JAX has started.
    return
  given = os.environ.get('XLA_FLAGS', '')
  if 1 < there == count and _ONE_THREAD.partition('=')[0] not in given:
    os.environ['XLA_FLAGS'] = f'{given} {_ONE_THREAD}'.strip()
  if sys.platform == 'linux':
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt') and hasattr(libc, 'gnu_get_libc_version'):
      for name, number in _MALLOPT.items():
        libc.mallopt(number, _KEPT_BYTES[name])


def select(use_gpu: bool) -> tuple[jax.Device, ...]:
  """The devices to run on: GPUs if requested, else JAX's default kind.

  Raises:
    UserError: a GPU was requested, and there is none.
  """
  try:
    return tuple(jax.local_devices(backend='gpu' if use_gpu else None))
  except Exception as error:
    # JAX raises a RuntimeError, and for some platforms an AssertionError.
    raise _no_device(use_gpu, error) from error


def _no_device(use_gpu: bool, error: Exception) -> errors.UserError:
  try:
    there = ', '.join(map(str, jax.devices()))
  except Exception:
    there = ''
  if use_gpu and there:
    return errors.UserError(
      f'use_gpu is set, and JAX {jax.__version__} finds no GPU, only {there}.'
      " Install the extra for the machine's CUDA (pip install"
      " 'resnet-jax-zoo[cuda12]' or [cuda13]; in a checkout '.[cuda12]'), or"
      ' leave use_gpu out to run on the CPU.'
    )
  platforms = getattr(jax.config, 'jax_platforms')  # noqa: B009
  asked = f' of JAX_PLATFORMS={platforms}' if platforms else ''
  why = f' ({str(error)[:300]})' if str(error) else ''
  return errors.UserError(
    f'JAX {jax.__version__} finds no device{asked}{why}. Unset JAX_PLATFORMS to'
    ' run on what is there, or set it to cpu; for a GPU install the extra for'
    " the machine's CUDA (pip install 'resnet-jax-zoo[cuda12]' or [cuda13])."
  )


def describe(devices: Sequence[jax.Device]) -> str:
  """For a record: `cpu x 2`, `gpu NVIDIA H100`."""
  first = devices[0]
  kind = first.device_kind
  name = kind if kind == first.platform else f'{first.platform} {kind}'
  return name if len(devices) == 1 else f'{name} x {len(devices)}'


@dataclasses.dataclass(frozen=True)
class Deal:
  """How a batch is dealt out to devices.

  Attributes:
    devices: the number that work.
    rounds: computed one after the other.
    rows: images of a round, over all devices.
    pieces: of a device's part of a round, before the last stage.
    sharing: whether the devices share each image, instead of having some
      whole ones each.
  """

  devices: int
  rounds: int
  rows: int
  pieces: int
  sharing: bool = False


def deal(
  devices: Sequence[jax.Device], images: int, crops: int, sharing: int = 1
) -> Deal:
  """Splits a batch over the devices with little padding.

  Args:
    devices: all available.
    images: of the batch.
    crops: of an image.
    sharing: how many devices can share an image; 1: none.
  """
  if images < sharing:
    # One after the other takes less time than each on a device of its own.
    return Deal(sharing, images, 1, 1, sharing=True)
  used = min(len(devices), images)
  each = -(-images // used)
  if devices[0].platform == 'cpu':
    each = min(each, max(1, _CPU_CROPS // crops))
  rounds = -(-images // (used * each))
  # The same number of rounds, with the fewest images.
  each = -(-images // (used * rounds))
  part = each * crops
  most = _CPU_PIECE if devices[0].platform == 'cpu' else part
  piece = next(n for n in range(most, 0, -1) if not part % n)
  return Deal(used, rounds, used * each, part // piece)


def processes() -> tuple[int, int]:
  """The number of this process, and how many JAX works with."""
  return jax.process_index(), jax.process_count()
