"""Sweeps of a stand-in for nrt_jax on the local engine, with real launchers."""

import json

import pytest
import yaml
from launching import stand_in_python

from tpu_launch import __main__
from tpu_launch import sweep as sweeps
from tpu_launch.engines.table import ENGINES


@pytest.fixture
def make(tmp_path, monkeypatch):
  """Writes a sweep's file, and a config file for each behaviour of the stand-in."""
  monkeypatch.setattr(sweeps, "POLL_SECONDS", 0.05)
  python = stand_in_python(tmp_path)

  def write(behaviours: dict, **changes) -> str:
    for name, behave in behaviours.items():
      (tmp_path / f"{name}.json").write_text(json.dumps(behave))
    run = dict(python=python, hosts=1, workdir=str(tmp_path / "runs"), poll_seconds=0.05, grace_seconds=1, retries=0)
    values = dict(
      engine="local", directory=str(tmp_path / "sweep"), at_once=2, run=run,
      configs=[str(tmp_path / f"{name}.json") for name in behaviours], slices=["cpu-1", "cpu-2"],
    )  # fmt: skip
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return str(path)

  return write


def states(path: str) -> dict:
  sweep = sweeps.read(path, ENGINES)
  lines = [line.split() for line in sweeps.table(sweep).splitlines()[1:-1]]
  return {line[0]: (line[2], line[3]) for line in lines}


def test_a_sweep_runs_what_is_left(make, tmp_path, capsys):
  path = make({"good": {"steps": 5}, "bad": {"steps": 9, "0@3": 1}}, price_per_chip_hour=2)
  assert states(path) == {f"{n}-cpu-{i}": ("queued", "0") for n in ("good", "bad") for i in (1, 2)}
  assert __main__.main(["sweep", path]) == 1
  failed = {"bad-cpu-1": ("failed", "2"), "bad-cpu-2": ("failed", "2")}
  assert states(path) == {"good-cpu-1": ("done", "5"), "good-cpu-2": ("done", "5"), **failed}
  assert {p.name for p in (tmp_path / "runs").iterdir()} == set(states(path))
  record = json.loads((tmp_path / "sweep" / "bad-cpu-1.json").read_text())
  assert "worker 0 ended with 1: nrt-jax: told to end with 1" in record["detail"]

  capsys.readouterr()
  assert __main__.main(["sweep", path]) == 1 and "running" not in capsys.readouterr().out  # nothing was left
  assert __main__.main(["sweep", path, "--retry-failed"]) == 0  # the stand-in fails once
  assert {state for state in states(path).values()} == {("done", "5"), ("done", "9")}
  assert __main__.main(["sweep", path, "--status"]) == 0
  assert capsys.readouterr().out.splitlines()[-1].startswith("sum ")


def test_no_more_than_allowed_run_at_once(make, tmp_path, monkeypatch):
  path = make({"a": {"steps": 3}, "b": {"steps": 3}}, at_once=1)
  most, start = [], sweeps.Runner._start

  def counted(self, entry):
    start(self, entry)
    most.append(len(self._running))

  monkeypatch.setattr(sweeps.Runner, "_start", counted)
  assert __main__.main(["sweep", path]) == 0 and most == [1, 1, 1, 1]


def test_an_interrupted_sweep_goes_on(make, tmp_path, monkeypatch):
  """Ctrl-C once a run makes steps: its launcher ends it; the same command again brings all to the end."""
  path = make({"long": {"steps": 150, "pause": 0.02}}, slices=["cpu-1"])
  collect, metrics = sweeps.Runner._collect, tmp_path / "runs" / "long-cpu-1" / "metrics.jsonl"

  def interrupt(self):
    collect(self)
    if metrics.exists():
      raise KeyboardInterrupt

  monkeypatch.setattr(sweeps.Runner, "_collect", interrupt)
  assert __main__.main(["sweep", path]) == 130
  assert states(path)["long-cpu-1"][0] == "queued" and 0 < metrics.read_text().count("\n") < 150
  held = json.loads((tmp_path / "sweep" / "long-cpu-1.json").read_text())["held_seconds"]
  monkeypatch.setattr(sweeps.Runner, "_collect", collect)
  assert __main__.main(["sweep", path]) == 0 and states(path)["long-cpu-1"] == ("done", "150")
  assert json.loads((tmp_path / "sweep" / "long-cpu-1.json").read_text())["held_seconds"] > held


def test_a_second_launcher_is_refused(make, tmp_path, capsys):
  path = make({"a": {"steps": 3}})
  runner = sweeps.Runner(sweeps.read(path, ENGINES))
  (tmp_path / "sweep").mkdir()
  with runner._alone():
    assert __main__.main(["sweep", path]) == 2
  assert "another launcher runs this sweep" in capsys.readouterr().err


def test_what_it_cost(make, tmp_path):
  path = make({"a": {"steps": 3}}, price_per_chip_hour={"cpu": 1.5})
  (tmp_path / "sweep").mkdir()
  (tmp_path / "sweep" / "a-cpu-2.json").write_text(json.dumps({"outcome": "done", "step": 3, "chip_hours": 4.0}))
  sweep = sweeps.read(path, ENGINES)
  assert [line.split() for line in sweeps.table(sweep).splitlines()] == [
    ["run", "slice", "state", "step", "restarts", "chip-hours", "cost"],
    ["a-cpu-1", "cpu-1", "queued", "0", "0", "0.00", "0.00"],
    ["a-cpu-2", "cpu-2", "done", "3", "0", "4.00", "6.00"],
    ["sum", "4.00", "6.00"],
  ]
  unpriced = sweeps.read(make({"a": {"steps": 3}}), ENGINES)
  assert sweeps.table(unpriced).splitlines()[-1].split() == ["sum", "4.00", "-"]


def test_configs_and_slices_may_have_keys_of_their_own(make, tmp_path, capsys):
  configs = [{"name": "low", "config": "a.py", "overrides": {"optimizer.learning_rate": 1e-6}}]
  slices = [{"slice": "cpu-4", "hosts": 2}]
  path = make({}, configs=configs, slices=slices, run={"overrides": {"total_steps": 3}, "workdir": "runs"})
  assert __main__.main(["sweep", path, "--dry-run"]) == 0
  shown = capsys.readouterr().out
  assert "# ---- low-cpu-4" in shown and "--workdir runs/low-cpu-4 --config.total_steps=3" in shown
  assert "--config.optimizer.learning_rate=1e-06" in shown and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(engine="ec2"), "engine: found 'ec2'"),
    (dict(config="x"), "key: found 'config', allowed: at_once"),
    (dict(configs=[]), "configs: found [], allowed: a list"),
    (dict(at_once=0), "at_once: found 0, allowed: 1 or more"),
    (dict(slices=["cpu-1", "v9-1"]), "a-v9-1: slice: found 'v9'"),
    (dict(slices=["cpu-1", "cpu-1"]), "two runs are named 'a-cpu-1'"),
    (dict(slices=["v6e-8"]), "allowed by local: gpu-COUNT"),
    (dict(price_per_chip_hour="free"), "price_per_chip_hour: found 'free'"),
    (dict(run=[1]), "allowed in run, configs and slices: mappings"),
  ],
)
def test_mistakes(make, capsys, changes, message):
  assert __main__.main(["sweep", make({"a": {"steps": 3}}, **changes)]) == 2
  shown = capsys.readouterr()
  assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""
