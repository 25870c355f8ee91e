"""Programs as tasks: outputs and programs by other means, grades by running, splits, conventions, JAX's grades."""

import dataclasses
import importlib
import itertools
import math
import re

import jax
import numpy as np
import pytest
import reference

from nrt_jax import errors
from nrt_jax.interpreters import batching, befunge, befunge_jax, brainfuck, brainfuck_jax, outcome
from nrt_jax.tasks import programs
from nrt_jax.tasks import table as tasks

LANGUAGES = {"brainfuck": brainfuck, "befunge": befunge}
KINDS = ("copy", "reverse", "sort", "add", "fibonacci", "factorial")
FIBONACCI = (0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55)
SWAPPED = {"brainfuck": {">": "<", "<": ">", "+": "-", "-": "+"}}
SWAPPED["befunge"] = {**SWAPPED["brainfuck"], "^": "v", "v": "^"}


def make(name, split="train", **options):
  return tasks.make_task(name, split, {"trace_share": 1.0, **options})


def text_of(words, name, convention="standard"):
  """A program's text, from its words."""
  swapped = SWAPPED[name] if convention == "swapped" else {}
  return "".join({"blank": " ", "newline": "\n"}.get(word, swapped.get(word, word)) for word in words.split())


def wanted(kind, values):
  """What a program of a kind writes, by definitions of our own."""
  if kind == "add":
    return [sum(values)]
  if kind in ("fibonacci", "factorial"):
    return [FIBONACCI[n] if kind == "fibonacci" else math.prod(range(1, n + 1)) for n in values]
  return {"copy": values, "reverse": values[::-1], "sort": [v for n in range(99) for v in values if v == n]}[kind]


def numbers(text):
  return [int(word) for word in text.split()]


def run(name, text, values, task):
  language = LANGUAGES[name]
  return language.run(language.encode(text), values, task.limits)


@pytest.mark.parametrize("convention", programs.CONVENTIONS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_outputs_follow_from_questions(name, convention):
  for kind in ("print", *KINDS, "random"):
    task = make(name, kind=kind, convention=convention)
    for index in range(10):
      question, answer, trace = task.example(index)
      words, _, given = question.removeprefix(f"run {convention} ").partition(" with ")
      found = run(name, text_of(words, name, convention), numbers(given), task)
      assert found.status == outcome.FINISHED and list(found.output) == numbers(answer)
      if kind in KINDS:
        assert numbers(answer) == wanted(kind, numbers(given)) and len(numbers(given)) == 3
      elif kind == "random":
        assert 1 <= len(numbers(answer)) <= 3 and any(numbers(answer)) and max(numbers(answer)) < 10
      path = trace.split()
      assert 1 <= len(path) <= task.max_trace and set(path) <= set(words.split())
      if name == "brainfuck":
        assert path[0] == words.split()[0] and len(path) == min(found.steps, task.max_trace)


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_programs_are_right_on_every_input(name, kind):
  task = make(name, kind=kind, direction="write", n_symbols=3, alphabet=4, first=2)
  question, answer, _ = task.example(0)
  shown = re.fullmatch(rf"write standard {kind} where (.*)", question)[1].split(" and ")
  for pair in shown:
    given, output = map(numbers, pair.split(" gives "))
    assert wanted(kind, given) == output and 1 <= len(given) <= 3
  assert len(shown) == 2 and task.grade(answer, answer)
  for size in range(1, 4):
    for values in itertools.product(range(2, 6), repeat=size):
      found = run(name, text_of(answer, name), values, task)
      assert found.status == outcome.FINISHED
      assert list(found.output) == [v % 256 if name == "brainfuck" else v for v in wanted(kind, list(values))]


def test_printed_symbols_are_those_of_the_question():
  for name in LANGUAGES:
    task = make(name, kind="print", direction="write", first=7, alphabet=20)
    for index in range(20):
      question, answer, _ = task.example(index)
      values = numbers(question.removeprefix("write standard print "))
      assert list(run(name, text_of(answer, name), (), task).output) == values and len(values) == 3
      assert task.cases(index) == [((), tuple(values))]


# ---- Grades ----------------------------------------------------------------------------------------------------------

# language, kind -> other programs that are right, and such that are not
OTHERS = {
  ("brainfuck", "copy"): ((">,[.>,]", ",[.[-],]"), (",.,.,.", ",[,.]", ",.", "", ",[.,", ",[.,]+[]", ",[.,].")),
  ("brainfuck", "reverse"): ((">>,[>,]<[.<]",), (",[.,]", ",>,>,.<.<.")),
  ("brainfuck", "sort"): ((), (",[.,]", ">,[>,]<[.<]")),
  ("brainfuck", "add"): ((">,[[<+>-],]<.", ",>,>,[-<+>]<[-<+>]<."), (",.", ",>,[-<+>]<.")),  # of three numbers at most
  ("brainfuck", "fibonacci"): ((), (",[.,]", ",[[-]+.,]")),
  ("befunge", "copy"): (("~:1+!#@_.", "&:1+!#@_,"), ("&.&.&.@", "&.", "@", "", "&:1+!#@_..", "&" * 60)),
  ("befunge", "add"): (("&:1+!#v_\\+\n      >$.@",), ("&&+.@", "&.@")),
}


def words_of(text):
  return " ".join({" ": "blank", "\n": "newline"}.get(c, c) for c in text)


@pytest.mark.parametrize("name,kind", OTHERS)
def test_any_right_program_is_right(name, kind):
  task = make(name, kind=kind, direction="write")
  right, wrong = OTHERS[name, kind]
  known = task.example(0)[1]
  for text in (*right, text_of(known, name)):
    assert task.grade(words_of(text), known), text
  for text in wrong:
    assert not task.grade(words_of(text), known), text


def test_grade_never_raises_and_reads_no_more_than_it_must():
  for name in LANGUAGES:
    task = make(name, direction="write")
    known = task.example(0)[1]
    for text in (
      "é",
      "copy",
      known.replace(" ", ""),
      known + " é",
      ". " * 10**6,
      known + " " * 10**6 + "+",
      "\x00",
      "5 6",
    ):
      assert task.grade(text, known) is False
    assert task.grade(f"  {known}\n", known) and not make(name, direction="write", kind="print").grade("@", "what")
    longest = make(name, direction="write", max_length=len(known.split()))
    assert longest.grade(known, known) and not longest.grade(f"{known} .", known)


def test_a_convention_is_another_language():
  """The same examples, in words whose meanings were swapped; each is wrong as a program of the other convention."""
  for name in LANGUAGES:
    for kind in ("add", "sort"):
      plain, other = (make(name, kind=kind, direction="write", convention=c) for c in programs.CONVENTIONS)
      assert tasks.shifted(plain)["convention"] == other and plain.words == other.words
      (question, answer, _), (question_2, answer_2, _) = (task.example(3) for task in (plain, other))
      assert question.replace("standard", "swapped") == question_2
      assert text_of(answer, name) == text_of(answer_2, name, "swapped")
      assert other.grade(answer_2, answer_2) and not other.grade(answer, answer_2) and not plain.grade(answer_2, answer)


@pytest.mark.parametrize("name", LANGUAGES)
def test_grades_inside_a_program(name):
  """The share of the cases is 1 for the programs that `grade` accepts: references, others, and random changes."""
  module = {"brainfuck": brainfuck_jax, "befunge": befunge_jax}[name]
  rng, rows, expected = np.random.default_rng(0), [], []
  for kind in ("print", "copy", "add", "reverse"):
    task = make(name, kind=kind, direction="write", step_limit=600)
    for index in range(4):
      known = task.example(index)[1]
      right, wrong = OTHERS.get((name, kind), ((), ()))
      texts = [known, *map(words_of, (*right, *wrong))]
      for _ in range(6):
        words = known.split()
        words[rng.integers(len(words))] = task.characters[rng.integers(8)]
        texts.append(" ".join(words))
      cases = batching.cases_of(task.cases(index), task.n_symbols, input_size=task.n_symbols, count=task.n_tests)
      rows += [(task.read(text), cases) for text in texts]
      expected += [task.grade(text, known) for text in texts]
  ids, cases = zip(*rows)
  grade = jax.jit(jax.vmap(lambda ids, n, cases: module.grade_ids(ids, n, cases, task.limits)))
  found = np.asarray(grade(*batching.padded(ids, 64), jax.tree.map(lambda *a: np.stack(a), *cases)))
  assert ((found == 1) == expected).all() and ((0 < found) & (found < 1)).any()
  assert 20 < sum(expected) < len(expected) - 20


# ---- Splits, chance, options -----------------------------------------------------------------------------------------


def read_or_printed(question):
  """What a question draws: its numbers, relative to the alphabet, or its random program."""
  return [part.split(" gives")[0] for part in re.split(" with | where | and |print ", question)[1:]]


@pytest.mark.parametrize("name", LANGUAGES)
def test_no_symbols_are_in_both_splits(name):
  found = {split: set() for split in ("train", "test")}
  for split, seen in found.items():
    for kind, direction in itertools.product(("print", "copy", "add"), programs.DIRECTIONS):
      task = make(name, split, kind=kind, direction=direction, alphabet=4, seed=len(kind))
      for one in (task, dataclasses.replace(task, first=1, convention="swapped")):
        for index in range(20):
          question, answer, _ = one.example(index)
          seen |= {answer} if (kind, direction) == ("print", "predict") else set(read_or_printed(question))
          if direction == "write":
            seen |= {" ".join(map(str, given)) for given, _ in one.cases(index) if given}
  assert len(found["train"]) > 50 and len(found["test"]) > 5 and not found["train"] & found["test"]
  shown = [{make(name, s, kind="random", seed=int(s == "test")).example(i)[0] for i in range(10)} for s in found]
  assert not shown[0] & shown[1]


@pytest.mark.parametrize("name", LANGUAGES)
def test_shifts(name):
  every = {"longer", "convention", "alphabet"}
  for kind, names in (("sort", every), ("factorial", every - {"alphabet"}), ("random", every - {"alphabet"})):
    task = make(name, "test", kind=kind)
    shifted, words = tasks.shifted(task), set(tasks.vocabulary(task))
    assert set(shifted) == names
    for one in shifted.values():
      texts = [one.example(i) for i in range(5)]
      assert set(" ".join(t for e in texts for t in e).split()) <= words
      assert texts != [task.example(i) for i in range(5)]
    assert len(shifted["longer"].example(0)[0].split()) > len(task.example(0)[0].split())
  assert not set(tasks.shifted(make(name))["alphabet"].example(0)[1].split()) & set("12345")


CHANCES = [
  ("copy", {}, 5**-3), ("print", {"alphabet": 3}, 3**-3), ("sort", {"n_symbols": 2}, 5**-2), ("add", {}, 1 / 13),
  ("fibonacci", {"n_symbols": 2}, 1 / 16), ("factorial", {"n_symbols": 1, "alphabet": 7}, 1 / 7),
]  # fmt: skip


@pytest.mark.parametrize("kind,options,expected", CHANCES)
def test_chance_is_the_share_of_right_answers(kind, options, expected):
  for name in LANGUAGES:
    task = make(name, kind=kind, **options)
    answer = task.example(1)[1]
    assert reference.chance_of_random_answers(task.places, lambda text: task.grade(text, answer)) == pytest.approx(
      expected
    )
    assert task.chance() == pytest.approx(expected)
    assert make(name, kind="random").chance() is None and make(name, kind=kind, direction="write").chance() is None


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_worked_examples_of_the_docstrings(name):
  module = importlib.import_module(f"nrt_jax.tasks.{name}")
  shown = re.findall(r'^  question  "(.*?)" +answer  "(.*?)"$', module.__doc__, re.MULTILINE)
  assert len(shown) == 2
  for question, answer in shown:
    direction, kind = (question.split()[0], question.split()[2])
    task = make(name, kind=kind if direction == "write" else "copy", direction="write")
    if direction == "write":
      assert task.grade(answer, task.example(0)[1]) or kind == "print"
    words, _, given = question.removeprefix("run standard ").partition(" with ")
    text = text_of(answer if direction == "write" else words, name)
    values = numbers(given) if direction == "run" else [3, 1, 2] if kind != "print" else []
    output = "6" if kind == "add" else "3 1 2"
    assert " ".join(map(str, run(name, text, values, task).output)) == output


BAD = [
  ("kind", "divide"), ("direction", "guess"), ("convention", "new"), ("alphabet", 1), ("n_symbols", 0), ("first", 0),
  ("n_shown", 0), ("n_tests", 0), ("n_instructions", 0), ("depth", -1), ("max_length", 0), ("step_limit", -1),
  ("step_limit", 3), ("max_trace", 0), ("seed", -1), ("trace_share", 2.0),
]  # fmt: skip


@pytest.mark.parametrize("key,value", BAD)
def test_bad_options_are_one_line(key, value):
  for name in LANGUAGES:
    with pytest.raises(errors.UserError, match=f"^data.task_options.{key}: found {value!r}, allowed: .+"):
      tasks.make_task(name, "train", {key: value})


@pytest.mark.parametrize(
  "name,options,message",
  [
    ("brainfuck", {"tape": 0}, "tape: found 0, allowed: 1 or more"),
    ("brainfuck", {"tape": 8, "kind": "sort"}, "tape: found 8, allowed: more, for sort of 5 5 5"),
    ("brainfuck", {"cells": 5}, r"cells: found 5, allowed: more than the largest symbol \(5\)"),
    ("brainfuck", {"kind": "random", "direction": "write"}, "direction: found 'write', allowed: predict, with random"),
    ("brainfuck", {"kind": "sort", "max_length": 50}, "max_length: found 50, allowed: 95 or more"),
    (
      "brainfuck",
      {"kind": "factorial", "step_limit": 5000},
      r"step_limit: found 5000, allowed: 0, or \d+ to 1073741824",
    ),
    ("befunge", {"width": 20}, "width: found 20, allowed: 38 or more"),
    ("befunge", {"height": 5}, "height: found 5, allowed: 7 or more"),
    ("befunge", {"stack": 8}, r"stack: found 8, allowed: the largest symbol and 4 \(9\) or more"),
    ("befunge", {"kind": "print", "n_symbols": 20}, "width: found 40, allowed: more, for print of 5 5 5"),
    (
      "befunge",
      {"kind": "print", "direction": "write", "named": False},
      "named: found False, allowed: true, with print",
    ),
    (
      "befunge",
      {"n_symbols": 1, "alphabet": 2, "split": "test"},
      "n_symbols: 1 symbols out of 2 leave no question for",
    ),
  ],
)
def test_options_that_do_not_fit_each_other(name, options, message):
  split = options.pop("split", "train")
  with pytest.raises(errors.UserError, match=f"^data.task_options.{message}"):
    task = tasks.make_task(name, split, options)
    for index in range(3):
      task.example(index)
