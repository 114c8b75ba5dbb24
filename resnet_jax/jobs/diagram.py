# SPDX-License-Identifier: Apache-2.0
"""The job `diagram`: the network as a graph, without weights."""

import pathlib

from ml_collections import ConfigDict

from resnet_jax.jobs import setup
from resnet_jax.system import console, errors, files
from resnet_jax.views import boxes, graphviz

_DOT = '.dot'


def run(config: ConfigDict) -> int:
  """Writes the graphviz text, and the image that the suffix of `output` names.

  Without an output, prints the text.
  """
  errors.check_choice('diagram_level', config.diagram_level, boxes.LEVELS)
  target = pathlib.Path(config.output).expanduser() if config.output else None
  kind = _kind(target) if target else ''
  if target:
    files.check_path(target, 'output')
  module, size, _ = setup.described_network(config)
  drawn = graphviz.draw(module, size, config.diagram_level, config.highlight)
  if not target:
    console.result(drawn.dot.removesuffix('\n'))
    return 0
  text = target.with_suffix(_DOT) if kind else target
  _write(text, drawn.dot.encode())
  if kind:
    try:
      image = drawn.render(kind)
    except errors.UserError as error:
      raise errors.UserError(f'{text} is written. {error}') from error
    _write(target, image)
  return 0


def _kind(target: pathlib.Path) -> str:
  """The image format that a suffix stands for; '' for the text."""
  suffix = target.suffix.lower()
  if suffix != _DOT and suffix[1:] not in graphviz.FORMATS:
    raise errors.UserError(
      f"output={target}: the suffix names the format, and '{target.suffix}' is"
      f' none of {_DOT} (text), .svg, .png and .pdf.'
    )
  return '' if suffix == _DOT else suffix[1:]


def _write(path: pathlib.Path, data: bytes) -> None:
  with files.writing('the diagram', path):
    files.write_atomically(path, data)
  console.result(str(path))
