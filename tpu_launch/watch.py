"""Babysitting: from submission to the last step, through queues, preemptions, dead workers and stalls."""

import collections
import json
import os
import statistics
import sys
import time

from nrt_jax.files import write_json
from tpu_launch.engines.job import STEP, EngineError, Job, State
from tpu_launch.run import Run

ATTEMPTS = 5  # at what an engine fails to do, before we give up
STARTS = 2  # attempts at setting up and starting the program, which may take long
HOLDING = (State.READY, State.RUNNING)  # states in which chips are paid for
LEFT = (State.DONE, State.MISTAKE)


class Steps:
  """Notices that a run gets no further. The first number seen is where it resumed, only a rise is a step."""

  def __init__(self, run: Run):
    self._run = run
    self._seconds = collections.deque(maxlen=50)  # per step, of the last rises
    self.best = 0
    self.begin(None)

  def begin(self, now: float | None) -> None:
    """A new attempt; `now` is None until it has machines."""
    self._since, self._step, self._moved = now, None, False

  def see(self, step: int | None, now: float) -> None:
    if self._since is None:
      self._since = now
    if step is None or step == self._step:
      return
    if self._step is not None and step > self._step:
      if self._moved:  # the first rise holds loading and compiling
        self._seconds.append((now - self._since) / (step - self._step))
      self._since, self._moved = now, True
    self._step, self.best = step, max(self.best, step)

  def stalled(self, now: float) -> str | None:
    """Says so, in words, where the run has stood still for too long."""
    if self._since is None:
      return None
    limit = self._run.start_seconds
    if self._moved:
      usual = statistics.median(self._seconds) if self._seconds else 0
      limit = max(self._run.stall_seconds, self._run.stall_factor * usual)
    waited = now - self._since
    after = f"after step {self._step}" if self._moved else "before its first step"
    return f"no step for {waited:.0f} s {after}, allowed: {limit:.0f}" if waited > limit else None


class Watch:
  """One run under supervision. `record` names a JSON file that tells others how it stands."""

  def __init__(self, job: Job, engine: str, record: str | None = None, clock=time.monotonic, sleep=time.sleep):
    self._job, self._run, self._engine, self._record = job, job.run, engine, record
    self._clock, self._sleep = clock, sleep
    self._steps = Steps(job.run)
    self._state, self._detail = None, ""
    self._restarts = self._failures = self._best = self._attempt = 0
    self._held, self._looked = _held_before(record), None  # an earlier launcher's time counts as well
    self._outcome = None

  def run(self) -> int:
    """Runs to the end and returns the exit code: 0, 1 where it was given up, 2 where the user must mend something.

    Whatever ends it, machines are given back; EngineError where they could not be.
    """
    try:
      self._persist(self._job.submit)
      while self._state not in LEFT:
        if not self._look():
          self._outcome = "failed"
          return 1
        if self._state not in LEFT:
          self._sleep(self._run.poll_seconds)
      self._outcome = "done" if self._state is State.DONE else "failed"
      return 0 if self._state is State.DONE else 2
    finally:
      self._job.close()
      self._persist(self._job.delete)
      self._write()

  def stop(self) -> None:
    """Ends the run, whoever started it. EngineError where that failed again and again."""
    self._persist(self._job.delete)

  def _look(self) -> bool:
    """One look, and what follows from it; False where there is no point in going on."""
    try:
      poll = self._job.poll()
    except EngineError as error:  # not a word about the run: what it does not say can't be acted upon
      self._say(f"no answer: {error}")
      poll = None
    now = self._clock()
    if self._state in HOLDING:
      self._held += now - self._looked
    self._looked = now
    if poll is not None:
      if poll.state is State.QUEUED or poll.attempt != self._attempt:
        self._steps.begin(None)  # it is to start, and need not make a step
      self._attempt = poll.attempt
      self._enter(poll.state, poll.detail)
    if self._state is not State.QUEUED:
      self._steps.see(self._read_step(), now)
    stalled = self._steps.stalled(now) if self._state in HOLDING else None
    if self._state is State.LOST or stalled:
      return self._again(self._detail if self._state is State.LOST else stalled)
    return self._try_start() if poll is not None and poll.state is State.READY else True

  def _read_step(self) -> int | None:
    """Shows what worker 0 printed; the step is the workdir's, else the last one printed."""
    text = self._job.log()
    sys.stdout.write(text)
    sys.stdout.flush()
    printed = STEP.findall(text)
    step = self._job.step()
    return int(printed[-1]) if step is None and printed else step

  def _try_start(self) -> bool:
    try:
      self._persist(self._job.start, STARTS)
    except EngineError as error:
      return self._again(f"could not be started: {error}")
    self._steps.begin(self._clock())
    return True

  def _again(self, reason: str) -> bool:
    """Resumes, unless it has failed too often without a new step."""
    self._failures = 0 if self._steps.best > self._best else self._failures
    self._best = self._steps.best
    self._failures += 1
    if self._failures > self._run.retries:
      self._say(f"given up after {self._failures} failures in a row without a new step: {reason}")
      return False
    self._restarts += 1
    self._say(f"{reason}; restart {self._restarts}")
    self._steps.begin(None)
    self._persist(self._job.restart)
    self._enter(State.QUEUED, "")
    return True

  def _persist(self, action, attempts: int = ATTEMPTS) -> None:
    for attempt in range(attempts):
      try:
        return action()
      except EngineError as error:
        if attempt == attempts - 1:
          raise
        self._say(f"{error}; trying again")
        self._sleep(self._run.poll_seconds)

  def _enter(self, state: State, detail: str) -> None:
    if (state, detail) != (self._state, self._detail):
      self._state, self._detail = state, detail
      self._say(f"{state.value}{': ' * bool(detail)}{detail}")
    self._write()

  def _say(self, text: str) -> None:
    print(f"tpu_launch: {self._run.name}: {text}", file=sys.stderr, flush=True)

  def _write(self) -> None:
    if self._record is None:
      return
    hours = self._held / 3600
    write_json(
      self._record,
      {
        "name": self._run.name,
        "engine": self._engine,
        "outcome": self._outcome,
        "state": "unsubmitted" if self._state is None else self._state.value,
        "detail": self._detail,
        "step": self._steps.best,
        "restarts": self._restarts,
        "chips": self._run.chips,
        "held_seconds": round(self._held, 3),
        "chip_hours": round(hours * self._run.chips, 6),
      },
    )


def _held_before(record: str | None) -> float:
  try:
    with open(record or os.devnull, encoding="utf-8") as file:
      return float(json.load(file)["held_seconds"])
  except (OSError, ValueError, KeyError, TypeError):
    return 0.0
