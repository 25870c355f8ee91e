"""How a run learns that it must stop: SIGTERM, as a notice of preemption, on one host or on several."""

import contextlib
import signal

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_flag():
  """Yields a list that SIGTERM (a preemption notice) makes non-empty: the loop then saves and stops.

  With several processes JAX's own preemption service handles the signal, so that they stop at the same step.
  """
  flag = []
  if jax.process_count() > 1:
    yield flag
    return
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: flag.append(True))
  except ValueError:  # not the main thread: whoever runs us there handles its own signals
    yield flag
    return
  try:
    yield flag
  finally:
    signal.signal(signal.SIGTERM, before)


def must_stop(flag: list, step: int) -> bool:
  """Whether a signal asks to stop after this step. Hosts agree on the step, or they would wait for each other."""
  if jax.process_count() == 1:
    return bool(flag)
  return multihost_utils.reached_preemption_sync_point(step)
