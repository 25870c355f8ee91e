"""SLURM: the batch script, and a real two-node job where there is a SLURM."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import places
import pytest
from paths import ROOT

from nrt_jax.errors import UserError
from tpu_launch.engines.slurm import Slurm
from tpu_launch.run import Run
from tpu_launch.watch import Watch


def slurm_run(tmp_path, **changes) -> Run:
  values = dict(name="tiny", config="my_run.py", slice="gpu-16", hosts=2, workdir=str(tmp_path / "run"))
  return Run(**{**values, **changes})


def test_the_batch_script(tmp_path):
  run = slurm_run(tmp_path, partition="gpu", time_limit="12:00:00", account="lab", env={"A": "b c"}, retries=3)
  script = Slurm(run).script()
  for line in (
    "--nodes=2",
    "--ntasks-per-node=1",
    "--gpus-per-node=8",
    "--requeue",
    "--signal=TERM@60",
    "--time=12:00:00",
  ):
    assert f"#SBATCH {line}\n" in script
  assert "#SBATCH --partition=gpu\n#SBATCH --account=lab" in script and "export A='b c'" in script
  assert "--distributed\n" in script and "-lt 3 ]" in script


@pytest.mark.parametrize(
  "code,restarts,requeued", [(0, 0, False), (2, 0, False), (143, 0, True), (1, 2, True), (1, 3, False)]
)
def test_what_the_script_does_with_an_exit_code(tmp_path, code, restarts, requeued):
  """srun and scontrol are played; bash is real."""
  job = Slurm(slurm_run(tmp_path, retries=3))
  place = tmp_path / "run" / "launch"
  place.mkdir(parents=True)
  (place / "exit_code").write_text("9")
  for name, text in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" > {tmp_path}/requeued')):
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(0o755)
  env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
  assert subprocess.run(["bash"], input=job.script(), text=True, env=env).returncode == code
  assert (tmp_path / "requeued").exists() == requeued
  assert (place / "exit_code").exists() == (not requeued)
  if not requeued:
    assert (place / "exit_code").read_text() == f"{code}\n"


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(slice="v6e-16"), "allowed by slurm: gpu-COUNT"),
    (dict(bucket="gs://runs"), "bucket: slurm mounts none"),
    (dict(workdir="gs://runs/a"), "workdir: found 'gs://runs/a', allowed by slurm: a directory"),
    (dict(hosts=3), "hosts: found 3 for 16 devices"),
  ],
)
def test_mistakes(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    Slurm(slurm_run(tmp_path, **change)).plan()


# ---- A real SLURM ----------------------------------------------------------------------------------------------------


def slurm(*words: str) -> str:
  return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip()


def missing() -> str | None:
  """Why there is no SLURM to test with."""
  if shutil.which("sbatch") is None:
    return "sbatch is not installed"
  try:
    nodes = slurm("sinfo", "--noheader", "--states=idle", "--format=%D")
  except subprocess.TimeoutExpired:
    return "no SLURM answers"
  return None if sum(map(int, nodes.split())) >= 2 else "SLURM has no two idle nodes"


def test_a_job_is_preempted_requeued_and_resumed(tmp_path):
  """Two nodes, joined by jax.distributed; SIGTERM as a scheduler sends it; the same files as without interruption."""
  reason = missing()
  if reason:
    pytest.skip(reason)
  settings = dict(prompts_per_step=8, total_steps=40, checkpoint__every_steps=1000, logging__tensorboard=False)
  place = places.make(tmp_path, algorithm="sft", **settings)
  with socket.socket() as free:  # the nodes may be names that only SLURM knows
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  run = slurm_run(
    tmp_path, config=str(place / "config.py"), slice="cpu-2", python=sys.executable, poll_seconds=0.2,
    env={"PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": address}, name=f"nrt-jax-test-{os.getpid()}",
  )  # fmt: skip
  job, signalled, hurried = Slurm(run), [], []

  def sleep(seconds: float) -> None:
    if not signalled and (job.step() or 0) >= 3:
      signalled.append(job.step())
      slurm("scancel", "--signal=TERM", "--me", f"--name={run.name}")
    if signalled and not hurried and "BeginTime" in slurm("squeue", "--noheader", f"--name={run.name}", "--format=%r"):
      number = slurm("squeue", "--noheader", f"--name={run.name}", "--format=%i")
      hurried.append(
        slurm("scontrol", "update", f"JobId={number}", "StartTime=now")
      )  # a requeued job waits two minutes
    time.sleep(seconds)

  assert Watch(job, "slurm", str(tmp_path / "record.json"), sleep=sleep).run() == 0
  assert signalled and hurried
  steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert steps == list(range(1, 41))
  log = (tmp_path / "run" / "launch" / "worker-0.log").read_text()
  assert "stopped by a signal; the same command resumes from step" in log and log.count("compiled the training step") == 2
  assert "Exited with exit code 143" in (tmp_path / "run" / "launch" / "slurm.log").read_text()
  record = json.loads((tmp_path / "record.json").read_text())
  assert record["restarts"] == 0 and record["outcome"] == "done"  # SLURM restarted it, the launcher had nothing to do
  assert not slurm("squeue", "--noheader", f"--name={run.name}")


def test_stop_takes_a_job_out_of_the_queue(tmp_path):
  """It is not requeued, though its program ends as one that was preempted does."""
  reason = missing()
  if reason:
    pytest.skip(reason)
  python = tmp_path / "python"
  python.write_text(
    f"#!/bin/bash\ntrap 'sleep 1; exit 143' TERM\ntouch {tmp_path}/ready\nwhile :; do sleep 0.1; done\n"
  )
  python.chmod(0o755)
  run = slurm_run(tmp_path, slice="cpu-2", python=str(python), name=f"nrt-jax-stop-{os.getpid()}", poll_seconds=3.0)
  job = Slurm(run)
  job.submit()
  job.submit()  # the job that is there is taken up
  assert len(slurm("squeue", "--noheader", f"--name={run.name}").splitlines()) == 1
  until = time.monotonic() + 60
  while not (tmp_path / "ready").exists():
    assert time.monotonic() < until
    time.sleep(0.05)
  Watch(job, "slurm").stop()
  assert not slurm("squeue", "--noheader", f"--name={run.name}")
  assert job.poll().detail == "left the queue without an exit code"
