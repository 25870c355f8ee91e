"""Zigzags: put numbers into an order that rises and falls in turn. Easy to check, harder to find, many right answers.

  question  "zigzag 7 2 9 4 0 5"      answer  "4 7 2 9 0 5"      trace  "0 2 4 5 7 9"

The expert shows one such order at random, so an answer that differs from it may be just as right: `grade` checks the
order itself. The trace sorts the numbers: any one above the middle may stand behind any one below it.
"""

import dataclasses

from nrt_jax.tasks import chance, splits

ZIGZAGS = (1, 1, 1, 2, 5, 16, 61, 272, 1385)  # how many orders of n different numbers are zigzags that rise first
MAX_TRIES = 10_000  # orders drawn until one is a zigzag: of eight numbers 1 in 29 is


@dataclasses.dataclass(frozen=True)
class Zigzag:
  """Orders a1 < a2 > a3 < ... of `n_numbers` different numbers below `high`."""

  split: str = "train"  # "train" or "test": no set of numbers in this order is in both, for any seed and options
  seed: int = 0  # different seeds give different lists of examples
  n_numbers: int = 6  # 2 to 8
  high: int = 10  # numbers are 0 to high - 1
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "n_numbers", 2 <= self.n_numbers <= 8, "2 to 8")
    splits.require(self, "high", self.high >= self.n_numbers, f"n_numbers ({self.n_numbers}) or more")

  @property
  def words(self) -> tuple[str, ...]:
    """Numbers first, so that a number's id is its value."""
    return (*(str(i) for i in range(self.high)), "zigzag")

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    return (splits.symbols(0, self.high),) * self.n_numbers

  def chance(self) -> float:
    """The right orders among all sequences of so many numbers."""
    return chance.of_places(self.places, ZIGZAGS[self.n_numbers])

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace = rng.random() < self.trace_share

    def propose():
      numbers = rng.choice(self.high, self.n_numbers, replace=False).tolist()
      return numbers if splits.split_of(splits.words_of(numbers)) == self.split else None

    def order():
      found = rng.permutation(numbers).tolist()
      return found if is_zigzag(found) else None

    numbers = splits.draw(propose, MAX_TRIES, f"high: {self.high} leaves no question for the {self.split} split")
    answer = splits.words_of(splits.draw(order, MAX_TRIES, "n_numbers: no order was found"))
    trace = splits.words_of(sorted(numbers)) if shows_trace else None
    return f"zigzag {splits.words_of(numbers)}", answer, trace

  def grade(self, completion: str, reference: str) -> bool:
    """Whether the answer holds the reference's numbers, each once, and is a zigzag."""
    words = completion.split()
    return sorted(words) == sorted(reference.split()) and is_zigzag([int(word) for word in words])


def is_zigzag(numbers) -> bool:
  """Whether a1 < a2 > a3 < a4 ..."""
  return all((a < b) == (i % 2 == 0) and a != b for i, (a, b) in enumerate(zip(numbers, numbers[1:])))
