"""Graders of plain texts. Each takes the answer text of a completion and the reference answer."""

import re
import string

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PHRASE = re.compile(r"\banswer\**\s*(?:is\b|:)\s*:?\s*", re.IGNORECASE)
MAX_LENGTH = 4000  # characters by which a text may be longer than what it is to match
SEARCHED = 100_000  # characters of a completion in which its answer is looked for, from the end
NUMBER = re.compile(r"[($]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)[%).,:;!?]*")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(completion: str, reference: str) -> bool:
  """Whether both texts are the same words: white space aside, every character counts."""
  return completion.split() == reference.split()


def words(text: str) -> str | None:
  """The words of a text: `exact_match` takes two answers with the same for one. None without any."""
  return " ".join(text.split()) or None


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and extra white space, as SQuAD's evaluation does (arXiv 1606.05250).

  Numbers keep sign and decimal point, as in DROP's (arXiv 1903.00161): else -1.5 and 15 were the same.
  """
  words = (_plain(word) for word in text.lower().split())
  return " ".join(ARTICLES.sub(" ", " ".join(words)).split())


def _plain(word: str) -> str:
  number = NUMBER.fullmatch(word)
  return number[1].replace(",", "") if number else word.translate(PUNCTUATION)


def normalised_match(completion: str, reference: str) -> bool:
  """Exact match of normalised texts; where the reference is all punctuation and articles, of all but a full stop.

  A completion that is longer by MAX_LENGTH and more is wrong, whatever it is longer by.
  """
  if len(completion) > len(reference) + MAX_LENGTH:
    return False
  expected = normalised(reference)
  if expected:
    return normalised(completion) == expected
  return exact_match(*(text.strip().removesuffix(".") for text in (completion, reference)))


def normalised_form(text: str) -> str | None:
  """What `normalised_match` takes for the same answer. None where nothing is left of a text."""
  return normalised(text) or words(text.strip().removesuffix("."))


def behind_phrase(text: str) -> str | None:
  """What follows the last "answer is" or "answer:", up to the end of the text; None without one."""
  if "nswer" not in text and "NSWER" not in text:  # sooner seen than by the pattern
    return None
  end = None
  for match in PHRASE.finditer(text, max(0, len(text) - SEARCHED)):
    end = match.end()
  return None if end is None else text[end:]


def final(text: str) -> str:
  """What follows the last "answer is" or "answer:" up to the end of its line; the whole text without one."""
  found = behind_phrase(text)
  return text if found is None else found.split("\n", 1)[0]
