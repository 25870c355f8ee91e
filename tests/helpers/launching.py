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
  """Time that passes where somebody sleeps; what it is asked to do at a moment, it does then."""

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
