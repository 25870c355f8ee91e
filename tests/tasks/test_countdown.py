"""Countdown: the parser against hand-computed Fractions and hostile texts, the expert against brute force."""

import itertools
import operator
import time
from fractions import Fraction

import numpy as np
import pytest

from nrt_jax import errors
from nrt_jax.data import prompts, sources
from nrt_jax.tasks import countdown, expressions, splits
from nrt_jax.tasks import table as tasks

GENEROUS = 5.0  # seconds for what takes milliseconds


@pytest.mark.parametrize(
  "text,numbers,value",
  [
    ("8 / ( 3 - 8 / 3 )", [3, 3, 8, 8], 24),
    ("8/(3-8/3)", [3, 3, 8, 8], 24),
    ("2 - 3 - 4", [2, 3, 4], -5),  # from the left
    ("2 / 3 / 4", [2, 3, 4], Fraction(1, 6)),
    ("2 + 3 * 4 - 5 * 6 / 10", [2, 3, 4, 5, 6, 10], 11),
    ("((((7))))", [7], 7),
    ("[ 2 + 3 ] × 4 ÷ 5 − 1", [1, 2, 3, 4, 5], 3),
    ("1 / 3 + 1 / 3 + 1 / 3", [1, 1, 1, 3, 3, 3], 1),  # floats give 1.0 here, but not always
    ("0 * 5", [0, 5], 0),
    ("3 * 8 = 24", [3, 8], 24),
    ("  6*4\n", [4, 6], 24),
    ("(" * 400 + "1" + ")" * 400, [1], 1),
  ],
)
def test_expressions(text, numbers, value):
  assert expressions.read(text) == (numbers, value)


NO_EXPRESSIONS = [
  "", " ", "()", "3 +", "* 3", "3 8", "3 ( 8 )", "( 3 ) ( 8 )", "( 3", "3 )", ")(", "3 + + 8", "- 3 + 27", "+ 3",
  "3 - - 8",
  "3 ** 8", "9**9**9", "9^9", "3 // 8", "24!", "03 * 8", "0x18", "1e1", "2.4 * 10", "24.0", "3_0", "٣ * ٨", "３*８",
  "²", "3 * eight",
  "x", "abs(-24)", "__import__('os').system('true')", "3 * 8 = 25", "3 * 8 = 24 = 24", "= 24", "3 * 8 =",
  "3 * 8 = 20 + 4", "3 * 8 .",
  "3, 8", "3 * 8\x00", "sqrt(576)", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_EXPRESSIONS)
def test_what_is_no_expression_is_refused_and_wrong(text):
  with pytest.raises(ValueError):
    expressions.read(text)
  assert not countdown.grade(text, "3 * 8")


def test_division_by_zero_is_wrong():
  for text in ("8 / 0", "8 / ( 3 - 3 )", "1 / ( 1 / 3 - 1 / 3 )", "0 / 0"):
    with pytest.raises(ZeroDivisionError):
      expressions.read(text)
    assert not countdown.grade(text, text)


def test_hostile_texts_take_no_time():
  million = 10**6
  texts = [
    "(" * million, ")" * million, "9" * million, "9**" * million, "1+" * million + "1", "1/" * million + "3",
    " " * million + "x", "-" * million,
    "(" * 499 + "1" + ")" * 499, "1" + "/3" * 499, "1/7+" * 249 + "1", "9" * 1000, "9*" * 499 + "9",
    "=" * million, "\n" * million, "é" * million,
  ]  # fmt: skip
  start = time.perf_counter()
  assert not any(countdown.grade(text, "3 * 8") for text in texts)
  assert time.perf_counter() - start < GENEROUS


def test_grade_wants_the_same_numbers_and_the_same_value():
  reference = "8 / ( 3 - 8 / 3 )"
  for right in (reference, "8/(3-(8/3))", "( ( 8 ) ) / ( 3 - 8 / 3 ) = 24"):
    assert countdown.grade(right, reference)
  for wrong in ("24", "3 * 8", "3 * 8 + 3 - 3", "8 * 3 * ( 8 - 7 )", "8 * 3 + 8 - 8", "3 * 3 + 8 + 8", "83 - 38"):
    assert not countdown.grade(wrong, reference)
  assert countdown.grade("5 + 4 * 5", "5 * 5 / 4 * 4 - 0") is False
  assert countdown.grade("( 5 - 1 / 5 ) * 5", "5 * ( 5 - 1 / 5 )")
  assert not countdown.grade("3 * 8", "not an expression")


# ---- The expert ----------------------------------------------------------------------------------------------------

SYMBOLS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def makes(values, target):
  """Whether any order of operations on Fractions, negative ones included, reaches the target: brute force."""
  if len(values) == 1:
    return values[0] == target
  for i, j in itertools.permutations(range(len(values)), 2):
    rest = [v for k, v in enumerate(values) if k not in (i, j)]
    for apply in SYMBOLS.values():
      if (apply is not operator.truediv or values[j]) and makes([apply(values[i], values[j]), *rest], target):
        return True
  return False


def solvable(numbers, target, fractions=True):
  found = countdown.reachable(tuple(numbers), fractions, 10**9)
  return bool(countdown.ways_to(found, (1 << len(numbers)) - 1, (target, 1)))


def test_solvable_puzzles_of_the_24_game():
  # 566 of the 715 multisets of four numbers from 1 to 10 make 24 (specs of RARO; also known from the card game).
  assert sum(solvable(numbers, 24) for numbers in itertools.combinations_with_replacement(range(1, 11), 4)) == 566


def test_the_expert_finds_a_way_exactly_where_brute_force_does():
  for numbers in itertools.combinations_with_replacement(range(1, 7), 3):
    for target in (1, 2, 7, 10, 24):
      assert solvable(numbers, target) == makes([Fraction(n) for n in numbers], target), (numbers, target)
  rng = np.random.default_rng(0)
  for numbers in rng.integers(1, 30, size=(8, 4)).tolist():
    assert solvable(sorted(numbers), 24) == makes([Fraction(n) for n in numbers], 24), numbers


def test_some_puzzles_need_fractions():
  assert solvable([3, 3, 8, 8], 24) and not solvable([3, 3, 8, 8], 24, fractions=False)


def test_ways_through_zero():
  found = countdown.reachable((5, 5, 7, 9), True, 1000)
  fives, seven, seven_nine, zero = 0b0011, 0b0100, 0b1100, (0, 1)
  assert set(countdown.ways_to(found, 0b0111, zero)) == {
    (seven, (7, 1), "*", fives, zero),
    (fives, zero, "/", seven, (7, 1)),
  }
  ways = countdown.ways_to(found, 0b1111, zero)
  assert {way[4] for way in ways if way[:4] == (fives, zero, "*", seven_nine)} == set(found[seven_nine])
  assert (fives, zero, "/", seven_nine, (16, 1)) in ways


OPTIONS = {
  "countdown": {},
  "countdown_small": {},
  "drawn": {"target": 0, "high": 20, "n_numbers": 4},
  "three": {"n_numbers": 3, "high": 13, "max_value": 200},
}


def make(kind, **options):
  name = kind if kind in tasks.TASKS else "countdown"
  return tasks.make_task(name, options.pop("split", "train"), {**OPTIONS[kind], "trace_share": 1.0, **options})


@pytest.mark.parametrize("kind", OPTIONS)
def test_answers_solve_their_puzzles(kind):
  task = make(kind)
  for index in range(60):
    question, answer, _ = task.example(index)
    words = question.split()
    assert words[0] == "make" and words[2] == "from"
    numbers = sorted(map(int, words[3:]))
    assert len(numbers) == task.n_numbers and task.low <= numbers[0] and numbers[-1] <= task.high
    assert (numbers, int(words[1])) == expressions.read(answer)
    assert int(words[1]) == task.target or task.target == 0 and 1 <= int(words[1]) <= task.max_target
    assert task.grade(answer, answer) and task.grade(f"{answer} = {words[1]}", answer)


@pytest.mark.parametrize("kind", OPTIONS)
def test_traces_lead_to_the_target_step_by_step(kind):
  task = make(kind)
  for index in range(40):
    question, _, trace = task.example(index)
    have = sorted(Fraction(word) for word in question.split()[3:])
    for line in trace.split(" ; "):
      left, right = line.split(" = ")
      words = left.split()
      used, value = sorted(operands(words)), expressions.evaluate(words)
      assert value == expressions.evaluate(right.split()) and (task.fractions or value.denominator == 1)
      for operand in used:
        have.remove(operand)  # raises where it isn't at hand
      have.append(value)
    assert have == [int(question.split()[1])]


def operands(words):
  """The two operands of "a op b", each a number or "( p / q )"."""
  first = 5 if words[0] == "(" else 1
  return expressions.evaluate(words[:first]), expressions.evaluate(words[first + 1 :])


def test_no_redundant_brackets():
  count = 0
  for kind, index in itertools.product(OPTIONS, range(40)):
    primes = iter((10007, 20011, 30011, 40009))  # in place of the numbers: no bracket is then left out by chance
    words = [str(next(primes)) if word.isdigit() else word for word in make(kind).example(index)[1].split()]
    for start in [i for i, word in enumerate(words) if word == "("]:
      depth = np.cumsum([(word == "(") - (word == ")") for word in words[start:]])
      end = start + int(np.argmin(depth > 0))
      without = words[:start] + words[start + 1 : end] + words[end + 1 :]
      assert expressions.evaluate(without) != expressions.evaluate(words)
      count += 1
  assert count > 20


def test_surface_form_varies():
  # One puzzle with few ways: every order of its operands turns up.
  task = tasks.make_task("countdown", "train", {"n_numbers": 2, "low": 4, "high": 6})
  examples = {task.example(i)[:2] for i in range(200)}
  assert {answer for _, answer in examples} == {"4 * 6", "6 * 4"}
  assert {question for question, _ in examples} == {"make 24 from 4 6", "make 24 from 6 4"}


def test_splits_share_no_multiset():
  def keys(split, seed, kind):
    task = make(kind, split=split, seed=seed)
    return {tuple(sorted(map(int, task.example(i)[0].split()[3:]))) for i in range(150)}

  for kind in ("countdown_small", "three"):
    train, test = keys("train", 0, kind) | keys("train", 5, kind), keys("test", 0, kind) | keys("test", 9, kind)
    assert len(train) > 50 and len(test) > 5 and not train & test
    assert all(splits.split_of(" ".join(map(str, key))) == "test" for key in test)


def test_example_i_is_a_function_of_i_alone():
  forward = [make("countdown_small", trace_share=0.5).example(i) for i in range(20)]
  assert [make("countdown_small", trace_share=0.5).example(i) for i in reversed(range(20))] == forward[::-1]
  assert [make("countdown_small", trace_share=0.0).example(i)[:2] for i in range(20)] == [e[:2] for e in forward]
  assert 3 <= sum(trace is not None for _, _, trace in forward) <= 17
  assert [make("countdown_small", seed=1, trace_share=0.5).example(i) for i in range(20)] != forward


def test_words_cover_every_text():
  task = make("countdown", high=20, max_value=400)
  tokenizer = prompts.word_tokenizer(task.words)
  for text in itertools.chain.from_iterable(task.example(i) for i in range(60)):
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
  assert tokenizer("0 3 400")["input_ids"] == [0, 3, 400]
  assert any("( " in task.example(i)[2] for i in range(60))


def test_it_is_a_source():
  config = sources.DataConfig(source="task:countdown_small", examples=5, task_options={"trace_share": 1.0})
  assert [(e.question, e.answer, e.trace) for e in sources.load_examples(config)] == [
    make("countdown_small").example(i) for i in range(5)
  ]


@pytest.mark.parametrize(
  "options,message",
  [
    ({"n_numbers": 5}, "n_numbers: found 5, allowed: 2 to 4"),
    ({"low": 0}, "low: found 0"),
    ({"high": 0}, "high: found 0"),
    ({"target": -1}, "target: found -1"),
    ({"max_value": 10}, "max_value: found 10, allowed: the largest number or target .50. or more"),
    ({"trace_share": 2.0}, "trace_share: found 2.0"),
    ({"seed": -1}, "seed: found -1"),
    ({"fractions": 1}, "fractions: found 1, allowed: bool"),
    ({"low": 1, "high": 1, "n_numbers": 2}, "n_numbers: 2 numbers from 1 to 1 leave no puzzle for train"),
  ],
)
def test_errors_name_the_option(options, message):
  with pytest.raises(errors.UserError, match=f"^data.task_options.{message}"):
    tasks.make_task("countdown", "train", options).example(0)
