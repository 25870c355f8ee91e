"""Graders that several tasks share. Each takes the answer text of a completion and the reference answer."""


def exact_match(completion: str, reference: str) -> bool:
  """Whether both texts are the same words: white space aside, every character counts."""
  return completion.split() == reference.split()
