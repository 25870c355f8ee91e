"""Graders of plain texts. Each takes the answer text of a completion and the reference answer."""

import re
import string

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
FINAL = re.compile(r"\banswer\s*(?:is\b|:)\s*:?\s*(.*)", re.IGNORECASE)
MAX_LENGTH = 4000  # characters of an answer that are searched, from its end: the final word stands last
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(completion: str, reference: str) -> bool:
  """Whether both texts are the same words: white space aside, every character counts."""
  return completion.split() == reference.split()


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and extra white space, as SQuAD's evaluation does (arXiv 1606.05250)."""
  return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def normalised_match(completion: str, reference: str) -> bool:
  """Exact match of normalised texts; of the texts themselves where the reference is all punctuation and articles."""
  expected = normalised(reference)
  return normalised(completion) == expected if expected else exact_match(completion, reference)


def final(text: str) -> str:
  """What follows the last "answer is" or "answer:" up to the end of its line; the whole text without one."""
  found = FINAL.findall(text[-MAX_LENGTH:])
  return found[-1] if found else text
