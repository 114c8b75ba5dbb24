# SPDX-License-Identifier: Apache-2.0
"""A network drawn: as text, and as an image by graphviz's program `dot`."""

import dataclasses
import shutil
import subprocess

from resnet_jax.models import aliases, resnet
from resnet_jax.system import errors
from resnet_jax.views import boxes, diagram, graph

PROGRAM = 'dot'
FORMATS = ('svg', 'png', 'pdf')

# ResNet-152's layers take a few seconds.
_SECONDS = 300


@dataclasses.dataclass(frozen=True, repr=False)
class Diagram:
  """A network's diagram; a notebook shows it where graphviz is installed.

  Attributes:
    title: what is drawn.
    dot: the text, in graphviz's language.
    notes: what the user should know, a sentence each.
  """

  title: str
  dot: str
  notes: tuple[str, ...] = ()

  def render(self, kind: str = 'svg') -> bytes:
    """The image: SVG, PNG or PDF.

    Raises:
      UserError: there is no such kind; or graphviz is not installed, or fails.
    """
    return run(self.dot, errors.check_choice('format', kind, FORMATS))

  def _repr_svg_(self) -> str | None:
    return self.render().decode() if shutil.which(PROGRAM) else None

  def __repr__(self) -> str:
    return (
      f'Diagram({self.title!r}: .dot is its text; .render() draws it, and so'
      ' does a notebook, where graphviz is installed)'
    )


def draw(
  model: resnet.ResNet,
  height: int,
  width: int,
  *,
  level: str = 'blocks',
  highlight: str = '',
) -> Diagram:
  """Draws a network for images of a size.

  Args:
    model: the network.
    height: of the images.
    width: of the images.
    level: one of `boxes.LEVELS`.
    highlight: a layer, by any of its names: what is not computed for it is
      pale.

  Raises:
    UserError: there is no such level or layer, or the name stands for several.
  """
  errors.check_choice('diagram_level', level, boxes.LEVELS)
  layer, notes = _layer(highlight, model) if highlight else ('', ())
  title = resnet.describe(model)
  network = graph.build(model, height, width)
  return Diagram(title, diagram.dot(network, title, level, layer), notes)


def _layer(name: str, model: resnet.ResNet) -> tuple[str, tuple[str, ...]]:
  """The canonical name of the layer that is to be highlighted, and notes."""
  found = aliases.select_layers(name, model.depth, head=model.classes > 0)
  if len(found.layers) > 1:
    raise errors.UserError(
      f"highlight='{name}' stands for {len(found.layers)} layers, from"
      f' {found.layers[0]} to {found.layers[-1]}. Name one of them.'
    )
  return found.layers[0], found.notes


def run(text: str, kind: str) -> bytes:
  """What graphviz makes of a text in its language.

  Args:
    text: of a diagram.
    kind: one of its formats.

  Raises:
    UserError: graphviz is not installed, or fails.
  """
  program = shutil.which(PROGRAM)
  if program is None:
    raise errors.UserError(
      f"{kind.upper()} needs graphviz, whose program '{PROGRAM}' is not found."
      ' Install it (apt install graphviz, dnf install graphviz, brew install'
      ' graphviz, conda install graphviz, winget install graphviz; or'
      ' https://graphviz.org/download) and start again.'
    )
  try:
    done = subprocess.run(
      [program, f'-T{kind}'],
      input=text.encode(),
      capture_output=True,
      timeout=_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise errors.UserError(f'{program} does not work: {error}.') from error
  if done.returncode or not done.stdout:
    said = done.stderr.decode(errors='replace').strip()
    raise errors.UserError(
      f'{program} gave no {kind.upper()} (exit status {done.returncode}):'
      f' {said[:500] or "it says nothing"}. Is it graphviz, with support of'
      f' {kind.upper()}? `dot -V` and `dot -T?` tell.'
    )
  return done.stdout
