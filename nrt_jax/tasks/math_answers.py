r"""Answers to mathematics problems: where they stand in a text, for GSM8K ("#### 72") and MATH ("\boxed{\frac{1}{2}}").

What they mean is told by numerals.py and equivalence.py.
"""

import functools
import re
from fractions import Fraction

from nrt_jax.tasks import equivalence, grading, numerals

MAX_LENGTH = 1000  # characters of an answer; what is longer is no answer
MAX_MENTIONS = 100  # boxes without an answer that are skipped, from the end
NUMBER_LENGTH = 100  # characters before the last digit of a text in which its last number is looked for
DIGIT = re.compile(r"[0-9]")
OPENING = re.compile(r"^(?:[\s$*]|\\[(\[])+")  # of a formula, or of bold type
SENTENCE_END = re.compile(r"(?<=[^\s.])\.(?=\s|$)|[\r\n]")


# ---- Where the answer stands ---------------------------------------------------------------------------------------


def marked(text: str) -> str | None:
  """The first line of what follows the last "####"; None without such a mark."""
  return text.rpartition("####")[2][: 2 * MAX_LENGTH].strip().split("\n")[0] if "####" in text else None


def last_boxed(text: str) -> str | None:
  r"""What the last \boxed{...} or \fbox{...} holds, nested braces included. None without one, or if it never closes.

  A box that holds no answer is skipped: "put it in \boxed{}", "use \boxed in the end".
  """
  return _last_box(text)[1]


def _last_box(text):
  """(whether there is a box, what the last one holds or None)."""
  end = len(text)
  for _ in range(MAX_MENTIONS):
    end = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
    if end < 0:
      break
    held, is_mention = _box(text, end)
    if not is_mention:
      return True, held
  return False, None


def _box(text, start):
  """(what the box at `start` holds or None, whether it only mentions a box)."""
  rest = text[start : start + MAX_LENGTH].partition("boxed" if text.startswith("\\boxed", start) else "fbox")[2]
  if not rest.lstrip().startswith("{"):  # "\boxed 5$", as some solutions have it
    held = SENTENCE_END.split(re.split(r"[$\n]", rest.strip(), maxsplit=1)[0], maxsplit=1)[0].strip()
    return held, not re.match(r"[-+.(\[\\]*[0-9]|[-+]?\\[a-z]|[-+]?[A-Za-z]\b(?! [a-z])", held)
  rest = rest.lstrip()
  depth = 0
  for match in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
    depth += {"{": 1, "}": -1}.get(match[0], 0)
    if depth == 0:
      held = rest[1 : match.start()].strip()
      return held, not held.strip(". …") or held == "\\ldots"
  return None, False


def stated(text: str) -> str | None:
  """What the last "answer is" or "answer:" says, up to the end of the sentence; None without one."""
  found = grading.behind_phrase(text)
  return None if found is None else sentence(found)


def sentence(text: str) -> str:
  """A text up to the first full stop before a blank, or line break; 4.2 goes on."""
  return SENTENCE_END.split(OPENING.sub("", text[: 4 * MAX_LENGTH]), maxsplit=1)[0]


# ---- GSM8K ---------------------------------------------------------------------------------------------------------


def last_number(text: str) -> Fraction | None:
  """The number behind the last "####", on its line; else in the last box; else behind "answer is"; else the last one.

  Thousands' commas, dollar signs and what follows the number are ignored. None where there is none.
  """
  for found in (marked(text), last_boxed(text)):
    if found is not None:
      return _result(found)
  answer = stated(text)
  if answer is not None and DIGIT.search(answer):
    return _result(answer)
  end = max(text.rfind(digit) for digit in "0123456789") + 1
  return numerals.last(text[max(0, end - NUMBER_LENGTH) : end + 20])


def _result(text):
  """The first number of an answer, of what follows its last "=" if it has one: 42 for 3, 6 * 7 = 42."""
  behind = text[:MAX_LENGTH].rpartition("=")[2]
  return numerals.first(behind if DIGIT.search(behind) else text[:MAX_LENGTH])


def grade_gsm8k(completion: str, reference: str) -> bool:
  """Whether both end in the same number. The reference may be a whole solution with its "#### N"."""
  expected = _expected_number(reference)
  return expected is not None and last_number(completion) == expected


def gsm8k_form(text: str) -> str | None:
  """The number that `grade_gsm8k` compares; None where there is none."""
  found = last_number(text)
  return None if found is None else numerals.spelled(found)


# ---- MATH ----------------------------------------------------------------------------------------------------------


def final_answer(text: str) -> str | None:
  """The answer in a text: boxed; else behind "####"; else behind "answer is" or "answer:"; else all of it.

  None for an answer that is empty, longer than MAX_LENGTH, or boxed without an end.
  """
  boxed, found = _last_box(text)
  if not boxed:
    found = next(found for found in (marked(text), stated(text), text) if found is not None)
    found = sentence(found) if len(found) <= 4 * MAX_LENGTH else ""
  found = found.strip() if found else ""
  return found if 0 < len(found) <= MAX_LENGTH else None


def grade_math(completion: str, reference: str) -> bool:
  """Whether the final answers of both are equal. The reference may be a whole solution with its box."""
  expected, found = _expected_answer(reference), final_answer(completion)
  return expected is not None and found is not None and equivalence.equal(expected, found)


def math_form(text: str) -> str | None:
  """The final answer in a normal form: exact for a number, else its simplified text. No algebra: 2x is not x + x."""
  found = final_answer(text)
  return None if found is None else equivalence.normal_form(found)


# Of the completions of one prompt the reference is the same.
_expected_number = functools.lru_cache(maxsize=1024)(last_number)
_expected_answer = functools.lru_cache(maxsize=1024)(final_answer)
