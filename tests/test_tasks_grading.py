"""Graders: what they accept and refuse, on hostile texts as well, and on the answers of real benchmarks."""

import json
import pathlib
import random
import subprocess
import sys
import threading
import time

import pytest

from nrt_jax import data, errors, tasks
from nrt_jax.tasks import grading, math_answers, multiple_choice, symbolic

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
GENEROUS = 10.0  # seconds for what takes milliseconds
needs_math_verify = pytest.mark.skipif(not symbolic.installed(), reason="math-verify (extra [eval]) is not installed")


@pytest.fixture
def plain(monkeypatch):
  """Grading as it is without math-verify."""
  monkeypatch.setattr(symbolic, "installed", lambda: False)


def real(name):
  path = DATA / name
  if not path.exists():
    pytest.skip(f"real data is absent: ../shared/data/{name}")
  return path


def rows(name):
  return [json.loads(line) for line in real(name).read_text(encoding="utf-8").splitlines()]


# ---- Every grader --------------------------------------------------------------------------------------------------

NAMES = [name for name, grade in tasks.GRADERS.items() if grade]
MILLION = 10**6
HOSTILE = [
  "", " ", "\n", "\x00", "\ud800",
  "é" * MILLION, "{" * MILLION, "}" * MILLION, "(" * MILLION, "\\boxed{" * (MILLION // 7), "\\boxed{" + "{" * MILLION,
  "\\boxed{" + "9" * MILLION + "}",
  "9" * MILLION, "-" * MILLION, "$ " * MILLION, "1," * MILLION, "1/" * MILLION, "####" * MILLION,
  "#### " + "9" * MILLION,
  "answer is " * (MILLION // 10), "answer" + " " * MILLION, "the answer is (" * (MILLION // 10),
  "a the " * MILLION, "\\frac" * (MILLION // 5), "\\text{" * 150,
  "\\frac{" * 150, "^" * 900, "1/0", "#### 1/0", "\\boxed{\\frac{1}{0}}", "9" * 999, "." * 999, " " * 999 + "x",
  "\\boxed", "\\boxed ", "\\fbox{",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:math-verify is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_hostile_texts_are_wrong_and_take_no_time(plain, name):
  grade, start = tasks.GRADERS[name], time.perf_counter()
  for text in HOSTILE:
    for reference in ("3", "3 * 8", "(B)", "\\boxed{5}"):
      assert grade(text, reference) is False, (text[:30], reference)
  assert time.perf_counter() - start < GENEROUS


@pytest.mark.filterwarnings("ignore:math-verify is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_no_text_makes_a_grader_raise(plain, name):
  pieces = [*"0123456789+-*/()= .,$%{}\\x[]B#", "\\boxed{", "\\frac", "####", "answer is ", "(A)", "\\sqrt", "²", "×"]
  rng = random.Random(0)
  texts = ["".join(rng.choices(pieces, k=rng.randrange(12))) for _ in range(3000)]
  for text, other in zip(texts, texts[1:]):
    assert tasks.GRADERS[name](text, other) in (True, False)


@pytest.mark.parametrize("name", NAMES)
def test_right_and_wrong(name):
  right, wrong = {"countdown": ("3 * 8", "3 * 7"), "multiple_choice": ("(B)", "(C)")}.get(name, ("24", "25"))
  assert tasks.GRADERS[name](right, right) is True
  assert tasks.GRADERS[name](wrong, right) is False


# ---- Texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "completion,reference,same",
  [
    ("The  Eiffel Tower!", "eiffel tower", True),
    ("a cat", "an CAT.", True),
    ("catan", "cat", False),
    ("another", "other", False),  # an article is a whole word
    ("$1,000.50", "1000.50", True),
    ("-50", "50", False),
    ("1.5", "15", False),
    ("15.", "15", True),
    ("42%", "(42)", True),
    ("", "the", False),
    ("a", "the", False),  # both are nothing when normalised
    (". ,", "!", False),
    ("] ] >", "] ] >", True),
    ("] ] >.", "] ] >", True),
    ("] ]", "] ] >", False),
    ("straße", "STRASSE", False),
  ],
)
def test_normalised_match(completion, reference, same):
  assert grading.normalised_match(completion, reference) is same


# ---- Multiple choice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "text,letter",
  [
    ("B", "B"), ("b", "B"), ("(B)", "B"), (" B. ", "B"), ("**B**", "B"), ("\\boxed{B}", "B"),
    ("\\boxed{\\text{B}}", "B"), ("[B]", "B"),
    ("The answer is (B).", "B"), ("So the answer is B because of C", "B"), ("ANSWER: B", "B"),
    ("the correct choice is **B**", "B"), ("Answer: \\boxed{B}", "B"),
    ("the answer is A", "A"), ("The answer is I.", "I"), ("the answer is (A) Paris", "A"), ("option B", "B"),
    ("B. Paris", "B"), ("B) Paris", "B"),
    ("(B) Paris, not Rome", "B"), ("I choose (B)", "B"), ("answer is (A), no: the answer is (B)", "B"),
    ("It must be (B), and (B) it is", "B"),
    ("x" * 10000 + " the answer is (B)", "B"),
    # Letters in words, articles, pronouns, several candidates, nothing.
    ("Basic", None), ("A cat sat", None), ("I think so", None), ("the answer is A dog", None),
    ("the answer is I think", None), ("the answer is Basic", None),
    ("the answer is B-flat", None), ("answer B's", None), ("(A) no (B) yes", None), ("A B C D", None), ("", None),
    ("Yes", None), ("vitamin B12", None),
    ("(AB)", None), ("the answer is 4", None), ("Ⓑ", None), ("Б", None),
  ],
)  # fmt: skip
def test_choice(text, letter):
  assert multiple_choice.choice(text) == letter


def test_multiple_choice_grade():
  grade = multiple_choice.grade
  assert grade("the answer is (B)", "(B)") and grade("B", "B. Paris") and not grade("(A) (B) (C) (D)", "(B)")
  assert grade("So the answer is Yes.", "Yes") and not grade("The answer is No.", "Yes")
  assert not grade("invalid", "valid") and not grade("-50", "50")


def test_choices_become_text_and_letter():
  assert multiple_choice.lettered("Which?", ["red", "blue"]) == "Which?\n(A) red\n(B) blue"
  letter = multiple_choice.letter_of
  assert letter(1, ["red", "blue"]) == letter("B", ["red", "blue"]) == letter("blue", ["red", "blue"]) == "(B)"
  assert letter("(b)", ["red", "blue"]) == "(B)"
  for wrong in (2, -1, "C", "green", "", None):
    assert letter(wrong, ["red", "blue"]) is None


def test_a_column_of_choices(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"question": "Which?", "options": ["red", "blue"], "answer": 1}\n')
  config = data.DataConfig(source=str(path), choices_column="options")
  (example,) = data.load_examples(config)
  assert (example.question, example.answer) == ("Which?\n(A) red\n(B) blue", "(B)")
  for row, message in (
    ('{"question": "?", "options": ["red", "blue"], "answer": 2}', "rows.jsonl:1: found the answer 2, allowed: index"),
    ('{"question": "?", "options": "red", "answer": 1}', "rows.jsonl:1: column 'options' must hold a list"),
    ('{"question": "?", "answer": 1}', "rows.jsonl:1: no column 'options'"),
  ):
    path.write_text(row + "\n")
    with pytest.raises(errors.UserError, match=message):
      data.load_examples(config)


def test_bbh_answers():
  folder = real("bbh")
  for path in sorted(folder.glob("*.json")):
    targets = [row["target"] for row in json.loads(path.read_text(encoding="utf-8"))["examples"]]
    for target, other in zip(targets, targets[1:]):
      assert multiple_choice.grade(target, target)
      assert multiple_choice.grade(f"Let's think step by step. So the answer is {target}.", target)
      assert multiple_choice.grade(other, target) == (other == target), (path.name, other, target)


def test_mmlu_rows():
  config = data.DataConfig(source=str(real("math_eval/mmlu_stem.jsonl")), choices_column="choices")
  examples, found = data.load_examples(config), rows("math_eval/mmlu_stem.jsonl")
  assert len(examples) == len(found) == 3018
  for example, row in zip(examples, found):
    lines = example.question.split("\n")
    assert f"{example.answer} {row['choices'][row['answer']]}".split("\n")[0] in lines
    assert multiple_choice.choice(example.answer) == "ABCD"[row["answer"]]


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
def test_math_without_math_verify(plain, completion, reference, same):
  assert math_answers.grade_math(completion, reference) is same


def test_without_math_verify_a_warning_says_so(plain):
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
  root = pathlib.Path(__file__).resolve().parents[1]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
  assert not pathlib.Path(f"/proc/{done.stdout.strip()}").exists()


@pytest.mark.parametrize(
  "name,column", [("minerva_math", "solution"), ("olympiadbench", "final_answer"), ("amc23", "answer")]
)
def test_math_solutions(name, column):
  for row in rows(f"math_eval/{name}.jsonl"):
    reference = row[column][0] if isinstance(row[column], list) else str(row[column])
    answer = math_answers.final_answer(reference)
    assert math_answers.grade_math(f"So we get\n$$\\boxed{{{answer}}}.$$", reference)
