# SPDX-License-Identifier: Apache-2.0
"""How many cores there are for this process."""

import os


def count() -> int:
  """Those that it may use, where the system tells; else all of the machine.

  A scheduler of a cluster gives a job some of a machine's.
  """
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
