"""Descriptions: every mistake is one line on stderr and exit code 2, before anything is started."""

import json
import re
import subprocess

import pytest
from launching import TPU, tpu_run
from paths import DOCS, ROOT

from nrt_jax.errors import UserError
from nrt_jax.performance.planning import topology
from tpu_launch import __main__, slices
from tpu_launch import run as runs

LOCAL = "name: tiny\nconfig: my_run.py\nslice: cpu-4\nhosts: 2\n"


def fails(capsys, argv) -> str:
  """The line on stderr."""
  capsys.readouterr()
  assert __main__.main([str(word) for word in argv]) == 2
  shown = capsys.readouterr()
  assert shown.out == "" and shown.err.count("\n") == 1, shown
  return shown.err


@pytest.mark.parametrize(
  "text,message",
  [
    ("name: a\nconfig: [", "run.yaml:2: no YAML"),
    ("- a", "found list, allowed: a mapping"),
    ("", "found NoneType, allowed: a mapping"),
    (LOCAL + "slise: x", "key: found 'slise'"),
    (LOCAL.replace("name: tiny", "name: Tiny"), "name: found 'Tiny', allowed: up to 40"),
    (LOCAL.replace("config: my_run.py\n", ""), "config: found none"),
    (LOCAL.replace("cpu-4", "v9-4"), "slice: found 'v9', allowed: v4, v5e"),
    (LOCAL.replace("cpu-4", "v5p-3"), "slice: found 'v5p-3', allowed: v5p:2x2x1"),
    (LOCAL.replace("hosts: 2", "hosts: 3"), "hosts: found 3 for 4 devices, allowed: a divisor of 4"),
    (LOCAL.replace("hosts: 2", ""), "hosts: found none for 4 devices"),
    (LOCAL.replace("cpu-4", "v6e-16"), "allowed by local: gpu-COUNT, cpu-COUNT"),
    (LOCAL + "workdir: gs://runs/a", "workdir: found 'gs://runs/a', allowed by local: a directory"),
    (LOCAL + "slices: 2", "slices: found 2 of cpu-4, allowed: 1"),
    (LOCAL + "overrides: {parallel.slices: 2}", "parallel.slices: found 2, allowed: 1, the number of slices"),
    (LOCAL + "retries: -1", "retries: found -1, allowed: 0 or more"),
    (LOCAL + "retries: many", "retries: found 'many', allowed: a whole number"),
    (LOCAL + "any_zone: 1", "any_zone: found 1, allowed: true or false"),
    (LOCAL + "poll_seconds: 0", "poll_seconds: found 0, allowed: seconds, more than 0"),
    (LOCAL + "capacity: free", "capacity: found 'free', allowed: on-demand, reserved, spot"),
    (LOCAL + "bucket: my-bucket", "bucket: found 'my-bucket', allowed: gs://NAME"),
    (LOCAL + "env: {HF_TOKEN: abc}", "env.HF_TOKEN: a secret would be readable"),
    (LOCAL + "env: {'A B': abc}", "env: found 'A B', allowed: the name of an environment variable"),
  ],
)
def test_mistakes(tmp_path, capsys, text, message):
  path = tmp_path / "run.yaml"
  path.write_text(text)
  assert message in fails(capsys, ["local", path, "--dry-run"])


def test_mistakes_of_the_command_line(tmp_path, capsys):
  path = tmp_path / "run.yaml"
  path.write_text(LOCAL)
  assert "engine: found 'ec2', allowed: gke, local" in fails(capsys, ["ec2", path])
  assert "no-such.yaml: No such file" in fails(capsys, ["local", "no-such.yaml"])
  assert "--set retries: allowed: KEY=VALUE" in fails(capsys, ["local", path, "--set", "retries"])
  assert "not allowed with argument" in fails(capsys, ["local", path, "--stop", "--status"])
  assert "with sweep" in fails(capsys, ["sweep", path, "--stop"])
  record = tmp_path / "no" / "record.json"
  assert "its directory does not exist" in fails(capsys, ["local", path, "--record", record])
  assert not list(tmp_path.glob("run*/"))
  (tmp_path / "file").touch()
  workdir = f"workdir={tmp_path}/file/run"
  assert "file/run/launch: Not a directory" in fails(capsys, ["local", path, "--set", workdir])


def test_a_config_that_is_not_in_the_commit(tmp_path, capsys):
  """Known before the queue is entered, where the commit is known here."""
  git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  if git.returncode:
    pytest.skip("no git repository here")
  path = tmp_path / "run.yaml"
  path.write_text(json.dumps({**TPU, "commit": git.stdout.strip()}))
  assert "config: my_run.py: no such file in commit" in fails(capsys, ["tpu_vm", path, "--dry-run"])
  assert __main__.main(["tpu_vm", str(path), "--dry-run", "--set", "config=setup.py"]) == 0


def test_a_secret_must_be_there_before_anything_starts(tmp_path, capsys, monkeypatch):
  monkeypatch.delenv("HF_TOKEN", raising=False)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "run.yaml").write_text(LOCAL + "secrets: {HF_TOKEN: hf}")
  assert "secrets: HF_TOKEN is not set" in fails(capsys, ["local", "run.yaml"])
  assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_overrides_become_flags_of_nrt_jax(tmp_path, capsys):
  path = tmp_path / "run.yaml"
  path.write_text(LOCAL + "overrides: {total_steps: 3, data.source: a b, parallel.fsdp: null, x: [1, 2]}")
  assert __main__.main(["local", str(path), "--dry-run", "--set", "name=other"]) == 0
  shown = capsys.readouterr().out
  flags = "--config.total_steps=3 '--config.data.source=a b' --config.parallel.fsdp=null '--config.x=[1, 2]'"
  assert flags in shown and "--workdir runs/other" in shown and "127.0.0.1:PORT,2,1" in shown


@pytest.mark.parametrize(
  "name,chips,hosts,gke_hosts,api_name",
  [
    ("v4-8", 4, 1, 1, "v4-8"),
    ("v5p-128", 64, 16, 16, "v5p-128"),
    ("v5e-1", 1, 1, 1, "v5litepod-1"),
    ("v5e:2x4", 8, 1, 2, "v5litepod-8"),
    ("v5litepod-16", 16, 4, 4, "v5litepod-16"),
    ("v6e-8", 8, 1, 2, "v6e-8"),
    ("v6e-256", 256, 64, 64, "v6e-256"),
    ("v7x:2x2x1", 4, 1, 1, "tpu7x-8"),
  ],
)
def test_slices(name, chips, hosts, gke_hosts, api_name):
  piece = slices.parse(name)
  assert piece.chips == chips and slices.accelerator_type(piece) == api_name
  assert slices.host_count(piece, None) == hosts == slices.host_count(piece, hosts)
  assert slices.host_count(piece, None, gke=True) == gke_hosts
  with pytest.raises(UserError, match=f"hosts: found {hosts + 1}, allowed: {hosts} for"):
    slices.host_count(piece, hosts + 1)


def test_tables_know_the_same_generations():
  kinds = set(slices.ZONES)
  assert kinds == set(slices.GKE_ACCELERATORS) == set(topology.GENERATIONS)
  assert set(slices.RUNTIME_VERSIONS) | {"v7x"} == kinds


def test_several_slices_count_together():
  run = tpu_run(slices=3)
  assert run.chips == 48 and run.host_count() == 12


def test_values_are_not_changed_by_reading():
  assert runs.from_values("here", dict(TPU)) == tpu_run()


def test_the_page_shows_what_is_printed(tmp_path, capsys):
  """docs/launch.md: its run on every engine that takes it, and its sweep."""
  page = (DOCS / "launch.md").read_text()
  run, sweep = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
  queued, table = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
  (tmp_path / "run.yaml").write_text(run)
  assert __main__.main(["tpu_vm", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
  assert capsys.readouterr().out == queued
  assert __main__.main(["gke", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
  assert __main__.main(["skypilot", str(tmp_path / "run.yaml"), "--dry-run", "--set", "slices=1"]) == 0
  capsys.readouterr()
  (tmp_path / "sweep.yaml").write_text(sweep)
  assert __main__.main(["sweep", str(tmp_path / "sweep.yaml"), "--status"]) == 0
  assert capsys.readouterr().out == table


def test_the_page_explains_every_key():
  page = (DOCS / "launch.md").read_text()
  assert not [key for key in runs.FIELDS if f"`{key}`" not in page]
  assert all((ROOT / name).exists() for name in re.findall(r"experiments/\S+?\.py", page))


def test_the_run_is_told_how_many_slices_it_gets():
  one, two = (tpu_run(slices=count, overrides={"parallel.slices": 0}).train("runs/a", "") for count in (1, 2))
  assert [word for word in one if "slices" in word] == ["--config.parallel.slices=0"]
  assert [word for word in two if "slices" in word] == ["--config.parallel.slices=2"]
