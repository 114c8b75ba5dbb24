# SPDX-License-Identifier: Apache-2.0
"""Trains the paper's networks for CIFAR-10 (section 4.2).

  python experiments/train_cifar.py FOLDER --data=train.tar --depth=20

`data` has one folder of 32x32 images per class.  FOLDER gets
`checkpoint.safetensors`, from which the same command goes on, to the same bits
on the same kind of device; `epochs.jsonl`, one line an epoch; in the end
`resnet20.safetensors`, which every job takes, and `curve.png`.  The order of
the images and their crops depend on the seed and the step alone.

As in the paper: batches of 128, of which two devices take half each, with
statistics of their own for batch norm; SGD with momentum 0.9, He's
initialisation, 4 pixels padded, a random 32x32 crop, a random mirror image.
Otherwise, because some 60 epochs are affordable instead of 164:

* The rate rises to 0.2 and falls to 0 on straight lines ("one cycle"), then
  for 12 epochs to 0.05 and to 0 (a warm restart, Loshchilov and Hutter,
  arXiv:1608.03983); the paper's is 0.1, divided by 10 at 32,000 and 48,000 of
  64,000 steps.
* The weight decay is 5e-4, not 1e-4, and holds for kernels only: what it does
  depends on the sum of the rates, which is smaller.
* The momentum is Nesterov's, which costs nothing.
* Three means and deviations instead of a mean image, as `Preprocess` has them.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

import resnet_jax
from resnet_jax.data import crops, decoding, presets, sources
from resnet_jax.data import mean as mean_lib
from resnet_jax.engine import devices
from resnet_jax.models import layers, resnet
from resnet_jax.system import cores, errors, files

PREPROCESS = presets.CIFAR10
_PADDING = 4
_LOG_EVERY = 50  # steps
_EVALUATED = 500  # images at a time
_AXIS = 'device'

# What training has come to: params, batch_stats, optimizer, step, totals.
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What decides the result; kept with the checkpoint.

  Attributes:
    depth: of the network.
    epochs: the length of the first cycle.
    more: the length of a second one, 0: none; a finished training may get it.
    more_rate: its highest learning rate.
    seed: of the start, the order and the crops.
    held_out: images of each class that are not trained on.
    batch: images a step.
    rate: the highest learning rate.
    warm_up: the part of all steps in which the rate rises.
    decay: of kernels.
    momentum: of the gradients.
    arithmetic: a key of `convolution.ARITHMETICS`.
    devices: the batch is dealt out to so many, each with its own statistics.
  """

  depth: int = 20
  epochs: int = 50
  more: int = 12
  more_rate: float = 0.05
  seed: int = 0
  held_out: int = 100
  batch: int = 128
  rate: float = 0.2
  warm_up: float = 0.2
  decay: float = 5e-4
  momentum: float = 0.9
  arithmetic: str = 'float32'
  devices: int = 2


_OPTIONS = str(Recipe.__doc__).partition('Attributes:')[2]


@dataclasses.dataclass(frozen=True)
class Images:
  """Labelled images in memory.

  Attributes:
    pixels: (N, 32, 32, 3) uint8, RGB.
    labels: (N,) int32.
  """

  pixels: np.ndarray
  labels: np.ndarray

  def chosen(self, index: np.ndarray | slice) -> 'Images':
    """The images of an index or a mask."""
    return Images(self.pixels[index], self.labels[index])


def load(data: str) -> tuple[Images, list[str]]:
  """All images, and the names of their folders, which are the classes."""
  items = sources.open_source(data).items
  folders = [pathlib.PurePosixPath(item.key).parent.name for item in items]
  names = sorted(set(folders))
  if len(names) < 2:
    raise errors.UserError(
      f'{data} has its images in one folder. Their classes are their folders:'
      ' train/cat/0001.jpg, train/dog/0001.jpg and so on.'
    )

  def pixels(item: sources.Item) -> np.ndarray:
    image = decoding.decode(item.read())
    if image.size != (PREPROCESS.crop_size,) * 2:
      raise errors.UserError(f'{item.name} is not 32x32.')
    return np.asarray(image.convert('RGB') if image.mode != 'RGB' else image)

  with concurrent.futures.ThreadPoolExecutor(cores.count()) as pool:
    decoded = np.stack(list(pool.map(pixels, items)))
  labels = np.array([names.index(folder) for folder in folders], np.int32)
  return Images(decoded, labels), names


def split(images: Images, recipe: Recipe) -> tuple[Images, Images]:
  """The images to train on, and `held_out` of each class, by the seed."""
  held = np.zeros(len(images.labels), bool)
  random = np.random.RandomState([recipe.seed, 1])
  for label in np.unique(images.labels):
    of_class = np.flatnonzero(images.labels == label)
    held[random.permutation(of_class)[: recipe.held_out]] = True
  return images.chosen(~held), images.chosen(held)


def augmented(images: Images, seed: int, step: int) -> Images:
  """Randomly moved and mirrored images; what comes in is the mean colour."""
  random = np.random.RandomState([seed, 2, step])
  count, size = images.pixels.shape[:2]
  mean = np.round(mean_lib.as_array(PREPROCESS.mean)).ravel().astype(np.uint8)
  padded = np.empty((count, *(size + 2 * _PADDING,) * 2, 3), np.uint8)
  padded[:] = mean
  padded[:, _PADDING:-_PADDING, _PADDING:-_PADDING] = images.pixels
  tops, lefts = random.randint(0, 2 * _PADDING + 1, (2, count))
  mirrored = random.randint(0, 2, (count,))
  moved = np.empty_like(images.pixels)
  for n, (top, left) in enumerate(zip(tops, lefts, strict=True)):
    crop = padded[n, top : top + size, left : left + size]
    moved[n] = crop[:, ::-1] if mirrored[n] else crop
  return Images(moved, images.labels)


class Training:
  """A network, its optimiser, and the programs of a step and of an evaluation.

  Attributes:
    module: the network.
    rate: the learning rate at a step.
  """

  def __init__(self, recipe: Recipe, classes: int, steps: int) -> None:
    """Compiles nothing yet.

    Args:
      recipe: the settings.
      classes: of the classifier.
      steps: of an epoch.
    """
    self.module = resnet.published(recipe.depth).clone(
      classes=classes, training=layers.Training(recipe.arithmetic)
    )
    first = recipe.epochs * steps
    self.rate = optax.join_schedules(
      [
        _cycle(first, recipe.rate, recipe.warm_up),
        _cycle(recipe.more * steps, recipe.more_rate, recipe.warm_up),
      ],
      [first],
    )
    self._optimizer = optax.chain(
      optax.add_decayed_weights(recipe.decay, _kernels),
      optax.sgd(self.rate, recipe.momentum, nesterov=True),
    )
    self._seed = recipe.seed
    mesh = jax.sharding.Mesh(np.array(_devices(recipe)), (_AXIS,))
    same, dealt = (
      jax.sharding.PartitionSpec(),
      jax.sharding.PartitionSpec(_AXIS),
    )
    self._same = jax.sharding.NamedSharding(mesh, same)
    step = jax.shard_map(
      self._step, mesh=mesh, in_specs=(same, dealt, dealt), out_specs=same
    )
    self.step = jax.jit(step, donate_argnums=0)
    self._scores = jax.jit(self._evaluate)

  def start(self) -> State:
    """A random network."""
    x = jnp.zeros((1, 32, 32, 3))
    key = jax.random.key(self._seed)
    variables = jax.jit(self.module.init)(key, x)
    state = {
      **variables,
      'optimizer': self._optimizer.init(variables['params']),
      'step': jnp.zeros((), jnp.int32),
      'totals': jnp.zeros(2),
    }
    return self.placed(state)

  def placed(self, state: State) -> State:
    """A state on every device."""
    return jax.device_put(state, self._same)

  def _step(self, state: State, pixels: jax.Array, labels: jax.Array) -> State:
    # The loss is the mean of all devices, so that its gradient is, too.
    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
      logits, changed = self.module.apply(
        {'params': params, 'batch_stats': state['batch_stats']},
        crops.network_input(pixels, PREPROCESS, jnp),
        train=True,
        logits=True,
        mutable=['batch_stats'],
      )
      losses, wrong = _losses(logits, labels)
      value = jax.lax.pmean(losses.mean(), _AXIS)
      return value, (wrong.mean(), changed['batch_stats'])

    (value, aside), gradient = jax.value_and_grad(loss, has_aux=True)(
      state['params']
    )
    wrong, batch_stats = jax.lax.pmean(aside, _AXIS)
    updates, optimizer = self._optimizer.update(
      gradient, state['optimizer'], state['params']
    )
    return {
      'params': optax.apply_updates(state['params'], updates),
      'batch_stats': batch_stats,
      'optimizer': optimizer,
      'step': state['step'] + 1,
      # Of the epoch so far.
      'totals': state['totals'] + jnp.stack([value, wrong]),
    }

  def _evaluate(
    self, variables: Any, pixels: jax.Array, labels: jax.Array
  ) -> jax.Array:
    logits: Any = self.module.apply(
      variables, crops.network_input(pixels, PREPROCESS, jnp), logits=True
    )
    losses, wrong = _losses(logits, labels)
    return jnp.stack([losses.sum(), wrong.sum()])

  def scores(self, state: State, images: Images) -> np.ndarray:
    """The mean loss and the error of images, a fraction."""
    variables = {name: state[name] for name in ('params', 'batch_stats')}
    sums = np.zeros(2)
    for first in range(0, len(images.labels), _EVALUATED):
      part = images.chosen(slice(first, first + _EVALUATED))
      sums += np.asarray(self._scores(variables, part.pixels, part.labels))
    return sums / len(images.labels)


def _cycle(steps: int, rate: float, warm_up: float) -> optax.Schedule:
  """Up to a rate and down to 0 on straight lines."""
  top = round(warm_up * steps)
  up = optax.linear_schedule(0, rate, top)
  down = optax.linear_schedule(rate, 0, steps - top)
  return optax.join_schedules([up, down], [top])


def _devices(recipe: Recipe) -> list[jax.Device]:
  there = jax.devices()
  possible = [n for n in range(1, len(there) + 1) if recipe.batch % n == 0]
  if recipe.devices not in possible:
    raise errors.UserError(
      f'--devices={recipe.devices} is not possible with {len(there)} of JAX'
      f' ({there[0].platform}) and --batch={recipe.batch}. Give one of'
      f' {possible}.'
    )
  return there[: recipe.devices]


def _kernels(params: Any) -> Any:
  """Which parameters decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def _losses(
  logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropies, and whether the best class is wrong."""
  logits = logits[:, 0, 0].astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses, (logits.argmax(-1) != labels).astype(jnp.float32)


def save(
  path: pathlib.Path, state: State, recipe: Recipe, epochs: list[dict]
) -> None:
  """Writes a checkpoint, whole or not at all."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  arrays = {
    jax.tree_util.keystr(path): np.array(value) for path, value in leaves
  }
  stated = {
    'recipe': json.dumps(dataclasses.asdict(recipe)),
    'epochs': json.dumps(epochs),
  }
  files.write_atomically(path, safetensors.numpy.save(arrays, stated))


def restore(
  path: pathlib.Path, state: State, recipe: Recipe
) -> tuple[State, list[dict]]:
  """A checkpoint's state and its epochs' lines.

  Args:
    path: of the checkpoint.
    state: one of the same structure.
    recipe: the settings, which must be those of the checkpoint.
  """
  with safetensors.safe_open(path, 'numpy') as file:
    stated = file.metadata()
    theirs = json.loads(stated['recipe'])
    before_more = len(json.loads(stated['epochs'])) <= recipe.epochs
    changed = {
      name: (theirs.get(name), value)
      for name, value in dataclasses.asdict(recipe).items()
      if theirs.get(name) != value
      # What has not begun may be decided again.
      and not (before_more and name in ('more', 'more_rate'))
    }
    if changed:
      raise errors.UserError(
        f'{path} was written with other settings (its own, yours): {changed}.'
        ' Give its own, or another folder.'
      )
    restored = jax.tree_util.tree_map_with_path(
      lambda path, _: jnp.asarray(file.get_tensor(jax.tree_util.keystr(path))),
      state,
    )
  return restored, json.loads(stated['epochs'])


def train(
  folder: pathlib.Path,
  recipe: Recipe,
  images: Images,
  *,
  save_every: float = 180.0,
  say: Callable[[str], None] = print,
) -> State:
  """Trains from the checkpoint in a folder, or from the start, to the end.

  Args:
    folder: of the checkpoint and the lines.
    recipe: the settings.
    images: all of them.
    save_every: seconds between checkpoints within an epoch.
    say: reports the progress.
  """
  trained, held_out = split(images, recipe)
  count = len(trained.labels)
  steps = count // recipe.batch
  if not steps:
    raise errors.UserError(
      f'{count} images to train on are fewer than a batch of {recipe.batch}:'
      f' {len(held_out.labels)} are held out. Give more images, or a smaller'
      ' --batch or --held_out.'
    )
  training = Training(recipe, len(np.unique(images.labels)), steps)
  state, epochs = training.start(), list[dict]()
  folder.mkdir(parents=True, exist_ok=True)
  checkpoint = folder / 'checkpoint.safetensors'
  if checkpoint.exists():
    state, epochs = restore(checkpoint, state, recipe)
    state = training.placed(state)
    say(f'{checkpoint}: from step {int(state["step"])}')
  step, saved, begun = int(state['step']), time.monotonic(), time.monotonic()
  while step < (recipe.epochs + recipe.more) * steps:
    epoch = step // steps
    order = np.random.RandomState([recipe.seed, 3, epoch]).permutation(count)
    first = step % steps * recipe.batch
    batch = trained.chosen(order[first : first + recipe.batch])
    batch = augmented(batch, recipe.seed, step)
    state = training.step(state, batch.pixels, batch.labels)
    step += 1
    if step % _LOG_EVERY == 0:
      loss = float(state['totals'][0]) / (step - epoch * steps)
      say(f'step {step}, loss {loss:.4f}, {time.monotonic() - begun:.0f} s')
    if step % steps == 0:
      loss, error = np.asarray(state['totals']) / steps
      line = {
        'epoch': epoch + 1,
        'step': step,
        'rate': round(float(training.rate(step - 1)), 6),
        'loss': round(float(loss), 5),
        'error': round(100 * float(error), 3),
      }
      if len(held_out.labels):
        loss, error = training.scores(state, held_out)
        line['held_out_loss'] = round(float(loss), 5)
        line['held_out_error'] = round(100 * float(error), 3)
      epochs.append(line)
      state['totals'] = jnp.zeros(2)
      say(json.dumps(line))
    if step % steps == 0 or time.monotonic() - saved > save_every:
      save(checkpoint, state, recipe, epochs)
      saved = time.monotonic()
      lines = ''.join(f'{json.dumps(line)}\n' for line in epochs)
      files.write_atomically(folder / 'epochs.jsonl', lines.encode())
  return state


def export(
  folder: pathlib.Path, recipe: Recipe, state: State, names: list[str]
) -> pathlib.Path:
  """Writes the network, in half precision, as a file that every job takes."""
  module = resnet.ResNet(recipe.depth, len(names))
  variables = jax.tree.map(
    lambda array: np.asarray(array, np.float16).astype(np.float32),
    {name: state[name] for name in ('params', 'batch_stats')},
  )
  model = resnet_jax.from_variables(module, variables, PREPROCESS, names)
  path = folder / f'resnet{recipe.depth}.safetensors'
  path.unlink(missing_ok=True)
  model.save(path)
  return path


def plot(folder: pathlib.Path) -> pathlib.Path:
  """Plots the errors of `epochs.jsonl`."""
  import matplotlib  # noqa: PLC0415 - an extra

  matplotlib.use('agg')
  from matplotlib import pyplot  # noqa: PLC0415 - after the backend

  lines = [
    json.loads(line)
    for line in (folder / 'epochs.jsonl').read_text('utf-8').splitlines()
  ]
  figure, axes = pyplot.subplots(figsize=(6, 4), layout='constrained')
  for name, label in (
    ('error', 'trained on, moved and mirrored'),
    ('held_out_error', 'held out'),
  ):
    points = [(line['epoch'], line[name]) for line in lines if name in line]
    if points:
      axes.plot(*zip(*points, strict=True), marker='o', label=label)
  axes.set(xlabel='epoch', ylabel='top-1 error, %', yscale='log')
  axes.yaxis.set_major_formatter('{x:g}')
  axes.yaxis.set_minor_formatter('{x:g}')
  axes.grid(alpha=0.3, which='both')
  axes.legend()
  path = folder / 'curve.png'
  figure.savefig(path, dpi=120, metadata={'Software': None})
  pyplot.close(figure)
  return path


def main() -> None:
  """Trains."""
  parser = argparse.ArgumentParser(
    description=f'{__doc__.splitlines()[0]}\n{_OPTIONS}',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    'folder', type=pathlib.Path, help='of the checkpoint, lines and results'
  )
  parser.add_argument(
    '--data', required=True, help='a tar or folder, class/image below it'
  )
  for field in dataclasses.fields(Recipe):
    parser.add_argument(
      f'--{field.name}',
      type=type(field.default),
      default=field.default,
      help='default %(default)s',
    )
  given = vars(parser.parse_args())
  folder, data = given.pop('folder'), given.pop('data')
  recipe = Recipe(**given)
  devices.use_cores()
  try:
    images, names = load(data)
    state = train(folder, recipe, images, say=lambda s: print(s, flush=True))
    print(export(folder, recipe, state, names))
    print(plot(folder))
  except errors.UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
