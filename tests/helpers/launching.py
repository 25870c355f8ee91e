"""What the tests of tpu_launch share: descriptions, a clock that never waits, and fake programs on the PATH."""

import json
import os
import sys

from paths import ROOT

from tpu_launch.run import Run
from tpu_launch.watch import Watch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TPU = dict(
  name="run", config="my_run.py", slice="v6e-16", zone="us-east5-b", repository="https://github.com/owner/nrt_jax",
  commit=COMMIT, image="example.com/nrt_jax:1", poll_seconds=10.0, retries=2,
)  # fmt: skip


def tpu_run(**changes) -> Run:
  return Run(**{**TPU, **changes})


class Clock:
  """Time that passes where somebody sleeps, and only there."""

  def __init__(self):
    self.now = 0.0

  def __call__(self) -> float:
    return self.now

  def sleep(self, seconds: float) -> None:
    self.now += seconds


def watch(job, engine: str, record=None) -> int:
  """Watches a job to its end, in no time."""
  clock = Clock()
  return Watch(job, engine, record, clock=clock, sleep=clock.sleep).run()


class FakeCloud:
  """A fake program first on the PATH, its scenario and its calls."""

  def __init__(self, program: str, directory, monkeypatch, **scenario):
    self.place = directory
    script = directory / program
    fake = ROOT / "tests" / "launch" / f"fake_{program}.py"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{fake}" "$@"\n')
    script.chmod(0o755)
    (directory / "scenario.json").write_text(json.dumps(scenario))
    (directory / "state.json").write_text(json.dumps({"exists": False}))
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLOUD", str(directory))

  def calls(self) -> list[list[str]]:
    path = self.place / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def exists(self) -> bool:
    return json.loads((self.place / "state.json").read_text())["exists"]


# Takes the place of nrt_jax: counts steps into the workdir, and behaves as its config file says at a step. No worker
# passes a step at which another one has something to do, as in a collective: on a busy machine some start late.
STAND_IN = """\
import json, os, pathlib, signal, sys, time
flags = sys.argv
workdir = pathlib.Path(flags[flags.index("--workdir") + 1])
joined = "," in flags[-1]  # local processes, which share the workdir
number = int(flags[-1].split(",")[2]) if joined else int(os.environ.get("TPU_WORKER_ID", 0))
behave = json.loads(pathlib.Path(flags[flags.index("--config") + 1]).read_text())
workdir.mkdir(parents=True, exist_ok=True)
metrics = workdir / "metrics.jsonl"
done = metrics.read_text().count("\\n") if metrics.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
for step in range(done + 1, behave["steps"] + 1):
  for other in (key.split("@")[0] for key in behave if joined and key.endswith(f"@{step}")):
    while int(other) != number and not (workdir / f"happened-{other}-{step}").exists(): time.sleep(0.001)
  event = behave.get(f"{number}@{step}")
  marker = workdir / f"happened-{number}-{step}"
  if event and not marker.exists():
    marker.touch()
    if event == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if event == "hang": signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)
    print(f"nrt-jax: told to end with {event}", flush=True)
    sys.exit(event)
  if number == 0:
    print(f"step {step}/{behave['steps']}", flush=True)
    with open(metrics, "a") as file: file.write(json.dumps({"step": step}) + "\\n")
  time.sleep(behave.get("pause", 0.002))
"""


def stand_in_python(directory) -> str:
  """A `python` that runs the stand-in for nrt_jax, whatever module it is asked for."""
  (directory / "stand_in.py").write_text(STAND_IN)
  python = directory / "python"
  python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{directory}/stand_in.py" "$@"\n')
  python.chmod(0o755)
  return str(python)
