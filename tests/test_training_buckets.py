"""Whole runs whose workdir is in a bucket, through the real clients of a server on this machine."""

import json
import os
import signal
import subprocess
import sys

import bucket as helper
import jax
import numpy as np
import places
import pytest
import safetensors.numpy
from checkpoints import raw
from paths import ROOT

from nrt_jax.__main__ import main
from nrt_jax.records import bucket_lock
from nrt_jax.records.checkpoint import Checkpoints

RUN = "gs://bucket/runs/one"
UNREPEATABLE = ("time/", "throughput/", "memory/")
SETTINGS = dict(total_steps=4, prompts_per_step=8, checkpoint__every_steps=2, checkpoint__keep_last=2)
EVALUATION = {"source": "task:running_sum", "split": "test", "examples": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A config, and a run of it in a directory that nothing interrupted."""
  place = places.make(
    tmp_path_factory.mktemp("home"), "sft", **SETTINGS, logging__tensorboard=False, evaluation__data=EVALUATION
  )
  assert main(command(place, place / "run")) == 0
  return place


@pytest.fixture
def cloud(monkeypatch, tmp_path):
  return helper.emptied(monkeypatch, tmp_path / "cache")


def command(home, workdir):
  return ["train", "--config", str(home / "config.py"), "--workdir", str(workdir)]


def lines(text):
  rows = [json.loads(line) for line in text.split("\n") if line]
  return [{name: value for name, value in row.items() if not name.startswith(UNREPEATABLE)} for row in rows]


def arrays(directory):
  """The bits of all arrays of the newest whole step, as they are stored."""
  reader = Checkpoints(directory, read_only=True)
  step = reader.latest_step()
  stored = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in reader.stored(step).items()}
  stored["policy/key"] = jax.eval_shape(lambda: jax.random.key(0))
  tree, _ = reader.restore(step, stored)
  return step, {name: raw(leaf) for name, leaf in tree.items()}


def test_a_run_that_is_killed_while_it_writes_a_checkpoint_resumes_bit_for_bit(home, cloud, tmp_path, capsys):
  """The process is killed as the server gets the object that would have made the step whole."""
  command_line = [sys.executable, "-m", "nrt_jax", *command(home, RUN)]
  child = subprocess.Popen(command_line, env=environment(), stderr=subprocess.PIPE)

  def fail(method, name):
    if method == "POST" and name.endswith("checkpoints/4/commit_success.txt") and child.poll() is None:
      child.send_signal(signal.SIGKILL)
      child.wait()
      return 503
    return None

  cloud.fail = fail
  assert child.wait(300) == -signal.SIGKILL, child.stderr.read()
  assert "runs/one/run.lock" in cloud.objects
  assert any("/checkpoints/4/state/d/" in name for name in cloud.objects)
  reader = Checkpoints(f"{RUN}/checkpoints", read_only=True)
  assert reader.all_steps() == [2]
  capsys.readouterr()
  assert main(command(home, RUN)) == 0
  said = capsys.readouterr().err
  assert f"the run before, process {child.pid} on host " in said and "its lock is void" in said
  assert arrays(f"{RUN}/checkpoints") == arrays(home / "run" / "checkpoints")
  text = {name: cloud.objects[f"runs/one/{name}"][0].decode() for name in ("metrics.jsonl", "config.json")}
  assert lines(text["metrics.jsonl"]) == lines((home / "run" / "metrics.jsonl").read_text())
  assert text["config.json"] == (home / "run" / "config.json").read_text()
  left = {name.split("/")[2] for name in cloud.objects}
  assert left == {"checkpoints", "config.json", "export", "inputs.json", "metrics.jsonl", "samples.jsonl", "tokenizer"}
  assert main([*command(home, RUN), "--config.optimizer.learning_rate=3"]) == 2
  assert capsys.readouterr().err.startswith(f"nrt-jax: {RUN}: optimizer.learning_rate: ")

  # ---- What others do with it, on a machine that has nothing of it.
  assert main(["export", "--checkpoint", RUN, "--output", str(tmp_path / "export")]) == 0
  assert same_weights(tmp_path / "export", home / "run" / "export")
  (tmp_path / "bucket_export").mkdir()
  for name, (data, _) in cloud.objects.items():
    if name.startswith("runs/one/export/"):
      (tmp_path / "bucket_export" / name.rsplit("/", 1)[1]).write_bytes(data)
  assert same_weights(tmp_path / "bucket_export", home / "run" / "export")
  flags = ["--config", str(home / "config.py"), "--checkpoint", RUN, "--output", str(tmp_path / "found.json")]
  assert main(["evaluate", *flags]) == 0
  found = json.loads((tmp_path / "found.json").read_text())
  expected = lines((home / "run" / "metrics.jsonl").read_text())[-1]  # the run's own evaluation, of the same questions
  assert found["checkpoint"] == RUN and expected.pop("step") == 4
  assert {name: found["metrics"][name] for name in expected} == expected and len(expected) > 3
  assert main(["report", RUN]) == 0
  assert capsys.readouterr().out.splitlines()[-1].startswith(f"{RUN}     4 ")


def environment():
  path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  return {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": path}


def same_weights(one, other):
  left, right = (safetensors.numpy.load_file(place / "model.safetensors") for place in (one, other))
  return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_a_second_run_is_refused(home, cloud, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(bucket_lock, "BEAT", 0.05)
  with bucket_lock.held(RUN, str(tmp_path)):
    assert main(command(home, RUN)) == 2
    assert f"nrt-jax: --workdir: {RUN}: in use by process {os.getpid()} on host " in capsys.readouterr().err
  assert not cloud.objects


def test_a_bucket_that_is_not_there_is_one_line(home, cloud, capsys):
  assert main(command(home, "gs://other/runs/one")) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "nrt-jax: gs://other/runs/one: there is no bucket gs://other, or we may not write to it"


def test_a_bucket_that_is_lost_while_a_run_goes_on_ends_it_with_one_line(home, cloud, capsys):
  lost = []

  def fail(method, name):
    if name.endswith("checkpoints/2/commit_success.txt") and method == "POST":
      lost.append(name)
      return None
    return 403 if lost else None

  cloud.fail = fail
  assert main(command(home, RUN)) == 2
  said = capsys.readouterr().err.splitlines()
  assert "Traceback" not in "".join(said)
  assert said[-1].startswith("nrt-jax: ") and "Forbidden" in "\n".join(said), said
