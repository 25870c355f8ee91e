"""Long answers with easy, noisy and hard words: a task that separates the rewards for a reference answer.

  question  "sum 3 1 4 and 0 2 2 modulo 5"      trace  "3 4 3 and 0 2 4"
  answer    "so we see red then 3 and we note blue then 4 ..."

 - easy words follow from their position alone;
 - noisy words are drawn at random, independently of the question: no trace helps, the best probability is
   1 / n_colours;
 - hard words are sums modulo `base`, one for each group of digits: out of reach of a shallow model in one pass, but
   easy along the trace.

The product of the answer's probabilities is at most n_colours ** -n_noisy however good the trace, a mean is dominated
by the many easy words, and weights on improbable words affect the noisy ones as well as the hard ones.
"""

import dataclasses
import itertools

import numpy as np

from nrt_jax.tasks import chance, splits

EASY = ("so", "we", "see", "then", "note", "that", "it", "goes", "on", "as", "told")
COLOURS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")


@dataclasses.dataclass(frozen=True)
class LongAnswer:
  """Answers of n_easy + n_noisy + n_hard words, in an order that is the same for every example."""

  split: str = "train"  # "train" or "test": no group of digits is in both, for any seed
  seed: int = 0  # different seeds give different lists of examples
  n_easy: int = 24  # words that need no reasoning
  n_noisy: int = 6  # words that no reasoning helps with
  n_hard: int = 2  # words that a trace makes easy; also the number of digit groups in the question
  n_digits: int = 6  # digits in a group
  base: int = 5  # digits are 0 to base - 1, sums are modulo base
  n_colours: int = 4  # noisy words to draw from, 2 to 8
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    for key in ("n_easy", "n_noisy"):
      splits.require(self, key, getattr(self, key) >= 0, "0 or more")
    for key in ("n_hard", "n_digits"):
      splits.require(self, key, getattr(self, key) >= 1, "1 or more")
    splits.require(self, "base", self.base >= 2, "2 or more")
    splits.require(self, "n_colours", 2 <= self.n_colours <= len(COLOURS), f"2 to {len(COLOURS)}")

  @property
  def words(self) -> tuple[str, ...]:
    """Digits first, so that a digit's id is its value."""
    digits = (str(i) for i in range(self.base + 1))
    return (*digits, *COLOURS[: self.n_colours], "sum", "and", "modulo", *EASY)

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kind of each word of any answer ("easy", "noisy" or "hard"), each kind spread evenly."""
    counts = {"easy": self.n_easy, "noisy": self.n_noisy, "hard": self.n_hard}
    placed = [((i + 0.5) / count, kind) for kind, count in counts.items() for i in range(count)]
    return tuple(kind for _, kind in sorted(placed))

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    easy = ((word,) for word in itertools.cycle(EASY))
    several = {"noisy": COLOURS[: self.n_colours], "hard": splits.symbols(0, self.base)}
    return tuple(several.get(kind) or next(easy) for kind in self.kinds)

  def chance(self) -> float:
    """base ** -n_hard: any colors are right."""
    return chance.of_places(self.places, self.n_colours**self.n_noisy)

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share
    size = self.n_digits
    groups = [splits.draw_digits(rng, self.split, size, size, self.base) for _ in range(self.n_hard)]
    sums = [np.cumsum(digits) % self.base for digits in groups]
    question = f"sum {' and '.join(map(splits.words_of, groups))} modulo {self.base}"
    answer = self._answer([group[-1] for group in sums], rng)
    return question, answer, " and ".join(map(splits.words_of, sums)) if shows_trace else None

  def _answer(self, sums, rng):
    sources = {
      "easy": (EASY[i % len(EASY)] for i in range(self.n_easy)),
      "noisy": (COLOURS[i] for i in rng.integers(self.n_colours, size=self.n_noisy)),
      "hard": (str(total) for total in sums),
    }
    return " ".join(next(sources[kind]) for kind in self.kinds)

  def grade(self, completion: str, reference: str) -> bool:
    """Whether all words except the noisy ones are right, and these are colors, which are unpredictable."""
    found, expected = completion.split(), reference.split()
    if len(found) != len(expected) or len(found) != len(self.kinds):
      return False
    allowed = COLOURS[: self.n_colours]
    return all(f in allowed if kind == "noisy" else f == e for f, e, kind in zip(found, expected, self.kinds))
