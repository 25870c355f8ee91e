"""Why a run stops before its end: a preemption, of which SIGTERM is the notice, or updates that are not finite.

And why a stage does: success.
"""

import contextlib
import math
import signal
from dataclasses import dataclass

import jax
from jax.experimental import multihost_utils

from nrt_jax.errors import UserError

STOPPED = 143  # the exit code of a process ended by SIGTERM: tells a supervisor that the run is not finished
SHARES = ("accuracy", "_fraction")  # ends of the names of metrics in [0, 1]


@dataclass(frozen=True)
class StopConfig:
  """Ends a stage on success, before its `total_steps`: where the mean of a metric over its last episodes is high."""

  metric: str | None = None  # of a step, such as "completion/accuracy" or "reward/mean"; None: only total_steps count
  bar: float = 0.8  # the mean that is enough, at most 1
  episodes: int = 1024  # the last sampled rows of the stage that it is over, rounded up to whole steps

  def __post_init__(self):
    share = self.metric is not None and self.metric.endswith(SHARES)
    if not self.bar <= 1 or (share and self.bar <= 0):
      allowed = f"above 0, up to 1, for {self.metric}" if share else "at most 1"
      raise UserError(f"stop.bar: found {self.bar}, allowed: {allowed}")
    if self.episodes < 1:
      raise UserError(f"stop.episodes: found {self.episodes}, allowed: 1 or more")

  def seen(self, window: tuple, metrics: dict, of_step: int) -> tuple:
    """The metric of the last steps, with that of one more, which had `of_step` episodes. One not finite clears it.

    metrics: those of the step; none where there was no step.
    """
    if self.metric is None or self.metric not in metrics:
      return window
    value = metrics[self.metric]
    return (*window, value)[-self._steps(of_step) :] if math.isfinite(value) else ()

  def reached(self, window: tuple, of_step: int) -> bool:
    """Whether the mean over the window, which must be full, is at the bar."""
    full = self.metric is not None and len(window) >= self._steps(of_step)
    return bool(full and math.fsum(window) / len(window) >= self.bar)

  def _steps(self, of_step: int) -> int:
    return -(-self.episodes // of_step)


@contextlib.contextmanager
def stop_flag():
  """Yields a list that becomes non-empty on SIGTERM (a preemption notice): the loop then saves and stops.

  Whoever heeds the signal clears the list. A signal that came too late for that goes to the handler of before.
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
  if flag:
    signal.raise_signal(signal.SIGTERM)


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
