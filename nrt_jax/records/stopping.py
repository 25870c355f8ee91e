"""Stopping on preemption: SIGTERM is the notice, on one host or several."""

import contextlib
import signal

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_flag():
  """Yields a list that becomes non-empty on SIGTERM (a preemption notice): the loop then saves and stops.

  With several processes, JAX's preemption service handles the signal, so that all stop at the same step.
  """
  flag = []
  if jax.process_count() > 1:
    yield flag
    return
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: flag.append(True))
  except ValueError:  # not the main thread: the caller handles signals
    yield flag
    return
  try:
    yield flag
  finally:
    signal.signal(signal.SIGTERM, before)


def must_stop(flag: list, step: int) -> bool:
  """Whether a signal requests a stop after this step. All hosts agree on the step, or they would deadlock."""
  if jax.process_count() == 1:
    return bool(flag)
  return multihost_utils.reached_preemption_sync_point(step)
