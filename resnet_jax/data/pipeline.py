# SPDX-License-Identifier: Apache-2.0
"""Items to batches: decoded and cropped in threads, in order, padded."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from resnet_jax import errors
from resnet_jax.data import preprocess, sources

ON_ERROR = ('fail', 'record')


@dataclasses.dataclass(frozen=True)
class Batch:
  """Pictures that go through the network together.

  Attributes:
    start: the row of the first picture.
    images: (rows, cuts, S, S, 3) uint8, RGB; zeros where `mask` is false.
    mask: (rows,) bool; false for padding and for pictures that failed.
    items: the pictures, without padding.
    reasons: why a picture could not be read, '' for the others.
  """

  start: int
  images: np.ndarray
  mask: np.ndarray
  items: Sequence[sources.Item]
  reasons: Sequence[str]


def batches(
  items: Sequence[sources.Item],
  how: preprocess.Preprocess,
  *,
  rows: int,
  start: int = 0,
  threads: int = 2,
  on_error: str = 'fail',
) -> Iterator[Batch]:
  """Yields the items from `start` on, in their order, `rows` at a time.

  At most two batches of pictures wait, so memory does not depend on the
  number of items.

  Args:
    items: what to read.
    how: resize and crops.
    rows: pictures a batch; the last one is padded to it.
    start: the first item to read.
    threads: how many decode at once.
    on_error: 'fail', or 'record' to go on, the reason noted in the batch.

  Raises:
    UserError: a picture cannot be read, and `on_error` is 'fail'.
  """
  errors.check_choice('on_error', on_error, ON_ERROR)
  pool = concurrent.futures.ThreadPoolExecutor(threads, 'decode')
  waiting: collections.deque = collections.deque()
  todo = iter(range(start, len(items)))

  def submit(count: int) -> None:
    for row in itertools.islice(todo, count):
      waiting.append(pool.submit(_decode, items[row], how))

  try:
    submit(2 * rows)
    for first in range(start, len(items), rows):
      chosen = items[first : first + rows]
      shape = (rows, how.cuts, how.crop_size, how.crop_size, 3)
      images = np.zeros(shape, np.uint8)
      mask = np.zeros(rows, bool)
      reasons = []
      for row, item in enumerate(chosen):
        pixels, reason = waiting.popleft().result()
        submit(1)
        if not reason:
          images[row], mask[row] = pixels, True
        elif on_error == 'fail':
          raise errors.UserError(
            f'cannot read the picture {item.name}: {reason}. Repair it or'
            ' leave it out (a job goes on without it with on_error=record).'
          )
        reasons.append(reason)
      yield Batch(first, images, mask, chosen, reasons)
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _decode(
  item: sources.Item, how: preprocess.Preprocess
) -> tuple[np.ndarray | None, str]:
  """The crops, or None and the reason why there are none."""
  try:
    return preprocess.cut(preprocess.decode(item.read()), how), ''
  except preprocess.PictureError as error:
    return None, str(error)
  except OSError as error:
    return None, error.strerror or str(error)
  except MemoryError:
    return None, 'there is not enough memory for it'
