"""The local engine with real processes: a stand-in for nrt_jax, and once nrt_jax itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import places
import pytest
from launching import stand_in_python
from paths import ROOT

from nrt_jax.errors import UserError
from tpu_launch import __main__
from tpu_launch.engines import local
from tpu_launch.engines.job import State
from tpu_launch.engines.local import Local
from tpu_launch.run import Run
from tpu_launch.watch import Watch


@pytest.fixture
def stand_in(tmp_path):
  """A run of the stand-in, by its behaviour: {"steps": 5, "1@3": "kill"}."""
  python = stand_in_python(tmp_path)

  def make(behave: dict, **changes) -> Run:
    (tmp_path / "config.json").write_text(json.dumps(behave))
    values = dict(
      name="tiny", config=str(tmp_path / "config.json"), slice="cpu-4", hosts=2, workdir=str(tmp_path / "run"),
      python=python, poll_seconds=0.05, grace_seconds=0.5,
    )  # fmt: skip
    return Run(**{**values, **changes})

  return make


def steps_of(run: Run) -> list[int]:
  with open(os.path.join(run.workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line)["step"] for line in file]


def test_to_the_end(stand_in, capsys):
  run = stand_in({"steps": 5})
  job = Local(run)
  assert Watch(job, "local").run() == 0 and not job.alive()
  assert steps_of(run) == [1, 2, 3, 4, 5]
  shown = capsys.readouterr()
  assert "step 5/5" in shown.out and shown.err.endswith("tiny: done\n")


@pytest.mark.parametrize(
  "event,reason", [("kill", "worker 1 ended with -9"), (1, "worker 1 ended with 1: nrt-jax: told")]
)
def test_a_dead_worker_is_noticed_and_the_run_resumed(stand_in, capsys, event, reason):
  run = stand_in({"steps": 60, "1@20": event})
  assert Watch(Local(run), "local").run() == 0
  assert sorted(set(steps_of(run))) == list(range(1, 61))
  assert reason in capsys.readouterr().err


def test_a_stall_is_ended_by_force_and_resumed(stand_in, capsys):
  """Worker 0 stands still and does not hear SIGTERM."""
  run = stand_in({"steps": 40, "pause": 0.05, "0@30": "hang"}, stall_seconds=4.0, stall_factor=5.0)
  assert Watch(Local(run), "local").run() == 0 and steps_of(run)[-1] == 40
  assert "after step 29, allowed: 4; restart" in capsys.readouterr().err


def test_a_mistake_is_not_tried_again(stand_in, capsys):
  job = Local(stand_in({"steps": 9, "0@1": 2}))
  assert Watch(job, "local").run() == 2 and not job.alive()
  assert "mistake: worker 0 ended with 2: nrt-jax: told to end with 2" in capsys.readouterr().err


def test_an_interrupted_launcher_leaves_nothing_behind(stand_in, tmp_path):
  """SIGTERM for the launcher; a second launcher in the meantime is refused, and --status and --stop find the run."""
  run = stand_in({"steps": 10**6, "pause": 0.01}, grace_seconds=20.0)
  path = tmp_path / "run.yaml"
  path.write_text(json.dumps(dataclasses.asdict(run)))
  command = [sys.executable, "-m", "tpu_launch", "local", str(path)]
  launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  second = Local(run)
  try:
    assert wait_for(lambda: len(second.alive()) == 2 and os.path.exists(f"{run.workdir}/metrics.jsonl"))
    assert second.poll().state is State.RUNNING
    with pytest.raises(UserError, match="runs already, as processes"):
      Watch(second, "local").run()
    assert len(Local(run).alive()) == 2
    launcher.send_signal(signal.SIGTERM)
    output = launcher.communicate(timeout=60)[0]
  finally:
    launcher.kill()
  assert launcher.returncode == 130 and "tpu_launch: interrupted" in output
  assert not second.alive()


def test_stop_ends_what_a_lost_launcher_left(stand_in, tmp_path, capsys):
  run = stand_in({"steps": 10**6, "pause": 0.01}, grace_seconds=20.0)
  lost = Local(run)
  lost.submit()
  reaper = threading.Thread(target=lambda: [process.wait() for process in lost._processes])
  reaper.start()  # as init reaps the children of a launcher that is gone
  path = tmp_path / "run.yaml"
  path.write_text(json.dumps(dataclasses.asdict(run)))
  assert __main__.main(["local", str(path), "--status"]) == 0
  assert capsys.readouterr().out == "tiny: running: of another launcher\n"
  assert __main__.main(["local", str(path), "--stop"]) == 0
  reaper.join(timeout=60)
  assert not reaper.is_alive() and Local(run).poll().state is State.LOST


def wait_for(condition, seconds: float = 60.0) -> bool:
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if condition():
      return True
    time.sleep(0.02)
  return False


def test_devices_are_shared_out(stand_in):
  cpu, gpu = Local(stand_in({"steps": 1})), Local(stand_in({"steps": 1}, slice="gpu-8"))
  assert "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2" in str(cpu.plan()[1])
  assert "CUDA_VISIBLE_DEVICES=4,5,6,7" in str(gpu.plan()[1])


@pytest.mark.parametrize(
  "codes,named", [((1, -9), (1, -9)), ((-6, -9, 1), (1, -9)), ((-6, None, 1), (0, -6)), ((0, 1, None), (1, 1))]
)
def test_whoever_was_killed_is_named_not_who_ended_of_it(codes, named):
  ended = [(number, code) for number, code in enumerate(codes) if code]
  assert local._cause(ended) == named


def test_training_is_killed_noticed_and_resumed(tmp_path, capsys):
  """nrt_jax itself: two processes of one device; one is killed after a checkpoint; the run ends at its last step."""
  settings = dict(prompts_per_step=8, total_steps=12, checkpoint__every_steps=3, logging__tensorboard=False)
  place = places.make(tmp_path, algorithm="sft", **settings)
  run = Run(
    name="tiny", config=str(place / "config.py"), slice="cpu-2", hosts=2, workdir=str(tmp_path / "run"),
    python=sys.executable, env={"PYTHONPATH": str(ROOT)}, poll_seconds=0.05,
  )  # fmt: skip
  job, killed = Local(run), []

  def sleep(seconds: float) -> None:
    if not killed and (job.step() or 0) >= 4:
      killed.append(job.alive()[1])
      os.kill(killed[0], signal.SIGKILL)
    time.sleep(seconds)

  assert Watch(job, "local", str(tmp_path / "record.json"), sleep=sleep).run() == 0
  assert len(killed) == 1 and steps_of(run) == list(range(1, 13))
  assert (tmp_path / "run" / "export" / "config.json").exists()
  assert json.loads((tmp_path / "record.json").read_text())["restarts"] == 1
  assert "worker 1 ended with -9" in capsys.readouterr().err
