# SPDX-License-Identifier: Apache-2.0
"""The number of cores that this process may use."""

import os


def count() -> int:
  """The cores that the process may use, else all of the machine.

  A cluster's scheduler gives a job some of a machine's cores.
  """
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
