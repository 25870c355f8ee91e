r"""Answers to mathematics problems: GSM8K ("#### 72") and MATH ("\boxed{\frac{1}{2}}").

Numbers are compared exactly, as rationals. What isn't a plain number goes to math-verify where that is installed
(pip install nrt_jax[eval]), in a process with a time limit; else only texts that normalise alike are equal.
"""

import re
import warnings
from fractions import Fraction

from nrt_jax.tasks import grading, symbolic

MAX_LENGTH = 1000  # characters of an answer; what is longer is no answer
MAX_SYMBOLIC = 300  # characters that math-verify is asked about
MINUS = str.maketrans({"−": "-", "–": "-"})
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A minus is a sign where no operand stands before it. The digits must not be the tail of a word or of a decimal.
NUMBER = re.compile(rf"((?<![\w)])-)?(?:\\?\$\s?(-)?)?(?<![\w.])({DIGITS})(?:\s?/\s?({DIGITS}))?")


# ---- GSM8K ---------------------------------------------------------------------------------------------------------


def last_number(text: str) -> Fraction | None:
  """The number behind the last "####", on its line; without such a mark the last number of the text.

  Thousands' commas, dollar signs and what follows the number are ignored. None where there is none.
  """
  marked = text.rfind("####")
  if marked >= 0:
    match = NUMBER.search(text[marked + 4 : marked + 4 + MAX_LENGTH].split("\n")[0].translate(MINUS))
  else:
    matches = list(NUMBER.finditer(text[-MAX_LENGTH:].translate(MINUS)))
    match = matches[-1] if matches else None
  return match and _value(match)


def _value(match) -> Fraction | None:
  negative = bool(match[1]) != bool(match[2])
  above, below = Fraction(match[3].replace(",", "")), Fraction((match[4] or "1").replace(",", ""))
  return None if below == 0 else (-above if negative else above) / below


def grade_gsm8k(completion: str, reference: str) -> bool:
  """Whether both end in the same number. The reference may be a whole solution with its "#### N"."""
  expected = last_number(reference)
  return expected is not None and last_number(completion) == expected


# ---- MATH ----------------------------------------------------------------------------------------------------------


def last_boxed(text: str) -> str | None:
  r"""What the last \boxed{...} or \fbox{...} holds, nested braces included. None without one, or if it never closes."""
  start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
  if start < 0:
    return None
  rest = text[start : start + MAX_LENGTH].partition("boxed" if text.startswith("\\boxed", start) else "fbox")[2]
  if not rest.lstrip().startswith("{"):  # "\boxed 5$", as some solutions have it
    return re.split(r"[$\n]|\.?\s*$", rest.strip(), maxsplit=1)[0] or None
  rest = rest.lstrip()
  depth = 0
  for i, character in enumerate(rest):
    depth += (character == "{") - (character == "}")
    if depth == 0:
      return rest[1:i].strip()
  return None


def final_answer(text: str) -> str | None:
  """The answer in a text: boxed; else behind "####"; else behind "answer is" or "answer:"; else all of it.

  None for an answer that is empty, longer than MAX_LENGTH, or boxed without an end.
  """
  if "\\boxed" in text or "\\fbox" in text:
    found = last_boxed(text)
  elif "####" in text:
    found = text.rpartition("####")[2]
  else:
    found = grading.final(text) if len(text) > 40 or "answer" in text.lower() else text
  found = found.strip() if found else ""
  return found if 0 < len(found) <= MAX_LENGTH else None


REWRITES = [
  (re.compile(pattern), new)
  for pattern, new in (
    (r"\\[,!;: ]|\\q?quad(?![A-Za-z])|~", ""),  # spaces
    (r"\{,\}", ","),
    (r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", ""),
    (r"\\?[$%]", ""),
    (r"(?<=[0-9}])\s*\\(?:text|mbox|mathrm)\{[^{}]*\}(?:\^\{?[0-9]\}?)?$", ""),  # units behind a number
    (r"\\(?:text|mbox|mathrm|textbf|mathbf|operatorname)\{([^{}]*)\}", r"\1"),
    (r"^\s*[A-Za-z]\s*(?:=|\\in\b)", ""),  # x = 5
    (r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"\s+", ""),
    (r"(?<![0-9,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])", lambda match: match[1].replace(",", "")),
    (r"\.$", ""),
    (r"(?<![0-9])\.(?=[0-9])", "0."),
  )
]
FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]+)\}\{(-?[0-9]+)\}|(-?[0-9]+)/([0-9]+)|(-?[0-9]+(?:\.[0-9]*)?)")


def simplified(text: str) -> str:
  """An answer without what doesn't change its meaning: spaces, units, dollar and percent signs, spelling of LaTeX."""
  text = text.translate(MINUS)
  for pattern, new in REWRITES:
    text = pattern.sub(new, text)
  return text


def number(text: str) -> Fraction | None:
  r"""The value of a simplified integer, decimal, a/b or \frac{a}{b}; None for anything else."""
  match = FRACTION.fullmatch(text)
  if not match:
    return None
  sign, above, below, left, right, plain = match.groups()
  if plain:
    return Fraction(plain.rstrip("."))
  above, below = int(above or left), int(below or right)
  return None if below == 0 else Fraction(-above if sign else above, below)


def equal(reference: str, found: str) -> bool:
  """Whether two final answers mean the same."""
  expected, given = simplified(reference), simplified(found)
  values = number(expected), number(given)
  if given == expected or (None not in values and values[0] == values[1]):
    return bool(given)
  if None not in values and "%" not in reference + found:
    return False
  return _symbolically_equal(reference, found)


def _symbolically_equal(reference, found):
  if not symbolic.installed():
    warnings.warn("math-verify is not installed (extra [eval]): answers are compared as texts", stacklevel=2)
    return False
  if max(len(reference), len(found)) > MAX_SYMBOLIC:
    return False
  return symbolic.equivalent(reference.replace("$", " "), found.replace("$", " "))


def grade_math(completion: str, reference: str) -> bool:
  """Whether the final answers of both are equal. The reference may be a whole solution with its box."""
  expected, found = final_answer(reference), final_answer(completion)
  return expected is not None and found is not None and equal(expected, found)
