# SPDX-License-Identifier: Apache-2.0
"""Diagrams: as text, and rendered by graphviz's program `dot`."""

import dataclasses
import shutil
import subprocess

from resnet_jax.models import aliases, known, names, resnet, variant
from resnet_jax.system import errors
from resnet_jax.views import boxes, graph
from resnet_jax.views import diagram as diagram_lib

PROGRAM = 'dot'
FORMATS = ('svg', 'png', 'pdf')

# ResNet-152 with all layers takes a few seconds.
_SECONDS = 300


@dataclasses.dataclass(frozen=True, repr=False)
class Diagram:
  """A network's diagram; a notebook shows it where graphviz is installed.

  Attributes:
    title: describes the network.
    dot: the text, in graphviz's language.
    notes: what the user should know, one per entry.
  """

  title: str
  dot: str

  def render(self, kind: str = 'svg') -> bytes:
    """The image: SVG, PNG or PDF.

    Raises:
      UserError: the kind is unknown, or graphviz is missing or fails.
    """
    return run(self.dot, errors.check_choice('format', kind, FORMATS))

  def _repr_svg_(self) -> str | None:
    return self.render().decode() if shutil.which(PROGRAM) else None

  def __repr__(self) -> str:
    return (
      f'Diagram({self.title!r}: .dot is its text; .render() draws it with'
      ' graphviz, and so does a notebook)'
    )


def diagram(
  name: str | int = 50,
  *,
  level: str = 'blocks',
  highlight: str = '',
  stride_in: str = 'auto',
  stem_pool: str = 'auto',
  epsilon: float = 0.0,
  stem_width: int = 0,
  width: int = 0,
  inner_width: int = 0,
  groups: int = 0,
  crop_size: int = 224,
) -> Diagram:
  """A network's diagram, without any weights.

  Args:
    name: as for `load`: 'resnet50', 50, 'resnext50_32x4d'.
    level: a box for each of the 'layers', 'blocks' or 'stages'.
    highlight: a layer; what does not lead to it is pale.
    stride_in: '1x1' or '3x3'.
    stem_pool: 'ceil' or 'pad1'.
    epsilon: of the batch norms.
    stem_width: channels of the stem.
    width: channels of res2's blocks, over 4 in bottleneck blocks.
    inner_width: channels of the 3x3 convolution of a bottleneck block of res2.
    groups: of that convolution.
    crop_size: of the images, pixels.

  Returns:
    A `Diagram`, which a notebook shows where graphviz is installed; its `.dot`
    is the text, and `.render()` gives SVG.

  Raises:
    UserError: says what was given, what is allowed and what to do.
  """
  # By the names of fields, so that a new field is a new argument only.
  settings = dict(locals())
  given = {field: settings[field] for field in variant.FIELDS}
  module = resnet.published(*known.asked(name, given))
  return draw(module, crop_size, level, highlight)


def draw(
  module: resnet.ResNet, size: int, level: str, highlight: str
) -> Diagram:
  """Draws a network for square images.

  Args:
    module: the network.
    size: of the images, pixels.
    level: one of `boxes.LEVELS`.
    highlight: a layer, by any of its names; layers that are not computed for
      it are pale.  '': none.

  Raises:
    UserError: the level or the layer is unknown, or the name is ambiguous.
  """
  errors.check_choice('diagram_level', level, boxes.LEVELS)
  found: tuple[str, ...] = ('',)
  if highlight:
    found = aliases.select(highlight, module.depth, module.classes > 0)
  layer, *others = found
  if others:
    raise errors.UserError(
      f"highlight='{highlight}' stands for {len(found)} layers, from"
      f' {layer} to {others[-1]}. Name one of them.'
    )
  # The value before a ReLU is in the box of its layer.
  layer = layer.removesuffix(names.LINEAR)
  if layer and names.is_between(layer):
    raise errors.UserError(
      f"highlight='{highlight}' is {layer}, which is no layer and has no box."
      ' Name a layer.'
    )
  title, network = resnet.describe(module), graph.build(module, size, size)
  text = diagram_lib.dot(network, title, level, layer)
  return Diagram(title, text)


def run(text: str, kind: str) -> bytes:
  """Renders a text with graphviz.

  Args:
    text: in graphviz's language.
    kind: one of its formats.

  Raises:
    UserError: graphviz is missing or fails.
  """
  program = shutil.which(PROGRAM)
  if program is None:
    raise errors.UserError(
      f"{kind.upper()} needs graphviz, whose program '{PROGRAM}' is not found."
      ' Install it (apt install graphviz, dnf install graphviz, brew install'
      ' graphviz, conda install graphviz, winget install graphviz; or'
      ' https://graphviz.org/download) and run this again.'
    )
  command = [program, f'-T{kind}']
  try:
    done = subprocess.run(  # noqa: PLW1510 - the message quotes its errors
      command, input=text.encode(), capture_output=True, timeout=_SECONDS
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise errors.UserError(f'{program} failed: {error}.') from error
  if done.returncode or not done.stdout:
    message = done.stderr.decode(errors='replace').strip()
    raise errors.UserError(
      f'{program} gave no {kind.upper()} (exit status {done.returncode}):'
      f' {message[:500] or "no message"}. Check that it is'
      f' graphviz and supports {kind.upper()}, with `dot -V` and `dot -T?`.'
    )
  return done.stdout
