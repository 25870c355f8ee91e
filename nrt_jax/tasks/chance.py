"""How feasible learning from rewards alone is: the chance that a random answer is right, and that a group holds one.

A random policy knows the format of an answer and nothing else: at each place it writes one of the words that may stand
there, all with the same probability. With V words at each of L places and one right answer its success is V**-L. Where
a group of G samples rarely holds a right answer (G times the chance is far below 1), a reward for right answers alone
gives a policy that starts from nothing no gradient; one for the likelihood of the reference answer still does.
"""

import math


def of_places(places, right: int = 1) -> float:
  """The chance that a random answer is one of `right` right ones: right / product of the choices at each place.

  places: a tuple of words for each place of the answer. The result is 0 only where it is below 1e-308.
  """
  return math.exp(math.log(right) - sum(math.log(len(words)) for words in places))


def of_group(chance: float, samples: int) -> float:
  """The probability that of `samples` independent random answers at least one is right, 1 - (1 - chance)**samples."""
  return 1.0 if chance >= 1 else -math.expm1(samples * math.log1p(-chance))


def describe(task, samples: int) -> str:
  """"chance 0.0031, a group of 16 holds a right answer with probability 0.05"; "" where it is not known."""
  chance = task.chance()
  if chance is None:
    return ""
  group = f"a group of {samples} holds a right answer with probability {of_group(chance, samples):.2g}"
  return f"chance {chance:.2g}, {group}"
