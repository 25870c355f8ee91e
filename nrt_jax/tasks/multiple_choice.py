"""Multiple choice: reading the chosen letter out of an answer, as benchmarks in the style of BBH and MMLU need."""

import re
import string

from nrt_jax.tasks import grading

LETTERS = string.ascii_uppercase
OPEN, CLOSE = r"[\s(\[{*_\"'`]*", r"[\s)\]}*_\"'`.,:;!]*"
# "the answer is (B)", "Answer: **B**", "the correct option is B because". A bare A or I before a word is no letter.
PHRASE = re.compile(
  r"\b(?i:answer|choice|option)\b(?i:\s+(?:is|was|would\s+be|should\s+be))?\s*[:=]?"
  r"(?:\s*\\boxed)?[\s({\[*_\"'`]{0,8}(?:\\text\{)?([A-Z])(?![\w'’-])(?!(?<=[AI])\s+\w)"
)
ALONE = re.compile(OPEN + r"(?:\\boxed\{)?(?:\\text\{)?([A-Za-z])" + CLOSE)
LEADING = re.compile(r"\s*\(?([A-Z])[).:](?=\s)")
BRACKETED = re.compile(r"\(([A-Z])\)|\\boxed\{(?:\\text\{)?\(?([A-Z])\)?\}")


def choice(text: str) -> str | None:
  """The letter that an answer chooses, or None where it is unclear.

  Looked for in this order: the letter alone; the last "answer is B"; "B. ..." at the start; a bracketed letter, if no
  other one is bracketed. Letters in words never count, so "A cat" chooses nothing.
  """
  if len(text) < 100 and (alone := ALONE.fullmatch(text)):
    return alone[1].upper()
  text = " ".join(text[-grading.SEARCHED :].split())  # long blanks would be tried in many ways
  phrases = PHRASE.findall(text)
  if phrases:
    return phrases[-1]
  leading = LEADING.match(text)
  bracketed = {first or second for first, second in BRACKETED.findall(text)}
  if leading and bracketed <= {leading[1]}:
    return leading[1]
  return bracketed.pop() if len(bracketed) == 1 else None


def grade(completion: str, reference: str) -> bool:
  """Whether both choose the same letter. A reference without one, such as "Yes", is compared by normalised match."""
  expected = choice(reference)
  if expected is None:
    return grading.normalised_match(grading.final(completion), reference)
  return choice(completion) == expected


def normal_form(text: str) -> str | None:
  """The letter that an answer chooses; the normalised final answer of one that chooses none."""
  return choice(text) or grading.normalised_form(grading.final(text))


def lettered(question: str, choices) -> str:
  """The question with its choices below it, "(A) ...", one a line."""
  return "\n".join([question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, choices))])


def letter_of(answer, choices) -> str | None:
  """The answer as "(A)", given as an index from 0 (an int), as a letter or as the text of its choice; else None."""
  if isinstance(answer, int):
    index = answer
  elif answer in choices:
    index = list(choices).index(answer)
  else:
    index = LETTERS.find(choice(str(answer)) or "?")
  return f"({LETTERS[index]})" if 0 <= index < min(len(choices), len(LETTERS)) else None
