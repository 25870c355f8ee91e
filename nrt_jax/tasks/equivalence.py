r"""Whether two final answers to a mathematics problem mean the same: numbers, lists, tuples, sets, else expressions.

Numbers are compared exactly. Brackets and lists are compared by their parts, so that each part is an answer of its own.
What is left goes to math-verify where that is installed; without it only texts that are spelled alike are equal.
"""

import functools
import itertools
import re
import warnings
from fractions import Fraction

from nrt_jax.tasks import numerals, symbolic

MAX_SYMBOLIC = 300  # characters that math-verify is asked about
MAX_NESTED = 9  # brackets within brackets that math-verify is asked about; its parser's time doubles with each
MAX_PARTS = 64  # of a list
MAX_DEPTH = 8  # of lists within lists
NOT_UNITS = (
  "hundred|thousand|million|billion|trillion|dozen|percent|pct|times|plus|minus|over|choose|sqrt|mod|modulo|sin|cos|tan|"
  "cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|sinh|cosh|tanh|infinity|where|with|when|for|if|at|pi|theta|alpha|beta"
)
SHORT_UNITS = "cm|mm|km|ft|mi|kg|mg|lb|lbs|oz|ml|mL|min|sec|hr|hrs|mph|kph|sq|cu|USD"
WORD = rf"(?!(?:{NOT_UNITS})\b)(?:[A-Za-z]{{4,}}|{SHORT_UNITS})\b\.?"
BOXED_TEXT = r"\\(?:text|mbox|mathrm|textrm|operatorname|rm)"
UNIT = rf"{BOXED_TEXT}\s*\{{(?!\s*(?:{NOT_UNITS}|and|or|to)\b)[^{{}}]*\}}(?:\s*\^\s*\{{?-?[0-9]\}}?)?"
REWRITES = [
  (re.compile(pattern), new)
  for pattern, new in (
    (r"\s*\^\s*\{?\s*\\circ\s*\}?|\s*\\(?:degree|deg)(?![A-Za-z])|°|(?<=[0-9])\s*degrees?\b", ""),
    (rf"\s*{BOXED_TEXT}\s*\{{\s*(,?)\s*(?:and|or)\s*\}}\s*|\s*(?<![A-Za-z])(,?)\s*(?:and|or)(?![A-Za-z])\s*", ", "),
    (r"\s*(?:\\%|%|(?:\\text\s*\{\s*)?\b(?:percent|pct)\b\s*\}?)", "%"),
    (rf"(?:(?<=[0-9}})%])|(?<=\\pi))\s*{UNIT}(?:\s*(?:/|\\cdot)?\s*{UNIT})*\s*\.?$", ""),  # units behind a number
    (rf"^([-+0-9.,/ ]*[0-9]\.?(?:\\frac\{{[0-9]+\}}\{{[0-9]+\}})?|-?\\frac\{{[0-9]+\}}\{{[0-9]+\}})"
     rf"\s+{WORD}(?: {WORD})*(?:\^\{{?[23]\}}?)?$", r"\1"),
    (r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf|textit|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r"\\geq?slant|\\geq(?![A-Za-z])|≥", r"\\ge"),
    (r"\\leq?slant|\\leq(?![A-Za-z])|≤", r"\\le"),
    (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
    (r"√\s*(?:\(([^()]*)\)|([0-9]+))", r"\\sqrt{\1\2}"),
    (r"\s+", " "),
    (r"(?<=[0-9]) ?, (?=-?[0-9])", ";"),  # divides a list, where 1,234 may be a number
    (r"(\\[A-Za-z]+ )(?=[A-Za-z])|(?<![0-9]) | (?![0-9])", r"\1"),  # blanks that divide neither numbers nor \pi r
    (r"^(?:=|\\approx|\\therefore)|\.$", ""),
  )
]  # fmt: skip
# x = 5, f(x) = 2x, x_1 = 3, x \in [1, 2]: a name, then the answer.
NAMED = re.compile(
  r"((?:\\?[A-Za-z]|\\[A-Za-z]+)'*(?:_(?:\w|\{[^{}]*\}))?(?:\([A-Za-z](?:,[A-Za-z])*\))?)(?:=|\\in(?![A-Za-z]))(.+)"
)
RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in|lt|gt|approx)(?![A-Za-z])")
OPEN, CLOSE = ("\\{", "(", "[", "{"), ("\\}", ")", "]", "}")
BRACKET = re.compile(r"\\[{}]|[()\[\]{},;]|\\pm(?![A-Za-z])")
COMMAND = re.compile(r"\\[A-Za-z]+")
DIVIDED = re.compile(r"[0-9.] [0-9.]")  # two numbers with nothing between them


@functools.lru_cache(maxsize=16384)
def simplified(text: str) -> str:
  """An answer without what doesn't change its meaning: spaces, units, currency, degrees, LaTeX's other spellings."""
  text = text.strip().strip("*").strip()
  for pattern, new in REWRITES[:2]:
    text = pattern.sub(new, text)
  text = numerals.plain(text).strip()
  for pattern, new in REWRITES[2:]:
    text = pattern.sub(new, text)
  return text.strip()


def equal(reference: str, found: str) -> bool:
  """Whether two final answers mean the same. Where 1,234 may be a number or a list, either will do."""
  expected, given = simplified(reference), simplified(found)
  if expected == given:
    return bool(expected)
  readings = itertools.product(_readings(expected), _readings(given))
  return any(_equal(expected, given, 0) for expected, given in readings)


def normal_form(text: str) -> str | None:
  r"""One text for the spellings of an answer that can be told without algebra: 0.5, \frac12 and x = 1/2 are "1/2".

  `equal` takes more answers for the same. None where nothing is left.
  """
  text = _bare(simplified(text))
  named = NAMED.fullmatch(text)
  text = _bare(named[2].rpartition("=")[2]) if named else text
  value = number(text)
  return (numerals.spelled(value[0]) + "%" * value[1] if value else text) or None


def _readings(text):
  listed = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", ";", text)
  return (text,) if listed == text else (text, listed)


def _equal(expected, given, depth):
  expected, given = _bare(expected), _bare(given)
  if not expected or not given or depth > MAX_DEPTH:
    return False
  if expected == given or (expected.isascii() and len(expected) > 2 and _words(expected, given)):
    return True
  values = number(expected), number(given)
  if None not in values:
    return _same_number(*values)
  parts = _parts(expected), _parts(given)
  if None not in parts:
    return _same_parts(*parts, depth)
  one = next(filter(None, parts), None)
  if one and (any(values) or not one[0]):
    return one[0] == "\\{\\}" and len(one[1]) == 1 and _equal(one[1][0], given if parts[0] else expected, depth + 1)
  unnamed = _unnamed(expected, given)
  if unnamed:
    return _equal(*unnamed, depth + 1)
  if ("=" in expected) != ("=" in given):  # an equation is not the value of its right side
    return False
  return _symbolic(expected, given)


def _unnamed(expected, given):
  """Both without the name in front, where they have the same or only one has one; else None."""
  names = NAMED.fullmatch(expected), NAMED.fullmatch(given)
  if not any(names):
    return None
  if None in names:
    alike = not RELATION.search(given if names[0] else expected)
  else:
    alike = names[0][1] == names[1][1]
  if not alike:
    return None
  # Of x = 2 + 3 = 5 the end.
  return [name[2].rpartition("=")[2] if name else text for name, text in zip(names, (expected, given))]


def _words(one, other):
  return one.casefold() == other.casefold() and re.fullmatch(r"[A-Za-z ]{3,}", one) is not None


def _bare(text):
  """Without blanks around it, braces of LaTeX around all of it, or round brackets around one value."""
  text = text.strip()
  for _ in range(MAX_DEPTH):
    inside = _inside(text)
    if inside is None or inside[0] not in ("{}", "()") or (inside[0] == "()" and len(_split(inside[1])) > 1):
      break
    text = inside[1].strip()
  return text


def _inside(text):
  """(brackets, what they hold) where one pair of brackets, perhaps of two kinds, holds the whole text; else None."""
  opening = next((bracket for bracket in OPEN if text.startswith(bracket)), None)
  closing = next((bracket for bracket in CLOSE if text.endswith(bracket)), None)
  if opening is None or closing is None or len(text) < len(opening) + len(closing):
    return None
  depth = 0
  for match in BRACKET.finditer(text):
    depth += (match[0] in OPEN) - (match[0] in CLOSE)
    if depth == 0:
      whole = match.end() == len(text)
      return (opening + closing, text[len(opening) : len(text) - len(closing)]) if whole else None
  return None


def _split(text):
  """The parts between commas and semicolons outside of brackets; those of a number's groups do not count."""
  commas = {i for match in numerals.NUMBER.finditer(text) for i in range(*match.span()) if text[i] == ","}
  parts, start, depth = [], 0, 0
  for match in BRACKET.finditer(text):
    depth += (match[0] in OPEN) - (match[0] in CLOSE)
    if depth == 0 and match[0] in ",;" and match.start() not in commas:
      parts.append(text[start : match.start()])
      start = match.end()
  return [part for part in [*parts, text[start:]] if part.strip()]


def _nesting(text):
  steps = ((match[0] in OPEN) - (match[0] in CLOSE) for match in BRACKET.finditer(text))
  return max(itertools.accumulate(steps, initial=0))


def _parts(text):
  """(brackets, parts) of a tuple, interval, set or bare list; None for a single value."""
  inside = _inside(text)
  brackets, text = inside if inside and inside[0] not in ("{}",) else ("", text)
  parts = [sign for part in _split(text) for sign in _both_signs(part)]
  return (brackets, parts) if len(parts) > 1 or (brackets == "\\{\\}" and len(parts) == 1) else None


def _both_signs(part):
  found = [match for match in BRACKET.finditer(part) if match[0] == "\\pm"]
  if len(found) != 1:
    return [part]
  before, after = part[: found[0].start()], part[found[0].end() :]
  return [before + ("+" if before else "") + after, f"{before}-{after}"]


def _same_parts(expected, given, depth):
  """Sets and bare lists in any order; other brackets in theirs, and only by the same ones or none."""
  (brackets, left), (others, right) = expected, given
  unordered = {brackets, others} <= {"", "\\{\\}"}
  alike = brackets == others or {brackets, others} == {"", "()"} or unordered
  if not alike or len(left) != len(right) or len(left) > MAX_PARTS:
    return False
  if not unordered:
    return all(_equal(one, other, depth + 1) for one, other in zip(left, right))
  waiting = list(right)
  for one in left:
    waiting.sort(key=lambda other: other != one)  # what is spelled alike first: that costs nothing
    found = next((other for other in waiting if _equal(one, other, depth + 1)), None)
    if found is None:
      return False
    waiting.remove(found)
  return True


@functools.lru_cache(maxsize=16384)
def number(text: str) -> tuple[Fraction, bool] | None:
  """(value, whether a percent sign follows) of a simplified text that is one number; None for anything else."""
  size = numerals.read(text.rstrip("%"))
  return None if size is None else (size, text.endswith("%"))


def _same_number(expected, given):
  """50 % is both 50 and 0.5."""
  (left, left_percent), (right, right_percent) = expected, given
  if left_percent == right_percent:
    return left == right
  plain, percent = (right, left) if left_percent else (left, right)
  return plain in (percent, percent / 100)


def _symbolic(expected, given):
  if not symbolic.installed():
    warnings.warn("math-verify is not installed (extra [eval]): answers are compared as texts", stacklevel=2)
    return False
  asked = [numerals.respelled(text).replace(";", ", ") for text in (expected, given)]
  letters = [set(COMMAND.sub("", text)) for text in asked]
  if letters[0] != letters[1] and {c.lower() for c in letters[0]} == {c.lower() for c in letters[1]}:
    return False  # N / 2 is not n / 2, though to math-verify it is
  if any(len(text) > MAX_SYMBOLIC or DIVIDED.search(text) or _nesting(text) > MAX_NESTED for text in asked):
    return False
  if "%" in "".join(asked) and symbolic.equivalent(*(text.replace("%", "") for text in asked)):
    return True
  return symbolic.equivalent(*(text.replace("%", "\\%") for text in asked))
