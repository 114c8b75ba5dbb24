# SPDX-License-Identifier: Apache-2.0
"""The job `status`: how far a run is that several processes share."""

import time

from ml_collections import ConfigDict

from resnet_jax.features import verification
from resnet_jax.system import console, files, ledger
from resnet_jax.system.text import counted, one_line

# Seconds that the clocks of two machines may differ without a word.
_CLOCKS_DIFFER = 60


def run(config: ConfigDict) -> int:
  """Prints it; the exit status is 1 if a store is unfinished or damaged."""
  directory = files.own_folder(config.output_dir, 'output_dir')
  found = verification.progress(directory)
  for line in _lines(found):
    console.result(line)
  whole = found.finished and not found.missing
  if not config.verify:
    return 0 if whole else 1
  damaged = 0
  with console.Progress(sum(m.stop - m.start for m in found.marks)) as bar:
    for mark, reason in verification.damaged(found):
      bar.add(mark.stop - mark.start)
      if reason:
        damaged += 1
        unit = found.units[mark.unit]
        place = f'{ledger.FOLDER}/{mark.unit:06}.json'
        console.result(f'DAMAGED: {unit}, {place}: {one_line(reason)}')
  if not damaged:
    console.result(
      f'verified: {counted(len(found.marks), "unit")}, none damaged'
    )
  return 0 if whole and not damaged else 1


def _lines(found: verification.Progress) -> list[str]:
  """What is known without reading a row."""
  marks, rows = found.marks, found.units.rows
  made = sum(mark.stop - mark.start for mark in marks)
  failed = sum(mark.failed for mark in marks)
  state = 'finished' if found.finished else 'not finished'
  lines = [
    f'{one_line(str(found.path))}: {state}',
    f'{len(marks):,} of {counted(len(found.units), "unit")}, {made:,} of'
    f' {counted(rows, "image")}, {failed:,} failed',
  ]
  if rates := found.rates():
    lines.append(
      f'{sum(rates.values()):.1f} images/s by'
      f' {counted(len(rates), "worker")}, those that ended included'
    )
  if last := found.last:
    line = f'last: unit {last.unit} by {one_line(last.worker)}, {last.date}'
    ahead = last.ended - time.time()
    if ahead > _CLOCKS_DIFFER:
      line += f'; the clock there is {ahead:.4g} s ahead of the one here'
    lines.append(line)
  if missing := found.missing:
    lines.append(ledger.described(missing))
  return lines
