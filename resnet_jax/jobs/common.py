# SPDX-License-Identifier: Apache-2.0
"""What jobs have in common: from a config to typed things, and messages."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import weights
from resnet_jax.data import pipeline, preprocess, presets, sources
from resnet_jax.engine import (
  compilation,
  decoding_difference,
  devices,
  gradcam,
  runner,
  sizing,
)
from resnet_jax.models import resnet, variant
from resnet_jax.system import console, cores, errors, timing
from resnet_jax.zoo import lookup

# Exit status of a run that went to its end without some of the images.
SOME_FAILED = 3

# Of one batch's features, on the device and again on the host.
_MAX_BATCH_BYTES = 512 << 20

# A warm-up takes as long as a batch, on a CPU some seconds; of so many it is a
# twentieth.
_WARM_FROM = 20

# A batch, and (images, C, H, W) of each layer without the padding.
Computed = tuple[pipeline.Batch, dict[str, np.ndarray]]

# Batches, by their number, whose transfer and computation are waited for, to
# time them: few, as nothing overlaps there, and not the first, which is slower.
_SAMPLED = frozenset(4**power for power in range(16))


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything that a job over images works with."""

  source: sources.Source
  how: preprocess.Preprocess
  weights: weights.Weights
  execution: runner.Execution

  @property
  def model(self) -> resnet.ResNet:
    """The network."""
    return self.weights.model


def weight_options(
  config: ConfigDict, *, finite: bool = True
) -> weights.Options:
  """The config's settings of the weights."""
  return weights.Options(
    config.layer_num,
    {name: config[name] for name in variant.FIELDS},
    config.conv_order,
    config.seed,
    finite,
  )


def load_weights(config: ConfigDict, *, finite: bool = True) -> weights.Weights:
  """Loads the weights, and says what they are."""
  with console.Bytes() as bar:
    loaded = weights.load(
      config.weights,
      weight_options(config, finite=finite),
      say=console.say,
      report=bar.set,
    )
  console.say(f'weights: {loaded.source}')
  console.say(resnet.describe(loaded.model))
  console.say(f'digest {loaded.digest}')
  for warning in loaded.warnings:
    console.say(f'WARNING: {warning}')
  for note in loaded.notes:
    console.say(f'NOTE: {note}')
  return loaded


def network(
  config: ConfigDict,
) -> tuple[resnet.ResNet, preprocess.Preprocess, dict[str, str]]:
  """The network, how its weights take images, and what is known of those.

  A file's weights are read, as only they tell the network; of the zoo's
  checkpoints, and for `auto` and `random`, no weights are needed.
  """
  name, depth = config.weights, config.layer_num or weights.DEFAULT_DEPTH
  is_path = os.path.exists(pathlib.Path(name).expanduser())
  if name in lookup.FAMILIES:
    record = lookup.find(name, depth)
    model = resnet.published(depth).clone(variant=record.variant)
    own = record.preprocess
  elif name in (weights.AUTO, weights.RANDOM) and not is_path:
    model, own = resnet.published(depth), presets.usual(depth)
  else:
    loaded = load_weights(config)
    facts = {'digest': loaded.digest, 'source': loaded.source}
    return loaded.model, loaded.preprocess, facts
  return weight_options(config).applied(model), own, {}


def image_size(config: ConfigDict, own: preprocess.Preprocess) -> int:
  """The side of the images that a network is described for.

  Raises:
    UserError: it is out of bounds.
  """
  size = config.crop_size or own.crop_size
  if not resnet.MIN_SIZE <= size <= 4096:
    raise errors.UserError(
      f'crop_size={size} is not between {resnet.MIN_SIZE} and 4096.'
    )
  return size


def preprocess_overrides(config: ConfigDict) -> dict[str, Any]:
  """The config's settings of the preprocessing, checked."""
  given = {name: config[name] for name in preprocess.FIELDS}
  preprocess.check_overrides(**given)
  return given


def set_up(config: ConfigDict, most: int | None = None) -> Setup:
  """Checks the config, cheap things first, and loads the weights.

  Args:
    config: all of it.
    most: images that the job takes; None: any number.

  Raises:
    UserError: a setting, the images or the weights do not do.
  """
  errors.check_choice('on_error', config.on_error, pipeline.ON_ERROR)
  for key, least in (('batch_size', 0), ('threads', 0)):
    if config[key] < least:
      raise errors.UserError(f'{key}={config[key]}: {least} is the least.')
  given = preprocess_overrides(config)
  weight_options(config)
  source = sources.open_source(
    config.data, must_exist=config.on_error == 'fail'
  )
  if most and len(source.items) > most:
    raise errors.UserError(
      f'{len(source.items)} images ({source.description}): this job shows'
      f' 1 to {most}. Give a list file with those that you want to see, or a'
      ' smaller folder.'
    )
  devices.use_cores()
  execution = runner.Execution(
    devices.select(config.use_gpu),
    config.arithmetic,
    compilation.folder(config.compilation_cache, console.say),
  )
  loaded = load_weights(config)
  how = loaded.preprocess.overridden(**given)
  console.say(f'images: {source.description}')
  console.say(f'input: {how.describe()}')
  console.say(f'device: {devices.describe(execution.devices)}')
  return Setup(source, how, loaded, execution)


def make_network(
  setup: Setup,
  layers: Sequence[str],
  reduction: runner.Reduction | None = None,
  grad_cam: gradcam.GradCam | None = None,
) -> sizing.Network:
  """The network, ready for the images of a job."""

  def make() -> runner.Runner:
    return runner.Runner.prepared(
      setup.how,
      setup.model,
      setup.weights.parameters,
      layers,
      reduction=reduction,
      grad_cam=grad_cam,
      execution=setup.execution,
    )

  return sizing.Network(make, setup.execution.devices, console.say)


def batch_rows(
  config: ConfigDict,
  setup: Setup,
  network: sizing.Network,
  row_bytes: int,
  started: Any = None,
) -> int:
  """Images that go through the network at once.

  Args:
    config: batch_size; 0: as many as are fast and fit.
    setup: images and device.
    network: compiled, where it decides.
    row_bytes: of an image's features.
    started: what a run has noted that is gone on with; None: there is none.
  """
  crops, count = setup.how.crops, len(setup.source.items)
  if not config.batch_size and type(started) is int and 0 < started <= count:
    return started
  rows = config.batch_size // crops
  if not config.batch_size:
    rows = sizing.first_rows(
      setup.execution.devices, crops, setup.how.crop_size
    )
  rows = max(1, min(rows, count, _MAX_BATCH_BYTES // row_bytes))
  if config.batch_size or not count:
    return rows
  rows = sizing.even_rows(rows, count, setup.execution.devices)
  return network.fitting((rows, *setup.how.shape))


def threads(config: ConfigDict) -> int:
  """Threads that decode."""
  return config.threads or cores.count()


def computed(
  config: ConfigDict,
  setup: Setup,
  network: sizing.Network,
  *,
  rows: int,
  clock: timing.Clock,
  start: int = 0,
) -> Iterator[Computed]:
  """Layers of the images from `start` on, in order, a batch at a time.

  Compiles, and warms up, before it returns.  A batch is on its way to the
  device, and the next ones are decoded, while the batch before is computed,
  fetched and written.

  Args:
    config: threads and on_error.
    setup: images and preprocessing.
    network: gives the layers.
    rows: images a batch.
    clock: is told how long each stage takes.
    start: the first image.

  Returns:
    Batches, and (images, C, H, W) of each layer without the padding.  Rows
    of images that failed hold the values of a black image.

  Raises:
    UserError: an image cannot be read, and on_error is 'fail'; or a value does
      not fit.
  """
  batches = pipeline.batches(
    setup.source.items,
    setup.how,
    rows=rows,
    start=start,
    threads=threads(config),
    on_error=config.on_error,
    clock=clock,
  )
  # So that others are decoded while the network is compiled, and with a
  # batch_size that is given a broken image is said before that.
  with clock.waiting('images'):
    first = next(batches, None)
  if first is None:
    return iter(())
  network.compile(first.images.shape)
  count = -(-(len(setup.source.items) - start) // rows)
  if count >= _WARM_FROM:
    network.warm_up(first.images.shape)
  if setup.how.decode != 'exact':
    console.say(decoding_difference.line(first, setup.how, network))
  return _computed(first, batches, network, clock, count - 1)


def _computed(
  first: pipeline.Batch,
  others: Generator[pipeline.Batch, None, None],
  network: sizing.Network,
  clock: timing.Clock,
  last: int,
) -> Iterator[Computed]:
  """The loop of `computed`; `last` is the number of the last batch."""

  def fetch(batch: pipeline.Batch, result: sizing.Pending) -> Computed:
    with clock.waiting('device'), _naming(batch):
      values = network.fetch(result, batch.mask)
    return batch, {k: v[: len(batch.items)] for k, v in values.items()}

  def hand_out(done: Computed) -> Iterator[Computed]:
    with clock.waiting('writer'):
      yield done

  before: tuple[pipeline.Batch, sizing.Pending] | None = None
  batch: pipeline.Batch | None = first
  number = 0
  with contextlib.closing(others):
    while batch:
      if number in _SAMPLED or not last:
        if before:
          yield from hand_out(fetch(*before))
        before = None
        with clock.waiting('device'), _naming(batch):
          result = network.measured(batch.images, clock)
        with clock.measure('transfer', 0):
          done = fetch(batch, result)
        yield from hand_out(done)
      else:
        with clock.waiting('device'), _naming(batch):
          result = network(batch.images)
        if before:
          yield from hand_out(fetch(*before))
        before = batch, result
      number += 1
      with clock.waiting('images'):
        batch = next(others, None)
    if before:
      yield from hand_out(fetch(*before))


@contextlib.contextmanager
def _naming(batch: pipeline.Batch) -> Iterator[None]:
  """Says which images an error is about."""
  names = dict.fromkeys((batch.items[0].name, batch.items[-1].name))
  try:
    yield
  except errors.UserError as error:
    raise errors.UserError(f'{" to ".join(names)}: {error}') from error
  except Exception as error:
    error.add_note(f'It was at the images {" to ".join(names)}.')
    raise


def say_stages(clock: timing.Clock) -> None:
  """Says which stage was the bound, if anything was done."""
  if line := clock.line():
    console.say(line)
