"""The synthetic families: answers and traces by other means, splits that hold for all options, shifts, chance."""

import dataclasses
import re

import numpy as np
import pytest
import reference
import toy

from nrt_jax import errors, startup
from nrt_jax.data import batches, prompts, sources
from nrt_jax.step import programs
from nrt_jax.tasks import chance, machine, splits
from nrt_jax.tasks import table as tasks

FAMILIES = ("parity", "modular_chain", "rearrange", "look_up", "orthogonality", "machine")
VARIANTS = {
  "parity": [{}, {"asks": "even", "first": 4}],
  "modular_chain": [{}, {"modulus": 13, "base": 4, "operations": "+*"}, {"modulus": 12}],
  "rearrange": [{}, {"kind": "sort_down"}, {"kind": "copy", "first": 3}, {"kind": "reverse", "alphabet": 2}],
  "look_up": [{}, {"indexing": "zero", "n_hops": 3}, {"indexing": "one", "n_entries": 6}, {"first": 9}],
  "orthogonality": [{}, {"layout": "pairs"}, {"kind": "complete"}, {"kind": "complete", "layout": "pairs", "high": 5}],
  "machine": [{}, {"indexing": "one", "n_steps": 9}, {"kind": "tape"}, {"kind": "tape", "indexing": "one"}],
}
EVERY = [(name, options) for name, variants in VARIANTS.items() for options in variants]


def make(name, split="train", **options):
  return tasks.make_task(name, split, {"trace_share": 1.0, **options})


def examples(task, count=100):
  return [task.example(i) for i in range(count)]


# ---- Answers and traces, from the question's text alone --------------------------------------------------------------


def solve_parity(task, question):
  asks, *bits = question.split()
  value, trace = int(asks == "even"), []
  for bit in bits:
    value ^= int(bit) - task.first
    trace.append(str(value + task.first))
  return trace[-1], " ".join(trace)


def solve_modular_chain(task, question):
  found = re.fullmatch(r"start ([\d ]+?)((?: [-+*] [\d ]+?)+) modulo (\d+) base (\d+)", question)
  modulus, base = int(found[3]), int(found[4])
  width = max(len(number.split()) for number in [found[1], *re.split("[-+*]", found[2])[1:]])

  def write(number):
    return " ".join(str(number // base**i % base) for i in range(width))[::-1] if base <= 10 else str(number)

  def read(text):
    return sum(int(digit) * base**i for i, digit in enumerate(reversed(text.split())))

  value = read(found[1])
  values = [value]
  for sign, number in re.findall(r"([-+*]) ([\d ]+?)(?= [-+*]|$)", found[2]):
    value = eval(f"{value} {sign} {read(number)}") % modulus  # of digits and a sign that the pattern has checked
    values.append(value)
  return write(value), " ".join(map(write, values))


def solve_rearrange(task, question):
  kind, *words = question.split()
  trace, sofar = [], []
  for word in words:
    if kind in ("sort", "sort_down"):  # one by one into their places
      place = sum((int(w) <= int(word)) if kind == "sort" else (int(w) >= int(word)) for w in sofar)
    else:
      place = len(sofar) if kind == "copy" else 0
    sofar = [*sofar[:place], word, *sofar[place:]]
    trace.append(" ".join(sofar))
  return trace[-1], " ; ".join(trace)


def solve_look_up(task, question):
  start, hops, indexing, rest = re.fullmatch(r"look up (\d+) hops (\d+) (keys|zero|one) (.*)", question).groups()
  if indexing == "keys":
    table = dict(pair.split() for pair in rest.split(" , "))
  else:
    table = {str(place): value for place, value in enumerate(rest.split(), indexing == "one")}
  assert sorted(table) == sorted(table.values())
  visited = [start]
  for _ in range(int(hops)):
    visited.append(table[visited[-1]])
  return visited[-1], " ".join(visited)


def solve_orthogonality(task, question):
  kind, rest = question.split(" ", 1)
  rows = [part.split() for part in rest.split(" and ")]
  left, right = rows if task.layout == "vectors" else zip(*rows)
  known = [int(a) * int(b) for a, b in zip(left, right) if "?" not in (a, b)]
  sums = [sum(known[: i + 1]) for i in range(len(known))]
  trace = f"{' '.join(map(str, known))} ; {' '.join(map(str, sums))}"
  if kind == "orthogonal":
    return "no" if sums[-1] else "yes", trace
  (factor,) = [int(a if b == "?" else b) for a, b in zip(left, right) if "?" in (a, b)]
  (answer,) = [x for x in range(-task.high, task.high + 1) if x and sum(known) + factor * x == 0]
  return str(answer), trace


def solve_machine(task, question):
  kind, indexing, *words = question.split()
  one, stack, tape, head, trace, words = indexing == "one", [], [0] * task.n_cells, 0, [], iter(words)
  for word in words:
    if word == "push":
      stack.append(int(next(words)))
    elif word == "copy":
      stack.append(stack[len(stack) - 1 - (int(next(words)) - one)])
    elif word in ("add", "sub", "mul"):
      b, a = stack.pop(), stack.pop()
      stack.append({"add": a + b, "sub": a - b, "mul": a * b}[word] % task.modulus)
    elif word in ("inc", "dec"):
      tape[head] = (tape[head] + {"inc": 1, "dec": task.modulus - 1}[word]) % task.modulus
    else:
      head = int(next(words)) - one if word == "goto" else (head + {"left": -1, "right": 1}[word]) % task.n_cells
    assert len(stack) <= task.n_cells and 0 <= head < task.n_cells
    trace.append(" ".join(map(str, stack if kind == "stack" else [head + one, *tape])))
  return str(stack[-1]) if kind == "stack" else " ".join(map(str, tape)), " ; ".join(trace)


@pytest.mark.parametrize("name,options", EVERY)
def test_answers_and_traces_follow_from_questions(name, options):
  task, solve = make(name, **options), globals()[f"solve_{name}"]
  for question, answer, trace in examples(task):
    assert solve(task, question) == (answer, trace), question
    assert len(answer.split()) == len(task.places)
    assert all(word in words for word, words in zip(answer.split(), task.places))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_worked_examples_of_the_docstrings(name):
  module = __import__(f"nrt_jax.tasks.{name}", fromlist=["_"])
  shown = re.findall(r'^  question  "(.*?)" +answer  "(.*?)" +trace  "(.*?)"', module.__doc__, re.MULTILINE)
  assert len(shown) >= 2
  for question, *expected in shown:
    layouts = {"layout": "vectors"} if name == "orthogonality" else {}
    sizes = {"modulus": 5, "n_cells": 3 if question.startswith("tape") else 9} if name == "machine" else {}
    assert list(globals()[f"solve_{name}"](make(name, **layouts, **sizes), question)) == expected


def test_answers_are_not_to_be_guessed():
  """Half of the vectors are orthogonal; parity, chains, look-ups and the stack favour no answer by far."""
  counts = {name: np.unique([e[1] for e in examples(make(name), 600)], return_counts=True)[1] for name in FAMILIES}
  for name in ("parity", "orthogonality"):
    assert len(counts[name]) == 2 and abs(counts[name][0] - 300) < 5 * np.sqrt(150)
  assert len(counts["look_up"]) == 8 and counts["look_up"].max() < 75 + 5 * np.sqrt(66)
  assert counts["modular_chain"].max() < 180 and counts["machine"].max() < 240  # products favour 0


def test_programs_run_by_every_instruction():
  for kind, names in (("stack", {"push", "copy", *machine.ARITHMETIC}), ("tape", set(machine.MOVES))):
    assert names <= {word for question, _, _ in examples(make("machine", kind=kind)) for word in question.split()}


# ---- Splits and shifts -----------------------------------------------------------------------------------------------


def latent(name, task, question):
  """What was drawn for a question, however it is written: from its text."""
  words = question.split()
  if name == "modular_chain":  # as many digits as the base asks for: numbers again
    text = question.removeprefix("start ").split(" modulo ")[0]
    value = lambda digits: sum(int(d) * task.base**i for i, d in enumerate(reversed(digits.split())))
    return re.sub(r"\d+( \d+)*", lambda found: str(value(found[0])), text)
  if name == "look_up":
    rows = question.split(task.indexing + " ")[1]
    first = {"keys": task.first, "one": 1, "zero": 0}[task.indexing]
    pairs = [p.split() for p in rows.split(" , ")] if task.indexing == "keys" else list(enumerate(rows.split(), first))
    return frozenset((int(a) - first, int(b) - first) for a, b in pairs)
  if name == "orthogonality":
    rows = [part.split() for part in question.split(" ", 1)[1].split(" and ")]
    return str(rows if task.layout == "vectors" else [list(row) for row in zip(*rows)])
  if name == "machine":
    one, out = words[1] == "one", []
    for before, word in zip(words[1:], words[2:]):
      out.append(str(int(word) - one) if before in ("copy", "goto") else word)
    return " ".join(out)
  return " ".join(str(int(word) - task.first) for word in words[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_no_shift_brings_training_questions_into_the_test_split(name):
  """Small spaces, so that questions come again and again: none is in both, for other seeds, symbols, conventions."""
  small = {
    "parity": {"n_bits": 6}, "modular_chain": {"n_steps": 1, "modulus": 5},
    "rearrange": {"n_symbols": 3, "alphabet": 4}, "look_up": {"n_entries": 3, "alphabet": 5},
    "orthogonality": {"dimension": 2, "high": 3}, "machine": {"n_steps": 3, "modulus": 3},
  }[name]  # fmt: skip
  train, test = set(), set()
  for split, found in (("train", train), ("test", test)):
    task = make(name, split, **small)
    for seed, one in enumerate((task, *tasks.shifted(task).values())):
      one = dataclasses.replace(one, seed=seed)
      drawn = [latent(name, one, question) for question, _, _ in examples(one, 150)]
      found |= set(drawn)
      if seed == 0:
        assert len(set(drawn)) < 150
  assert len(train) > 20 and len(test) > 2 and not train & test


@pytest.mark.parametrize("name,options", EVERY)
def test_shifts_are_tasks_with_the_same_tokenizer(name, options):
  task = make(name, "test", **options)
  shifted, words = tasks.shifted(task), set(tasks.vocabulary(task))
  assert "longer" in shifted and len(shifted) >= 2 and set(task.words) <= words
  plain = examples(task, 20)
  for one in shifted.values():
    assert one.split == "test" and one != task
    texts = examples(one, 20)
    assert texts != plain and set(" ".join(t for e in texts for t in e).split()) <= words
  longer = max(len(e[0].split()) for e in examples(shifted["longer"], 20))
  trace = max(len(e[2].split()) for e in examples(shifted["longer"], 20))
  assert longer >= max(len(e[0].split()) for e in plain) and trace > max(len(e[2].split()) for e in plain)


def test_a_new_alphabet_is_written_with_words_of_its_own():
  for name in ("parity", "rearrange", "look_up"):
    task = make(name)
    new = tasks.shifted(task)["alphabet"]
    assert not set(task.places[0]) & set(new.places[0]) and len(task.places[0]) == len(new.places[0])


def test_a_task_without_shifts_has_its_own_words():
  task = tasks.make_task("running_sum", "train", {})
  assert tasks.shifted(task) == {} and tasks.vocabulary(task) == task.words


def test_one_config_evaluates_in_and_out_of_distribution():
  """The shift's options in place of the task's, read by the same tokenizer."""
  options = {"n_bits": 5}
  task = tasks.make_task("parity", "test", options)
  tokenizer = prompts.word_tokenizer(tasks.vocabulary(task))
  for shift in ({}, *task.shifts().values()):
    data = sources.DataConfig(source="task:parity", split="test", examples=4, task_options={**options, **shift})
    for example in sources.load_examples(data):
      assert tokenizer.unk_token_id not in tokenizer(example.question)["input_ids"]
    assert sources.task_of(data) == dataclasses.replace(task, **shift)
  assert sources.task_of(sources.DataConfig(source="rows.jsonl")) is None


# ---- Bad options -----------------------------------------------------------------------------------------------------

BAD = {
  "parity": {"n_bits": 0, "asks": "both", "first": -1},
  "modular_chain": {"n_steps": 0, "modulus": 1, "operations": "/", "base": 1},
  "rearrange": {"kind": "shuffle", "n_symbols": 0, "alphabet": 1, "first": -1},
  "look_up": {"n_entries": 1, "n_hops": 0, "alphabet": 3, "indexing": "two", "first": -1},
  "orthogonality": {"kind": "guess", "dimension": 1, "high": 0, "layout": "rows"},
  "machine": {"kind": "queue", "n_steps": 0, "modulus": 1, "n_cells": 1, "indexing": "two"},
}


@pytest.mark.parametrize("name,key,value", [(name, *item) for name in FAMILIES for item in BAD[name].items()])
def test_bad_options_are_one_line(name, key, value):
  with pytest.raises(errors.UserError, match=f"^data.task_options.{key}: found {re.escape(repr(value))}, allowed: .+"):
    tasks.make_task(name, "train", {key: value})
  for other in ({"seed": -1}, {"trace_share": 1.5}):
    with pytest.raises(errors.UserError, match="^data.task_options."):
      tasks.make_task(name, "train", other)


@pytest.mark.parametrize(
  "name,options",
  [
    ("parity", {"n_bits": 1}), ("rearrange", {"n_symbols": 1, "alphabet": 2}),
    ("look_up", {"n_entries": 2, "alphabet": 2}),
    ("orthogonality", {"dimension": 3, "high": 1, "kind": "complete"}), ("machine", {"n_steps": 1, "modulus": 2}),
    ("modular_chain", {"n_steps": 1, "modulus": 2, "operations": "*"}),
  ],
)  # fmt: skip
def test_a_space_too_small_is_an_error_that_names_an_option(name, options, monkeypatch):
  with pytest.raises(errors.UserError, match=r"^data.task_options.(n_|high)\w*: .* for the (train|test) split"):
    for split in splits.SPLITS:
      for i in range(5):
        make(name, split, **options).example(i)


# ---- Chance ----------------------------------------------------------------------------------------------------------

SMALL = [
  ("parity", {}, 1 / 2),
  ("modular_chain", {}, 1 / 7),
  ("modular_chain", {"modulus": 5, "base": 3}, 1 / 9),
  ("rearrange", {"n_symbols": 3, "alphabet": 4}, 4**-3),
  ("look_up", {}, 1 / 8),
  ("look_up", {"indexing": "one"}, 1 / 4),
  ("orthogonality", {}, 1 / 2),
  ("orthogonality", {"kind": "complete"}, 1 / 6),
  ("machine", {}, 1 / 5),
  ("machine", {"kind": "tape", "modulus": 3, "n_cells": 4}, 3**-4),
  ("running_sum", {}, 1 / 5),
  ("long_answer", {"n_easy": 3, "n_noisy": 2, "n_hard": 2, "base": 3}, 1 / 9),
  ("zigzag", {"n_numbers": 4, "high": 6}, 5 / 6**4),
]


@pytest.mark.parametrize("name,options,expected", SMALL)
def test_chance_is_the_share_of_right_answers(name, options, expected):
  """Every answer with the right words at its places is written and graded."""
  task = tasks.make_task(name, "train", options)
  for index in range(3):
    answer = task.example(index)[1]
    found = reference.chance_of_random_answers(task.places, lambda text: task.grade(text, answer))
    assert found == pytest.approx(expected)
  assert task.chance() == pytest.approx(expected, rel=1e-12)


def test_chance_of_sampled_answers():
  task, rng = tasks.make_task("rearrange", "train", {"n_symbols": 2, "alphabet": 4}), np.random.default_rng(0)
  right = [
    task.grade(" ".join(rng.choice(words) for words in task.places), answer)
    for _, answer, _ in examples(task, 20) for _ in range(100)
  ]  # fmt: skip
  assert abs(np.mean(right) - task.chance()) < 5 * np.sqrt(task.chance() / 2000)


def test_chance_of_long_answers_and_of_groups():
  assert tasks.make_task("rearrange", "train", {"n_symbols": 150, "alphabet": 100}).chance() == pytest.approx(1e-300)
  for p, samples in ((0.2, 1), (0.2, 8), (1 / 3, 16), (0.003, 100)):
    assert chance.of_group(p, samples) == pytest.approx(reference.chance_of_group(p, samples), rel=1e-10)
  assert chance.of_group(1e-20, 16) == pytest.approx(1.6e-19) and chance.of_group(1.0, 2) == 1


def test_a_run_says_how_feasible_its_task_is():
  def said(algorithm, source, samples=4, **options):
    run = toy.run_config(algorithm, data__source=source, data__task_options=options, samples_per_prompt=samples)
    data = batches.TokenDataset([1, 2], [], [], [], (1, 1, 0), 0, {})
    return startup.describe_data(startup.Stage(programs.Setup(run, toy.MODEL, toy.form(), None), data, None))

  line = said("grpo", "task:rearrange", 16, n_symbols=4, alphabet=4)
  assert line == "stage main: 2 examples; chance 0.0039, a group of 16 holds a right answer with probability 0.061"
  for algorithm, source in (("sft", "task:rearrange"), ("grpo", "task:countdown"), ("grpo", "rows.jsonl")):
    assert said(algorithm, source) == "stage main: 2 examples"
