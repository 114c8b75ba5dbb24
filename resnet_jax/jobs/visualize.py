# SPDX-License-Identifier: Apache-2.0
"""The job `visualize`: what a network makes of images, as PNGs and a page."""

import dataclasses
import datetime
import importlib.metadata
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import views
from resnet_jax.data import labels, sources
from resnet_jax.engine import devices, gradcam
from resnet_jax.evaluation import prediction
from resnet_jax.jobs import common, report_folder
from resnet_jax.models import aliases, names, resnet
from resnet_jax.system import console, errors, files, timing, version
from resnet_jax.views import colours, graph, maps, page

if TYPE_CHECKING:
  from matplotlib.figure import Figure

MAX_IMAGES = 200
PREDICTED = 'predicted'

_NO_HEAD = 'These weights have no head (no classifier), so no predictions.'
_ONE_OUTPUT = (
  'The classifier of these weights has a single output, so there is no best'
  ' class.'
)
# Of a folder's name: what every file system takes, and no page reads as HTML.
_UNSAFE = re.compile(r'[^A-Za-z0-9._-]+')


@dataclasses.dataclass(frozen=True)
class _Run:
  """What is shown, and where it is written.

  Attributes:
    setup: images, preprocessing, network and device.
    classes: of the classifier; none: there are no predictions.
    layers: those with maps.
    count: maps of a layer.
    grad_cam: None: there is no classifier.
    side: pixels of a map's side in the page.
    folder: what is written to.
  """

  setup: common.Setup
  classes: Sequence[labels.ImageNetClass]
  layers: tuple[str, ...]
  count: int
  grad_cam: gradcam.GradCam | None
  side: int
  folder: pathlib.Path


def run(config: ConfigDict) -> int:
  """Draws; replaces the report of an earlier run."""
  _check(config)
  target = report_folder.checked(config.report)
  setup = common.set_up(config, most=MAX_IMAGES)
  made = _prepared(config, setup, report_folder.part(target))
  _say_plan(made, target)
  clock = timing.Clock()
  with files.writing('the report', target):
    report_folder.create(target)
    entries = _draw(config, made, clock)
    text = page.document(_about(config, made), entries)
    (made.folder / report_folder.PAGE).write_text(text, 'utf-8')
    report_folder.publish(target)
  common.say_stages(clock)
  for warning in setup.weights.warnings:
    console.say(f'WARNING: {warning}')
  console.say(
    f'the report is {target / report_folder.PAGE}'
    f' ({len(text.encode()) / 1e6:.1f} MB)'
  )
  if failed := sum(bool(entry['reason']) for entry in entries):
    console.say(f'{failed} images could not be read')
    return common.SOME_FAILED
  return 0


# ----------------------------------------------------------- before it starts


def _check(config: ConfigDict) -> None:
  """What is wrong with the settings should not be found after the weights."""
  colours.matplotlib()
  if config.multi_crop:
    raise errors.UserError(
      'multi_crop=true: visualize shows what the network makes of one crop, and'
      ' an average over ten is nowhere in an image. Leave multi_crop out.'
    )
  if not 1 <= config.map_count <= maps.MOST:
    raise errors.UserError(
      f'map_count={config.map_count} is not between 1 and {maps.MOST}.'
    )
  if config.layer_num:
    _map_layers(config.map_layers, config.layer_num)


def _prepared(
  config: ConfigDict, setup: common.Setup, folder: pathlib.Path
) -> _Run:
  model = setup.model
  layers, notes = _map_layers(config.map_layers, model.depth)
  for note in notes:
    console.say(f'NOTE: {note}')
  classes: Sequence[labels.ImageNetClass] = ()
  grad_cam = None
  if model.classes:
    classes = labels.classes(
      model.classes, config.class_names, setup.weights.loaded.class_names
    )
    label = _label(config.cam_class, classes)
    grad_cam = gradcam.checked_grad_cam(model, config.cam_layer, label)
  elif config.cam_class != PREDICTED or config.cam_layer:
    # An error: what was asked for explicitly cannot be given.
    gradcam.checked_grad_cam(model)
  size = setup.how.crop_size
  shapes = resnet.layer_shapes(model, size, size)
  side = page.map_side(
    [shapes[name] for name in layers],
    config.map_count,
    len(setup.source.items),
  )
  return _Run(setup, classes, layers, config.map_count, grad_cam, side, folder)


def _map_layers(
  text: str, depth: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The layers whose maps are shown, and notes."""
  with_maps = names.map_layers(depth)
  if not text:
    ends = {name.split('_')[0]: name for name in with_maps}
    return ('conv1_bn', *(ends[s] for s in ends if s.startswith('res'))), ()
  selection = aliases.select_layers(text, depth)
  chosen = tuple(name for name in selection.layers if name in with_maps)
  if not chosen:
    raise errors.UserError(
      f"map_layers='{text}': {', '.join(selection.layers)} have no positions,"
      f' so no maps. {with_maps[0]} to {with_maps[-1]} have.'
    )
  left_out = [name for name in selection.layers if name not in with_maps]
  notes = selection.notes
  if left_out:
    notes += (f'{", ".join(left_out)}: no positions, so no maps',)
  return chosen, notes


def _label(text: str, classes: Sequence[labels.ImageNetClass]) -> int | None:
  """The class that Grad-CAM is for, by its index or WordNet id."""
  if text == PREDICTED:
    return None
  found = [i for i, known in enumerate(classes) if known.wnid == text != '']
  if found:
    return found[0]
  if not text.isdecimal() or int(text) >= len(classes):
    raise errors.UserError(
      f"cam_class='{text}' is none of these weights' {len(classes)} classes."
      f' Give an index (0 to {len(classes) - 1}), a WordNet id such as'
      f" n02123045 where the classes are ImageNet's, or '{PREDICTED}'."
    )
  return int(text)


def _say_plan(made: _Run, target: pathlib.Path) -> None:
  console.say(f'maps: the {made.count} strongest of {", ".join(made.layers)}')
  if made.grad_cam:
    label = made.grad_cam.label
    of = 'the predicted class' if label is None else _name(made, label)
    console.say(f'Grad-CAM: {made.grad_cam.layer}, for {of}')
  else:
    console.say(f'NOTE: {_NO_HEAD}')
  console.say(
    f'page: at most {page.MAX_BYTES // 10**6} MB, maps at most {made.side}'
    ' pixels a side; whole in the PNG files'
  )
  each = len(made.layers) + bool(made.grad_cam) + (len(made.classes) > 1)
  count = 1 + each * len(made.setup.source.items)
  console.say(f'to write: the page and at most {count} PNG files, to {target}')


# -------------------------------------------------------------- the images


def _draw(
  config: ConfigDict, made: _Run, clock: timing.Clock
) -> list[dict[str, Any]]:
  """Writes the PNG files; returns the images' parts of the page."""
  setup = made.setup
  _save(
    views.filters(_first_kernel(setup), channels=setup.how.channels),
    made.folder / 'filters.png',
  )
  head = ('output',) if made.classes else ()
  size = setup.how.crop_size
  shapes = resnet.layer_shapes(setup.model, size, size)
  layers = (*made.layers, *head)
  row_bytes = 4 * sum(int(np.prod(shapes[name])) for name in layers)
  entries: list[dict[str, Any]] = []
  network = common.make_network(setup, layers, grad_cam=made.grad_cam)
  rows = common.batch_rows(config, setup, network, row_bytes)
  computed = common.computed(config, setup, network, rows=rows, clock=clock)
  with console.Progress(len(setup.source.items)) as bar:
    for batch, values in computed:
      for row, (item, reason) in enumerate(
        zip(batch.items, batch.reasons, strict=True)
      ):
        folder = _folder_name(batch.start + row, item.key)
        if reason:
          console.say(f'FAILED: {item.name}: {reason}')
          image = page.ShownImage(item.key, folder, reason)
        else:
          own = {name: value[row] for name, value in values.items()}
          image = _image(made, item, folder, batch.images[row, 0], own)
          _write_plots(made, image, own)
        entries.append(page.entry(image, made.side))
        bar.add(1)
  return entries


def _folder_name(number: int, key: str) -> str:
  """Of an image's files: its number, from 1, and what can be read of it."""
  stem = pathlib.PurePosixPath(key).stem
  readable = _UNSAFE.sub('_', stem)[:60].strip('_.-')
  return f'{number + 1:03d}_{readable}'.rstrip('_')


def _image(
  made: _Run,
  item: sources.Item,
  folder: str,
  crop: np.ndarray,
  values: Mapping[str, np.ndarray],
) -> page.ShownImage:
  guesses: tuple[page.ShownClass, ...] = ()
  cam_class = ''
  if len(made.classes) > 1:
    best = prediction.from_probabilities(values['output'].ravel(), made.classes)
    guesses = tuple(
      page.ShownClass(g.label, g.name, g.probability, g.label == item.label)
      for g in best.best
    )
  if made.grad_cam:
    label = made.grad_cam.label
    label = (guesses[0].label if guesses else 0) if label is None else label
    cam_class = _name(made, label)
  cam = values.get(gradcam.GRAD_CAM)
  return page.ShownImage(
    item.key,
    folder,
    crop=crop,
    stated='' if item.label == sources.NO_LABEL else _name(made, item.label),
    best=guesses,
    cam=None if cam is None else cam[0],
    cam_class=cam_class,
    layers={
      name: maps.strongest(values[name], made.count) for name in made.layers
    },
  )


def _name(made: _Run, label: int) -> str:
  """A class for a person: its index, and its name if it has one here."""
  known = made.classes[label].name if label < len(made.classes) else ''
  return f'{label} {known}'.strip()


def _write_plots(
  made: _Run, image: page.ShownImage, values: Mapping[str, np.ndarray]
) -> None:
  folder = made.folder / image.folder
  folder.mkdir()
  assert image.crop is not None
  if image.best:
    figure = views.bars(
      [f'{guess.label} {guess.name}' for guess in image.best],
      [guess.probability for guess in image.best],
      marked=[guess.is_stated for guess in image.best],
    )
    _save(figure, folder / 'predictions.png')
  if image.cam is not None:
    title = f'{made.grad_cam.layer if made.grad_cam else ""}: '
    figure = views.grad_cam(
      image.crop, image.cam, title=title + image.cam_class
    )
    _save(figure, folder / 'grad_cam.png')
  for name in made.layers:
    figure = views.feature_maps(values[name], count=made.count, title=name)
    _save(figure, folder / f'maps_{name}.png')


def _save(figure: 'Figure', path: pathlib.Path) -> None:
  figure.savefig(path)


def _first_kernel(setup: common.Setup) -> np.ndarray:
  return setup.weights.parameters['conv1_conv/kernel']


# ------------------------------------------------------------------ the page


def _about(config: ConfigDict, made: _Run) -> page.About:
  setup, weights, model = made.setup, made.setup.weights, made.setup.model
  size = setup.how.crop_size
  no_head = _NO_HEAD if not made.classes else _ONE_OUTPUT
  versions = version.versions() | {
    'matplotlib': importlib.metadata.version('matplotlib')
  }
  now = datetime.datetime.now(datetime.UTC)
  facts = (
    ('Date', f'{now:%Y-%m-%d %H:%M} UTC'),
    ('Network', resnet.describe(model)),
    ('Weights', weights.source),
    ('Trained', 'yes' if weights.trained else 'no: random numbers'),
    ('SHA-256 of the parameters', weights.digest),
    ('Notes', ' '.join(weights.loaded.notes) or 'none'),
    ('Images', setup.source.description),
    ('Preprocessing', setup.how.describe()),
    ('Maps', f'the {made.count} strongest of {", ".join(made.layers)}'),
    ('Grad-CAM', _cam_fact(made)),
    ('Device', devices.describe(setup.execution.devices)),
    ('Arithmetic', setup.execution.arithmetic),
    ('Versions', ', '.join(f'{k} {v}' for k, v in versions.items())),
  )
  return page.About(
    f'What ResNet-{model.depth} makes of'
    f' {_counted(len(setup.source.items), "image")}',
    weights.warnings,
    graph.build(model, size, size),
    made.layers,
    maps.true_colours(_first_kernel(setup), setup.how.channels),
    made.grad_cam.layer if made.grad_cam else '',
    no_head,
    facts,
    dict(sorted(config.items())),
  )


def _cam_fact(made: _Run) -> str:
  if not made.grad_cam:
    return 'none: there is no classifier'
  label = made.grad_cam.label
  of = 'predicted class' if label is None else f'class {_name(made, label)}'
  return f"of {made.grad_cam.layer}, gradient of the {of}'s logit"


def _counted(count: int, what: str) -> str:
  return f'{count} {what}{"s" if count != 1 else ""}'
