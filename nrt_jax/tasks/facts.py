"""Facts: follow relations from entity to entity. Knowledge and reasoning can be kept apart, or not (arXiv 2502.19402).

  world     "r0 e0 e3 r0 e1 e1 ... r1 e0 e2 ..."      question  "follow e3 r1 r0"      answer  "e1"

The facts are a table: from each entity each relation leads to one. `shown` says where they are: in the question, so
that a long context holds them; in the world alone, where an environment's memory has them; nowhere. With `fixed` they
are the same in every example, so that a model may learn them by heart; else each example has facts of its own.
"""

import dataclasses

from nrt_jax import errors
from nrt_jax.tasks import splits
from nrt_jax.tasks.grading import exact_match

SHOWN = ("memory", "context", "oracle", "nothing")
MAX_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class Facts:
  """Questions of `hops` relations over `entities` entities, and a table of all facts of these relations."""

  split: str = "train"  # "train" or "test": no world with this question is in both, for any seed and options
  seed: int = 0  # different seeds give different lists of examples, and other facts where they are fixed
  entities: int = 6  # 2 or more
  relations: int = 2  # 1 or more
  hops: int = 2  # relations that a question follows
  extra: int = 0  # relations that have facts and are never asked for: distractors
  shown: str = (
    "memory"  # memory: in the world only | context: in the question | oracle: those needed, in order | nothing
  )
  fixed: bool = False  # the facts are those of the seed, in every example of either split
  cues: int = 0  # entities named before the question, which have nothing to do with it
  cue_share: float = 0.0  # how often a cue is the answer all the same: spurious, so 0 in evaluation
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "entities", self.entities >= 2, "2 or more")
    splits.require(self, "relations", self.relations >= 1, "1 or more")
    splits.require(self, "hops", self.hops >= 1, "1 or more")
    splits.require(self, "extra", self.extra >= 0, "0 or more")
    splits.require(self, "cues", self.cues >= 0, "0 or more")
    splits.require(self, "cue_share", 0 <= self.cue_share <= 1, "0 to 1")
    errors.require_choice("data.task_options.shown", self.shown, SHOWN)

  @property
  def words(self) -> tuple[str, ...]:
    """Those of environments/memory.py, too."""
    names = (*(f"e{i}" for i in range(self.entities)), *(f"r{i}" for i in range(self.relations + self.extra)))
    return (*names, "follow", "read", "write", "none", ".")

  def _draw(self, index: int):
    """(rng, facts: rows of relations, start, relations to follow) of example `index`."""
    rng = splits.generator(self, index)
    tables = splits.generator(dataclasses.replace(self, split="train"), 0) if self.fixed else rng
    facts = tables.integers(self.entities, size=(self.relations + self.extra, self.entities)).tolist()

    def propose():
      start, path = int(rng.integers(self.entities)), rng.integers(self.relations, size=self.hops).tolist()
      return (start, path) if splits.split_of(f"{facts} {start} {path}") == self.split else None

    def redraw():
      nonlocal facts
      found = propose()
      if found is None and not self.fixed:
        facts = rng.integers(self.entities, size=(self.relations + self.extra, self.entities)).tolist()
      return found

    where = f"hops: {self.hops} over {self.entities} entities leave no question for the {self.split} split"
    start, path = splits.draw(redraw, MAX_TRIES, where)
    return rng, facts, start, path

  def world(self, index: int) -> str:
    """All facts of example `index`, as keys of two words and values of one."""
    return self._table(self._draw(index)[1])

  def _table(self, facts) -> str:
    return " ".join(f"r{r} e{e} e{to}" for r, row in enumerate(facts) for e, to in enumerate(row))

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng, facts, start, path = self._draw(index)
    at, needed, reads = start, [], []
    for r in path:
      needed.append(f"r{r} e{at} e{facts[r][at]}")
      reads.append(f"read {needed[-1]}" if self.shown == "memory" else f"e{facts[r][at]}")
      at = facts[r][at]
    cues = [at if rng.random() < self.cue_share else int(rng.integers(self.entities)) for _ in range(self.cues)]
    known = {"context": self._table(facts), "oracle": " ".join(needed)}.get(self.shown)
    asked = " ".join(["follow", f"e{start}", *(f"r{r}" for r in path)])
    parts = [known and f"{known} .", splits.words_of([f"e{cue}" for cue in cues]), asked]
    trace = " ".join(reads) if rng.random() < self.trace_share else None
    return " ".join(filter(None, parts)), f"e{at}", trace

  def chance(self) -> float:
    """1 / entities: the answer is one of them."""
    return 1 / self.entities

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)
