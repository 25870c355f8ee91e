"""Graders: what they accept and reject, including hostile texts and answers from real benchmarks."""

import json
import random
import time

import pytest
from graders import GENEROUS, real, rows

from nrt_jax import errors
from nrt_jax.data import sources
from nrt_jax.tasks import grading, multiple_choice
from nrt_jax.tasks import table as tasks

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


@pytest.mark.parametrize("name", NAMES)
def test_no_text_makes_a_normal_form_raise(name):
  start = time.perf_counter()
  for text in HOSTILE:
    assert isinstance(tasks.NORMAL_FORMS[name](text), str | None)
  assert time.perf_counter() - start < GENEROUS


@pytest.mark.parametrize(
  "name,text,form",
  [
    ("exact_match", " the  sum\nis 4", "the sum is 4"),
    ("exact_match", " \n", None),
    ("normalised", "The Cat!", "cat"),
    ("normalised", "...", ".."),
    ("multiple_choice", "The answer is (B).", "B"),
    ("multiple_choice", "Answer: Yes.", "yes"),
    ("gsm8k", "so 3 * 24 = 72. The answer is $72.00", "72"),
    ("gsm8k", "none", None),
    ("gsm8k", "1e9999", f"{10**9999:#x}/0x1"),  # Python writes no decimals of so many digits
    ("math", "so \\boxed{x = \\frac12}", "1/2"),
    ("math", "0.50", "1/2"),
    ("math", "50\\%", "50%"),
    ("math", "\\boxed{2 \\sqrt 3}", "2\\sqrt{3}"),
    ("math", "\\boxed{5", None),
    ("countdown", "8 * 3 = 24", "[3, 8] = 24"),
    ("countdown", "8 * 3 = 25", None),
  ],
)
def test_normal_forms(name, text, form):
  assert tasks.NORMAL_FORMS[name](text) == form


def test_every_grader_has_a_normal_form_that_agrees_with_it():
  """Of plain answers: the same form exactly where the grader takes one for the other."""
  assert set(tasks.NORMAL_FORMS) == set(tasks.GRADERS) and tasks.NORMAL_FORMS["none"] is None
  texts = ["24", " 24", "25", "25.", "1,000", "1000", "(B)", "B", "(C)", "3 * 8", "8 * 3", "3 * 7"]
  for name, kept in {"countdown": texts[-3:], "multiple_choice": texts[6:9], "gsm8k": texts[:6]}.items():
    form, grade = tasks.NORMAL_FORMS[name], tasks.GRADERS[name]
    assert all((form(a) == form(b)) == grade(a, b) for a in kept for b in kept), name
  for name in ("exact_match", "normalised", "math"):
    form, grade = tasks.NORMAL_FORMS[name], tasks.GRADERS[name]
    assert all((form(a) == form(b)) == grade(a, b) for a in texts[:6] for b in texts[:6]), name


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
    ("the answer is (B)." + " So it goes on." * 1000, "B"),
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
  config = sources.DataConfig(source=str(path), choices_column="options")
  (example,) = sources.load_examples(config)
  assert (example.question, example.answer) == ("Which?\n(A) red\n(B) blue", "(B)")
  for row, message in (
    ('{"question": "?", "options": ["red", "blue"], "answer": 2}', "rows.jsonl:1: found the answer 2, allowed: index"),
    ('{"question": "?", "options": "red", "answer": 1}', "rows.jsonl:1: column 'options' must hold a list"),
    ('{"question": "?", "answer": 1}', "rows.jsonl:1: no column 'options'"),
  ):
    path.write_text(row + "\n")
    with pytest.raises(errors.UserError, match=message):
      sources.load_examples(config)


def test_bbh_answers():
  folder = real("bbh")
  for path in sorted(folder.glob("*.json")):
    targets = [row["target"] for row in json.loads(path.read_text(encoding="utf-8"))["examples"]]
    for target, other in zip(targets, targets[1:]):
      assert multiple_choice.grade(target, target)
      assert multiple_choice.grade(f"Let's think step by step. So the answer is {target}.", target)
      assert multiple_choice.grade(other, target) == (other == target), (path.name, other, target)


def test_mmlu_rows():
  config = sources.DataConfig(source=str(real("math_eval/mmlu_stem.jsonl")), choices_column="choices")
  examples, found = sources.load_examples(config), rows("math_eval/mmlu_stem.jsonl")
  assert len(examples) == len(found) == 3018
  for example, row in zip(examples, found):
    lines = example.question.split("\n")
    assert f"{example.answer} {row['choices'][row['answer']]}".split("\n")[0] in lines
    assert multiple_choice.choice(example.answer) == "ABCD"[row["answer"]]
