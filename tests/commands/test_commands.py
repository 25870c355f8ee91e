"""The commands end to end: a tiny run is trained, sampled and exported; each mistake gives one line and exit code 2."""

import io
import json
import os
import socket
import subprocess
import sys

import harness_tasks
import jax
import numpy as np
import places
import pytest
from jax.experimental.compilation_cache import compilation_cache
from paths import ROOT

from nrt_jax import __main__
from nrt_jax.commands import flags
from nrt_jax.model import hf_weights

QUESTION = "add 0 0 0 0 4 2 3 1 modulo 5"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A directory with a model directory, a config file, an empty data file and a finished run."""
  path = places.make(
    tmp_path_factory.mktemp("commands"),
    prompts_per_step=8,
    samples_per_prompt=2,
    logging__samples_every_steps=1,
    total_steps=2,
  )
  (path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
  (path / "empty.jsonl").write_text("")
  (path / "broken.jsonl").write_text('{"question": "add 1", "answer": "1"}\n{"question": \n')
  assert __main__.main(["train", "--config", str(path / "config.py"), "--workdir", str(path / "run")]) == 0
  return path


def sample(place, *arguments) -> list[str]:
  return ["sample", "--model", str(place / "run" / "export"), *arguments]


def lines_of(capsys, argv) -> list[dict]:
  capsys.readouterr()
  assert __main__.main(argv) == 0
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---- What the commands do ------------------------------------------------------------------------------------------


def test_workdir(place):
  run = place / "run"
  found = {path.name for path in run.iterdir()}
  assert found >= {"config.json", "metrics.jsonl", "samples.jsonl", "tensorboard", "checkpoints", "tokenizer", "export"}
  values = json.loads((run / "config.json").read_text())
  assert values["model"]["path"] == str(place / "model") and values["total_steps"] == 2
  assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_the_same_command_again_changes_nothing(place):
  run = place / "run"
  before = (run / "metrics.jsonl").read_bytes(), (run / "export" / "model.safetensors").read_bytes()
  assert __main__.main(["train", "--config", str(place / "config.py"), "--workdir", str(run)]) == 0
  assert before == ((run / "metrics.jsonl").read_bytes(), (run / "export" / "model.safetensors").read_bytes())


def test_sample_text(place, capsys):
  assert __main__.main(sample(place, "--prompt", QUESTION)) == 0
  prompt, trace, answer, blank = capsys.readouterr().out.split("\n")[:4]
  assert prompt == f"prompt: {QUESTION}" and not blank
  assert trace.startswith("trace:  ") and answer.startswith("answer: ")


def test_samples_do_not_depend_on_the_batch(place, capsys, tmp_path):
  questions = [QUESTION, "add 0 1 0 0 4 2 3 1 modulo 5", "add 1 modulo 5"]
  file = tmp_path / "questions.jsonl"
  turn = {"role": "user", "content": questions[1]}
  rows = [{"question": questions[0]}, {"messages": [turn]}, {"question": questions[2]}]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  common = ("--samples", "2", "--json")
  together = lines_of(capsys, sample(place, "--file", str(file), *common))
  in_pairs = lines_of(capsys, sample(place, "--file", str(file), "--batch", "2", *common))
  assert together == in_pairs
  assert [line["question"] for line in together][::4] == [questions[0], questions[2]]
  assert len(together) == 6 and together[0] != together[1]  # two samples of one prompt
  assert all(line["trace_length"] <= 4 + 1 + 8 for line in together)  # lengths come from nrt_jax.json


def test_sample_says_which_prompts_are_next(place, capsys):
  """On stderr, before each batch: its completions come all at once."""
  capsys.readouterr()
  prompts = [word for _ in range(3) for word in ("--prompt", QUESTION)]
  assert __main__.main(sample(place, *prompts, "--batch", "2", "--json")) == 0
  out, err = capsys.readouterr()
  assert err.splitlines()[1:] == ["sampling prompts 1 to 2 of 3", "sampling prompts 3 to 3 of 3"]
  assert len(out.splitlines()) == 3


def test_sample_reads_standard_input(place, capsys, monkeypatch):
  monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\nadd 1 modulo 5\n"))
  found = lines_of(capsys, sample(place, "--json", "--samples", "2"))
  assert [line["question"] for line in found] == [QUESTION] * 2 + ["add 1 modulo 5"] * 2


def test_standard_input_that_is_no_text(place, capsys, monkeypatch):
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
  assert refused(sample(place), capsys) == "nrt-jax: standard input: not UTF-8 text\n"


def test_sample_flags_change_the_format(place, capsys):
  """Another marker is another stop token: what closed the trace before is now a word inside it."""
  flagged = sample(place, "--json", "--prompt", QUESTION, "--marker", "sum", "--max_trace_length", "2")
  (line,) = lines_of(capsys, flagged)
  assert line["trace_length"] <= 2 + 1 + 8
  assert "sum" not in line["trace"].split()


def test_sample_shares_the_model_over_devices(place, capsys):
  alone = lines_of(capsys, sample(place, "--json", "--prompt", QUESTION))
  assert lines_of(capsys, sample(place, "--json", "--prompt", QUESTION, "--tensor", "2")) == alone


@pytest.mark.parametrize("source", ["run", "run/checkpoints"])
def test_export_writes_what_the_run_exported(place, tmp_path, source):
  argv = ["export", "--checkpoint", str(place / source), "--output", str(tmp_path / "out"), "--step", "2"]
  assert __main__.main(argv) == 0
  for file in (place / "run" / "export").iterdir():
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_export_dtype(place, tmp_path, capsys):
  argv = ["export", "--checkpoint", str(place / "run"), "--output", str(tmp_path / "out"), "--dtype", "bfloat16"]
  assert __main__.main(argv) == 0
  assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
  assert "step 2" in capsys.readouterr().out


def test_harness_on_a_checkpoint_and_on_its_export(place, tmp_path, capsys):
  """The same table and samples; files hold what was asked for."""
  pytest.importorskip("lm_eval")
  tasks, tables, samples = harness_tasks.write_tasks(tmp_path / "tasks"), [], []
  for number, source in enumerate((["--checkpoint", str(place / "run")], ["--model", str(place / "run" / "export")])):
    argv = ["harness", *source, "--tasks", "local_choice,local_answer", "--include_path", str(tasks), "--data", "1"]
    files = [tmp_path / f"{name}_{number}" for name in ("results", "samples")]
    argv += ["--limit", "3", "--batch", "4", "--output", str(files[0]), "--samples", str(files[1])]
    assert __main__.main(argv) == 0
    out, err = capsys.readouterr()
    assert "harness: local_choice, local_answer; the model writes traces of up to 4 tokens, which are stripped" in err
    results = json.loads(files[0].read_text())
    assert results["config"]["step"] == (None if number else 2)
    assert list(results["results"]) == ["local_choice", "local_answer"]
    tables.append(out)
    samples.append([json.loads(line) for line in files[1].read_text().splitlines()])
  assert tables[0] == tables[1] and "|exact_match|" in tables[0].replace(" ", "")
  assert samples[0] == samples[1] and [row["task"] for row in samples[0]] == ["local_choice"] * 3 + ["local_answer"] * 3


def test_sample_keeps_compiled_programs_in_the_users_cache(place, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = [getattr(jax.config, name) for name in names]
  try:
    for name, value in zip(names, (None, 0.0)):
      jax.config.update(name, value)
    assert __main__.main(sample(place, "--prompt", QUESTION, "--max_trace_length", "3")) == 0
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "nrt_jax" / "compiled")
    assert any(path.name.startswith("jit_generate") for path in (tmp_path / "nrt_jax" / "compiled").iterdir())
  finally:
    for name, value in zip(names, before):
      jax.config.update(name, value)
    compilation_cache.reset_cache()


# ---- Mistakes ------------------------------------------------------------------------------------------------------


def refused(argv, capsys) -> str:
  """The one line that the command writes to stderr when it ends with code 2."""
  capsys.readouterr()
  assert __main__.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("nrt-jax: ") and err.count("\n") == 1
  return err


@pytest.mark.parametrize(
  "override,message",
  [
    ("modle.path=x", "unknown key: found 'modle'"),
    ("model.pth=x", "unknown key: found 'pth'"),
    ("total_steps=many", "total_steps: found 'many', allowed: int"),
    ("model.path=nowhere", "nowhere: no such directory"),
    ("model.path=null", "model.path: found null"),
    ("model.weights=pretrained", "found neither model.safetensors nor"),
    ("parallel.fsdp=3", "mesh data=-1 x fsdp=3 x tensor=1 does not fit 8 devices"),
    ("parallel.tensor=4", "is not divisible by 4"),
    ("prompts_per_step=12", "prompts_per_step: found 12, allowed: a multiple of 8"),
    ("parallel.micro_batches=5", "parallel.micro_batches: found 5"),
    ("optimizer.minibatches=2", "prompts_per_step: found 8, allowed: a multiple of 16"),
    ("data.source=nothing.jsonl", "nothing.jsonl: no such file"),
    ("data.source={place}/empty.jsonl", "is an empty data set"),
    ("data.source={place}/broken.jsonl", "broken.jsonl:2: not JSON"),
    ("data.task_options.n_digit=4", "did you mean 'n_digits'"),
    ("data.task_options.n_digits=four", "data.task_options.n_digits: found 'four', allowed: int"),
    ("prompt.max_prompt_length=3", "none of the 40 examples"),
    ("from_checkpoint=nowhere", "from_checkpoint: found 'nowhere', allowed: a workdir"),
    ("seed", "allowed: --config.KEY=VALUE"),
    ("stages=5", "stages: found 5, allowed: a list"),
    ("prompts_per_step=1099511627776", "prompts_per_step: found 1099511627776, allowed: 1 to 1048576"),
    (f"model.path={'x' * 300}", "x" * 300),
    (f"data.source={'x' * 300}.jsonl", "x" * 300),
    (f"from_checkpoint={'x' * 300}", "from_checkpoint: found 'xxx"),
    (f"prompt.tokenizer={'x' * 300}", "x" * 300),
  ],
)
def test_mistakes_in_a_config_leave_nothing_behind(place, tmp_path, capsys, override, message):
  override = "--config." + override.format(place=place)
  argv = ["train", "--config", str(place / "config.py"), "--workdir", str(tmp_path / "run"), override]
  argv += ["--config.seed=0"] * ("stages" in override)  # another override on top
  assert message in refused(argv, capsys)
  assert not list(tmp_path.iterdir())


def test_a_tracker_without_its_package_leaves_nothing_behind(place, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # what Python does where a package can't be imported
  argv = ["train", "--config", str(place / "config.py"), "--workdir", str(tmp_path / "run")]
  message = refused([*argv, '--config.logging.trackers=["wandb"]'], capsys)
  assert message == "nrt-jax: logging.trackers: the package wandb is not installed: pip install nrt_jax[wandb]\n"
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name,made", [("checkpoints", "a file"), ("metrics.jsonl", "a directory")])
def test_what_is_in_the_way_of_a_run(place, tmp_path, capsys, name, made):
  (tmp_path / name).mkdir() if made == "a directory" else (tmp_path / name).touch()
  argv = ["train", "--config", str(place / "config.py"), "--workdir", str(tmp_path)]
  assert f"--workdir: {tmp_path}/{name}: is {made}, allowed: a" in refused(argv, capsys)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert "--workdir: found '', allowed: a directory" in refused([*argv[:-1], ""], capsys)


@pytest.mark.parametrize(
  "argv,message",
  [
    ("", f"command: found none, allowed: {', '.join(flags.COMMANDS)}"),
    ("trian", f"found 'trian', allowed: {', '.join(sorted(flags.COMMANDS))} (did you mean 'train'?)"),
    ("train --workdir {tmp}/run", "required: --config"),
    ("train --config {place}/nothing.py --workdir {tmp}/run", "nothing.py: no such file"),
    ("train --config {place}/empty.jsonl --workdir {tmp}/run", "defines no function get_config()"),
    ("train --config {place}/leaves.py --workdir {tmp}/run", "leaves.py:2: SystemExit: 3"),
    ("train --config {place}/config.py --workdir {place}/config.py/run", "config.py: is a file, allowed: a directory"),
    ("train --config {place}/config.py --workdir s3://bucket/run", "found 's3://bucket/run', allowed: a directory, or gs"),
    ("export --checkpoint s3://bucket/run --output {tmp}", "--checkpoint: found 's3://bucket/run', allowed: a directory,"),
    ("report s3://bucket/run", "RUN: found 's3://bucket/run', allowed: a directory, or gs://BUCKET/PLACE; mount other"),
    ("quickstart --steps 0", "--steps: found '0', allowed: a whole number, 1 or more"),
    ("quickstart --workdir {place}/config.py", "config.py: is a file, allowed: a directory"),
    ("quickstart --workdir s3://bucket/quick", "found 's3://bucket/quick', allowed: a directory of a"),
    ("quickstart --workdir {place}", "/model: is another's model directory, allowed: a"),
    ("export --checkpoint {place}/run --output s3://bucket/out", "--output: found 's3://bucket/out', allowed: a direc"),
    ("train --config {place}/config.py --workdir {tmp}/run --step 3", "unrecognized arguments: --step 3"),
    ("train --config {place}/config.py --workdir {tmp}/" + "x" * 300, "x" * 300),
    ("train --config {place}/" + "x" * 300 + " --workdir {tmp}/run", "x" * 300),
    ("train --config {place}/config.py --workdir {tmp}/run --distributed here", "--distributed: found 'here'"),
    ("sample --prompt x", "required: --model"),
    ("sample --model {tmp} --prompt x", "holds none of tokenizer.json"),
    ("sample --model {place}/run/export --prompt x --samples 0", "--samples: found '0', allowed: a whole number, 1 or"),
    ("sample --model {place}/run/export --prompt x --top_p nan", "--top_p: found 'nan'"),
    ("sample --model {place}/run/export --prompt x --temperature inf", "--temperature: found 'inf'"),
    ("sample --model {place}/run/export --prompt \udcff", "prompt 1: is not valid Unicode text"),
    ("benchmark --config {place}/config.py --json {place}/run", "--json: found '{place}/run', a directory"),
    ("plan --config {place}/config.py --topology v5e:4x4 --json {place}/run", "--json: found '{place}/run', a directory"),
    ("sample --model {place}/run/export --prompt= ", "prompt 1: found 0 tokens, allowed: 1 to 51"),
    ("sample --model {place}/run/export --prompt x --max_trace_length 64", "allowed: 1 to -9"),
    ("sample --model {place}/run/export --file {place}/nothing.jsonl", "--file: {place}/nothing.jsonl: no such file"),
    ("sample --model {place}/run/export --file {place}/empty.jsonl", "holds no prompt"),
    ("sample --model {place}/run/export --file {place}/broken.jsonl", "broken.jsonl:2: not JSON"),
    ("sample --model {place}/run/export --prompt x --template chat", "found 'chat', but the tokenizer has no chat"),
    ("sample --model {place}/run/export --prompt x --temperature 1e-7", "temperature: found 1e-07, allowed: 0 (greedy), or"),
    ("sample --model {place}/run/export --prompt x --tensor 4", "is not divisible by 4"),
    ("sample --model {place}/run/export --prompt x --tensor 16", "does not fit 8 devices"),
    ("sample --model {place}/run/export --config.seed=3", "--config.seed=3: this command reads no config file"),
    ("harness --tasks a", "one of the arguments --model --checkpoint is required"),
    ("harness --model {place}/run/export --tasks a --samples {place}/run", "--samples: found '{place}/run', a dir"),
    ("export --checkpoint {place}/run", "required: --output"),
    ("export --checkpoint {tmp} --output {tmp}/out", "a run's workdir, or the checkpoints directory"),
    ("export --checkpoint {place}/run --output {tmp}/out --step 7", "found no checkpoint 7, allowed: 2"),
    ("export --checkpoint {place}/run --output {tmp}/out --step best", "keep_best names no metric"),
    ("export --checkpoint {place}/run --output {tmp}/out --dtype int8", "--dtype: invalid choice: 'int8'"),
    ("export --checkpoint {place}/run --output {place}/run", "which is no part of an export"),
  ],
)
def test_mistakes_in_flags(place, tmp_path, capsys, argv, message):
  argv = argv.format(place=place, tmp=tmp_path).split(" ")
  assert message.format(place=place) in refused([a for a in argv if a], capsys)
  assert not list(tmp_path.iterdir())


# ---- Two processes -------------------------------------------------------------------------------------------------


def test_two_processes_train_as_one(place, tmp_path):
  """--distributed joins two processes with four devices each; the fixture's run had one process with eight.

  Its data axis had all of them; here `fsdp` lies over both processes, `tensor` inside of each. And its rows were plain:
  here they are sampled in slots that refill and trained packed.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  data = '--config.evaluation.data={"source": "task:running_sum", "split": "test", "examples": 8}'
  argv = ["train", "--config", str(place / "config.py"), "--workdir", str(tmp_path / "run"), data]
  argv += ["--config.evaluation.batch_prompts=8", "--config.evaluation.every_steps=0"]
  argv += ["--config.parallel.fsdp=4", "--config.parallel.tensor=2", "--config.sampling.slots=8"]
  argv += ["--config.parallel.share_prompts=packed", "--config.parallel.length_buckets=2"]
  command = [sys.executable, "-m", "nrt_jax", *argv, "--distributed"]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}}
  running = [subprocess.Popen([*command, f"{address},2,{number}"], cwd=ROOT, **pipes) for number in range(2)]
  outputs = [process.communicate(timeout=300) for process in running]
  assert [process.returncode for process in running] == [0, 0], outputs
  runs = tmp_path / "run", place / "run"
  found, expected = ([json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()] for r in runs)
  assert [line["step"] for line in found] == [0, 1, 2, 2]  # evaluations have lines of their own; nobody wrote twice
  for line, other in zip((line for line in found if "reward/mean" in line), expected, strict=True):
    for name in ("reward/mean", "loss/total", "trace/length_mean", "optimizer/grad_norm"):
      assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
  exports = [hf_weights.load_params(r / "export", hf_weights.read_model_config(r / "export")) for r in runs]
  for left, right in zip(*map(jax.tree.leaves, exports)):
    np.testing.assert_allclose(left, right, atol=1e-4)
