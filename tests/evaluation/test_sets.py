"""The table of built-in sets: each row reads its published shape, and its own answers are right by its grader."""

import dataclasses
import gzip
import json

import benchmarks
import paths
import pytest

from nrt_jax import errors
from nrt_jax.evaluation import held_out, human_eval, sets
from nrt_jax.evaluation.held_out import EvaluationConfig
from nrt_jax.tasks import table as tasks

FILED = [name for name, row in sets.SETS.items() if row.files]
SIZES = {"gsm8k": 1319, "svamp": 1000, "aime24": 30, "amc23": 40, "minerva_math": 272, "olympiadbench": 675,
         "bbh": 6511, "mmlu_stem": 3018, "humaneval": 164}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return benchmarks.write(tmp_path_factory.mktemp("sets"))


def load(place, name):
  return sets.load(name, str(place))[0]


def test_every_set_has_all_that_its_evaluation_needs():
  for name, row in sets.SETS.items():
    assert row.source and row.licence and "{question}" in row.question, name
    assert (row.read is None) == (row.files is None) and (row.grader is None or row.grader in tasks.GRADERS), name
    assert row.files or name in tasks.TASKS, name
  assert {"gsm8k", "svamp", "math", "bbh", "mmlu_stem", "humaneval", "aime24", "countdown"} < set(sets.SETS)
  assert set(tasks.TASKS) - set(sets.SETS) == {"verse"}


@pytest.mark.parametrize("name", FILED)
def test_reference_answers_are_right_and_wrong_ones_are_wrong(place, name):
  examples, row = load(place, name), sets.SETS[name]
  assert examples and all(one.question and one.answer for one in examples)
  if row.runs_code:
    return  # see test_human_eval.py
  grade = held_out.grader(sets.data_config(name, str(place)), row.grader)
  for one in examples:
    assert grade(one.answer, one.answer) and grade(f"So the answer is {one.answer}.", one.answer), one
    assert not grade("The answer is nothing", one.answer)


def test_rows_are_read_as_they_are_meant(place):
  first = {name: load(place, name)[0] for name in FILED}
  pens = first["gsm8k"]
  assert (pens.question, pens.answer) == ("how many pens are 1 pairs", "2")
  assert pens.trace == "He has 2 * 1 = 2 pens.\nThat is all."
  assert first["svamp"].question == "A has 5 pens and gives 2 away. How many are left?" and first["svamp"].answer == "3"
  assert load(place, "svamp")[1].answer == "3.5" and first["amc23"].answer == "6"
  assert (first["math"].answer, first["math"].trace) == ("\\frac{1}{2}", "It is $\\boxed{\\frac{1}{2}}$.")
  assert (first["aime24"].answer, first["minerva_math"].answer) == ("4", "3e8")
  both, other = load(place, "olympiadbench")
  assert (both.answer, both.trace, other.trace) == ("$1$, $-1$", "Both signs.", None)
  assert other.question == "Let a = 2.\n\na^2?"
  letters = load(place, "mmlu_stem")
  assert letters[0].question.startswith("which is 0\n(A) 0\n(B) 1") and letters[2].answer == "(C)"
  assert letters[0].question.endswith("letter of the right choice.")
  assert [one.group for one in letters] == ["algebra"] * 3 + ["biology"] * 3
  assert [(one.group, one.answer) for one in load(place, "bbh")][3:5] == [("dates", "(A)"), ("navigate", "Yes")]
  assert first["mmlu"].answer == "(B)"


def test_functions_come_with_their_tests(place):
  examples, rows = sets.load("humaneval", str(place))
  assert len(rows) == len(examples) == 2
  program = human_eval.program(rows[examples[1].where], examples[1].answer)
  exec(compile(program, "ours", "exec"), {})  # raises where it is wrong
  assert "whole function" in examples[0].question and examples[0].answer.endswith("return side * side\n")


def test_worked_examples_are_those_of_the_training_split(place):
  assert [one.question for one in sets.worked("gsm8k", str(place))] == [f"train {i}" for i in range(20, 24)]
  assert sets.worked("svamp", str(place)) is None and sets.worked("math", str(place)) is None  # no train.jsonl
  made = sets.worked("parity", None)
  asked = {one.question for one in load(None, "parity")}
  assert len(made) == sets.WORKED and asked.isdisjoint(one.question for one in made)


def test_a_set_of_ones_own_is_a_row(tmp_path, monkeypatch):
  rows = [{"problem": "1+1?", "answer": 2.0}]
  (tmp_path / "mine.json").write_text(json.dumps(rows))
  mine = sets.EvaluationSet("ours", "ours", "mine.json", sets.mathematics, "math", "Q: {question}")
  monkeypatch.setitem(sets.SETS, "mine", mine)
  assert EvaluationConfig(sets=("mine",)).sets == ("mine",)
  (one,) = load(tmp_path, "mine")
  assert (one.question, one.answer, one.group) == ("Q: 1+1?", "2", None)


def test_the_hubs_own_sets_are_read_as_files_are(place, tmp_path, monkeypatch):
  """From a directory in the place of a name on the hub, which the same library loads."""
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  import datasets

  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  local = dataclasses.replace(sets.SETS["gsm8k"], hub=f"hub:{place / 'gsm8k'}", hub_split="test", hub_train="train")
  monkeypatch.setitem(sets.SETS, "gsm8k", local)
  sets.check(["gsm8k"], sets.HUB)
  found = load(sets.HUB, "gsm8k")
  assert [one.question for one in found] == [one.question for one in load(place, "gsm8k")]
  assert found[0].where == f"hub:{place / 'gsm8k'}[test]: row 1"
  assert [one.answer for one in sets.worked("gsm8k", sets.HUB)] == ["40", "42", "44", "46"]


def test_tasks_need_no_directory():
  sets.check(("countdown", "parity"), None)
  assert len(load(None, "parity")) == sets.OF_A_TASK
  grade, (some, _) = held_out.grader(sets.data_config("countdown", None)), sets.load("countdown", None, 9)
  assert len(some) == 9 and all(grade(one.answer, one.answer) for one in some)


@pytest.mark.parametrize(
  "names,directory,message",
  [
    (["gsm9k"], "{place}", r"^evaluation.sets \(--sets\): found 'gsm9k', allowed: .*did you mean 'gsm8k'"),
    (["gsm8k", "gsm8k"], "{place}", "found 'gsm8k' twice"),
    (["gsm8k"], None, r"found none for gsm8k, allowed: a directory with gsm8k/test.jsonl, or hub"),
    (["gsm8k"], "{place}/bbh", "bbh/gsm8k/test.jsonl: no such file, for the set gsm8k"),
    (["bbh"], "{place}/gsm8k", r"gsm8k/bbh/\*.json: no such file, for the set bbh"),
    (["bbh"], "hub", "found 'bbh' with .* hub, allowed there: aime24, gsm8k, humaneval, math, mmlu, olym"),
  ],
)
def test_what_is_not_there_is_said_in_one_line(place, names, directory, message):
  with pytest.raises(errors.UserError, match=message):
    sets.check(names, directory and directory.format(place=place))


@pytest.mark.parametrize(
  "name,row,message",
  [
    ("gsm8k/test.jsonl", {"question": "x", "answer": "7"}, "test.jsonl:1: data.answer_after: found no text behind"),
    ("math/test.jsonl", {"problem": "x", "solution": "7"}, r"test.jsonl:1: found neither an answer nor a \\boxed"),
    ("math_eval/svamp.jsonl", {"Body": "x", "Answer": 1.0}, "svamp.jsonl:1: no column 'Question'"),
    ("math_eval/olympiadbench.jsonl", {"question": "x", "final_answer": "1"}, "jsonl:1: columns .* must hold lists"),
    ("math_eval/mmlu_stem.jsonl", {"question": "x", "choices": ["a", "b"], "answer": 2}, "found the answer 2, allowed"),
    ("mmlu/test.jsonl", {"question": "x", "choices": ["a", "b"], "answer": 1}, "test.jsonl:1: no column 'subject'"),
  ],
)
def test_rows_of_another_shape_are_named(tmp_path, name, row, message):
  (tmp_path / name).parent.mkdir()
  (tmp_path / name).write_text(json.dumps(row))
  (which,) = (key for key, one in sets.SETS.items() if one.files == name)
  with pytest.raises(errors.UserError, match=message):
    load(tmp_path, which)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: b"{}" + packed])
def test_a_packed_file_that_is_damaged(tmp_path, damage):
  (tmp_path / "humaneval").mkdir()
  packed = gzip.compress(json.dumps(benchmarks.AREA).encode())
  (tmp_path / "humaneval" / "HumanEval.jsonl.gz").write_bytes(damage(packed))
  with pytest.raises(errors.UserError, match="HumanEval.jsonl.gz: not packed by gzip, or damaged"):
    load(tmp_path, "humaneval")


@pytest.mark.parametrize("name", SIZES)
def test_published_files(name):
  if not paths.DATA.is_dir():
    pytest.skip("real data is absent: ../shared/data")
  sets.check([name], str(paths.DATA))
  examples = load(paths.DATA, name)
  assert len(examples) == SIZES[name]
  grade = held_out.grader(sets.data_config(name, str(paths.DATA)), sets.SETS[name].grader)
  some = [] if sets.SETS[name].runs_code else examples[:: max(1, len(examples) // 30)]
  assert all(grade(one.answer, one.answer) for one in some)
  assert len({one.group for one in examples}) == {"bbh": 27, "mmlu_stem": 18}.get(name, 1)
