"""Parity: is the number of ones odd? One bit of state, which every symbol may change.

  question  "odd 0 1 1 0 1"       answer  "1"      trace  "0 1 0 0 1"
  question  "even 0 1 1 0 1"      answer  "0"      trace  "1 0 1 1 0"      the other convention

The trace holds the answers for the first bit, the first two, and so on. A single pass of a shallow model cannot find
parity of many bits, and no part of the bits says anything about it.
"""

import dataclasses

import numpy as np

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

ASKS = ("odd", "even")


@dataclasses.dataclass(frozen=True)
class Parity:
  """Parity of `n_bits` random bits."""

  split: str = "train"  # "train" or "test": no bits are in both, for any seed and options
  seed: int = 0  # different seeds give different lists of examples
  n_bits: int = 8  # bits in every question
  asks: str = "odd"  # the number of ones for which the answer is 1: odd | even (a changed convention)
  first: int = 0  # bits are written as the words first and first + 1: another value is a new alphabet
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "n_bits", self.n_bits >= 1, "1 or more")
    splits.require(self, "asks", self.asks in ASKS, " | ".join(ASKS))
    splits.require(self, "first", self.first >= 0, "0 or more")

  @property
  def words(self) -> tuple[str, ...]:
    """The two bits, and the questions' words."""
    return (*splits.symbols(self.first, 2), *ASKS)

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    return (splits.symbols(self.first, 2),)

  def chance(self) -> float:
    """One half."""
    return chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: longer, written with other symbols, the other convention."""
    other = ASKS[1 - ASKS.index(self.asks)]
    return {"longer": {"n_bits": 2 * self.n_bits}, "alphabet": {"first": self.first + 2}, "convention": {"asks": other}}

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share
    bits = splits.draw_digits(rng, self.split, self.n_bits, self.n_bits, 2, "n_bits")
    found = (np.cumsum(bits) + (self.asks == "even")) % 2 + self.first
    question = f"{self.asks} {splits.words_of(bits + self.first)}"
    return question, str(found[-1]), splits.words_of(found) if shows_trace else None

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)
