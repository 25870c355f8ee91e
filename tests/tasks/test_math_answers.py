"""GSM8K and MATH answers: what is extracted and what counts as equal, with math-verify and without."""

import pathlib
import subprocess
import sys
import threading
import time

import pytest
from graders import GENEROUS, needs_math_verify, rows
from paths import ROOT

from nrt_jax.tasks import math_answers, symbolic

# ---- GSM8K ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "completion,reference,same",
  [
    ("#### 72", "She has 3.\n#### 72", True),
    ("72", "#### 72", True),
    ("The answer is $72.", "#### 72", True),
    ("72.0", "#### 72", True),
    ("72.5", "#### 72", False),
    ("1,000", "#### 1000", True),
    ("1,00", "#### 100", False),
    ("#### 1,234,567 dollars", "#### 1234567", True),
    ("-5", "#### 5", False),
    ("-$5", "#### -5", True),
    ("$-5", "#### -5", True),
    ("−5", "#### -5", True),
    ("10-5", "#### 5", True),  # no sign: an operand stands before it
    (".5", "#### 0.5", True),
    ("3/4", "#### 0.75", True),
    ("50%", "#### 50", True),
    ("72 apples and 3 pears", "#### 72", False),  # the last number
    ("#### 72\nThat was easy: 1, 2, 3", "#### 72", True),
    ("#### 71\n#### 72", "#### 72", True),
    ("#### 72\n#### 71", "#### 72", False),
    ("72 ####", "#### 72", False),
    ("seventy-two", "#### 72", False),
    ("x72", "#### 72", False),
    ("1.2.72", "#### 72", False),
    ("७२", "#### 72", False),
    ("1/0", "#### 1", False),
  ],
)
def test_gsm8k(completion, reference, same):
  assert math_answers.grade_gsm8k(completion, reference) is same


def test_gsm8k_solutions():
  answers = [row["answer"] for row in rows("gsm8k/test.jsonl")]
  finals = [answer.rpartition("#### ")[2] for answer in answers]
  for answer, final, other in zip(answers, finals, [*finals[1:], finals[0]]):
    assert math_answers.grade_gsm8k(answer, answer) and math_answers.grade_gsm8k(f"It is ${final}.", answer)
    assert math_answers.grade_gsm8k(other, answer) == (float(other.replace(",", "")) == float(final.replace(",", "")))


# ---- MATH ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "text,boxed",
  [
    ("\\boxed{5}", "5"),
    ("so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
    ("\\boxed{1} then \\boxed{2}", "2"),
    ("\\boxed{\\boxed{3}}", "3"),
    ("\\boxed{\\left\\{x : \\{y\\}\\right\\}}", "\\left\\{x : \\{y\\}\\right\\}"),
    ("\\fbox{7}", "7"),
    ("\\boxed {7}", "7"),
    ("$\\boxed 7$ indeed", "7"),
    ("\\boxed{7", None),
    ("\\boxed{1} and \\boxed{2", None),
    ("\\boxed", None),
    ("no box", None),
    ("\\boxed{" + "{" * 300 + "1" + "}" * 300 + "}", "{" * 300 + "1" + "}" * 300),
  ],
)
def test_last_boxed(text, boxed):
  assert math_answers.last_boxed(text) == boxed


PLAIN = [
  ("0.5", "\\frac{1}{2}", True), ("1/2", "\\dfrac12", True), ("-\\frac{1}{2}", "-0.5", True),
  ("\\frac{2}{4}", "\\frac{1}{2}", True), ("1,000", "1000", True),
  ("1{,}000", "1000", True), ("12 \\text{ cm}", "12", True), ("12\\text{ cm}^2", "12", True), ("\\$5", "5", True),
  ("50\\%", "50", True), ("90^\\circ", "90", True),
  ("x = 5", "5", True), ("5.0", "5", True), ("5.", "5", True), (".5", "0.5", True), ("(1, 2)", "(1,2)", True),
  ("\\left(1,2\\right)", "(1, 2)", True),
  ("\\text{Evelyn}", "Evelyn", True), ("\\sqrt3", "\\sqrt{3}", True), ("The answer is $7$.", "7", True),
  ("#### 7", "\\boxed{7}", True), ("−3", "-3", True),
  ("0.333", "\\frac13", False), ("2", "-2", False), ("", "5", False), ("\\boxed{}", "5", False),
  ("\\boxed{5", "5", False), ("5", "50", False),
  ("1000000000000000000001", "1000000000000000000000", False), ("\\frac{1}{0}", "0", False), ("5 or 6", "5", False),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:math-verify is not installed")
@pytest.mark.parametrize("completion,reference,same", PLAIN)
@pytest.mark.usefixtures("plain")
def test_math_without_math_verify(completion, reference, same):
  assert math_answers.grade_math(completion, reference) is same


@pytest.mark.usefixtures("plain")
def test_without_math_verify_a_warning_says_so():
  with pytest.warns(UserWarning, match="math-verify is not installed"):
    assert not math_answers.grade_math("1 + x^2", "x^2 + 1")


def test_plain_numbers_need_no_process(monkeypatch):
  monkeypatch.setattr(symbolic, "equivalent", None)  # a call would raise
  assert math_answers.grade_math("0.5", "\\frac12") and not math_answers.grade_math("4", "5")
  assert not math_answers.grade_math("x" * 301, "x + 1")  # too long to ask


@needs_math_verify
@pytest.mark.parametrize(
  "completion,reference,same",
  [
    ("1+x^2", "x^2+1", True),
    ("\\sqrt{18}", "3\\sqrt2", True),
    ("0.5", "50\\%", True),
    ("\\frac{\\pi}{2}", "0.5\\pi", True),
    ("\\{3, 2\\}", "\\{2, 3\\}", True),
    ("(2, 1)", "(1, 2)", False),
    ("x^2-1", "x^2+1", False),
    ("\\sqrt{18}", "2\\sqrt3", False),
    ("}{", "x+1", False),
    ("\\frac{\\frac{\\frac{", "x+1", False),
  ],
)
def test_math_with_math_verify(completion, reference, same):
  assert math_answers.grade_math(completion, reference) is same


@needs_math_verify
def test_bombs_are_cut_short_and_grading_goes_on():
  worker = symbolic.Worker()
  assert worker.ask("x+1", "1+x", 60)
  start = time.perf_counter()
  assert not worker.ask("5", "9^{9^{9^{9}}}", 1.0)
  assert time.perf_counter() - start < GENEROUS
  assert worker.ask("x+1", "1+x", 60)  # in a new process
  worker._process.kill()  # by someone else
  worker._process.wait()
  assert worker.ask("x+1", "1+x", 60)
  worker.close()
  worker.close()


@needs_math_verify
def test_bombs_grade_as_wrong(monkeypatch):
  monkeypatch.setattr(symbolic, "SECONDS", 1.0)
  start = time.perf_counter()
  for bomb in ("9**9**9**9", "10000000!!", "(" * 140 + "x" + ")" * 140):
    assert not math_answers.grade_math(bomb, "x+1")
  assert time.perf_counter() - start < 3 * GENEROUS


@needs_math_verify
def test_math_grades_in_a_thread():
  found = []
  thread = threading.Thread(target=lambda: found.append(math_answers.grade_math("b+a", "a+b")))
  thread.start()
  thread.join()
  assert found == [True]  # math-verify's own time limit works in the main thread only


@needs_math_verify
def test_the_process_ends_with_its_parent():
  code = "from nrt_jax.tasks import symbolic as s; assert s.WORKER.ask('x+1', '1+x', 60); print(s.WORKER._process.pid)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert not pathlib.Path(f"/proc/{done.stdout.strip()}").exists()


@pytest.mark.parametrize(
  "name,column", [("minerva_math", "solution"), ("olympiadbench", "final_answer"), ("amc23", "answer")]
)
def test_math_solutions(name, column):
  for row in rows(f"math_eval/{name}.jsonl"):
    reference = row[column][0] if isinstance(row[column], list) else str(row[column])
    answer = math_answers.final_answer(reference)
    assert math_answers.grade_math(f"So we get\n$$\\boxed{{{answer}}}.$$", reference)
