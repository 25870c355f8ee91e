"""Properties of graders, whatever text they are given."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import TEXT, drawn

from nrt_jax.tasks import equivalence, grading, math_answers, multiple_choice, symbolic, table

LONGEST = 2.0  # seconds of CPU time that a grader may take for any text, math-verify aside

MATHS = [
  "\\boxed{",
  "}",
  "\\frac",
  "{",
  "####",
  " answer is ",
  "$",
  "1",
  "2,000",
  "x",
  "=",
  "%",
  "(B)",
  "^",
  "\n",
  ".",
  "or",
]
ANSWERS = st.lists(TEXT | st.sampled_from(MATHS), max_size=12).map("".join)
PLAIN_GRADERS = {name: grade for name, grade in table.GRADERS.items() if grade}


@drawn
@given(st.sampled_from(sorted(PLAIN_GRADERS)), ANSWERS, ANSWERS, st.sampled_from([1, 1, 1, 2000]))
def test_a_grader_judges_any_texts_soon(name, completion, reference, times):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(symbolic, "equivalent", lambda *_: False)  # has its own limit of time: tests/tasks/test_symbolic.py
    start = time.process_time()
    assert PLAIN_GRADERS[name](completion * times, reference) in (True, False)
    assert time.process_time() - start < LONGEST


@drawn
@given(ANSWERS.filter(str.strip), st.sampled_from([" ", "\n", "\t", "  \r\n"]), st.sampled_from(["", "the ", "A "]))
def test_words_are_right_however_they_are_spaced(text, blank, article):
  assert grading.exact_match(blank + blank.join(text.split()) + blank, text)
  assert grading.normalised_match(blank.join(text.split()), text)
  if grading.normalised(text):
    assert grading.normalised_match(article + text, text)
  assert grading.exact_match(text + " x", text) is False


# An integer n in equivalent ways.
WRITTEN_AS = (
  "{n}", "{n:,}", "{n}.", "{n}.0", "${n}$", "\\boxed{{{n}}}", "The answer is {n}.", "#### {n:,}", "**{n}**", "x = {n}",
  "It is 7 + 1 = 8.\nSo the answer is \\boxed{{{n:,}}}", "$\\${n:,}$", "\\frac{{{thrice}}}{{3}}",
)  # fmt: skip


@drawn
@given(st.integers(-(10**7), 10**7), st.integers(1, 9))
def test_numbers_are_right_however_they_are_written(n, other):
  for text in (form.format(n=n, thrice=3 * n) for form in WRITTEN_AS):
    assert math_answers.grade_math(text, str(n)), text
    if "frac" not in text:
      assert math_answers.grade_gsm8k(text, f"so #### {n}"), text
  for text in (form.format(n=n + other, thrice=3 * (n + other)) for form in WRITTEN_AS):
    assert not math_answers.grade_math(text, str(n)), text
    assert not math_answers.grade_gsm8k(text, f"#### {n}") or "frac" in text, text


@drawn
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(2, 9))
def test_fractions_are_equal_to_their_multiples(above, below, times):
  sign, size = ("-" if above < 0 else ""), abs(above)
  value = Fraction(above, below)
  spelled = [f"{above}/{below}", f"\\frac{{{above}}}{{{below}}}", f"{sign}\\dfrac{{{size * times}}}{{{below * times}}}"]
  if value * 1000 == int(value * 1000):
    spelled.append(f"{float(value)}")
  for one in spelled:
    for two in spelled:
      assert equivalence.equal(one, two), (one, two)
    assert not equivalence.equal(one, f"{above + 1}/{below}"), one


@drawn
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_the_order_counts_in_tuples_and_not_in_sets(numbers, random):
  other = random.sample(numbers, len(numbers))
  one, two = (", ".join(map(str, parts)) for parts in (numbers, other))
  assert equivalence.equal(f"\\{{{one}\\}}", f"\\{{{two}\\}}") and equivalence.equal(one, two)
  assert equivalence.equal(f"({one})", f"({two})") == (numbers == other)


@drawn
@given(
  st.sampled_from("ABCDEFGHJ"),
  st.sampled_from("ABCDEFGHJ"),
  TEXT.filter(lambda text: not any(c.isalpha() for c in text)),
)
def test_a_letter_is_right_however_it_is_written(letter, other, before):
  for text in (f"{letter}", f"({letter})", f"{letter}.", f"**{letter}**", f"\\boxed{{{letter}}}",
               f"{before} The answer is ({letter}).", f"{before}\nAnswer: {letter}"):  # fmt: skip
    assert multiple_choice.grade(text, f"({other})") == (letter == other), text


@drawn
@given(
  st.sampled_from(sorted(table.TASKS.keys() - {"verse"})), st.integers(0, 9999), st.sampled_from(["train", "test"])
)
def test_a_task_accepts_its_own_answer(name, index, split):
  task = table.make_task(name, split, {})
  index = index if task.length is None else index % task.length
  question, answer, trace = task.example(index)
  assert task.example(index) == (question, answer, trace)  # the same whenever it is asked
  if task.grade is not None:
    assert task.grade(answer, answer) and task.grade(f" {'  '.join(answer.split(' '))}\n", answer)
    assert not task.grade("", answer)
