"""SkyPilot tasks, read by SkyPilot's own parser where it is installed."""

import json
import sys

import pytest
import yaml
from launching import tpu_run, watch

from nrt_jax.errors import UserError
from tpu_launch.engines.skypilot import SkyPilot

RUNS = {
  "tpu": dict(capacity="spot", bucket="gs://runs", secrets={"HF_TOKEN": "hf"}, env={"A": 1}),
  "gpu": dict(slice="gpu-16", hosts=2, gpu="H100", zone="us-central1-a"),
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_skypilot_reads_its_tasks(changes, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))  # SkyPilot writes there as it is imported
  sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
  values = yaml.safe_load(SkyPilot(tpu_run(**changes)).text())
  values.pop("file_mounts", None)  # whose bucket would be looked up
  task = sky.Task.from_yaml_config(values, secrets_overrides=[("HF_TOKEN", "x")])
  (resources,) = task.resources
  assert resources.job_recovery["recover_on_exit_codes"] == [143]
  assert resources.use_spot == (changes.get("capacity") == "spot")
  if "gpu" in changes:
    assert resources.accelerators == {"H100": 8} and task.num_nodes == 2
  else:
    assert resources.accelerators == {"tpu-v6e-16": 1} and task.num_nodes == 1


def test_commands(monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
  text = "\n".join(map(str, SkyPilot(tpu_run(**RUNS["tpu"])).plan()))
  assert "--secret HF_TOKEN run.yaml" in text and "hf_secret_value" not in text
  assert "source: gs://runs" in text and "--workdir /bucket/run --distributed" in text
  assert SkyPilot(tpu_run(**RUNS["tpu"])).task()["setup"].endswith("bash tpu_launch/setup_tpu_vm.sh --extra tpu")
  gpus = SkyPilot(tpu_run(**RUNS["gpu"])).task()
  assert '--distributed "$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476,' in gpus["run"] and "cuda" in gpus["setup"]


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(slices=2), "slices: found 2, allowed by skypilot: 1"),
    (dict(slice="gpu-8", hosts=1), "gpu: found none, needed by skypilot"),
    (dict(slice="cpu-8", hosts=1), "slice: found 'cpu-8', allowed by skypilot"),
    (dict(zone="us-central2-b"), "zone of a v6e slice"),
    (dict(commit="main"), "commit: found 'main'"),
  ],
)
def test_mistakes(change, message):
  with pytest.raises(UserError, match=message):
    SkyPilot(tpu_run(**change)).plan()


@pytest.mark.parametrize(
  "statuses,code,launches",
  [
    (["STARTING", "RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED"], 0, 1),
    (["RUNNING", "FAILED"], 2, 1),
    (["FAILED_NO_RESOURCE", "RUNNING", "SUCCEEDED"], 0, 2),
  ],
)
def test_its_life(tmp_path, monkeypatch, statuses, code, launches):
  """A sky that plays a managed job: `launch` makes it, each `queue` shows its next status."""
  (tmp_path / "sky").write_text(f"""#!{sys.executable} -SE
import json, pathlib, sys
place = pathlib.Path({str(tmp_path)!r})
verb, there = sys.argv[2], (place / "launched").exists()
with open(place / "calls", "a") as calls: calls.write(verb + "\\n")
if verb == "launch": (place / "launched").write_text(pathlib.Path(sys.argv[-1]).read_text())
if verb == "queue":
  left = json.loads((place / "statuses").read_text())
  print(json.dumps([{{"job_id": 1, "job_name": "run", "status": left[0]}}] if there else []))
  if there and len(left) > 1: (place / "statuses").write_text(json.dumps(left[1:]))
""")
  (tmp_path / "sky").chmod(0o755)
  (tmp_path / "statuses").write_text(json.dumps(statuses))
  monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
  assert watch(SkyPilot(tpu_run()), "skypilot") == code
  assert (tmp_path / "calls").read_text().split().count("launch") == launches
  assert yaml.safe_load((tmp_path / "launched").read_text()) == SkyPilot(tpu_run()).task()
