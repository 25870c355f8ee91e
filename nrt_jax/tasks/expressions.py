"""Parses arithmetic expressions written by a model, without eval: exact, without recursion, in bounded time."""

import re
from fractions import Fraction

MAX_LENGTH = 1000  # characters; an honest answer has a few dozen, longer ones are rejected unread
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
OPERATIONS = {
  "+": lambda a, b: a + b,
  "-": lambda a, b: a - b,
  "*": lambda a, b: a * b,
  "/": lambda a, b: a / b,
}
SYNONYMS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "[": "(", "]": ")"})
TOKEN = re.compile(r"\s*(0|[1-9][0-9]*|[-+*/()=])")


def tokens(text: str) -> list[str]:
  """Splits into numbers, operators, parentheses and "=". Raises ValueError for anything else.

  Numbers are ASCII digits without leading zeros, as in the question: "007" splits into several tokens and fails later.
  """
  text = text.strip()
  if len(text) > MAX_LENGTH:
    raise ValueError("too long")
  text, found, end = text.translate(SYNONYMS), [], 0
  while end < len(text):
    match = TOKEN.match(text, end)
    if not match:
      raise ValueError(f"no expression at {text[end : end + 10]!r}")
    found.append(match[1])
    end = match.end()
  return found


def evaluate(words: list[str]) -> Fraction:
  """The exact value of tokens with + - * / and parentheses, by Dijkstra's shunting yard algorithm.

  Raises ValueError for invalid expressions (including signs before a number and omitted operators), and
  ZeroDivisionError.
  """
  values, waiting, wants_value = [], [], True
  for word in words:
    if wants_value:
      if word == "(":
        waiting.append(word)
        continue
      if not word.isdigit():
        raise ValueError(f"a number was expected, not {word!r}")
      values.append(Fraction(int(word)))
      wants_value = False
    elif word in PRECEDENCE:
      _apply(values, waiting, PRECEDENCE[word])
      waiting.append(word)
      wants_value = True
    elif word == ")":
      _apply(values, waiting, 1)
      if not waiting:
        raise ValueError("a bracket closes that never opened")
      waiting.pop()
    else:
      raise ValueError(f"an operator was expected, not {word!r}")
  if wants_value:
    raise ValueError("the expression ends too early")
  _apply(values, waiting, 1)
  if waiting:
    raise ValueError("a bracket never closes")
  return values[0]


def _apply(values, waiting, precedence):
  """Applies the waiting operators of at least this `precedence`, up to an open parenthesis."""
  while waiting and PRECEDENCE.get(waiting[-1], 0) >= precedence:
    right, left = values.pop(), values.pop()
    values.append(OPERATIONS[waiting.pop()](left, right))


def read(text: str) -> tuple[list[int], Fraction]:
  """The numbers that an expression uses, sorted, and its value. "... = N" may follow it, if N is its value.

  Raises ValueError or ZeroDivisionError.
  """
  words = tokens(text)
  value = None
  if "=" in words:
    cut = words.index("=")
    words, claimed = words[:cut], words[cut + 1 :]
    value = evaluate(words)
    if len(claimed) != 1 or evaluate(claimed) != value:
      raise ValueError("the value behind = is another one")
  value = evaluate(words) if value is None else value
  return sorted(int(word) for word in words if word.isdigit()), value
