# SPDX-License-Identifier: Apache-2.0
"""Runs of made-up features, written to files of any format."""

import numpy as np

from resnet_jax import features
from resnet_jax.features import output, stream, table

# Not in the order of the alphabet.
LAYERS = {'wide': (3, 2, 2), 'flat': (5, 1, 1)}
FACTS = table.Facts({'model': 'x', 'seed': 1}, {'note': 'ü', 'list': [1, 2]})


def plan_of(rows=8, batch=3, dtype='float32', layers=None):
  keys = [f'd{i % 2}/猫 {i} ü😀.png' for i in range(rows)]
  labels = [i - 1 for i in range(rows)]
  return table.FeatureTable(keys, labels, layers or LAYERS, dtype, batch)


def values_of(plan, failed=()):
  random = np.random.default_rng(0)
  values = {
    name: random.normal(size=(plan.rows, *shape)).astype(plan.dtype)
    for name, shape in plan.layers.items()
  }
  for array in values.values():
    array[list(failed)] = np.nan
  return values


def reasons_of(plan, failed=()):
  return [f'row {i} brökn' if i in failed else '' for i in range(plan.rows)]


def open_writer(form, directory, plan):
  """A writer of a format, by its name or as a `stream.RowFormat`."""
  if isinstance(form, str):
    kind = features.FORMATS[form]
    path = output.make_part(directory, lambda p: kind.create(p, plan, FACTS))
    return kind.writer(path, plan)
  path = output.make_part(directory, lambda p: stream.create(p, plan, FACTS))
  return stream.StreamWriter(form, path, plan)


def write_batch(writer, plan, failed=(), values=None):
  start = writer.done
  rows = slice(start, min(start + plan.batch_rows, plan.rows))
  values = values_of(plan, failed) if values is None else values
  writer.write(
    start,
    {name: array[rows] for name, array in values.items()},
    reasons_of(plan, failed)[rows],
  )
  assert writer.done == rows.stop
  assert writer.failed == sum(row < rows.stop for row in failed)


def write(form, directory, plan, *, stop=None, failed=(), done=0, values=None):
  """Resumes at `done`, as it must; writes up to `stop`, or all and publishes.

  Returns the writer.
  """
  writer = open_writer(form, directory, plan)
  assert writer.done == done
  assert writer.failed == sum(row < done for row in failed)
  values = values_of(plan, failed) if values is None else values
  while writer.done < (plan.rows if stop is None else stop):
    write_batch(writer, plan, failed, values)
  if stop is None:
    writer.finish()
    output.publish(directory)
  return writer
