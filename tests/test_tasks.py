"""Tasks: example i is a function of i, answers follow from the questions, and the splits never meet."""

import itertools

import numpy as np
import pytest

from nrt_jax import errors, prompts, tasks
from nrt_jax.tasks import running_sum, splits


def digits_of(question):
  words = question.split()
  assert words[0] == "add" and words[-2] == "modulo"
  return [int(w) for w in words[1:-2]]


@pytest.mark.parametrize("base,n_digits,min_digits", [(5, 8, 4), (10, 10, 4), (2, 5, 5)])
def test_answer_and_trace_follow_from_the_question(base, n_digits, min_digits):
  task = running_sum.RunningSum(base=base, n_digits=n_digits, min_digits=min_digits, trace_share=1.0)
  leading = []
  for index in range(200):
    question, answer, trace = task.example(index)
    digits = digits_of(question)
    assert len(digits) == n_digits and max(digits) < base
    total, sums = 0, []
    for digit in digits:
      total = (total + digit) % base
      sums.append(total)
    assert [int(w) for w in trace.split()] == sums
    assert answer == f"the sum is {total} modulo {base}"
    leading.append(next((i for i, d in enumerate(digits) if d), n_digits))
  assert (max(leading) > 0) == (min_digits < n_digits or base == 2)  # base 2 draws zeros by itself
  if base > 2:
    assert np.mean(np.array(leading) > n_digits - min_digits) < 0.4  # beyond the padding only by a drawn zero


def test_the_worked_example_of_the_docstring():
  # Digits 0 0 3 1 4 2 0 1: 3, 3+1=4, 4+4=8=3, 3+2=5=0, 0, 0+1=1 (modulo 5).
  digits = np.array([0, 0, 3, 1, 4, 2, 0, 1])
  assert splits.words_of(np.cumsum(digits) % 5) == "0 0 3 4 3 0 0 1"
  assert "0 0 3 4 3 0 0 1" in running_sum.__doc__ and "the sum is 1 modulo 5" in running_sum.__doc__


def test_example_i_is_a_function_of_i_alone():
  task = running_sum.RunningSum(trace_share=0.5)
  forward = [task.example(i) for i in range(20)]
  np.random.seed(1)  # global generators must not matter
  backward = [running_sum.RunningSum(trace_share=0.5).example(i) for i in reversed(range(20))]
  assert forward == backward[::-1]
  assert len({question for question, _, _ in forward}) > 15
  assert [running_sum.RunningSum(seed=1, trace_share=0.5).example(i) for i in range(20)] != forward


def test_no_question_is_in_both_splits():
  # A small space, so that the same question is drawn again and again; and other seeds must not move it over.
  def questions(split, seed):
    task = running_sum.RunningSum(split=split, seed=seed, n_digits=4, min_digits=1, base=5)
    return {task.example(i)[0] for i in range(600)}

  train, test = questions("train", 0) | questions("train", 7), questions("test", 0) | questions("test", 3)
  assert len(train) > 300 and len(test) > 30
  assert not train & test


def test_a_split_holds_all_and_only_its_questions():
  every = [" ".join(map(str, d)) for d in itertools.product(range(3), repeat=4)]
  test = {q for q in every if splits.split_of(q) == "test"}
  task = running_sum.RunningSum(split="test", n_digits=4, min_digits=4, base=3)
  drawn = {" ".join(map(str, digits_of(task.example(i)[0]))) for i in range(400)}
  assert 0 < len(test) < len(every) and drawn == test


def test_the_trace_share_is_kept():
  for share, low, high in ((0.0, 0, 0), (0.2, 0.15, 0.25), (1.0, 1, 1)):
    task = running_sum.RunningSum(trace_share=share)
    shown = np.mean([task.example(i)[2] is not None for i in range(1000)])
    assert low <= shown <= high  # 0.2 +- 4 standard deviations of 0.0126


def test_the_share_of_traces_does_not_change_the_questions():
  shown, hidden = running_sum.RunningSum(trace_share=1.0), running_sum.RunningSum(trace_share=0.0)
  assert [shown.example(i)[:2] for i in range(20)] == [hidden.example(i)[:2] for i in range(20)]


def test_words_cover_every_text():
  task = running_sum.RunningSum(base=7, trace_share=1.0)
  tokenizer = prompts.word_tokenizer(task.words)
  for text in itertools.chain.from_iterable(task.example(i) for i in range(50)):
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
  assert tokenizer("0 3 6")["input_ids"] == [0, 3, 6]


def test_grade():
  grade = running_sum.RunningSum().grade
  right = "the sum is 3 modulo 5"
  assert grade(right, right) and grade("  the  sum is 3 modulo 5\n", right)
  for wrong in ("", "3", "the sum is 4 modulo 5", "the sum is 3 modulo 5 .", "the sum is 33 modulo 5", "x" * 10**6):
    assert not grade(wrong, right)
  assert not tasks.exact_match("1 2", "12")


def test_errors_name_the_key_and_the_choices():
  with pytest.raises(errors.UserError, match="^data.source: task: found 'runing_sum', .*did you mean 'running_sum'"):
    tasks.make_task("runing_sum", "train", {})
  with pytest.raises(errors.UserError, match="^data.task_options of running_sum: found 'digits', allowed: base, "):
    tasks.make_task("running_sum", "train", {"digits": 3})
  with pytest.raises(errors.UserError, match="^data.split: found 'validation'"):
    tasks.make_task("running_sum", "validation", {})
  for key, value in (("base", 1), ("n_digits", 0), ("min_digits", 9), ("trace_share", 1.5), ("seed", -1)):
    with pytest.raises(errors.UserError, match=f"^data.task_options.{key}: found {value}"):
      tasks.make_task("running_sum", "train", {key: value})


def test_a_space_too_small_for_its_split_is_an_error_and_not_a_loop():
  with pytest.raises(errors.UserError, match="leave no question for the test split"):
    for index in range(20):
      running_sum.RunningSum(split="test", n_digits=1, min_digits=1, base=2).example(index)
