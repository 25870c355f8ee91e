"""Orthogonality: is the dot product of two integer vectors 0? Or: which coordinate makes it 0?

  question  "orthogonal 2 -1 3 and 1 2 1"       answer  "no"       trace  "2 -2 3 ; 2 0 3"
  question  "complete 2 -1 1 and 1 ? -1"        answer  "1"        trace  "2 -1 ; 2 1"

The trace holds the products and their running sums; for "complete", those of the known coordinates, whose sum the
missing product must take to 0. arXiv 2502.19402 has such a task for a 1.5B model, with 100 training and 100
test questions; its wording, ranges and kind of answer are not known to us, so all of these are our own.
"""

import dataclasses

import numpy as np

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

KINDS = ("decide", "complete")
LAYOUTS = ("vectors", "pairs")
DRAWN, MAX_TRIES = 64, 300  # pairs drawn at a time, and how often: at d = 4 and high = 9, 1 in 100 is orthogonal


@dataclasses.dataclass(frozen=True)
class Orthogonality:
  """Vectors of `dimension` coordinates from -high to high, none 0: zeros would give orthogonal vectors away."""

  split: str = "train"  # "train" or "test": no two vectors are in both, for any seed and options
  seed: int = 0  # different seeds give different lists of examples
  kind: str = "decide"  # decide: "yes" (half of the examples) or "no" | complete: the missing coordinate
  dimension: int = 3  # of both vectors, 2 or more
  high: int = 3  # the largest coordinate
  layout: str = "vectors"  # vectors: one after the other | pairs: coordinate by coordinate (a changed convention)
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "kind", self.kind in KINDS, " | ".join(KINDS))
    splits.require(self, "dimension", self.dimension >= 2, "2 or more")
    splits.require(self, "high", self.high >= 1, "1 or more")
    splits.require(self, "layout", self.layout in LAYOUTS, " | ".join(LAYOUTS))

  @property
  def words(self) -> tuple[str, ...]:
    """All sums of products, which are more than the coordinates, and the questions' words."""
    most = self.dimension * self.high**2
    return (*splits.symbols(-most, 2 * most + 1), "orthogonal", "complete", "and", "?", ";", "yes", "no")

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    if self.kind == "decide":
      return (("yes", "no"),)
    return (splits.symbols(-self.high, self.high) + splits.symbols(1, self.high),)

  def chance(self) -> float:
    """One half, or 1 / (2 high)."""
    return chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: more coordinates, larger ones (new words), the other layout."""
    other = LAYOUTS[1 - LAYOUTS.index(self.layout)]
    longer, larger = {"dimension": self.dimension + 1}, {"high": self.high + 1}
    return {"longer": longer, "alphabet": larger, "convention": {"layout": other}}

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace, right = rng.random() < self.trace_share, self.kind == "complete" or rng.random() < 0.5

    shape = (DRAWN, 2, self.dimension)

    def propose():
      pairs = rng.integers(1, self.high + 1, shape) * rng.choice((-1, 1), shape)
      fitting = pairs[(pairs.prod(axis=1).sum(axis=1) == 0) == right]
      return next((pair for pair in fitting if splits.split_of(splits.words_of(pair.ravel())) == self.split), None)

    where = f"high: {self.high} leaves no vectors of dimension {self.dimension} for the {self.split} split"
    pair = splits.draw(propose, MAX_TRIES, where)
    products = pair[0] * pair[1]
    if self.kind == "decide":
      question, answer = f"orthogonal {self._laid_out(pair)}", "yes" if right else "no"
    else:
      row, column = int(rng.integers(2)), int(rng.integers(self.dimension))
      shown = [[str(i) for i in vector] for vector in pair]
      shown[row][column] = "?"
      question, answer = f"complete {self._laid_out(shown)}", str(pair[row, column])
      products = np.delete(products, column)
    trace = f"{splits.words_of(products)} ; {splits.words_of(np.cumsum(products))}"
    return question, answer, trace if shows_trace else None

  def _laid_out(self, pair) -> str:
    parts = pair if self.layout == "vectors" else zip(*pair)
    return " and ".join(map(splits.words_of, parts))

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)
