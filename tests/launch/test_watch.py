"""Babysitting, with a scripted engine and a clock that never waits."""

import json

import pytest
from launching import Clock, tpu_run, watch

from tpu_launch.engines.job import EngineError, Job, Poll, State, last_step
from tpu_launch.watch import Steps, Watch

RUN, QUEUE = Poll(State.RUNNING), Poll(State.QUEUED)


class Scripted(Job):
  """Says what it is told to say; an EngineError in the script is raised."""

  def __init__(self, run, *script):
    super().__init__(run)
    self.script, self.did = list(script), []

  def plan(self):
    return []

  def poll(self):
    event = self.script.pop(0)
    if isinstance(event, BaseException):
      raise event
    poll, self.text = event if type(event) is tuple else (event, "")
    return poll

  def submit(self):
    self.did.append("submit")

  def restart(self):
    self.did.append("restart")

  def delete(self):
    self.did.append("delete")

  def log(self):
    return self.text


def at(step: int):
  return RUN, f"step {step}/100  reward 0.1\n"


def test_to_the_end(tmp_path, capsys):
  job = Scripted(tpu_run(), QUEUE, QUEUE, at(1), at(5), Poll(State.DONE))
  assert watch(job, "gke", tmp_path / "record.json") == 0
  assert job.did == ["submit", "delete"]
  record = json.loads((tmp_path / "record.json").read_text())
  assert (record["state"], record["outcome"], record["step"], record["held_seconds"]) == ("done", "done", 5, 20)
  assert "step 5/100" in capsys.readouterr().out


def test_an_earlier_launchers_time_counts(tmp_path):
  for expected in (10, 20):
    watch(Scripted(tpu_run(), RUN, Poll(State.DONE)), "gke", tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["held_seconds"] == expected


def test_progress_renews_the_retries():
  """Lost five times with two retries: each time a step further."""
  lost, script = Poll(State.LOST, "preempted"), []
  for step in range(1, 6):
    script += [at(2 * step), at(2 * step + 1), lost]
  job = Scripted(tpu_run(retries=2), *script, Poll(State.DONE))
  assert watch(job, "gke") == 0 and job.did.count("restart") == 5


def test_no_progress_uses_them_up():
  job = Scripted(tpu_run(retries=2), at(4), at(5), *[Poll(State.LOST)] * 3)
  assert watch(job, "gke") == 1
  assert job.did == ["submit", "restart", "restart", "delete"]


def test_a_slow_step_is_a_stall_only_past_many_medians(capsys):
  """Steps of ten seconds, a factor of 5: 50 seconds are allowed, 60 are not."""
  still = [at(6)] * 6
  job = Scripted(tpu_run(stall_factor=5.0, stall_seconds=20.0), *map(at, range(1, 7)), *still, Poll(State.DONE))
  assert watch(job, "gke") == 0
  assert job.did == ["submit", "restart", "delete"]
  assert "no step for 60 s after step 6, allowed: 50; restart 1" in capsys.readouterr().err


def test_time_in_the_queue_is_no_stall():
  job = Scripted(tpu_run(start_seconds=30.0), *[QUEUE] * 50, at(1), Poll(State.DONE))
  assert watch(job, "gke") == 0 and job.did == ["submit", "delete"]


def test_a_run_that_its_engine_requeued_is_no_stall():
  run = tpu_run(start_seconds=30.0, stall_seconds=30.0)
  job = Scripted(run, at(1), at(2), *[QUEUE] * 50, at(2), at(3), Poll(State.DONE))
  assert watch(job, "slurm") == 0 and job.did == ["submit", "delete"]


def test_a_restart_by_the_engine_has_time_to_start():
  again = RUN._replace(attempt=1), ""
  run = tpu_run(start_seconds=60.0, stall_seconds=20.0)
  job = Scripted(run, at(1), at(2), again, again, again, again, Poll(State.DONE))
  assert watch(job, "gke") == 0 and job.did == ["submit", "delete"]


def test_no_answer_is_no_loss():
  job = Scripted(tpu_run(), RUN, *[EngineError("timed out")] * 4, RUN, Poll(State.DONE))
  assert watch(job, "gke") == 0 and job.did == ["submit", "delete"]


def test_interrupted_gives_everything_back(tmp_path):
  job = Scripted(tpu_run(), RUN, KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    watch(job, "gke", tmp_path / "record.json")
  assert job.did == ["submit", "delete"]
  assert json.loads((tmp_path / "record.json").read_text())["outcome"] is None


def test_steps_after_a_restart():
  """The workdir still shows step 90, then 80 where the run resumed: neither is a step, nor ends the time to start."""
  steps = Steps(tpu_run(start_seconds=100.0, stall_seconds=10.0))
  for now, step in ((0, 90), (20, 90), (40, 80), (90, 80)):
    steps.see(step, now)
    assert steps.stalled(now) is None
  assert steps.stalled(101)
  steps.see(81, 95)
  assert steps.stalled(101) is None and steps.stalled(106) and steps.best == 90


def test_retries_are_not_renewed_by_steps_done_before():
  job = Scripted(tpu_run(retries=1), at(8), at(9), Poll(State.LOST), at(5), at(9), Poll(State.LOST))
  assert watch(job, "gke") == 1


def test_watch_waits_between_looks():
  clock, job = Clock(), Scripted(tpu_run(poll_seconds=7.0), QUEUE, QUEUE, Poll(State.DONE))
  assert Watch(job, "gke", clock=clock, sleep=clock.sleep).run() == 0 and clock.now == 14


def test_last_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert last_step(path) is None
  path.write_text('{"step": 3, "a": 1}\n{"step": 4}\n{"st')
  assert last_step(path) == 4
  path.write_text("")
  assert last_step(path) is None
