"""Why a run stops before its end: a preemption, of which SIGTERM is the notice, or updates that are not finite."""

import contextlib
import signal

import jax
from jax.experimental import multihost_utils

from nrt_jax.errors import UserError


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


class SkippedSteps:
  """The steps in a row, up to the newest, in which an update was not finite and therefore skipped."""

  def __init__(self):
    self._steps = []  # (step, its examples)

  def __len__(self):
    return len(self._steps)

  def clear(self) -> None:
    self._steps = []

  def add(self, step: int, examples: str, limit: int, saved: int | None) -> str:
    """Counts a step, and says so. UserError if it is the last of `limit`; `saved`: the newest checkpoint's step."""
    self._steps.append((step, examples))
    if len(self) < limit:
      return f"step {step}: an update is not finite and is skipped; examples: {examples}"
    first, examples = self._steps[0]
    checkpoint = "there is no checkpoint" if saved is None else f"the newest checkpoint, of step {saved}, is finite"
    raise UserError(
      f"step {step}: in {limit} steps in a row (optimizer.max_skipped_steps) an update was not finite; the first was "
      f"step {first}, on the examples {examples}; {checkpoint}"
    )
