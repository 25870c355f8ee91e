"""Running sums: a state-tracking task whose answer a shallow model can't give in one pass, but can along a trace.

  question  "add 0 0 3 1 4 2 0 1 modulo 5"      answer  "the sum is 1 modulo 5"      trace  "0 0 3 4 3 0 0 1"

Every answer token but one is easy. Short sums have leading zeros, so that all prompts have one length.
"""

import dataclasses
import zlib

import numpy as np

from nrt_jax import errors
from nrt_jax.tasks.grading import exact_match

SPLITS = ("train", "test")
TEST_SHARE = 10  # one question in ten belongs to the test split
MAX_TRIES = 1000  # draws until a question of the split appears; a split with any room fails with odds below 1e-40


@dataclasses.dataclass(frozen=True)
class RunningSum:
  """Sums modulo `base` of `n_digits` digits, of which at least `min_digits` are drawn and the leading rest is 0."""

  split: str = "train"  # "train" or "test": no question is in both, whatever the seed and the other options
  seed: int = 0  # another seed, another list of examples
  n_digits: int = 8  # digits in every question
  min_digits: int = 4  # how many of them are drawn: uniform between min_digits and n_digits
  base: int = 5  # digits are 0 to base - 1, sums are modulo base
  trace_share: float = 0.0  # share of the examples that show their trace

  def __post_init__(self):
    errors.require_choice("data.split", self.split, SPLITS)
    self._require("seed", self.seed >= 0, "0 or more")
    self._require("n_digits", self.n_digits >= 1, "1 or more")
    self._require("min_digits", 1 <= self.min_digits <= self.n_digits, f"1 to n_digits ({self.n_digits})")
    self._require("base", self.base >= 2, "2 or more")
    self._require("trace_share", 0 <= self.trace_share <= 1, "0 to 1")

  def _require(self, key, holds, allowed):
    if not holds:
      raise errors.UserError(f"data.task_options.{key}: found {getattr(self, key)}, allowed: {allowed}")

  @property
  def words(self) -> tuple[str, ...]:
    """Digits first, so that a digit's id is its value."""
    return (*(str(i) for i in range(self.base + 1)), "add", "modulo", "the", "sum", "is")

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
    shows_trace = rng.random() < self.trace_share
    digits = self._draw(rng)
    sums = np.cumsum(digits) % self.base
    question = f"add {_words(digits)} modulo {self.base}"
    return question, f"the sum is {sums[-1]} modulo {self.base}", _words(sums) if shows_trace else None

  def _draw(self, rng):
    for _ in range(MAX_TRIES):
      digits = rng.integers(self.base, size=self.n_digits)
      digits[: self.n_digits - rng.integers(self.min_digits, self.n_digits + 1)] = 0
      if _split_of(digits) == self.split:
        return digits
    found = f"{self.n_digits} digits in base {self.base}"
    raise errors.UserError(f"data.task_options.n_digits: {found} leave no question for the {self.split} split")

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match of the whole phrase."""
    return exact_match(completion, reference)


def _words(numbers) -> str:
  return " ".join(str(i) for i in numbers)


def _split_of(digits) -> str:
  """The split a question belongs to, by a checksum of its digits: the same in every run, on every machine."""
  return "test" if zlib.crc32(_words(digits).encode()) % TEST_SHARE == 0 else "train"
