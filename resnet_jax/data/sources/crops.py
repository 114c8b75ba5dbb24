# SPDX-License-Identifier: Apache-2.0
"""Images that were decoded and cropped before, by `--job=crop`."""

import pathlib

from resnet_jax.data import crop_store
from resnet_jax.data.sources.item import Item, Source
from resnet_jax.system.text import counted, one_line


def open_store(path: pathlib.Path) -> Source:
  """The images of a store of crops, with the keys and labels of their data.

  Raises:
    UserError: the store is unfinished or damaged.
  """
  store = crop_store.CropStore(path)
  items = []
  columns = (store.keys, store.labels, store.sizes, store.named, store.stray)
  for row, (key, label, size, named, stray) in enumerate(
    zip(*columns, strict=True)
  ):
    place = crop_store.Place(store, row)
    name = one_line(f'{path}:{key}')
    item = Item(key, name, label, place.image, size, named, bool(stray), place)
    items.append(item)
  described = f'{counted(len(items), "image")} in the crops {path}'
  if failed := sum(map(bool, store.reasons)):
    described += f'; {counted(failed, "image")} could not be read'
  return Source(items, described)
