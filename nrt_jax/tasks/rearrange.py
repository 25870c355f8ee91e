"""Rearranging symbols: sort, copy or reverse a sequence.

  question  "sort 3 0 2"      answer  "0 2 3"      trace  "3 ; 0 3 ; 0 2 3"
  question  "reverse 3 0 2"   answer  "2 0 3"      trace  "3 ; 0 3 ; 2 0 3"

The trace is the result after the first symbol, the first two, and so on, separated by ";": inserting one symbol at a
time. Symbols may repeat, so a random answer is right with probability alphabet ** -n_symbols exactly.
"""

import dataclasses

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

KINDS = {
  "sort": sorted,
  "sort_down": lambda symbols: sorted(symbols, reverse=True),
  "copy": list,
  "reverse": lambda symbols: symbols[::-1],
}


@dataclasses.dataclass(frozen=True)
class Rearrange:
  """Sequences of `n_symbols` symbols out of `alphabet`."""

  split: str = "train"  # "train" or "test": no sequence is in both, for any seed, kind and alphabet
  seed: int = 0  # different seeds give different lists of examples
  kind: str = "sort"  # sort | sort_down (a changed convention) | copy | reverse
  n_symbols: int = 5  # symbols in every question
  alphabet: int = 8  # symbols to draw from
  first: int = 0  # symbols are written as the words first to first + alphabet - 1: another value is a new alphabet
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "kind", self.kind in KINDS, " | ".join(KINDS))
    splits.require(self, "n_symbols", self.n_symbols >= 1, "1 or more")
    splits.require(self, "alphabet", self.alphabet >= 2, "2 or more")
    splits.require(self, "first", self.first >= 0, "0 or more")

  @property
  def words(self) -> tuple[str, ...]:
    """The alphabet, and the questions' words."""
    return (*splits.symbols(self.first, self.alphabet), ";", *KINDS)

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    return (splits.symbols(self.first, self.alphabet),) * self.n_symbols

  def chance(self) -> float:
    """alphabet ** -n_symbols."""
    return chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: longer, written with other symbols, sorted the other way round."""
    found = {"longer": {"n_symbols": 2 * self.n_symbols}, "alphabet": {"first": self.first + self.alphabet}}
    other = {"sort": "sort_down", "sort_down": "sort"}.get(self.kind)
    return {**found, "convention": {"kind": other}} if other else found

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share
    size = self.n_symbols
    symbols = splits.draw_digits(rng, self.split, size, size, self.alphabet, "n_symbols") + self.first
    results = [splits.words_of(KINDS[self.kind](symbols[: i + 1].tolist())) for i in range(size)]
    return f"{self.kind} {splits.words_of(symbols)}", results[-1], " ; ".join(results) if shows_trace else None

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)
