"""Running sums: a state-tracking task that a shallow model can't solve in one pass, but can along a trace.

  question  "add 0 0 3 1 4 2 0 1 modulo 5"      answer  "the sum is 1 modulo 5"      trace  "0 0 3 4 3 0 0 1"

Every answer token but one is easy. Short sums have leading zeros, so that all prompts have the same length.
"""

import dataclasses

import numpy as np

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match


@dataclasses.dataclass(frozen=True)
class RunningSum:
  """Sums modulo `base` of `n_digits` digits, of which at least `min_digits` are drawn; the leading rest is 0."""

  split: str = "train"  # "train" or "test": no question is in both, for any seed and options
  seed: int = 0  # different seeds give different lists of examples
  n_digits: int = 8  # digits in every question
  min_digits: int = 4  # the number of drawn digits is uniform between min_digits and n_digits
  base: int = 5  # digits are 0 to base - 1, sums are modulo base
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "n_digits", self.n_digits >= 1, "1 or more")
    splits.require(self, "min_digits", 1 <= self.min_digits <= self.n_digits, f"1 to n_digits ({self.n_digits})")
    splits.require(self, "base", self.base >= 2, "2 or more")

  @property
  def words(self) -> tuple[str, ...]:
    """Digits first, so that a digit's id is its value."""
    return (*(str(i) for i in range(self.base + 1)), "add", "modulo", "the", "sum", "is")

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    return ("the",), ("sum",), ("is",), splits.symbols(0, self.base), ("modulo",), (str(self.base),)

  def chance(self) -> float:
    """1 / base."""
    return chance.of_places(self.places)

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share
    digits = splits.draw_digits(rng, self.split, self.n_digits, self.min_digits, self.base)
    sums = np.cumsum(digits) % self.base
    question = f"add {splits.words_of(digits)} modulo {self.base}"
    return question, f"the sum is {sums[-1]} modulo {self.base}", splits.words_of(sums) if shows_trace else None

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match of the whole phrase."""
    return exact_match(completion, reference)
