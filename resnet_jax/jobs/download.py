# SPDX-License-Identifier: Apache-2.0
"""The job `download`: published checkpoints into the cache, verified."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.data import mean
from resnet_jax.jobs import setup
from resnet_jax.models import names, resnet
from resnet_jax.system import console, errors, folders
from resnet_jax.zoo import cache, download, lookup
from resnet_jax.zoo.records import File

ALL = 'all'
_MEAN_SIZE = 224


def run(config: ConfigDict) -> int:
  """Downloads the checkpoints of `weights` and `layer_num`, and mean images.

  After a failure the others are still downloaded.
  """
  chosen = _chosen(config.weights, setup.weight_options(config))
  records = {record.name: record for record in chosen}
  files = {name: record.file for name, record in records.items()}
  for family in dict.fromkeys(record.family for record in chosen):
    if family in lookup.MEANS:
      files[f'{family}-mean'] = lookup.MEANS[family]
  sizes = [file.size for file in files.values() if file.size]
  unknown = len(files) - len(sizes)
  console.say(
    f'to download, unless they are in the cache: {", ".join(files)};'
    f' {sum(sizes) / 1e6:.0f} MB'
    + (f' and {unknown} of unpublished size' if unknown else '')
  )
  _check_offline(files)
  failed = []
  for name, file in files.items():
    try:
      with console.Bytes() as bar:
        path = download.fetch(file, name, report=bar.set, say=console.say)
      console.result(str(path))
      # Some publishers give no hash, so the contents are read, too.
      if record := records.get(name):
        loaded = weights.load(record.family, weights.Options(record.depth))
        held = f'{resnet.title(loaded.module)}, digest {loaded.digest}'
      else:
        held = f'a {mean.describe(mean.parse_mean(path, _MEAN_SIZE))}'
      console.say(f'{name} holds {held}')
    except errors.UserError as error:
      failed.append(name)
      console.say(f'FAILED: {error}')
  if failed:
    raise errors.UserError(
      f'{len(failed)} of {len(files)} files failed, for the reasons above:'
      f' {", ".join(failed)}. Run the job again to download only these.'
    )
  return 0


def _check_offline(files: Mapping[str, File]) -> None:
  """Raises one UserError, not one a file, if downloads are forbidden."""
  missing = [
    f'{name}/{file.name}'
    for name, file in files.items()
    if not cache.place(file, name).exists()
  ]
  if len(missing) > 1 and cache.is_offline():
    raise errors.UserError(
      f'RESNET_JAX_OFFLINE forbids downloads, and {len(missing)} of'
      f' {len(files)} files are not in {folders.cache_directory()}:'
      f' {", ".join(missing)}. Unset it; or give weights=PATH of a file that'
      ' you have.'
    )


def _chosen(text: str, options: weights.Options) -> list[lookup.Record]:
  """The checkpoints for `msra`, `msra,keras`, `all` or `auto`."""
  depth = options.depth
  if text == ALL:
    return lookup.with_settings(depth, options.variant)
  if text == weights.AUTO:
    return lookup.usual(depth, options.variant)
  chosen = lookup.select(names.split_list(text), depth, (ALL, weights.AUTO))
  for record in chosen:
    weights.check_record(record, options)
  if not chosen:
    raise errors.UserError(
      f"weights='{text}' names no checkpoint. Give one or several of"
      f' {lookup.LISTED}, or {ALL}.'
    )
  return chosen
