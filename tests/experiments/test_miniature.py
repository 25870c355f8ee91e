"""The miniature study: it covers every method, reports correctly, runs, shares programs and resumes."""

import json
import math
import sys

import pytest
from paths import EXPERIMENTS

from nrt_jax.algorithms.table import ALGORITHMS
from nrt_jax.errors import UserError
from nrt_jax.files import append_json_line
from nrt_jax.step import host_grading

sys.path.append(str(EXPERIMENTS / "miniature"))
import methods
import methods_recipe as recipe
import methods_report as reports
import raro

METRICS = {"accuracy": 0.5, "logp": -1.0, "gain": 0.1, "trace": 4.0, "entropy": 0.2}


def line(method="sft", seed=0, last=(), **more) -> dict:
  """A finished run with three points on its curve."""
  curve = [{"step": 0, **METRICS}, {"step": 1, **METRICS}, {"step": 2, **METRICS, **dict(last)}]
  fixed = {"task": "running_sum", "method": method, "seed": seed, "steps": 2, "pretrain_steps": 2}
  return {**fixed, "generated": 1000 * (seed + 1), "seconds": 1.5, "curve": curve, **more}


# ---- Recipe ----------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_is_studied():
  """But for methods with a critic, which have a study of their own: raro.py."""
  assert {method.algorithm for method in recipe.METHODS.values()} | {"raro"} == set(ALGORITHMS)
  assert "raro" in raro.METHODS


def test_configs_differ_in_the_method_alone():
  for task, study in recipe.TASKS.items():
    for name, method in recipe.METHODS.items():
      if method.family not in study.families:
        continue
      run = recipe.method_config(task, name, "model", 7)
      assert (run.total_steps, run.prompts_per_step, run.samples_per_prompt, run.seed) == (7, 16, 8, 0)
      assert run.optimizer.learning_rate == recipe.LEARNING_RATE
      assert run.optimizer.minibatches == (16 if method.family == "reused" else 1)
      assert run.sampling.max_trace_length == study.trace + (1 + study.answer) * method.whole
      assert run.data.split == "train" and run.evaluation.data.split == "test"
      assert not method.verified or run.algorithm.verifier == study.verifier


def test_hard_tokens_are_the_sums():
  answers = {task: recipe.tasks.TASKS[task]().example(0)[1].split() for task in recipe.TASKS if recipe.TASKS[task].hard}
  assert set(answers) == {"running_sum", "long_answer"}
  for task, words in answers.items():
    assert all(words[column].isdigit() for column in recipe.TASKS[task].hard)
  assert len(recipe.HARD) == sum(word.isdigit() for word in answers["long_answer"]) == 2


# ---- Reports ---------------------------------------------------------------------------------------------------------


def test_mean_and_deviation():
  assert reports.mean_std([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7)))  # (4 + 1 + 9) / 2
  mean, std = reports.mean_std([0.25])
  assert mean == 0.25 and math.isnan(std)
  assert reports.cell([1.0, 2.0, 6.0], 2) == "3.00 ± 2.65" and reports.cell([0.25], 2) == "0.25"


def test_table_shows_the_last_point_over_seeds():
  lines = [line(seed=seed, last={"accuracy": accuracy}) for seed, accuracy in enumerate((0.1, 0.2, 0.6))]
  lines.append(line("grpo", 1))
  head, rule, start, sft, grpo = reports.table(lines).split("\n")
  assert "hard" not in head and head.count("|") == rule.count("|") == sft.count("|") == 10 and "step 1 | step 2" in head
  assert start.startswith("| start |  | 0.500 ± 0.000 | 0.50 / 0.50 / 0.50 |")
  more = "-1.000 ± 0.000 | 0.100 ± 0.000 | 4.0 ± 0.0 | 0.20 ± 0.00 | 2,000 |"
  assert sft == f"| `sft` | 0.500 ± 0.000 | 0.300 ± 0.265 | 0.10 / 0.20 / 0.60 | {more}"
  assert grpo.startswith("| `grpo` | 0.500 | 0.500 | 0.50 | -1.000 |") and grpo.endswith("| 2,000 |")


def test_series_and_figure():
  lines = [line(seed=0, last={"trace": 1.0}), line(seed=1, last={"trace": 3.0}), line("grpo", 1), line("nrt_am", 0)]
  assert reports.series(lines[:2], "trace") == [(0, 4.0, 0.0), (1, 4.0, 0.0), (2, 2.0, pytest.approx(math.sqrt(2)))]
  families = {name: method.family for name, method in recipe.METHODS.items()}
  rows = reports.panels(lines, families)
  assert [list(panels) for _, panels in rows] == [[head for head, _ in reports.PANELS]] * 2  # two families
  assert [list(panels["accuracy"]) for _, panels in rows] == [["nrt_am", "sft"], ["grpo", "sft"]]
  assert rows[0][1]["trace length"]["sft"] == reports.series(lines[:2], "trace")


def test_a_table_takes_its_place_in_the_page():
  page = "before\n<!-- table a -->\nold\n<!-- end -->\nbetween\n<!-- table b -->\n<!-- end -->\n"
  filled = reports.fill(page, "table a", r"new \1")
  assert filled == page.replace("old\n", "\nnew \\1\n\n")
  assert reports.fill(filled, "table a", "old").replace("\n\nold\n\n", "\nold\n") == page
  with pytest.raises(UserError, match="table c"):
    reports.fill(page, "table c", "")


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_finished_runs_are_those_with_whole_lines_and_as_many_steps(tmp_path):
  path, args = tmp_path / "results.jsonl", methods.read_flags(["--steps", "2", "--pretrain_steps", "2"])
  assert methods.finished(path, args) == {}
  append_json_line(path, line())
  append_json_line(path, line("grpo", 1, steps=3))
  with open(path, "a") as file:
    file.write('{"task": "running_sum", "meth')  # killed while writing
  assert set(methods.finished(path, args)) == {("running_sum", 0, "sft")}
  append_json_line(path, line("nft", 2))
  assert set(methods.finished(path, args)) == {("running_sum", 0, "sft"), ("running_sum", 2, "nft")}


def test_order_and_flags():
  args = methods.read_flags(["--methods", "sft", "grpo"])
  assert methods.planned(args)[:3] == [("running_sum", 0, "sft"), ("running_sum", 0, "grpo"), ("running_sum", 1, "sft")]
  assert ("long_answer", 0, "grpo") not in methods.planned(args)  # nothing verifies it token by token
  with pytest.raises(UserError, match="--methods: found 'rationalisation'.*did you mean 'rationalization'"):
    methods.read_flags(["--methods", "rationalisation"])


def test_study_runs_shares_programs_and_resumes(tmp_path, monkeypatch, capsys):
  for name, value in (("PROMPTS", 2), ("PRETRAIN_EXAMPLES", 64), ("TRAIN_EXAMPLES", 8), ("TEST_EXAMPLES", 8)):
    monkeypatch.setattr(recipe, name, value)
  compiled, compile_train_step = [], host_grading.compile_train_step

  def counted(setup, *arguments):
    compiled.append((setup.run.algorithm_name, setup.run.prompts_per_step))
    return compile_train_step(setup, *arguments)

  monkeypatch.setattr(host_grading, "compile_train_step", counted)
  root = str(tmp_path / "study")
  fixed = ["--workdir", root, "--tasks", "running_sum", "--seeds", "0", "1", "--steps", "2", "--pretrain_steps", "2"]
  methods.main([*fixed, "--methods", "sft", "nrt_ws_log"])
  assert [name for name, prompts in compiled if prompts == 2] == ["sft", "nrt"]  # once, whatever the seeds

  with open(tmp_path / "study" / "results.jsonl") as file:
    lines = {(one["method"], one["seed"]): one for one in map(json.loads, file)}
  assert len(lines) == 4
  for (name, _), one in lines.items():
    assert [point["step"] for point in one["curve"]] == [0, 1, 2] and len(one["training"]["answer/logp"]) == 2
    assert one["curve"][0] != one["curve"][-1]
    assert (one["generated"] > 0) == (name != "sft")
  assert lines["sft", 0]["curve"][0] == lines["nrt_ws_log", 0]["curve"][0]  # the same start
  assert lines["sft", 0]["curve"][0] != lines["sft", 1]["curve"][0]  # another for each seed
  assert "| `nrt_ws_log` | 0." in capsys.readouterr().out

  monkeypatch.setattr(methods, "Bench", None)  # nothing is left to run
  methods.main([*fixed, "--methods", "sft", "nrt_ws_log"])
  page = tmp_path / "page.md"
  page.write_text("<!-- table running_sum -->\n<!-- end -->\n")
  methods.main([*fixed, "--report_only", "--page", str(page)])
  assert "| `sft` | 0." in page.read_text() and (tmp_path / "methods_running_sum.svg").exists()
