"""Queued resources against a gcloud that waits, fails, preempts, falls silent and hangs."""

import json
import shutil
import subprocess

import pytest
from launching import COMMIT, TPU, FakeCloud, stand_in_python, tpu_run, watch
from paths import ROOT

from nrt_jax.errors import UserError
from tpu_launch import __main__
from tpu_launch.engines import tpu_vm
from tpu_launch.engines.job import EngineError, State
from tpu_launch.engines.tpu_vm import TpuVm
from tpu_launch.watch import Watch


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  return lambda **scenario: FakeCloud("gcloud", tmp_path, monkeypatch, hosts=4, **scenario)


def verbs(fake) -> list[str]:
  """What was asked of gcloud, without the looks and logs."""
  words = []
  for call in fake.calls():
    command = " ".join(call)
    word = next((w for w in ("setup_tpu_vm.sh", "worker.sh start", "worker.sh stop") if w in command), call[3])
    words += [word.split()[-1]] if word not in ("describe", "ssh") else []
  return words


ONCE = ["create", "setup_tpu_vm.sh", "start"]


def test_waits_sets_up_runs_and_deletes(cloud, tmp_path, capsys):
  fake = cloud(waiting=2, life=["run", "run", "done"], log="step 3/9  reward 0.1")
  assert watch(TpuVm(tpu_run()), "tpu_vm", tmp_path / "record.json") == 0
  assert verbs(fake) == [*ONCE, "delete"] and not fake.exists()
  shown = capsys.readouterr()
  assert "queued: WAITING_FOR_RESOURCES" in shown.err and "done" in shown.err
  record = json.loads((tmp_path / "record.json").read_text())
  assert record["outcome"] == "done" and record["restarts"] == 0
  # Held from the look that found it active: three looks of ten seconds.
  assert (
    record["chips"] == 16
    and record["held_seconds"] == 30
    and record["chip_hours"] == pytest.approx(16 * 30 / 3600, abs=1e-6)
  )


def test_a_preempted_run_is_made_anew(cloud):
  fake = cloud(life=["run", "preempt", "run", "done"])
  assert watch(TpuVm(tpu_run(capacity="spot")), "tpu_vm") == 0
  assert verbs(fake) == [*ONCE, "delete", *ONCE, "delete"]
  assert "--spot" in next(call for call in fake.calls() if call[3] == "create")


def test_a_dead_worker_keeps_the_machines(cloud, capsys):
  fake = cloud(life=["run", "exit 137", "run", "done"], log="out of memory")
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake) == [*ONCE, "stop", "setup_tpu_vm.sh", "start", "delete"]
  assert "worker t-w-3 exited with 137: out of memory; restart 1" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_resumed(cloud):
  fake = cloud(life=["exit 143", "done"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake).count("start") == 2


def test_a_silent_worker_may_come_back(cloud):
  fake = cloud(life=["run", "silent", "silent", "run", "done"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake) == [*ONCE, "delete"]


def test_a_worker_that_stays_silent_is_dead(cloud, capsys):
  fake = cloud(life=["silent"] * tpu_vm.SILENT_POLLS + ["done"], stop_errors=["Could not SSH"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake) == [*ONCE, "stop", "delete", *ONCE, "delete"]
  assert "1 of 4 workers do not answer" in capsys.readouterr().err


def test_machines_that_were_restarted_are_noticed(cloud, capsys):
  fake = cloud(life=["run", "reboot", "done"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake).count("start") == 2 and "the workers were restarted" in capsys.readouterr().err


def test_a_stalled_run_is_stopped_and_resumed_in_place(cloud, capsys):
  """No step within start_seconds: the chips are kept, the program is begun anew."""
  fake = cloud(life=["run"] * 4 + ["done"])
  assert watch(TpuVm(tpu_run(start_seconds=25.0)), "tpu_vm") == 0
  assert verbs(fake) == [*ONCE, "stop", "setup_tpu_vm.sh", "start", "delete"]
  assert "no step for 30 s before its first step, allowed: 25; restart 1" in capsys.readouterr().err


def test_failures_without_progress_end_it(cloud, capsys):
  fake = cloud(life=["exit 1"] * 9)
  assert watch(TpuVm(tpu_run(retries=2)), "tpu_vm") == 1
  assert verbs(fake).count("start") == 3 and not fake.exists()
  assert "given up after 3 failures in a row without a new step" in capsys.readouterr().err


def test_a_mistake_is_not_tried_again(cloud, capsys):
  fake = cloud(life=["exit 2"], log="nrt-jax: total_steps: found 'x'")
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 2
  assert verbs(fake) == [*ONCE, "delete"] and not fake.exists()
  assert "mistake: worker t-w-3 exited with 2: nrt-jax: total_steps: found 'x'" in capsys.readouterr().err


def test_no_quota_is_for_the_user_to_mend(cloud):
  fake = cloud(create_errors=["RESOURCE_EXHAUSTED: Quota 'TPUV6EPerProjectPerZone' exhausted. Limit 0"])
  with pytest.raises(UserError, match="Quota 'TPUV6EPerProjectPerZone' exhausted"):
    watch(TpuVm(tpu_run()), "tpu_vm")
  assert verbs(fake) == ["create"]


ACCOUNT = "You do not currently have an active account selected."


def test_without_an_account_nothing_is_begun(cloud):
  fake = cloud(describe_errors=[ACCOUNT])
  with pytest.raises(UserError, match="not currently have an active account"):
    watch(TpuVm(tpu_run()), "tpu_vm")
  assert verbs(fake) == []


def test_an_account_that_expires_does_not_end_a_run(cloud, capsys):
  """There is time to log in again: the run goes on meanwhile."""
  fake = cloud(describe_errors=[None, None, ACCOUNT, ACCOUNT], life=["run", "done"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0 and verbs(fake) == [*ONCE, "delete"]
  assert capsys.readouterr().err.count("no answer: gcloud does not say how run is") == 2


def test_status_and_stop(cloud, tmp_path, capsys):
  fake = cloud(delete_errors=["INTERNAL: oops"])
  path = tmp_path / "run.yaml"
  path.write_text(json.dumps({**TPU, "poll_seconds": 0.01}))
  TpuVm(tpu_run()).submit()
  assert __main__.main(["tpu_vm", str(path), "--status"]) == 0
  assert capsys.readouterr().out == "run: ready\n"
  assert __main__.main(["tpu_vm", str(path), "--stop"]) == 0 and not fake.exists()
  assert __main__.main(["tpu_vm", str(path), "--stop"]) == 0


def test_a_passing_fault_is_tried_again(cloud):
  fake = cloud(create_errors=["UNAVAILABLE: try later"] * 2, setup_errors=["pip: timed out"], life=["done"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake) == ["create"] * 3 + ["setup_tpu_vm.sh"] * 2 + ["start", "delete"]


def test_machines_on_which_nothing_starts_are_not_kept_forever(cloud, capsys):
  fake = cloud(setup_errors=["pip: no space left"] * 99)
  assert watch(TpuVm(tpu_run(retries=1)), "tpu_vm") == 1 and not fake.exists()
  assert verbs(fake).count("setup_tpu_vm.sh") == 4  # two attempts, before and after the one restart
  assert "could not be started: ERROR" in capsys.readouterr().err


def test_a_failing_deletion_is_tried_again_and_at_last_reported(cloud, capsys):
  fake = cloud(life=["done"], delete_errors=["INTERNAL: oops"] * 2)
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert not fake.exists() and "still exists and may cost money" in capsys.readouterr().err
  fake = cloud(life=["done"], delete_errors=["INTERNAL: oops"] * 9)
  with pytest.raises(EngineError, match="gcloud compute tpus queued-resources delete run --zone=us-east5-b"):
    watch(TpuVm(tpu_run()), "tpu_vm")


def test_a_hanging_gcloud_is_ended(cloud, monkeypatch, capsys):
  monkeypatch.setattr(tpu_vm, "DESCRIBE", 1.0)
  fake = cloud(hangs=[False, True, False], life=["done"])
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert "gcloud: no answer within 1 s" in capsys.readouterr().err and not fake.exists()


def test_a_launcher_takes_up_what_another_left(cloud):
  """The first launcher is gone without a word; the second neither creates nor starts anything."""
  fake = cloud(life=["run", "run", "done"])
  first = TpuVm(tpu_run())
  first.submit()
  assert first.poll().state is State.READY
  first.start()
  before = len(verbs(fake))
  assert watch(TpuVm(tpu_run()), "tpu_vm") == 0
  assert verbs(fake)[before:] == ["delete"]


def test_the_commands_work_on_workers(cloud, tmp_path, capsys):
  """As ssh runs them: clone, set-up and worker.sh are real, pip and nrt_jax are not. Worker 1 fails once."""
  origin, homes = tmp_path / "origin", [tmp_path / f"worker{number}" for number in range(2)]
  (origin / "tpu_launch").mkdir(parents=True)
  for path in (ROOT / "tpu_launch").glob("*.sh"):
    shutil.copy(path, origin / "tpu_launch")
  (origin / "my_run.py").write_text(json.dumps({"steps": 20, "1@10": 1}))
  git = lambda *words: subprocess.run(
    ["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=origin, check=True, capture_output=True, text=True
  ).stdout.strip()
  for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
    git(*words)
  fake = cloud(workers=list(map(str, homes)), waiting=1)
  python, install = stand_in_python(tmp_path), 'case "$*" in *pip*) exit 0;; esac'
  (tmp_path / "train").write_text(f'#!/bin/sh\n{install}\nexec {python} "$@"\n')
  (tmp_path / "train").chmod(0o755)
  place = 'case "$1" in -m) mkdir -p .venv/bin; cp "$FAKE_CLOUD/train" .venv/bin/python;; esac'
  for name, text in (("python3.13", place), ("hostname", "echo t-w-$TPU_WORKER_ID")):
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(0o755)
  for home in homes:
    home.mkdir()
  run = tpu_run(
    slice="v5p-16", zone="us-east5-a", repository=str(origin), commit=git("rev-parse", "HEAD"), poll_seconds=0.2,
    grace_seconds=5.0, env={"A": "b 'c'"},
  )  # fmt: skip
  assert Watch(TpuVm(run), "tpu_vm").run() == 0
  assert verbs(fake) == [*ONCE, "stop", "setup_tpu_vm.sh", "start", "delete"]
  assert "worker t-w-1 exited with 1: nrt-jax: told to end with 1; restart 1" in capsys.readouterr().err
  for home in homes:
    assert (home / "run" / "exit_code").read_text() == "0\n"


def test_commands():
  job = TpuVm(tpu_run(slices=2, bucket="gs://runs", secrets={"HF_TOKEN": "hf"}, env={"A": "b c"}, project="p"))
  text = "\n".join(map(str, job.plan()))
  assert "--node-count=2 --node-prefix=run" in text and "--project=p" in text
  assert "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e" in text
  assert f"git checkout -q {COMMIT} && bash tpu_launch/setup_tpu_vm.sh --bucket runs" in text
  assert "--secret HF_TOKEN=hf" in text and "--workdir ../bucket/run" in text and "--distributed" in text
  unmounted = "\n".join(map(str, TpuVm(tpu_run(workdir="gs://runs/a")).plan()))
  assert "--workdir gs://runs/a" in unmounted and "--bucket" not in unmounted
  alone = "\n".join(map(str, TpuVm(tpu_run(slice="v6e-8")).plan()))
  assert "--distributed" not in alone and "--node-id=run" in alone


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(slice="gpu-8", hosts=1), "slice: found 'gpu-8', allowed by tpu_vm: a TPU slice"),
    (dict(zone="us-central2-b"), "zone of a v6e slice: found 'us-central2-b', allowed: europe-west4-a"),
    (dict(zone=None), "zone: found none"),
    (dict(hosts=3), "hosts: found 3, allowed: 4 for v6e:4x4"),
    (dict(commit="main"), "commit: found 'main', allowed: all 40 hexadecimal digits"),
    (dict(repository=None), "repository: found none"),
    (dict(slice="v7x-8", zone="us-central1-c"), "runtime_version: found none, and none is known for v7x"),
    (dict(slice="v5p:2x2x16", zone="us-east5-a"), "slice: found v5p:2x2x16, allowed here"),
  ],
)
def test_mistakes(change, message):
  with pytest.raises(UserError, match=message):
    TpuVm(tpu_run(**change)).plan()


def test_any_zone_skips_the_check():
  assert "--zone=mars-a" in str(TpuVm(tpu_run(zone="mars-a", any_zone=True)).plan()[0])
