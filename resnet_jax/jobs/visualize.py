# SPDX-License-Identifier: Apache-2.0
"""The job `visualize`: plots of a network's layers for images, and a report."""

import dataclasses
import datetime
import importlib.metadata
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import views
from resnet_jax.data import labels, sources
from resnet_jax.engine import devices, gradcam
from resnet_jax.evaluation import prediction
from resnet_jax.jobs import setup as setup_lib
from resnet_jax.models import aliases, names, resnet
from resnet_jax.system import console, errors, files, timing, version
from resnet_jax.system.text import counted, some
from resnet_jax.views import colours, graph, maps, page, report_folder

MAX_IMAGES = 200
PREDICTED = 'predicted'

_NO_HEAD = 'These weights have no head (no classifier), so no predictions.'
_ONE_OUTPUT = 'The classifier has a single output, so there is no best class.'
# In a folder's name; the rest is safe in every file system and in HTML.
_UNSAFE = re.compile(r'[^A-Za-z0-9._-]+')


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is plotted, and where to.

  Attributes:
    setup: images, preprocessing, network and device.
    classes: of the classifier; none: there is no classifier.
    layers: with maps.
    count: maps a layer.
    grad_cam: None: there is no classifier.
    side: pixels a side of the maps in the page.
    folder: to write to.
  """

  setup: setup_lib.Setup
  classes: Sequence[labels.ImageNetClass]
  layers: tuple[str, ...]
  count: int
  grad_cam: gradcam.GradCam | None
  side: int
  folder: pathlib.Path

  @property
  def first_kernel(self) -> np.ndarray:
    """The kernel of the first convolution."""
    return self.setup.model.weights.parameters['conv1_conv/kernel']

  def class_name(self, label: int) -> str:
    """A class's description: its index, and its name if known."""
    known = self.classes[label].name if label < len(self.classes) else ''
    return f'{label} {known}'.strip()


def run(config: ConfigDict) -> int:
  """Writes the report, in place of an earlier one."""
  _check(config)
  target = report_folder.checked(config.report)
  setup = setup_lib.set_up(config, most=MAX_IMAGES)
  plan = _prepared(config, setup, files.part(target))
  _say_plan(plan, target)
  clock = timing.Clock()
  with files.writing('the report', target):
    report_folder.create(target)
    entries = _draw(plan, clock)
    text = page.document(_overview(config, plan), entries)
    (plan.folder / report_folder.PAGE).write_text(text, 'utf-8')
    report_folder.publish(target)
  setup_lib.report_stages(clock)
  return setup.end(
    f'the report is {target / report_folder.PAGE}'
    f' ({len(text.encode()) / 1e6:.1f} MB)',
    failed=sum(bool(entry['reason']) for entry in entries),
  )


# ----------------------------------------------------------- before it starts


def _check(config: ConfigDict) -> None:
  """Refuses settings before the weights are loaded."""
  colours.matplotlib()
  if config.multi_crop:
    raise errors.UserError(
      'multi_crop=true: visualize needs a single crop; leave multi_crop out.'
    )
  if not 1 <= config.map_count <= maps.MAX_MAPS:
    raise errors.UserError(
      f'map_count={config.map_count} is not between 1 and {maps.MAX_MAPS}.'
    )
  if config.layer_num:
    _map_layers(config.map_layers, config.layer_num)


def _prepared(
  config: ConfigDict, setup: setup_lib.Setup, folder: pathlib.Path
) -> _Plan:
  module = setup.model.module
  layers, without = _map_layers(config.map_layers, module.depth)
  if without:
    console.say(f'NOTE: {", ".join(without)}: no positions, so no maps')
  classes: Sequence[labels.ImageNetClass] = ()
  grad_cam = None
  if module.classes:
    classes = setup.model.classes
    label = None
    if (text := config.cam_class) != PREDICTED:
      label = labels.find('cam_class', text, classes, f", or '{PREDICTED}'")
    grad_cam = gradcam.checked_grad_cam(module, config.cam_layer, label)
  elif config.cam_class != PREDICTED or config.cam_layer:
    # Asked for explicitly, so this raises.
    gradcam.checked_grad_cam(module)
  size = setup.model.preprocess.crop_size
  shapes = resnet.value_shapes(module, size, size)
  with_maps = [shapes[name] for name in layers]
  count, images = config.map_count, len(setup.source.items)
  side = page.map_side(with_maps, count, images)
  return _Plan(setup, classes, layers, count, grad_cam, side, folder)


def _map_layers(
  text: str, depth: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The layers with maps, and those without."""
  if not text:
    # The last layer of each stage.
    ends = {
      name.split('_')[0]: name
      for name in names.map_layers(depth)
      if name != 'pool1'
    }
    return tuple(ends.values()), ()
  selected = aliases.select(text, depth)
  chosen = tuple(filter(names.has_positions, selected))
  without = tuple(itertools.filterfalse(names.has_positions, selected))
  if not chosen:
    raise errors.UserError(
      f"map_layers='{text}': {some(without)} have no positions, so no maps."
      ' All layers before avgpool have.'
    )
  return chosen, without


def _say_plan(plan: _Plan, target: pathlib.Path) -> None:
  console.say(f'maps: {_maps_fact(plan)}')
  if plan.grad_cam:
    label = plan.grad_cam.label
    whose = 'the predicted class' if label is None else plan.class_name(label)
    console.say(f'Grad-CAM: {plan.grad_cam.layer}, for {whose}')
  else:
    console.say(f'NOTE: {_NO_HEAD}')
  console.say(
    f'page: at most {page.MAX_BYTES // 10**6} MB, maps at most {plan.side}'
    ' pixels a side; whole in the PNG files'
  )
  each = len(plan.layers) + bool(plan.grad_cam) + (len(plan.classes) > 1)
  count = 1 + each * len(plan.setup.source.items)
  console.say(f'to write: the page and at most {count} PNG files, to {target}')


def _maps_fact(plan: _Plan) -> str:
  return f'the {plan.count} strongest of {", ".join(plan.layers)}'


# ----------------------------------------------------------------- the images


def _draw(plan: _Plan, clock: timing.Clock) -> list[dict[str, Any]]:
  """Writes the PNG files; returns the images' entries for the page."""
  setup = plan.setup
  channels = setup.model.preprocess.channels
  figure = views.filters(plan.first_kernel, channels=channels)
  figure.savefig(plan.folder / 'filters.png')
  head = ('output',) if plan.classes else ()
  entries: list[dict[str, Any]] = []
  run = setup.prepared((*plan.layers, *head), grad_cam=plan.grad_cam)
  with console.Progress(len(setup.source.items)) as bar:
    for batch, values in setup.stream(run, clock):
      for row, item in enumerate(batch.items):
        folder = _folder_name(batch.start + row, item.key)
        if reason := batch.reasons[row]:
          console.say(f'FAILED: {item.name}: {reason}')
          result = page.ImageResult(item.key, folder, reason)
        else:
          own = {name: value[row] for name, value in values.items()}
          result = _result(plan, item, folder, batch.images[row, 0], own)
          _write_plots(plan, result, own)
        entries.append(page.entry(result, plan.side))
        bar.add(1)
  return entries


def _folder_name(number: int, key: str) -> str:
  """For an image's files: its number, from 1, and the safe part of its key."""
  stem = pathlib.PurePosixPath(key).stem
  readable = _UNSAFE.sub('_', stem)[:60].strip('_.-')
  return f'{number + 1:03d}_{readable}'.rstrip('_')


def _result(
  plan: _Plan,
  item: sources.Item,
  folder: str,
  crop: np.ndarray,
  values: Mapping[str, np.ndarray],
) -> page.ImageResult:
  best: tuple[page.PredictedClass, ...] = ()
  if len(plan.classes) > 1:
    probabilities = values['output'].ravel()
    scores = prediction.from_probabilities(probabilities, plan.classes).best
    best = tuple(
      page.PredictedClass(s.label, s.name, s.probability, s.label == item.label)
      for s in scores
    )
  true_class = cam_class = ''
  if item.label != sources.NO_LABEL:
    true_class = plan.class_name(item.label)
  cam = None
  if plan.grad_cam:
    label = plan.grad_cam.label
    label = (best[0].label if best else 0) if label is None else label
    cam, cam_class = values[gradcam.GRAD_CAM][0], plan.class_name(label)
  return page.ImageResult(
    item.key,
    folder,
    crop=crop,
    true_class=true_class,
    best=best,
    cam=cam,
    cam_class=cam_class,
    layers={
      name: maps.strongest(values[name], plan.count) for name in plan.layers
    },
  )


def _write_plots(
  plan: _Plan, result: page.ImageResult, values: Mapping[str, np.ndarray]
) -> None:
  folder = plan.folder / result.folder
  folder.mkdir()
  if best := result.best:
    views.bars(
      [f'{predicted.label} {predicted.name}' for predicted in best],
      [predicted.probability for predicted in best],
      marked=[predicted.is_true for predicted in best],
    ).savefig(folder / 'predictions.png')
  if plan.grad_cam and result.crop is not None and result.cam is not None:
    title = f'{plan.grad_cam.layer}: {result.cam_class}'
    figure = views.grad_cam(result.crop, result.cam, title=title)
    figure.savefig(folder / 'grad_cam.png')
  for name in plan.layers:
    figure = views.feature_maps(values[name], count=plan.count, title=name)
    figure.savefig(folder / f'maps_{name}.png')


# ------------------------------------------------------------------ the page


def _overview(config: ConfigDict, plan: _Plan) -> page.Overview:
  model, source = plan.setup.model, plan.setup.source
  weights, size = model.weights, model.preprocess.crop_size
  versions = version.versions() | {
    'matplotlib': importlib.metadata.version('matplotlib')
  }
  now = datetime.datetime.now(datetime.UTC)
  facts = (
    ('Date', f'{now:%Y-%m-%d %H:%M} UTC'),
    ('Network', resnet.describe(model.module)),
    ('Weights', weights.source),
    ('Trained', 'yes' if weights.trained else 'no: random numbers'),
    ('SHA-256 of the parameters', weights.digest),
    ('Notes', ' '.join(weights.notes) or 'none'),
    ('Images', source.description),
    ('Preprocessing', model.preprocess.describe()),
    ('Maps', _maps_fact(plan)),
    ('Grad-CAM', _cam_fact(plan)),
    ('Device', devices.describe(model.execution.devices)),
    ('Arithmetic', model.execution.arithmetic),
    ('Versions', ', '.join(f'{k} {v}' for k, v in versions.items())),
  )
  return page.Overview(
    f'{resnet.title(model.module)} on {counted(len(source.items), "image")}',
    weights.warnings,
    graph.build(model.module, size, size),
    plan.layers,
    maps.true_colours(plan.first_kernel, model.preprocess.channels),
    plan.grad_cam.layer if plan.grad_cam else '',
    _ONE_OUTPUT if plan.classes else _NO_HEAD,
    facts,
    dict(sorted(config.items())),
  )


def _cam_fact(plan: _Plan) -> str:
  if not plan.grad_cam:
    return 'none: there is no classifier'
  label = plan.grad_cam.label
  whose = 'predicted class'
  if label is not None:
    whose = f'class {plan.class_name(label)}'
  return f"of {plan.grad_cam.layer}, gradient of the {whose}'s logit"
