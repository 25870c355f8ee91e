"""Trackers: what they are told, and that none of them can end a run or hold it up. Real packages are used offline."""

import io
import json
import struct
import sys
import threading
import time

import pytest

from nrt_jax.errors import UserError
from nrt_jax.records import trackers
from nrt_jax.records.metrics import LoggingConfig, MetricsWriter

VALUES = {"seed": 3, "optimizer": {"learning_rate": 1e-5, "ema_for": []}, "stages": [{"name": "warm/up"}]}
FLAT = [("seed", 3), ("optimizer.learning_rate", 1e-5), ("optimizer.ema_for", []), ("stages.0.name", "warm/up")]


class Told(trackers.Tracker):
  """Keeps what it is told, as a tracker that somebody else writes."""

  runs = []

  def __init__(self, run):
    self.run, self.steps, self.closed = run, [], False
    self.runs.append(self)

  def write(self, step, numbers):
    self.steps.append((step, numbers))

  def close(self):
    self.closed = True


class Fails(Told):
  """Raises in one of its methods."""

  place = None

  def __init__(self, run):
    super().__init__(run)
    self._maybe("open")

  def write(self, step, numbers):
    super().write(step, numbers)
    self._maybe(step)

  def close(self):
    self._maybe("close")

  def _maybe(self, place):
    if place == self.place:
      raise ConnectionError("the server\nhas gone")


class Hangs(Told):
  """Waits for a server that never answers."""

  answer = threading.Event()

  def write(self, step, numbers):
    self.answer.wait()


@pytest.fixture
def table(monkeypatch):
  Told.runs.clear()
  for name, kind in (("told", Told), ("fails", Fails), ("hangs", Hangs)):
    monkeypatch.setitem(trackers.TRACKERS, name, kind)


def write(workdir, names, steps, start=-1, wait=0.0, **settings) -> str:
  """Writes steps with MetricsWriter, and returns what it said."""
  screen = io.StringIO()
  config = LoggingConfig(tensorboard=False, progress=False, trackers=names, **settings)
  writer = MetricsWriter(workdir, config, 10, start, stream=screen, values=VALUES)
  for step in steps:
    writer.write(step, {"loss/total": float("nan"), "reward/mean": float(step)})
    writer.write(step, {"eval/a/maj@4": step / 2})  # an evaluation behind the step
    time.sleep(wait)
  writer.close()
  return screen.getvalue()


def test_a_tracker_is_told_of_the_run_and_every_step(tmp_path, table):
  assert write(tmp_path / "my_run", ["told"], (1, 2), project="mine") == ""
  (told,) = Told.runs
  assert told.run == trackers.Run(str(tmp_path / "my_run"), "mine", "my_run", VALUES, -1)
  expected = [(step, {"reward/mean": float(step)}, {"eval/a/maj@4": step / 2}) for step in (1, 2)]
  assert told.steps == [(step, numbers) for step, *all_of_it in expected for numbers in all_of_it]
  assert told.closed  # when close returns, all has been taken


@pytest.mark.parametrize("place,taken", [("open", 0), (2, 3), ("close", 8)])
def test_one_that_fails_costs_a_warning(tmp_path, table, monkeypatch, place, taken):
  monkeypatch.setattr(Fails, "place", place)
  said = write(tmp_path, ["fails", "told"], (1, 2, 3, 4), wait=0.05)
  assert said == "nrt-jax: warning: fails: metrics are not written there any more: ConnectionError: the server\n"
  steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  by_kind = {type(one): one for one in Told.runs}
  assert steps == [step for step, _ in by_kind[Told].steps] == [1, 1, 2, 2, 3, 3, 4, 4]
  assert len(by_kind[Fails].steps) == taken and by_kind[Told].closed


def test_one_that_hangs_holds_nothing_up(tmp_path, table, monkeypatch):
  monkeypatch.setattr(trackers, "PATIENCE", 0.1)
  start = time.monotonic()
  said = write(tmp_path, ["hangs"], (1, 2))
  Hangs.answer.set()  # lets the thread go
  assert time.monotonic() - start < 10
  assert said == (
    "nrt-jax: warning: hangs: metrics are not written there any more: TimeoutError: "
    "it has not taken all numbers within 0 s\n"
  )


def test_other_hosts_open_none(tmp_path, table):
  config = LoggingConfig(tensorboard=False, trackers=["told"])
  writer = MetricsWriter(tmp_path, config, 10, primary=False)
  writer.write(1, {"a": 1.0})
  writer.close()
  assert not Told.runs and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_a_users_mistake(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)  # what Python does where a package can't be imported
  message = f"logging.trackers: the package {name} is not installed: pip install nrt_jax[{name}]"
  with pytest.raises(UserError) as error:
    trackers.check([name])
  assert str(error.value) == message


def test_names_are_those_of_the_table():
  with pytest.raises(UserError, match="logging.trackers: found 'wanb', allowed: mlflow, wandb .did you mean 'wandb'"):
    trackers.check(LoggingConfig(trackers=["wanb"]).trackers)


def test_a_config_is_flattened():
  assert list(trackers.flat(VALUES)) == FLAT
  assert trackers.allowed_name("eval/a b/maj@4") == "eval/a b/maj_4"


def test_ids_are_kept_for_the_run_that_goes_on(tmp_path):
  fresh, resumed = (trackers.Run(str(tmp_path), "p", "n", {}, start) for start in (-1, 5))
  assert trackers.kept_id(resumed, "wandb") is None
  for tracker, run_id in (("wandb", "a"), ("mlflow", "b"), ("wandb", "c")):
    trackers.keep_id(fresh, tracker, run_id)
  assert [trackers.kept_id(resumed, name) for name in ("wandb", "mlflow")] == ["c", "b"]
  assert trackers.kept_id(fresh, "wandb") is None


# ---- The packages --------------------------------------------------------------------------------------------------


def records(data: bytes):
  """Records of a W&B run's file: 7 bytes, then LevelDB's log: pieces behind checksum, length and kind, in blocks."""
  place, record = 7, b""
  while place < len(data):
    if 32768 - place % 32768 < 7:  # no piece fits in what is left of the block
      place += 32768 - place % 32768
      continue
    size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
    record += data[place + 7 : place + 7 + size]
    place += 7 + size
    if kind in (1, 4):  # whole, or the last piece
      yield record
      record = b""


def history_of(path) -> list:
  """(step, {name: value}) of each line of a W&B run's file, and its config as the first item."""
  from wandb.proto import wandb_internal_pb2

  config, lines = {}, []
  for data in records(path.read_bytes()):
    record = wandb_internal_pb2.Record.FromString(data)
    for source in (record.run.config, record.config):
      config |= {item.key: json.loads(item.value_json) for item in source.update if item.key}
    if record.history.item:
      named = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
      lines.append((named.pop("_step"), {name: value for name, value in named.items() if not name.startswith("_")}))
  return [config, *lines]


def test_weights_and_biases_offline(tmp_path, monkeypatch):
  """A resumed run goes on under its id; the steps are ours."""
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  trackers.check(["wandb"])
  assert write(tmp_path, ["wandb"], (1, 2)) == ""
  assert write(tmp_path, ["wandb"], (3,), start=2) == ""
  files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
  (kept,) = [json.loads(line)["id"] for line in (tmp_path / "trackers.jsonl").read_text().splitlines()]
  assert [file.name for file in files] == [f"run-{kept}.wandb"] * 2
  (config, *first), (_, *second) = map(history_of, files)
  assert config["seed"] == 3 and config["optimizer"]["learning_rate"] == 1e-5
  assert [*first, *second] == [(step, {"eval/a/maj@4": step / 2, "reward/mean": float(step)}) for step in (1, 2, 3)]


def test_weights_and_biases_without_a_key_is_refused(monkeypatch, tmp_path):
  wandb = pytest.importorskip("wandb")
  wandb.teardown()  # it has read its settings once for all
  for name in ("WANDB_API_KEY", "WANDB_MODE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
  with pytest.raises(UserError, match="logging.trackers: wandb: found no API key, allowed: `wandb login`, or"):
    trackers.check(["wandb"])


def test_mlflow_in_a_file(tmp_path, monkeypatch):
  pytest.importorskip("mlflow")
  pytest.importorskip("sqlalchemy")
  from mlflow.tracking import MlflowClient

  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(trackers, "PATIENCE", 300)  # a new file's tables take a while
  trackers.check(["mlflow"])
  workdir = tmp_path / "my_run"
  assert write(workdir, ["mlflow"], (1, 2), project="mine") == ""
  assert write(workdir, ["mlflow"], (3,), start=2, project="mine") == ""
  client = MlflowClient(tracking_uri=f"sqlite:///{workdir}/mlflow.db")
  (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
  assert run.info.run_name == "my_run" and run.info.status == "FINISHED"
  assert run.data.params == {name: str(value) for name, value in FLAT}
  for name, scale in (("reward/mean", 1), ("eval/a/maj_4", 0.5)):
    found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
    assert found == [(step, step * scale) for step in (1, 2, 3)]
  assert [path.name for path in tmp_path.iterdir()] == ["my_run"]
