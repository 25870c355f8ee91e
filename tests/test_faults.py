"""Faults injected into runs: each ends in one clear line, or in the run that would have been without it."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import places
import pytest
from paths import ROOT

from nrt_jax import __main__, startup, training
from nrt_jax.errors import UserError
from nrt_jax.evaluation import held_out
from nrt_jax.model import hf_weights
from nrt_jax.records import lock
from nrt_jax.records.checkpoint import Checkpoints
from nrt_jax.records.metrics import MetricsWriter

STEPS = 6
UNREPEATABLE = ("time/", "throughput/", "memory/")
EVALUATED = '--config.evaluation.data={"source": "task:running_sum", "split": "test", "examples": 8}'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A model, a config of six supervised steps on a file of pairs, saved every second step, and its run."""
  path = tmp_path_factory.mktemp("faults")
  rows = [{"question": f"add {i % 5} {i % 3} modulo 5", "answer": f"the sum is {i % 4}"} for i in range(40)]
  (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  places.make(
    path, "sft", total_steps=STEPS, prompts_per_step=8, data__source=str(path / "pairs.jsonl"),
    checkpoint__every_steps=2, checkpoint__keep_last=3, logging__tensorboard=False, optimizer__learning_rate=1e-2,
  )  # fmt: skip
  assert train(path, path / "run") == 0
  return path


@pytest.fixture
def run(place, tmp_path):
  """A copy of the finished run."""
  return shutil.copytree(place / "run", tmp_path / "run")


def train(place, workdir, *more):
  return __main__.main(["train", "--config", str(place / "config.py"), "--workdir", str(workdir), *more])


def lines(workdir):
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [{k: v for k, v in row.items() if not k.startswith(UNREPEATABLE)} for row in rows]


def content(workdir) -> dict:
  return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def refused(capsys, *arguments) -> str:
  """The one line of a command that is refused."""
  capsys.readouterr()
  assert train(*arguments) == 2
  err = capsys.readouterr().err.splitlines()
  assert len(err) == 1 and err[0].startswith("nrt-jax: ")
  return err[0]


def resumed_as_it_was(place, run):
  assert lines(run) == lines(place / "run")
  exports = [hf_weights.SINGLE_FILE, "config.json", "tokenizer.json"]
  assert all((run / "export" / n).read_bytes() == (place / "run" / "export" / n).read_bytes() for n in exports)


# ---- Checkpoints ---------------------------------------------------------------------------------------------------


def damage(step):
  """A bit of every 32 bytes of all array files: which file holds what differs from save to save, and an export reads
  some arrays only."""
  for path in (step / "state").rglob("d/*"):
    data = bytearray(path.read_bytes())
    data[16::32] = bytes(byte ^ 4 for byte in data[16::32])
    path.write_bytes(data)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(place, run, capsys):
  for step in (4, 6):
    damage(run / "checkpoints" / str(step))
  out = run.parent / "out"
  assert __main__.main(["export", "--checkpoint", str(run), "--output", str(out)]) == 0
  said, err = capsys.readouterr()
  assert said == f"wrote the policy of step 2 to {out}\n" and err.count("nrt-jax: warning: ") == 2 == err.count("\n")
  assert train(place, run) == 0
  warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
  assert len(warnings) == 2 and all("; step 2 is used, and the damaged one is now in" in line for line in warnings)
  resumed_as_it_was(place, run)
  assert sorted(os.listdir(run / "checkpoints")) == ["2", "4", "6", "damaged"]
  assert train(place, run) == 0 and "warning" not in capsys.readouterr().err


@contextlib.contextmanager
def full_disk():
  """The size limit of the process stands for the disk: nothing longer than a few lines can be written."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def at_save(monkeypatch, step, what):
  """Has the save of `step` run inside of what()."""
  save = Checkpoints.save

  def saved(self, number, *arguments):
    with what() if number == step else contextlib.nullcontext():
      save(self, number, *arguments)
      self.wait()

  monkeypatch.setattr(Checkpoints, "save", saved)


@pytest.mark.parametrize("step", [4, STEPS])
def test_a_checkpoint_that_finds_the_disk_full_is_left_out(place, tmp_path, monkeypatch, capfd, step):
  at_save(monkeypatch, step, full_disk)
  last = step == STEPS
  assert train(place, tmp_path / "run") == (2 if last else 0)
  err = capfd.readouterr().err.splitlines()
  (warning,) = [line for line in err if "warning" in line]
  directory = tmp_path / "run" / "checkpoints"
  assert warning == f"nrt-jax: warning: checkpoint {step} is not saved: {directory}: File too large; the run goes on"
  assert sorted(os.listdir(directory)) == sorted({"2", "4", "6"} - {str(step)})
  assert not any("Error" in line or "Traceback" in line for line in err)
  if last:  # what it has learnt is not lost, but nobody must take the run for finished
    assert err[-1].endswith("/6: the last checkpoint could not be saved; the same command resumes from step 4")
    assert (tmp_path / "run" / "export" / hf_weights.SINGLE_FILE).exists()
    monkeypatch.undo()
    assert train(place, tmp_path / "run") == 0
  resumed_as_it_was(place, tmp_path / "run")


def test_an_export_that_finds_the_disk_full_leaves_the_one_before(run, capsys):
  before = content(run)
  with full_disk():
    assert __main__.main(["export", "--checkpoint", str(run), "--output", str(run / "export")]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"nrt-jax: {run / '.export.partial'}") and line.endswith(": File too large")
  assert content(run) == before


@pytest.mark.parametrize("removed", ["run", "run/checkpoints"])
def test_what_is_removed_while_a_run_goes_on_is_not_made_anew(place, tmp_path, monkeypatch, capsys, removed):
  run = tmp_path / "run"
  at_save(monkeypatch, 4, lambda: contextlib.nullcontext(shutil.rmtree(tmp_path / removed)))
  assert train(place, run, "--config.logging.every_steps=5") == 2
  assert capsys.readouterr().err.splitlines()[-1] == (
    f"nrt-jax: {run / 'checkpoints'}: has been removed while the run was going on"
  )
  assert not (tmp_path / removed).exists()


# ---- Updates that are not finite -----------------------------------------------------------------------------------


def test_a_run_whose_updates_are_not_finite_stops_before_it_exports(place, tmp_path, capsys):
  """At this learning rate the first update makes parameters of 1e38, and no later gradient is finite."""
  more = ("--config.optimizer.learning_rate=1e38", "--config.optimizer.max_skipped_steps=3")
  assert train(place, tmp_path / "run", *more) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith("nrt-jax: step 4: in 3 steps in a row (optimizer.max_skipped_steps) an update was not finite")
  assert f"the first was step 2, on the examples {place}/pairs.jsonl:" in last
  assert last.endswith(" and 4 more; there is no checkpoint")  # step 2's is not saved: it may be beyond help
  assert not (tmp_path / "run" / "export").exists()
  skipped = [row["optimizer/skipped"] for row in lines(tmp_path / "run")]
  assert skipped == [0, 1, 1, 1] and lines(tmp_path / "run")[-1]["optimizer/grad_norm"] is None


@pytest.mark.parametrize(
  "override, says",
  [
    ("optimizer.eps=0", "optimizer.eps: found 0.0, allowed: 1.2e-38 or more"),
    ("optimizer.eps=1e-40", "optimizer.eps: found 1e-40, allowed: 1.2e-38 or more"),
    ("optimizer.learning_rate=1e39", "optimizer.learning_rate: found 1e+39, allowed: 0 to 3.402823e+38"),
    ("optimizer.max_skipped_steps=0", "optimizer.max_skipped_steps: found 0, allowed: 1 or more"),
  ],
)
def test_settings_that_make_nan_are_refused(place, tmp_path, capsys, override, says):
  assert says in refused(capsys, place, tmp_path / "run", f"--config.{override}")
  assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_neither_read_nor_written(place, tmp_path, capsys):
  model = shutil.copytree(place / "run" / "export", tmp_path / "model")
  config = hf_weights.read_model_config(model)
  params = hf_weights.load_params(model, config)
  params["final_norm"]["scale"] = params["final_norm"]["scale"].at[1].set(float("inf"))
  with pytest.raises(UserError, match="out: final_norm.scale: found NaN or infinity, allowed: finite"):
    hf_weights.save_params(params, config, tmp_path / "out")
  assert not list(tmp_path.glob("*out*"))
  tensors = hf_weights.safe_open(model / hf_weights.SINGLE_FILE, framework="np")
  found = {name: tensors.get_tensor(name).copy() for name in tensors.keys()}
  found["model.norm.weight"][1] = float("nan")
  hf_weights.save_file(found, model / hf_weights.SINGLE_FILE, metadata={"format": "pt"})
  override = (f"--config.model.path={model}", "--config.model.weights=pretrained")
  says = f"{model}: tensor model.norm.weight: found NaN or infinity, allowed: finite weights"
  assert train(place, tmp_path / "run", *override) == 2
  assert says in capsys.readouterr().err.splitlines()[-1]


# ---- What changes between two runs ---------------------------------------------------------------------------------


def test_a_changed_config_is_refused_or_noted(place, run, capsys):
  before = content(run)
  line = refused(capsys, place, run, "--config.seed=1")
  assert "seed: 0 in the workdir, 1 now; allowed: the same, --allow_change seed, or another --workdir" in line
  line = refused(capsys, place, run, f"--config.total_steps={STEPS - 1}")
  assert f"total_steps: found {STEPS - 1} for stage 'main', of which the workdir's checkpoint has {STEPS}" in line
  assert content(run) == before
  assert train(place, run, "--config.seed=1", "--allow_change", "seed", f"--config.total_steps={STEPS + 2}") == 0
  notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed since")]
  assert len(notes) == 2 and "total_steps: 6 in the workdir, 8 now" in "".join(notes)
  old, new = (json.loads((run / name).read_text()) for name in ("config.until_6.json", "config.json"))
  assert (old["seed"], new["seed"], len(lines(run))) == (0, 1, STEPS + 2)
  assert old == json.loads((place / "run" / "config.json").read_text())


def changed_file(place, run, what):
  """A copy of what the run was made from, with one change; the override that points to it."""
  source = run.parent / "changed"
  if what == "data":
    source = source.with_suffix(".jsonl")
    rows = (place / "pairs.jsonl").read_text().splitlines(keepends=True)
    source.write_text("".join(rows[1:] + rows[:1]))
    return f"--config.data.source={source}"
  shutil.copytree(place / "model", source)
  name, old, new = {
    "tokenizer": ("tokenizer.json", '"sum": ', None),
    "architecture": ("config.json", '"rope_theta": 10000.0', '"rope_theta": 500000.0'),
  }[what]
  text = (source / name).read_text()
  if new is None:
    raw = json.loads(text)
    vocabulary = raw["model"]["vocab"]
    vocabulary["sum"], vocabulary["the"] = vocabulary["the"], vocabulary["sum"]
    text = json.dumps(raw)
  else:
    assert old in text
    text = text.replace(old, new)
  (source / name).write_text(text)
  return f"--config.model.path={source}"


@pytest.mark.parametrize(
  "what, key, says",
  [
    ("data", "data.source", 'data.source: its content: "40 examples '),
    ("tokenizer", "prompt.tokenizer", "prompt.tokenizer: its tokens: "),
    ("architecture", "model.path", "model.path: its rope_theta: 10000.0 in the workdir, 500000.0 now"),
  ],
)
def test_a_changed_file_is_refused_with_both_fingerprints(place, run, capsys, what, key, says):
  before, override = content(run), changed_file(place, run, what)
  line = refused(capsys, place, run, override)
  assert says in line and f"--allow_change {key}" in line
  assert content(run) == before
  allowed = [flag for name in (key, "data", "prompt") for flag in ("--allow_change", name)]
  assert train(place, run, override, *allowed) == 0
  assert says in capsys.readouterr().err


def test_the_same_files_elsewhere_are_no_change(place, run, capsys):
  shutil.copy(place / "pairs.jsonl", run.parent / "moved.jsonl")
  assert train(place, run, f"--config.data.source={run.parent / 'moved.jsonl'}") == 0
  (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed since")]
  assert f'data.source: "{place / "pairs.jsonl"}" in the workdir' in note  # the other path may be cut
  resumed_as_it_was(place, run)


# ---- Two runs, signals ---------------------------------------------------------------------------------------------


HOLDER = """
import sys
from nrt_jax.records import lock
with lock.held(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_a_second_run_in_a_workdir_is_refused(place, run, capsys):
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  first = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], cwd=ROOT, **pipes)
  first.stdout.readline()
  before = content(run)
  try:
    line = refused(capsys, place, run)
    assert f"{run}: in use by process {first.pid} on host" in line and content(run) == before
  finally:
    first.kill()
    first.communicate()
  assert (run / lock.NAME).exists()
  assert train(place, run) == 0 and f"process {first.pid} on" in capsys.readouterr().err
  assert not (run / lock.NAME).exists()


def test_a_stderr_that_was_closed_before_the_start_takes_no_file_and_no_result(tmp_path):
  program = "import os, sys\nfrom nrt_jax.__main__ import main\ncode = main(['nonsense'])\n"
  program += "print(code, os.open(sys.argv[1], os.O_CREAT) > 2, os.readlink('/proc/self/fd/2'))"
  command = ["sh", "-c", 'exec "$0" -c "$1" "$2" 2>&-', sys.executable, program, str(tmp_path / "file")]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (found.stdout, found.returncode) == ("2 True /dev/null\n", 0)


@pytest.mark.parametrize("during", ["data", "evaluation", "compilation"])
def test_a_signal_before_the_first_step_is_obeyed_at_once(place, tmp_path, monkeypatch, capsys, during):
  owner, name = {
    "data": (startup, "read_data"),
    "evaluation": (held_out, "evaluate"),
    "compilation": (training.Loop, "_compile"),
  }[during]
  work, ran = getattr(owner, name), []

  def interrupted(*arguments, **more):
    ran.append(name)
    signal.raise_signal(signal.SIGTERM)
    return work(*arguments, **more)

  monkeypatch.setattr(owner, name, interrupted)
  monkeypatch.setattr(MetricsWriter, "due", lambda self, step: pytest.fail("a step was made"))
  if during == "data":
    monkeypatch.setattr(held_out, "evaluate", lambda *_: pytest.fail("it was evaluated"))
  with pytest.raises(SystemExit) as end:
    train(place, tmp_path / "run", EVALUATED, "--config.evaluation.batch_prompts=8")
  assert end.value.code == 143 and ran == [name]
  assert capsys.readouterr().err.splitlines()[-1] == "stopped by a signal; the same command starts again"
  assert not (tmp_path / "run" / "export").exists() and not (tmp_path / "run" / lock.NAME).exists()
