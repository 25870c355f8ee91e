"""GSM8K and MATH answers: what is extracted and what counts as equal, with math-verify and without."""

import itertools

import pytest
from graders import needs_math_verify, rows

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
    # Numbers in LaTeX and in groups.
    ("\\boxed{9{,}500}", "#### 9500", True),
    ("\\boxed{10\\,000}", "#### 10,000", True),
    ("$10,\\!000$", "#### 10000", True),
    ("12 000", "#### 12000", True),
    ("\\boxed{10 20}", "#### 1020", False),
    ("$\\frac{1}{2}$", "#### 0.5", True),
    ("\\dfrac12", "#### 0.5", True),
    ("$\\frac{1}{2}$", "#### 2", False),
    ("2 1/2 apples", "#### 0.5", False),
    ("2 1/2 apples", "#### 2.5", True),
    ("2½ apples", "#### 2.5", True),
    ("1 1/4", "#### 2.75", False),
    ("1.5 \\times 10^{3}", "#### 1500", True),
    ("\\$1,450,000.00", "#### 1,450,000", True),
    ("**42**", "#### 42", True),
    # Text behind the answer.
    ("So the answer is 42." + " So it goes on." * 200, "#### 42", True),
    ("The answer is 42. It took 3 steps.", "#### 42", True),
    ("The answer is 6 * 7 = 42 apples for 2 people.", "#### 42", True),
    ("Final answer: $42", "#### 42", True),
    ("#### 42\nDone in 3 steps.", "#### 42", True),
    ("####\n42", "#### 42", True),
    ("\\boxed{42}. (Note: use \\boxed in the final answer of part 2)", "#### 42", True),
    ("\\boxed{42 \\text{ cm}^2}", "#### 42", True),
    ("The answer is 41. No: the answer is 42.", "#### 42", True),
    ("The answer is unknown, 42 perhaps", "#### 41", False),
  ],
)
def test_gsm8k(completion, reference, same):
  assert math_answers.grade_gsm8k(completion, reference) is same


def test_gsm8k_solutions():
  answers = [row["answer"] for row in rows("gsm8k/test.jsonl")]
  finals = [answer.rpartition("#### ")[2] for answer in answers]
  for answer, final in zip(answers, finals):
    grouped = final.replace(",", "{,}")
    texts = [f"\\boxed{{{grouped}}}", f"The answer is ${final}$. It took 2 steps.", f"\\[\\boxed{{\\${final}.00}}\\]"]
    texts += [f"#### {final} apples\nDone.", "So " + final.replace(",", "\\,") + ".", final.replace(",", "")]
    assert all(math_answers.grade_gsm8k(text, answer) for text in texts), final
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
    ("\\boxed{7}. (Note: use \\boxed in the final answer)", "7"),
    ("\\boxed{7}, since one has to put it into \\boxed{}", "7"),
    ("\\boxed{7}: the format is \\boxed{...}.", "7"),
    ("\\boxed 7. That is all", "7"),
    ("\\boxed x", "x"),
    ("\\boxed\\frac12", "\\frac12"),
    ("\\boxed{(1, 2\\}", None),
    ("\\boxed{\\{1, 2)}", "\\{1, 2)"),
    ("\\boxed{" + "{" * 300 + "1" + "}" * 300 + "}", "{" * 300 + "1" + "}" * 300),
  ],
)
def test_last_boxed(text, boxed):
  assert math_answers.last_boxed(text) == boxed


@pytest.mark.parametrize(
  "text,answer",
  [
    ("#### 42\nDone.", "42"),
    ("#### 42. Done.", "42"),
    ("So the answer is 42. I could go on: 43.", "42"),
    ("The answer is 4.2. I could go on.", "4.2"),
    ("The answer is $4.2$." + " And so on." * 300, "4.2$"),
    ("**Answer:** 42", "42"),
    ("**Answer**: **42**", "42**"),
    ("The answer is:\n\n$$\n42\n$$\nDone", "42"),
    ("42\nDone", "42"),
    ("\\boxed{42}. (Note: use \\boxed in the final answer)", "42"),
    ("\\boxed{42", None),
    ("", None),
  ],
)
def test_text_behind_the_answer_is_not_part_of_it(text, answer):
  assert math_answers.final_answer(text) == answer


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
  # Mixed numbers are sums; a blank groups digits in threes only.
  ("1 1/4", "11/4", False), ("1 1/4", "5/4", True), ("11 5/6", "71/6", True), ("The answer is 11 5/6", "71/6", True),
  ("1\\tfrac14", "1.25", True), ("10 20", "1020", False), ("10 200", "10200", True), ("1, 234", "1234", False),
  ("10\\,000", "10000", True), ("$10,\\!000$", "10000", True), ("1,234", "1234", True), ("12,34", "1234", False),
  # Signs, decimals, powers of ten.
  ("+2", "2", True), ("- 3", "-3", True), ("4.5e33", "4.5 \\times 10^{33}", True), ("10^{-5}", "1e-5", True),
  ("1e-5", "1e-6", False), ("-1./3", "-\\frac13", True), ("0.\\overline{3}", "1/3", True),
  ("\\frac{1}{1000000000000001}", "\\frac{1}{1000000000000002}", False), ("9" * 999, "9" * 999, True),
  # Units, currency, degrees, percent.
  ("12 cm", "12", True), ("12 square units", "12", True), ("5 dollars", "5", True), ("5 million", "5", False),
  ("2 pi", "2", False), ("12\\mathrm{~cm}^{2}", "12", True), ("5\\text{ m}/\\text{s}", "5", True), ("€5", "5", True),
  ("90 degrees", "90^\\circ", True), ("90°", "90", True), ("50\\%", "0.5", True), ("50 percent", "50", True),
  ("50\\%", "0.5\\%", False), ("50%", "5", False), ("5\\text{ or }6", "5", False),
  # Wrappings.
  ("\\(5\\)", "5", True), ("\\[5\\]", "5", True), ("**5**", "5", True), ("(5)", "5", True), ("{5}", "5", True),
  ("\\textbf{5}", "5", True), ("\\mathbf{127}", "127", True), ("\\fbox{5}", "5", True),
  # Names in front.
  ("x = 5", "x=5", True), ("y = 5", "x = 5", False), ("f(x) = 2x", "2x", True), ("x_{1} = 5", "5", True),
  ("x \\in [1, 2]", "[1,2]", True), ("x = 2 + 3 = 5", "5", True), ("y'+y = 0", "0", False), ("= 5", "5", True),
  # Lists in any order, brackets in theirs, parts as answers of their own.
  ("1, 2", "2,1", True), ("2 and 1", "1,2", True), ("x=1 \\text{ or } x=2", "1, 2", True), ("$1$, $2$", "2,1", True),
  ("\\{2, 1\\}", "\\{1,2\\}", True), ("\\{1\\}", "1", True), ("\\{1, 1, 2\\}", "\\{1, 2, 2\\}", False),
  ("1, 2, 3", "1, 2", False), ("(2, 1)", "(1, 2)", False), ("(2,1)", "(5,3)", False), ("2, 1", "(1, 2)", False),
  ("1, 2", "(1, 2)", True), ("[1, 2)", "(1, 2)", False), ("(0.5, 1/3)", "(\\frac12, \\frac{1}{3})", True),
  ("(8, 18), (2, 32)", "(2,32), (8,18)", True), ("(1,000, 2,000)", "(1000, 2000)", True), ("(7,103)", "(7, 103)", True),
  ("\\pm 5", "5, -5", True), ("1 \\pm 2", "3, -1", False), ("5; 6", "5, 6", True), ("(1 200)", "(1, 200)", False),
  # Words.
  ("\\text{no solution}", "No solution", True), ("a", "A", False),
  ("f(x)=x+1", "f(x)=-1, f(x)=x+1", False), ("\\text{odd}", "even", False),
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
    # Numbers, as they are read without math-verify too.
    ("2 1/2 x", "\\frac{5}{2}x", True),
    ("4.5e3+x", "4500+x", True),
    ("1,000x", "1000x", True),
    ("10 20 x", "1020x", False),
    ("10 20 x", "30x", False),
    ("7!!", "105", False),  # not asked: math-verify takes it for (7!)!
    # A part of an expression that can't be read as a whole is not its value.
    ("0.5", "\\hbar \\omega(v+1 / 2)-\\frac{E_{0}^{2} e^{2}}{2 m \\omega^{2}}", False),
    ("\\frac12", "\\foo{x}+\\frac{1}{2}", False),
    # Tiny and huge values.
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}", False),
    ("\\frac{2005}{2005!}", "\\frac{1}{2004!}", True),
    ("e^{-2000}", "e^{-3000}", False),
    ("10^{-30}\\pi", "10^{-40}\\pi", False),
    ("\\frac{x}{2004!}", "\\frac{x}{2006!}", False),
    ("\\frac{\\pi}{10^{9}}", "0.0000001", False),
    ("2^{1009}", "4 \\cdot 2^{1007}", True),
    ("10^{100000}", "10^{100001}", False),
    ("1.414214", "\\sqrt{2}", True),
    ("1.4142", "\\sqrt{2}", False),
    # Letters.
    ("2\\sqrt{\\pi G \\rho r}", "\\sqrt{4 \\pi G r \\rho}", True),
    ("\\cos \\omega t", "\\cos (\\omega t)", True),
    ("6m", "6", False),
    ("6", "6m", False),
    ("\\frac{N}{2}", "\\frac{n}{2}", False),
    ("5\\pi\\text{ cm}", "5\\pi", True),
    ("\\frac{\\sqrt{3}}{2} \\mathrm{~cm}^2", "\\frac{\\sqrt3}{2}", True),
    # Expressions, relations, unions, matrices.
    ("\\sin^2 x + \\cos^2 x", "1", True),
    ("\\sqrt{2}\\sqrt{3}-\\sqrt{6}", "0", True),
    ("(x-1)^2", "x^2-2x+1", True),
    ("|x|", "x", False),
    ("x > 1", "(1, \\infty)", True),
    ("k \\ge 2", "k \\geqslant 2", True),
    ("(0,1)\\cup(-\\infty,0)", "(-\\infty,0)\\cup(0,1)", True),
    ("(0,1)\\cup(-\\infty,0]", "(-\\infty,0)\\cup(0,1)", False),
    ("2x-y=0", "y=2x", True),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
    ("1 \\pm \\sqrt 2", "1-\\sqrt{2}, 1+\\sqrt{2}", True),
    ("\\frac{25}{2}\\%", "12.5\\%", True),
  ],
)
def test_math_with_math_verify(completion, reference, same):
  assert math_answers.grade_math(completion, reference) is same


# ---- Real references -----------------------------------------------------------------------------------------------

# From minerva_math, olympiadbench and aime24: each is right for itself and wrong for all others.
REFERENCES = [
  "4.5e33", "-1./3", "1e-5", "+2", "0.10", "24.310", "3e6", "\\frac{1}{\\sqrt{2}}c", "x / 2-1 / 4+c e^{-2 x}",
  "\\frac{a M^{1 / 3}}{G M^{2 / 3}+b}", "s^{2}+b s+1", "1+\\sqrt{3} i", "-8-8 \\sqrt{3} i", "E_{1},E_{2}", "\\hbar",
  "$2^{1009}$", "$\\frac{100!}{2^{50}}$", "$(1,8,19), (2,7,13), (4,5,7)$", "$69$,$84$", "$\\frac{3 m}{2}-1$",
  "$(0,2),(0,-2),(4,23),(4,-23)$", "$\\left\\lfloor\\log _{2} n\\right\\rfloor+1$", "$-2,0,2$", "$k \\geqslant 2$",
  "$(-\\infty, 0) \\cup\\{1\\}$", "2500,7500", "62.5%", "$8 \\%$", "(-\\infty,-5)", "$a=2$, $a=-6-4 \\sqrt{2}$",
  "(1,7,103, 105), (3, 5, 101, 107)", "$(45^{\\circ}, 60^{\\circ}),(135^{\\circ}, 60^{\\circ})$", "$4^{\\circ}$",
  "$[\\frac{1}{2}, 8]$", "$-1$,$2$", "$\\binom{2n}{n}$", "$2021 \\cdot 505 \\cdot 337$", "$t(0,4]$",
  "$\\frac{505}{8076}$", "\\textbf{(113) }", "\\mathbf{127}", "104.",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:math-verify is not installed")
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.usefixtures("plain")
def test_a_real_reference_is_right_in_all_its_wrappings(reference):
  bare = reference.strip("$")
  wrapped = [reference, f"\\boxed{{{reference}}}", f"#### {reference}\nDone.", f"The answer is ${bare}$. I am sure."]
  wrapped += [f"$$\\boxed{{ {bare} }}.$$ (Note: use \\boxed in the end)", f"\\[\\fbox{{${bare}$}}\\]"]
  for text in wrapped:
    assert math_answers.grade_math(text, reference), text


@pytest.mark.filterwarnings("ignore:math-verify is not installed")
@pytest.mark.usefixtures("plain")
def test_real_references_differ_without_math_verify():
  for one, other in itertools.permutations(REFERENCES, 2):
    assert not math_answers.grade_math(f"\\boxed{{{one}}}", other), (one, other)


@needs_math_verify
def test_real_references_differ_with_math_verify():
  for one, other in itertools.combinations(REFERENCES[::3], 2):
    assert not math_answers.grade_math(f"\\boxed{{{one}}}", other), (one, other)


@pytest.mark.parametrize(
  "name,column",
  [("minerva_math", "solution"), ("olympiadbench", "final_answer"), ("amc23", "answer"), ("aime24", "answer")],
)
@pytest.mark.filterwarnings("ignore:math-verify is not installed")
@pytest.mark.usefixtures("plain")
def test_math_solutions(name, column):
  for row in rows(f"math_eval/{name}.jsonl"):
    reference = row[column][0] if isinstance(row[column], list) else str(row[column])
    answer = math_answers.final_answer(reference)
    for text in (f"So we get\n$$\\boxed{{{answer}}}.$$", f"#### {answer}\nDone.", f"The answer is {answer}"):
      assert math_answers.grade_math(text, reference), text
