"""Looking up in a table that the question shows, hop by hop: the value found is the next key.

  question  "look up 2 hops 2 keys 2 5 , 0 2 , 5 0"      answer  "0"      trace  "2 5 0"
  question  "look up 0 hops 2 zero 1 2 0"                answer  "2"      trace  "0 1 2"      values alone, from place 0
  question  "look up 1 hops 2 one 2 3 1"                 answer  "3"      trace  "1 2 3"      the same table, from 1

Each key is the value of one key (a permutation), so that no answer is likelier than another. The split depends on the
table alone: a table of the test split is in no training question, whatever the start, the hops and the indexing.
"""

import dataclasses

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

INDEXING = ("keys", "zero", "one")
MAX_TRIES = 1000  # tables drawn until one belongs to the split


@dataclasses.dataclass(frozen=True)
class LookUp:
  """`n_hops` look-ups in a table of `n_entries` entries."""

  split: str = "train"  # "train" or "test": no table is in both, for any seed and options
  seed: int = 0  # different seeds give different lists of examples
  n_entries: int = 4  # entries of the table
  n_hops: int = 2  # look-ups in a row: the depth
  alphabet: int = 8  # with indexing "keys": symbols that keys and values are drawn from
  first: int = 0  # with "keys": symbols are the words first to first + alphabet - 1: another value is a new alphabet
  indexing: str = "keys"  # keys: they are shown | zero, one: values alone, in places counted from it (a convention)
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "n_entries", self.n_entries >= 2, "2 or more")
    splits.require(self, "n_hops", self.n_hops >= 1, "1 or more")
    splits.require(self, "alphabet", self.alphabet >= self.n_entries, f"n_entries ({self.n_entries}) or more")
    splits.require(self, "first", self.first >= 0, "0 or more")
    splits.require(self, "indexing", self.indexing in INDEXING, " | ".join(INDEXING))

  @property
  def words(self) -> tuple[str, ...]:
    """Keys and values, the number of hops, and the questions' words."""
    numbers = dict.fromkeys((*self.places[0], str(self.n_hops)))
    return (*numbers, ",", "look", "up", "hops", *INDEXING)

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer: all symbols, or all places of the table."""
    if self.indexing == "keys":
      return (splits.symbols(self.first, self.alphabet),)
    return (splits.symbols(int(self.indexing == "one"), self.n_entries),)

  def chance(self) -> float:
    """1 / alphabet, or 1 / n_entries where values are places."""
    return chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: more hops, a larger table, other symbols or another indexing."""
    found = {"longer": {"n_hops": 2 * self.n_hops}}
    found["larger"] = {"n_entries": 2 * self.n_entries, "alphabet": max(self.alphabet, 2 * self.n_entries)}
    if self.indexing == "keys":
      return {**found, "alphabet": {"first": self.first + self.alphabet}}
    return {**found, "convention": {"indexing": "one" if self.indexing == "zero" else "zero"}}

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace, size = rng.random() < self.trace_share, self.n_entries
    names = range(size)

    def propose():
      values = rng.permutation(size).tolist()
      keys = names if self.indexing != "keys" else rng.choice(self.alphabet, size, replace=False).tolist()
      text = splits.words_of(sorted(f"{keys[i]}:{keys[values[i]]}" for i in names))
      return (keys, values) if splits.split_of(text) == self.split else None

    where = f"n_entries: tables of {size} entries leave no question for the {self.split} split"
    keys, values = splits.draw(propose, MAX_TRIES, where)
    base = self.first if self.indexing == "keys" else int(self.indexing == "one")
    visited = [int(rng.integers(size))]
    for _ in range(self.n_hops):
      visited.append(values[visited[-1]])
    shown = [str(keys[i] + base) for i in visited]
    order = rng.permutation(size).tolist() if self.indexing == "keys" else names
    targets = [str(keys[values[i]] + base) for i in order]
    table = " ".join(targets)
    if self.indexing == "keys":
      table = " , ".join(f"{keys[i] + base} {target}" for i, target in zip(order, targets))
    question = f"look up {shown[0]} hops {self.n_hops} {self.indexing} {table}"
    return question, shown[-1], " ".join(shown) if shows_trace else None

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)
