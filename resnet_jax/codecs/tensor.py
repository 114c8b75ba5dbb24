# SPDX-License-Identifier: Apache-2.0
"""A tensor of a file, read on demand."""

import dataclasses
import mmap
import pathlib
from collections.abc import Callable

import numpy as np

from resnet_jax.system import files


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file, not read yet.

  Attributes:
    shape: as the file states it.
    dtype: NumPy's name, 'float32'.
    read: returns the values; raises a UserError, OSError or ValueError if they
      are not in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]


def map_file(path: pathlib.Path) -> memoryview:
  """A file's bytes, read on access and mapped while a view of them is alive.

  Raises:
    OSError: the file cannot be read.
  """
  with files.opened(path) as file:
    # An empty file cannot be mapped.
    if not file.seek(0, 2):
      return memoryview(b'')
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
