"""Cells of a study, each in a process of its own: for machines with many cores. They add to one file of results."""

import concurrent.futures
import contextlib
import os
import queue
import subprocess
import sys

from nrt_jax.errors import UserError


def require_count(processes: int) -> None:
  if processes < 1:
    raise UserError(f"--processes: found {processes}, allowed: 1 or more")


def run(cells: list, processes: int) -> None:
  """Runs this program once for each cell, a list of its flags, and `processes` at a time; raises if some failed.

  Each has its own share of the cores, as its pools of threads would otherwise be as large as the machine.
  """
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  shares = queue.SimpleQueue()
  for number in range(processes):
    shares.put(cores[number::processes] or cores[number % max(1, len(cores)) :][:1])

  def run_cell(flags):
    share = shares.get()
    try:
      with contextlib.suppress(OSError):
        if share:
          os.sched_setaffinity(0, share)  # of this thread, and so of what it starts
      return subprocess.run([sys.executable, sys.argv[0], *flags], stdout=subprocess.DEVNULL).returncode
    finally:
      shares.put(share)

  with concurrent.futures.ThreadPoolExecutor(processes) as pool:
    codes = list(pool.map(run_cell, cells))
  failed = [" ".join(flags) for flags, code in zip(cells, codes) if code]
  if failed:
    raise UserError(f"--processes: {len(failed)} of {len(cells)} cells failed, the first is {failed[0]}")
