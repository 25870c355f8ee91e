"""Nim as a task: games against an opponent, for environments/nim.py, and games of experts to imitate.

  question  "nim 3 1 2"      world  "3 1 2 solver"      answer  "over"      trace  "a2 1 1 1 a1 0 0 1 c1"

Heaps of objects; a move takes some from one heap ("a2": two of the first), and whoever takes the last object wins. The
asked player begins, from heaps where a win can be forced. The trace is a game of an expert: its move, the heaps after
the opponent's, and so on. The expert "blind" plays as the solver does, but never touches the first heap while another
one is left: a systematic mistake, which whoever imitates it learns. The expert "random" knows the rules alone.
"""

import dataclasses

import numpy as np

from nrt_jax import errors
from nrt_jax.tasks import splits
from nrt_jax.tasks.grading import exact_match

OPPONENTS = ("solver", "greedy", "random")
EXPERTS = ("solver", "blind", "random")
POSITIONS = ("any", "first_heap")
NAMES = "abcdef"
MAX_TRIES = 10_000


def moves_of(heaps, most: int) -> list[tuple[int, int]]:
  """All (heap, objects) that may be taken."""
  return [(i, n) for i, heap in enumerate(heaps) for n in range(1, min(heap, most) + 1)]


def winning_moves(heaps) -> list[tuple[int, int]]:
  """Those that leave a nim-sum of 0, from which the other player cannot win."""
  total = int(np.bitwise_xor.reduce(heaps))
  return [(i, heap - (heap ^ total)) for i, heap in enumerate(heaps) if heap ^ total < heap]


def take(heaps, move) -> list[int]:
  """The heaps after a move."""
  return [heap - move[1] * (i == move[0]) for i, heap in enumerate(heaps)]


def solved(heaps) -> tuple[int, int]:
  """The solver's move: the first that wins, else one object of the first of the largest heaps."""
  return next(iter(winning_moves(heaps)), (int(np.argmax(heaps)), 1))


def greedy(heaps, rng) -> tuple[int, int]:
  """The last heap if it is the only one, else a random move."""
  left = [i for i, heap in enumerate(heaps) if heap]
  return (left[0], heaps[left[0]]) if len(left) == 1 else random_move(heaps, rng)


def random_move(heaps, rng) -> tuple[int, int]:
  """Any move, all alike."""
  possible = moves_of(heaps, max(heaps))
  return possible[rng.integers(len(possible))]


def blind(heaps) -> tuple[int, int]:
  """As the solver, of the heaps but the first, while there is another."""
  others = [0, *heaps[1:]]
  if not any(others):
    return solved(heaps)
  return next((move for move in winning_moves(heaps) if move[0]), (int(np.argmax(others)), 1))


@dataclasses.dataclass(frozen=True)
class Nim:
  """Games of `heaps` heaps of at most `most` objects."""

  split: str = "train"  # "train" or "test": no heaps are in both, for any seed and opponent
  seed: int = 0  # different seeds give different lists of examples
  heaps: int = 3  # 2 to 6
  most: int = 5  # objects of a heap, at most
  opponent: str = "pool"  # solver | greedy (sees a win in one move) | random | pool: drawn from these for each example
  positions: str = "any"  # any heaps from which a win can be forced | first_heap: by a move in the first heap only
  expert: str = "solver"  # whose games traces are: solver | blind (avoids the first heap) | random
  trace_share: float = 0.0  # fraction of the examples that show a game

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "heaps", 2 <= self.heaps <= len(NAMES), f"2 to {len(NAMES)}")
    splits.require(self, "most", self.most >= 1, "1 or more")
    errors.require_choice("data.task_options.opponent", self.opponent, (*OPPONENTS, "pool"))
    errors.require_choice("data.task_options.positions", self.positions, POSITIONS)
    errors.require_choice("data.task_options.expert", self.expert, EXPERTS)

  @property
  def words(self) -> tuple[str, ...]:
    """Numbers, moves, and the question's words."""
    moves = (f"{name}{n}" for name in NAMES[: self.heaps] for n in range(1, self.most + 1))
    return (*splits.symbols(0, self.most + 1), *moves, "nim", "over", *OPPONENTS)

  def chance(self) -> float | None:
    """Of a random player: not known."""
    return None

  def _draw(self, index: int):
    """(rng, heaps, opponent) of example `index`."""
    rng = splits.generator(self, index)
    allowed = {"any": lambda wins: bool(wins), "first_heap": lambda wins: {i for i, _ in wins} == {0}}[self.positions]

    def propose():
      heaps = rng.integers(1, self.most + 1, size=self.heaps).tolist()
      return heaps if splits.split_of(splits.words_of(heaps)) == self.split and allowed(winning_moves(heaps)) else None

    where = f"most: {self.heaps} heaps of up to {self.most} leave no question for the {self.split} split"
    heaps = splits.draw(propose, MAX_TRIES, where)
    drawn = OPPONENTS[rng.integers(len(OPPONENTS))]
    return rng, heaps, drawn if self.opponent == "pool" else self.opponent

  def world(self, index: int) -> str:
    """Heaps and opponent, as environments/nim.py reads them."""
    _, heaps, opponent = self._draw(index)
    return f"{splits.words_of(heaps)} {opponent}"

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng, heaps, opponent = self._draw(index)
    shows_trace = rng.random() < self.trace_share
    return f"nim {splits.words_of(heaps)}", "over", self._game(rng, heaps, opponent) if shows_trace else None

  def _game(self, rng, heaps, opponent: str) -> str:
    """A game of the expert against an opponent, in words."""
    words = []
    while any(heaps):
      move = blind(heaps) if self.expert == "blind" else reply(heaps, self.expert, rng)
      heaps = take(heaps, move)
      words.append(f"{NAMES[move[0]]}{move[1]}")
      if any(heaps):
        heaps = take(heaps, reply(heaps, opponent, rng))
        words += [str(heap) for heap in heaps] if any(heaps) else []
    return " ".join(words)

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match, which says nothing of a game: the environment's verdict does."""
    return exact_match(completion, reference)


def reply(heaps, opponent: str, rng) -> tuple[int, int]:
  """An opponent's move."""
  if opponent == "solver":
    return solved(heaps)
  return greedy(heaps, rng) if opponent == "greedy" else random_move(heaps, rng)
