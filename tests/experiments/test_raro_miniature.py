"""RARO in miniature: its methods are configs, its wrong answers are wrong, it runs, resumes and reports."""

import json
import random
import re
import sys
import xml.etree.ElementTree

import pytest
from paths import EXPERIMENTS

from nrt_jax.errors import UserError
from nrt_jax.tasks import table as tasks

sys.path.append(str(EXPERIMENTS / "miniature"))
import raro
import raro_report


@pytest.mark.parametrize("task", raro.PUZZLES)
def test_every_method_is_a_config_of_the_same_questions(task):
  for name in (*raro.BASE, *raro.ABLATIONS, *raro.CURES):
    run = raro.method_run(task, name, "model", 3)
    assert run.data.source == f"task:{task}" and run.evaluation.data.split == "test" and run.seed == 3
    assert run.total_steps * run.prompts_per_step == (400 * 64 if name == "sft" else 100 * 32)
    verified = run.algorithm_name == "dr_grpo"
    assert (getattr(run.algorithm, "verifier_weight", 0) == 0) and (not verified or run.algorithm.verifier == "host")
  assert {*raro.METHODS} == {*raro.BASE, *raro.ABLATIONS, *raro.CURES}


@pytest.mark.parametrize("task", raro.PUZZLES)
def test_answers_fit_and_wrong_ones_are_wrong_and_near(task):
  """As many words as the right one has, of which all but two are where they were."""
  puzzle, made, rng = raro.PUZZLES[task], tasks.make_task(task, "train", {}), random.Random(0)
  for i in range(60):
    question, answer, _ = made.example(i)
    other = raro.wrong(answer, made, rng)
    assert len(question.split()) <= puzzle.question and len(answer.split()) <= puzzle.answer
    assert not made.grade(other, answer) and len(other.split()) == len(answer.split())
    assert 1 <= sum(a != b for a, b in zip(answer.split(), other.split())) <= 2


def test_the_start_is_taught_who_is_the_expert_and_when_to_tie(tmp_path):
  made = tasks.make_task("zigzag", "train", {})
  raro.write_start_data("zigzag", str(tmp_path / "data"), 2000, seed=1)
  labels = {"first": 0, "second": 0, "tie": 0, "demonstration": 0}
  for line in map(json.loads, (tmp_path / "data").read_text().splitlines()):
    if "|" not in line["question"]:
      assert made.grade(line["answer"], line["answer"])
      labels["demonstration"] += 1
      continue
    question, first, second = (text.strip(" #") for text in line["question"].split("|"))
    labels[line["answer"]] += 1
    right = [made.grade(text, question.removeprefix("zigzag ")) for text in (first, second)]
    assert {"first": right == [True, False], "second": right == [False, True], "tie": first == second}[line["answer"]]
  assert abs(labels["demonstration"] / 2000 - 0.05) < 0.02 and abs(labels["tie"] / 1900 - 0.15) < 0.035
  assert abs(labels["first"] - labels["second"]) < 160  # four standard deviations of 1,615 coins


def test_it_runs_resumes_and_reports(tmp_path, capsys):
  command = ["--task", "countdown_small", "--seeds", "0", "--methods", "raro", "--start_steps", "2", "--steps", "3"]
  command += ["--workdir", str(tmp_path), "--plot", str(tmp_path / "curves.svg")]
  raro.main(command)
  printed = capsys.readouterr()
  line = json.loads((tmp_path / "results.jsonl").read_text())
  assert [point["step"] for point in line["curve"]] == [0, 1, 2, 3] and line["sampled"] > 0 and line["trained"] > 0
  assert raro_report.SHOWN[0] in line["curve"][1] and "| raro | 1 |" in printed.out
  assert len(re.findall(r"^\| raro \| \d \|", printed.out, re.MULTILINE)) == 1 + 4  # the table, then its curve
  text = [x.text for x in xml.etree.ElementTree.parse(tmp_path / "curves.svg").getroot().iter()]
  assert [text.count(head) for head, _ in raro_report.PANELS] == [len(raro.ROWS)] * len(raro_report.PANELS)
  before = (tmp_path / "results.jsonl").stat().st_mtime_ns
  raro.main(command)  # nothing is left to run
  assert (tmp_path / "results.jsonl").stat().st_mtime_ns == before and capsys.readouterr().out == printed.out
  assert not raro.finished(str(tmp_path / "results.jsonl"), 2, 0)  # a trial is no run of the method's own length
  with pytest.raises(UserError, match="--steps, --start_steps: found -1, 2, allowed: 0 or more"):
    raro.main([*command, "--steps", "-1"])
