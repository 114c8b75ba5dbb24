# SPDX-License-Identifier: Apache-2.0
"""Flax's form of parameters: a tree for each collection.

Elsewhere in the program a network's parameters are one flat table,
`layer/leaf`, as the formats of weights have them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# The leaves that are not learned.
STATISTICS = ('mean', 'var')
COLLECTIONS = ('params', 'batch_stats')


def collection(name: str) -> str:
  """The collection of `layer/leaf`."""
  return COLLECTIONS[name.rsplit('/', 1)[-1] in STATISTICS]


def tree(parameters: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
  """`layer/leaf` arrays as `{collection: {layer: {leaf: array}}}`."""
  result: dict[str, dict[str, dict[str, Any]]] = {n: {} for n in COLLECTIONS}
  for name, value in parameters.items():
    layer, leaf = name.split('/')
    result[collection(name)].setdefault(layer, {})[leaf] = value
  return result


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
  """The leaves of variables by `collection/layer/leaf`, however deep."""

  def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
      for key, value in node.items():
        yield from leaves(value, f'{path}/{key}' if path else str(key))
    else:
      yield path, node

  return dict(leaves(variables, ''))
