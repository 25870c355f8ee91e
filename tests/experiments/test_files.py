"""Every experiment file loads and documents its command; the small ones run end to end."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import places
import pytest
from paths import EXPERIMENTS

from experiments import gsm8k_tiny, smollm2_gsm8k
from nrt_jax import config, training
from nrt_jax.commands import quickstart
from nrt_jax.commands.configs import load_config
from nrt_jax.data import prompts
from nrt_jax.model import hf_weights
from nrt_jax.model.architecture import ModelConfig
from nrt_jax.model.decoder import init_params

# Those that `nrt-jax train --config` takes: get_config needs no arguments.
PLACES = (EXPERIMENTS, EXPERIMENTS / "full_size")
RUN = r"def get_config\((\)|\w+: \w+ = )"
FILES = sorted(p for place in PLACES for p in place.glob("*.py") if re.search(RUN, p.read_text()))
CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_a_run_and_says_how_to_start_it(path):
  assert config.stages_of(load_config(str(path)))
  for word in (path.relative_to(EXPERIMENTS.parent).as_posix(), "cost", "expected"):
    assert word in path.read_text().split('"""')[1]


def test_the_page_lists_every_run():
  page = (EXPERIMENTS / "README.md").read_text()
  listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", page, re.MULTILINE))
  runs = {path.relative_to(EXPERIMENTS).as_posix() for path in FILES} | {"quickstart.py", "miniature/methods.py"}
  assert runs <= listed and all((EXPERIMENTS / name).is_file() for name in listed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_total_steps_caps_every_stage(path):
  assert {run.total_steps for run in config.stages_of(load_config(str(path), ["--config.total_steps=3"]))} == {3}


def test_full_size_file_can_be_tried_small(tmp_path):
  """The docstring's way to try it: a small model, a file of conversations, three steps."""
  model = tmp_path / "model"
  tokenizer = prompts.byte_pair_tokenizer(["a question and its answer"], 300, model, special=CHAT_TOKENS)
  architecture = ModelConfig(
    vocab_size=len(tokenizer),
    hidden_size=16,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
  )
  source = tmp_path / "tokenizer"
  model.rename(source)
  hf_weights.save_params(init_params(architecture, jax.random.key(0)), architecture, model, source=source)
  # With the full-size file's own four updates per step on eight devices.
  turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "its answer"}]
  rows = tmp_path / "rows.jsonl"
  rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(5)))
  small = {
    "total_steps": 3, "model.path": model, "data.source": rows, "parallel.fsdp": 1, "parallel.tensor": 1,
    "parallel.micro_batches": 1, "prompts_per_step": 32, "samples_per_prompt": 2, "prompt.max_prompt_length": 64,
    "prompt.max_answer_length": 16, "sampling.max_trace_length": 8, "logging.progress": False,
  }  # fmt: skip
  path = EXPERIMENTS / "full_size" / "nrt_llama31_8b_tulu3.py"
  values = load_config(str(path), [f"--config.{key}={value}" for key, value in small.items()])
  training.train(config.stages_of(values), str(tmp_path / "run"), values)
  lines = read_metrics(tmp_path / "run")
  assert [line["step"] for line in lines] == [1, 2, 3]
  assert all(np.isfinite(list(line.values())).all() for line in lines)


# ---- gsm8k_tiny ----------------------------------------------------------------------------------------------------


def read_metrics(workdir) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_problems(path, count=40) -> str:
  """Problems in the form of GSM8K's train.jsonl."""

  def problem(i):
    return {
      "question": f"Ann has {i} pens and buys {i + 3} more. How many pens has she now?",
      "answer": f"She has {i}+{i + 3} = <<{i}+{i + 3}={2 * i + 3}>>{2 * i + 3} pens.\n#### {2 * i + 3}",
    }

  path.write_text("".join(json.dumps(problem(i)) + "\n" for i in range(count)))
  return str(path)


def test_gsm8k_tiny_runs_on_forty_rows(tmp_path, capsys):
  workdir = tmp_path / "run"
  small = {
    "total_steps": "4", "stages.pretrain.data.limit": "20", "stages.nrt.data.offset": "20", "samples_per_prompt": "2",
    "stages.pretrain.prompts_per_step": "8", "prompts_per_step": "8", "sampling.max_trace_length": "8",
    "prompt.max_answer_length": "48",
  }  # fmt: skip
  gsm8k_tiny.run("nrt", write_problems(tmp_path / "train.jsonl"), str(workdir), small)
  lines = read_metrics(workdir)
  assert [line["step"] for line in lines] == list(range(1, 9))
  assert lines[3]["answer/logp"] > lines[0]["answer/logp"] + 0.1  # pretraining
  assert lines[7]["answer/logp"] > lines[4]["answer/logp"]  # NRT
  assert np.isfinite([line["loss/total"] for line in lines]).all()
  table = capsys.readouterr().out.splitlines()
  assert table[0].split()[1:] == list(gsm8k_tiny.TABLE) and table[1].startswith("1-4")
  exported = prompts.load_tokenizer(workdir / "export")
  assert gsm8k_tiny.MARKER in exported.get_vocab()
  assert hf_weights.read_model_config(workdir / "export").vocab_size == len(exported)


@pytest.mark.parametrize("method", gsm8k_tiny.METHODS)
def test_gsm8k_methods_are_configs(method):
  pretrain, second = config.stages_of(gsm8k_tiny.get_config(method))
  assert pretrain.algorithm_name == "sft" and second.stage == method
  assert second.algorithm_name == ("sft" if method == "sft" else "nrt")
  assert second.data.offset == pretrain.data.limit  # the second stage sees nothing of the first one's examples


def test_gsm8k_tiny_without_its_file_says_so(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["gsm8k_tiny.py", "--workdir", str(tmp_path / "run"), "--data", "nowhere.jsonl"])
  with pytest.raises(SystemExit) as stop:
    gsm8k_tiny.main()
  error = capsys.readouterr().err
  assert stop.value.code == 2 and error.count("\n") == 1 and "nowhere.jsonl: no such file" in error
  assert not (tmp_path / "run").exists()


# ---- smollm2_gsm8k -------------------------------------------------------------------------------------------------


def test_smollm2_gsm8k_compares_both_methods_from_one_start(tmp_path, capsys):
  model = places.make_chat_model(tmp_path / "model")
  for name in ("train", "test"):
    write_problems(tmp_path / f"{name}.jsonl")
  small = {
    "model.path": str(model), **smollm2_gsm8k.files_in(str(tmp_path)), "evaluation.every_steps": "0",
    "total_steps": "2", "prompts_per_step": "8", "samples_per_prompt": "2", "prompt.max_prompt_length": "48",
    "sampling.max_trace_length": "6", "evaluation.batch_prompts": "8", "evaluation.data.limit": "8",
    "logging.progress": "false",
  }  # fmt: skip
  place = str(tmp_path / "runs")
  results = smollm2_gsm8k.study(place, ["nrt", "sft"], [3], "cpu", small)
  assert {cell: len(one["steps"]) for cell, one in results.items()} == {("nrt", 3): 2, ("sft", 3): 2}
  (first, last), (second, _) = (one["evaluations"] for one in results.values())
  figures = [f"eval/test/{name}" for name in smollm2_gsm8k.SHOWN]
  assert [first[name] for name in figures] == pytest.approx([second[name] for name in figures], abs=1e-5)
  assert last["eval/test/answer_logp"] != first["eval/test/answer_logp"]
  curves = str(tmp_path / "curves.svg")
  smollm2_gsm8k.main(["--workdir", place, "--seeds", "3", "4", "--report_only", "--curves", curves])  # no seed 4
  drawn = pathlib.Path(curves).read_text()
  assert drawn.startswith("<svg") and all(text in drawn for text in ("nrt, runs", "sft, runs", *smollm2_gsm8k.PANELS))
  table = capsys.readouterr().out.strip().splitlines()
  assert table[0].split()[2:] == list(smollm2_gsm8k.SHOWN) and len(table) == 5
  assert [float(cell) for cell in table[2].split()[-5:]] == [float(f"{last[name]:.3f}") for name in figures]


def test_smollm2_gsm8k_averages_curves_over_steps_and_seeds():
  few, many = (
    [[{"step": n, "x": n + seed} for n in range(1, steps + 1)] + [{"step": 90}] for seed in (0, 2)] for steps in (3, 50)
  )
  assert smollm2_gsm8k.over_seeds(few, "x") == [(n, n + 1, pytest.approx(2**0.5)) for n in (1, 2, 3)]
  assert smollm2_gsm8k.over_seeds(many, "x") == [(2 * n, 2 * n + 0.5, pytest.approx(2**0.5)) for n in range(1, 26)]
  assert not smollm2_gsm8k.over_seeds(few, "other") and smollm2_gsm8k.over_seeds(few[:1], "x")[0] == (1, 1, 0.0)


@pytest.mark.parametrize("on", smollm2_gsm8k.SIZES)
def test_smollm2_gsm8k_trains_on_equally_many_answers(on):
  runs = {name: config.stages_of(smollm2_gsm8k.get_config(name, on))[0] for name in smollm2_gsm8k.METHODS}
  nrt, sft = runs.pop("nrt"), runs.pop("sft")
  for part in ("model", "prompt", "optimizer", "evaluation", "data"):
    assert getattr(nrt, part) == getattr(sft, part)
  for one in (nrt, *runs.values()):
    assert one.prompts_per_step * one.samples_per_prompt == sft.prompts_per_step
  held, cool, more = runs["nrt_forced_kl"], runs["nrt_cool"], runs["nrt_samples"]
  assert (held.algorithm.format_coef, held.algorithm.kl_coef, held.algorithm.reference) == (0, 1, "frozen")
  assert cool.sampling.temperature == 0.6 and more.samples_per_prompt == 4 * nrt.samples_per_prompt


def test_quickstart_runs_to_its_table_and_its_answers(tmp_path):
  """A few steps of the very command of the README: three runs, the table, and the exported model's answers."""
  steps = ["--pretrain_steps", "2", "--steps", "1", "--seed", "3"]
  command = [sys.executable, str(EXPERIMENTS / "quickstart.py"), "--workdir", str(tmp_path), *steps]
  env = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)}
  result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, check=False)
  assert result.returncode == 0, result.stderr
  for line in ("after pretraining", "+ SFT on answers", "+ NRT on answers"):
    assert re.search(rf"^{re.escape(line)} +[01]\.\d+ +\d+\.\d+$", result.stdout, re.MULTILINE), result.stdout
  assert result.stdout.count("prompt: add ") == 3
  runs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("pretrain", "sft", "nrt")]
  assert [run["seed"] for run in runs] == [3, 3, 3]


def test_quickstart_divides_over_the_devices_of_a_host():
  """Eight GPUs, or the chips of a TPU host: evaluations of 500 rows at a time were refused there."""
  made = [quickstart.pretrain_config("m", 2), *(quickstart.pairs_config(name, "m", 2, "p") for name in ("sft", "nrt"))]
  assert all(c.prompts_per_step % 8 == 0 and c.evaluation.batch_prompts % 8 == 0 for c in made)
