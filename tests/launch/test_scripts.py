"""The shell scripts of TPU VMs, run for real on this machine with fake apt, gcsfuse and gcloud."""

import os
import shutil
import subprocess
import time

import pytest
from paths import ROOT

SCRIPTS = sorted((ROOT / "tpu_launch").glob("*.sh"))


def test_shellcheck_finds_nothing():
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed")
  assert len(SCRIPTS) == 2
  done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


# ---- worker.sh -------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path):
  """Calls worker.sh with its files in tmp_path; returns the last word but one it printed, and the last."""
  (tmp_path / "gcloud").write_text('#!/bin/sh\n[ "${5#--secret=}" = hf ] && echo "value of $5" || exit 1\n')
  (tmp_path / "gcloud").chmod(0o755)
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU_LAUNCH_PLACE": str(tmp_path / "run"), "HOME": str(tmp_path)}

  def call(*words: str, code: int = 0) -> str:
    command = ["bash", str(ROOT / "tpu_launch" / "worker.sh"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout.strip().partition(f"worker {os.uname().nodename} ")[2] if code == 0 else done.stderr

  yield call
  call("stop", "0")


def wait_for(worker, status: str) -> None:
  until = time.monotonic() + 30
  while worker("status") != status:
    assert time.monotonic() < until, worker("status")
    time.sleep(0.02)


def test_a_worker_runs_and_says_how_it_ended(worker, tmp_path):
  assert worker("status") == "absent"
  go = tmp_path / "go"
  shell = f"echo $A $HF_TOKEN; while [ ! -e {go} ]; do sleep 0.02; done; exit 3"
  assert worker("start", "--env", "A=b c", "--secret", "HF_TOKEN=hf", "--", "sh", "-c", shell) == "running"
  assert worker("start", "--", "sh", "-c", "exit 4") == "running"  # it runs already
  go.touch()
  wait_for(worker, "exited 3")
  assert (tmp_path / "run" / "log").read_text() == "b c value of --secret=hf\n"
  assert worker("stop", "1") == "absent" and worker("status") == "absent"
  worker("start", "--", "sh", "-c", "exit 0")
  wait_for(worker, "exited 0")


def test_stopping_gives_time_to_save(worker, tmp_path):
  """SIGTERM ends the program with its own exit code, which is kept for whoever asks."""
  ready = tmp_path / "ready"
  code = f"trap 'touch {tmp_path}/saved; exit 143' TERM; touch {ready}; while :; do sleep 0.02; done"
  worker("start", "--", "bash", "-c", code)
  while not ready.exists():
    time.sleep(0.02)
  assert worker("stop", "20") == "absent" and (tmp_path / "saved").exists()


def test_what_does_not_stop_is_killed(worker, tmp_path):
  worker("start", "--", "bash", "-c", f"trap '' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done")
  while not (tmp_path / "ready").exists():
    time.sleep(0.02)
  assert worker("stop", "0") == "absent"


def test_a_secret_that_cannot_be_read_starts_nothing(worker, tmp_path):
  worker("start", "--secret", "HF_TOKEN=other", "--", "sh", "-c", "exit 0", code=1)
  assert worker("status") == "absent" and not (tmp_path / "run" / "log").exists()
  assert "found '--what', allowed: --env" in worker("start", "--what", "x", "--", "true", code=2)
  assert "allowed: start, status, stop" in worker("begin", code=2)


# ---- setup_tpu_vm.sh -------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
  """A checkout on a machine whose programs write down that they were called. Returns the calls of one set-up."""
  checkout, programs = tmp_path / "nrt_jax", tmp_path / "bin"
  (checkout / "tpu_launch").mkdir(parents=True)
  programs.mkdir()
  shutil.copy(ROOT / "tpu_launch" / "setup_tpu_vm.sh", checkout / "tpu_launch")
  calls = tmp_path / "calls"
  fakes = {
    "git": "echo commit-1",
    "sudo": 'while [ "${1#*=}" != "$1" ]; do shift; done; case "$1" in tee) cat > /dev/null;; *) "$@";; esac',
    "apt-get": f'echo "apt-get $*" >> {calls}; touch {tmp_path}/installed',
    "curl": "echo key",
    "lsb_release": "echo jammy",
    "mountpoint": f"test -e {tmp_path}/mounted",
    "gcsfuse": f'echo "gcsfuse $*" >> {calls}; touch {tmp_path}/mounted',
    # Python 3.11 is there once apt has installed it, older ones are no use.
    "python3.11": f"[ -e {tmp_path}/installed ] || exit 1\n"
    f'case "$1" in -m) mkdir -p .venv/bin; cp {programs}/pip .venv/bin/python;; esac',
    "pip": f'echo "pip $*" >> {calls}',
  } | dict.fromkeys(("python3.13", "python3.12", "python3"), "exit 1")
  for name, text in fakes.items():
    (programs / name).write_text(f"#!/bin/sh\n{text}\n")
    (programs / name).chmod(0o755)

  def set_up(*words: str, code: int = 0) -> list[str]:
    calls.write_text("")
    command = ["bash", str(checkout / "tpu_launch" / "setup_tpu_vm.sh"), *words]
    env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return calls.read_text().splitlines()

  set_up.programs = programs
  return set_up


def test_set_up_does_only_what_is_missing(machine, tmp_path):
  words = ("--bucket", "runs", "--mount", str(tmp_path / "bucket"))
  first = machine(*words)
  assert [line.split()[0] for line in first] == ["apt-get", "apt-get", "pip", "gcsfuse"]
  assert "python3.11-venv" in first[1] and "-e .[tpu,eval,gcs]" in first[2] and first[3].endswith(f"runs {tmp_path}/bucket")
  assert machine(*words) == []
  (machine.programs / "git").write_text("#!/bin/sh\necho commit-2\n")
  assert [line.split()[0] for line in machine(*words)] == ["pip"]


def test_half_an_installation_is_done_again(machine):
  pip = machine.programs / "pip"
  good = pip.read_text()
  pip.write_text(good + "exit 1\n")
  machine(code=1)
  shutil.rmtree(machine.programs.parent / "nrt_jax" / ".venv")
  pip.write_text(good)
  assert [line.split()[0] for line in machine()] == ["pip"] and machine() == []


def test_an_unknown_flag(machine):
  assert machine("--buckets", "x", code=2) == []  # nothing was installed
