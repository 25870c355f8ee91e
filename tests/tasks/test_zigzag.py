"""Zigzags: graded by brute force over all orders, drawn without favour, split by their question."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from nrt_jax import errors
from nrt_jax.data import prompts
from nrt_jax.tasks import splits, zigzag
from nrt_jax.tasks import table as tasks


def rises_and_falls(numbers) -> bool:
  """By the definition a1 < a2 > a3 < a4: each number at an even place is below its neighbours."""
  return all(
    numbers[i] < numbers[j] for i in range(0, len(numbers), 2) for j in (i - 1, i + 1) if 0 <= j < len(numbers)
  )


# How many of the orders of n different numbers are zigzags, up first: the Euler zigzag numbers (OEIS A000111).
EULER = {2: 1, 3: 2, 4: 5, 5: 16, 6: 61}


@pytest.mark.parametrize("count", EULER)
def test_grades_against_all_orders(count):
  numbers = [10, 3, 7, 0, 12, 5][:count]
  answer = splits.words_of(next(order for order in itertools.permutations(numbers) if rises_and_falls(order)))
  task, right = zigzag.Zigzag(n_numbers=count, high=13), 0
  for order in itertools.permutations(numbers):
    assert task.grade(splits.words_of(order), answer) == zigzag.is_zigzag(order) == rises_and_falls(order)
    right += rises_and_falls(order)
  assert right == EULER[count]


def test_equal_numbers_are_no_zigzag():
  for numbers in itertools.product(range(3), repeat=4):
    assert zigzag.is_zigzag(numbers) == rises_and_falls(numbers)


def test_grade_of_what_is_no_order_of_the_numbers():
  grade = zigzag.Zigzag().grade
  right = "4 7 2 9 0 5"
  assert grade(right, right) and grade(" 2  7 4 9\n0 5", right)
  for wrong in (
    "", "zigzag", "4 7 2 9 0", "4 7 2 9 0 5 1", "4 7 2 9 0 5 5", "4 7 2 9 0 6", "4 7 2 9 0 05", "4 7 2 9 0 5.0",
    "4 7 2 9 0 ٥", "4 7 2 9 0 zigzag", "4, 7, 2, 9, 0, 5", "7 4 9 2 5 0", "4 7 2 9 0 5 4 7 2 9 0 5", "x " * 10**6,
  ):  # fmt: skip
    assert not grade(wrong, right), wrong[:40]


@pytest.mark.parametrize("count,high", [(6, 10), (2, 8), (8, 8), (5, 30)])
def test_examples(count, high):
  task = zigzag.Zigzag(n_numbers=count, high=high, trace_share=1.0)
  for index in range(60):
    question, answer, trace = task.example(index)
    word, *shown = question.split()
    numbers = [int(number) for number in answer.split()]
    assert word == "zigzag" and sorted(map(int, shown)) == sorted(numbers) == [int(w) for w in trace.split()]
    assert len(set(numbers)) == count and set(numbers) <= set(range(high))
    assert rises_and_falls(numbers) and task.grade(answer, answer)


def test_example_i_is_a_function_of_the_fields_and_of_i():
  task = zigzag.Zigzag(trace_share=0.5)
  forward = [task.example(i) for i in range(20)]
  np.random.seed(1)  # global generators must not matter
  again = dataclasses.replace(task)
  assert [again.example(i) for i in reversed(range(20))] == forward[::-1]
  assert len({question for question, _, _ in forward}) == 20
  assert [dataclasses.replace(task, seed=1).example(i) for i in range(20)] != forward
  assert [dataclasses.replace(task, trace_share=0.0).example(i)[:2] for i in range(20)] == [e[:2] for e in forward]


def test_the_experts_order_is_any_of_the_right_ones():
  """All five zigzags of four numbers come up equally often, whatever the order in the question."""
  task = zigzag.Zigzag(n_numbers=4, high=4)
  counts = collections.Counter(task.example(i)[1] for i in range(1000))
  assert len(counts) == EULER[4]
  assert all(abs(count - 200) < 4 * np.sqrt(1000 * 0.2 * 0.8) for count in counts.values())


def test_a_split_holds_all_and_only_its_questions():
  """A small space, so that each question is drawn again and again; other seeds do not move it over."""
  every = [splits.words_of(numbers) for numbers in itertools.permutations(range(4), 3)]
  drawn = {}
  for split, seeds in {"train": (0, 7), "test": (0, 3)}.items():
    made = [zigzag.Zigzag(split=split, seed=seed, n_numbers=3, high=4) for seed in seeds]
    drawn[split] = {task.example(i)[0].removeprefix("zigzag ") for task in made for i in range(150)}
  assert drawn == {split: {q for q in every if splits.split_of(q) == split} for split in drawn}
  assert all(drawn.values())


def test_the_worked_example_of_the_docstring():
  question, answer, trace = "zigzag 7 2 9 4 0 5", "4 7 2 9 0 5", "0 2 4 5 7 9"
  assert all(f'"{text}"' in zigzag.__doc__ for text in (question, answer, trace))
  numbers = [int(word) for word in question.split()[1:]]
  assert zigzag.Zigzag().grade(answer, splits.words_of(numbers)) and splits.words_of(sorted(numbers)) == trace


def test_words_cover_every_text():
  task = zigzag.Zigzag(high=12, trace_share=1.0)
  tokenizer = prompts.word_tokenizer(task.words)
  for text in itertools.chain.from_iterable(task.example(i) for i in range(50)):
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
  assert tokenizer("0 3 11")["input_ids"] == [0, 3, 11]


def test_errors_name_the_key():
  for key, value, allowed in (
    ("n_numbers", 1, "2 to 8"),
    ("n_numbers", 9, "2 to 8"),
    ("high", 5, r"n_numbers \(6\) or more"),
    ("trace_share", 1.5, "0 to 1"),
    ("seed", -1, "0 or more"),
  ):
    with pytest.raises(errors.UserError, match=f"^data.task_options.{key}: found {value}, allowed: {allowed}$"):
      tasks.make_task("zigzag", "train", {key: value})
  with pytest.raises(errors.UserError, match="^data.split: found 'validation'"):
    tasks.make_task("zigzag", "validation", {})
  with pytest.raises(errors.UserError, match="^data.task_options.high: 2 leaves no question for the test split"):
    zigzag.Zigzag(split="test", n_numbers=2, high=2).example(0)
