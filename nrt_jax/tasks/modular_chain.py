"""Modular chains: a number that is changed step by step, modulo another. The number of steps is the depth.

  question  "start 3 + 4 * 2 - 1 modulo 5 base 10"      answer  "3"          trace  "3 2 4 3"
  question  "start 0 0 + 1 1 * 0 2 modulo 5 base 3"     answer  "1 0"        trace  "0 0 1 1 1 0"

Steps are taken from left to right. Numbers have as many digits as `modulus` - 1 has in their base: one word in base 10
where the modulus is at most 10. The second example is 0 + 4 * 2: each number has two digits in base 3.
"""

import dataclasses

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@dataclasses.dataclass(frozen=True)
class ModularChain:
  """Chains of `n_steps` operations. No factor is 0, which would wipe out all steps before it."""

  split: str = "train"  # "train" or "test": no chain is in both, for any seed, modulus and base
  seed: int = 0  # different seeds give different lists of examples
  n_steps: int = 4  # operations in a question: the depth
  modulus: int = 7  # numbers are 0 to modulus - 1
  operations: str = "+-*"  # those that are drawn
  base: int = 10  # numbers are written in it, digit by digit: another base is a changed convention
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "n_steps", self.n_steps >= 1, "1 or more")
    splits.require(self, "modulus", self.modulus >= 2, "2 or more")
    kinds = set(self.operations)
    known = 0 < len(self.operations) == len(kinds) and kinds <= set(OPERATIONS)
    splits.require(self, "operations", known, f"some of {''.join(OPERATIONS)}, each once")
    splits.require(self, "base", self.base >= 2, "2 or more")

  @property
  def words(self) -> tuple[str, ...]:
    """Digits first, so that a digit's id is its value; modulus and base are words of their own."""
    digits = splits.symbols(0, min(self.base, self.modulus))
    return (*dict.fromkeys((*digits, str(self.modulus), str(self.base))), *OPERATIONS, "start", "modulo", "base")

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer: every digit of the base that a number may hold."""
    return (splits.symbols(0, min(self.base, self.modulus)),) * len(splits.digits(0, self.modulus, self.base))

  def chance(self) -> float:
    """1 / modulus where numbers are one word, else that of as many digits."""
    return chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: more steps; a base in which numbers take at least two digits."""
    return {"longer": {"n_steps": 2 * self.n_steps}, "convention": {"base": max(2, (self.modulus + 1) // 2)}}

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share

    def propose():
      signs = [self.operations[i] for i in rng.integers(len(self.operations), size=self.n_steps)]
      numbers = [int(rng.integers(sign == "*", self.modulus)) for sign in ("+", *signs)]
      text = splits.words_of([numbers[0], *(word for step in zip(signs, numbers[1:]) for word in step)])
      return (signs, numbers) if splits.split_of(text) == self.split else None

    where = f"n_steps: {self.n_steps} steps modulo {self.modulus} leave no question for the {self.split} split"
    signs, numbers = splits.draw(propose, splits.DIGIT_TRIES, where)
    values = [numbers[0]]
    for sign, number in zip(signs, numbers[1:]):
      values.append(OPERATIONS[sign](values[-1], number) % self.modulus)
    steps = " ".join(f"{sign} {self._written(number)}" for sign, number in zip(signs, numbers[1:]))
    question = f"start {self._written(numbers[0])} {steps} modulo {self.modulus} base {self.base}"
    answer = self._written(values[-1])
    return question, answer, " ".join(map(self._written, values)) if shows_trace else None

  def _written(self, number: int) -> str:
    return splits.words_of(splits.digits(number, self.modulus, self.base))

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)
