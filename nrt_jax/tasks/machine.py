"""Machines: predict what a short program leaves on a stack, or on a tape.

  question  "stack zero push 3 push 4 add copy 0 mul"  answer  "4"      trace  "3 ; 3 4 ; 2 ; 2 2 ; 4"
  question  "tape zero inc right dec goto 0"           answer  "1 4 0"  trace  "0 1 0 0 ; 1 1 0 0 ; 1 1 4 0 ; 0 1 4 0"

Both are modulo 5. The stack machine's result is its top: `add`, `sub` and `mul` take two numbers off and put one on;
`copy k` puts the k-th number from the top on again. The tape machine's result are its cells: `inc` and `dec` change the
cell under the head, `left`, `right` and `goto k` move it, around the ends. The trace shows the machine after each
instruction: the stack from its bottom, or the head's place and the cells. Places k count from 0 or, with `indexing`
"one", from 1.
"""

import dataclasses

from nrt_jax.tasks import chance, splits
from nrt_jax.tasks.grading import exact_match

KINDS = ("stack", "tape")
INDEXING = ("zero", "one")
ARITHMETIC = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
MOVES = ("inc", "dec", "left", "right", "goto")
MAX_TRIES = 1000  # programs drawn until one belongs to the split


@dataclasses.dataclass(frozen=True)
class Machine:
  """Random programs of `n_steps` instructions for a machine of `n_cells` cells."""

  split: str = "train"  # "train" or "test": no program is in both, for any seed, modulus and indexing
  seed: int = 0  # different seeds give different lists of examples
  kind: str = "stack"  # stack | tape
  n_steps: int = 5  # instructions: the depth
  modulus: int = 5  # cells hold 0 to modulus - 1
  n_cells: int = 3  # the most numbers that a stack holds, or the cells of a tape
  indexing: str = "zero"  # places are counted from zero | one (a changed convention)
  trace_share: float = 0.0  # fraction of the examples that show their trace

  length = None  # unlimited examples

  def __post_init__(self):
    splits.require_common(self)
    splits.require(self, "kind", self.kind in KINDS, " | ".join(KINDS))
    splits.require(self, "n_steps", self.n_steps >= 1, "1 or more")
    splits.require(self, "modulus", self.modulus >= 2, "2 or more")
    splits.require(self, "n_cells", self.n_cells >= 2, "2 or more")
    splits.require(self, "indexing", self.indexing in INDEXING, " | ".join(INDEXING))

  @property
  def words(self) -> tuple[str, ...]:
    """Numbers first, so that a number's id is its value."""
    numbers = splits.symbols(0, max(self.modulus, self.n_cells + 1))
    return (*numbers, ";", *KINDS, *INDEXING, "push", "copy", *ARITHMETIC, *MOVES)

  @property
  def places(self) -> tuple:
    """The words that may stand at each place of an answer."""
    return (splits.symbols(0, self.modulus),) * (1 if self.kind == "stack" else self.n_cells)

  def chance(self) -> float:
    """1 / modulus for a stack, modulus ** -n_cells for a tape."""
    return chance.of_places(self.places)

  def shifts(self) -> dict:
    """Options that lead out of the distribution: longer programs, the other indexing."""
    other = INDEXING[1 - INDEXING.index(self.indexing)]
    return {"longer": {"n_steps": 2 * self.n_steps}, "convention": {"indexing": other}}

  def example(self, index: int) -> tuple[str, str, str | None]:
    """Example `index` as (question, answer, trace or None): a pure function of the fields and the index."""
    rng = splits.generator(self, index)
    shows_trace, draws = rng.random() < self.trace_share, {"stack": self._draw_stack, "tape": self._draw_tape}

    def propose():
      program = draws[self.kind](rng)
      text = splits.words_of(word for step in program for word in step)
      return program if splits.split_of(text) == self.split else None

    where = f"n_steps: {self.n_steps} instructions modulo {self.modulus} leave no program for the {self.split} split"
    program = splits.draw(propose, MAX_TRIES, where)
    runs = {"stack": run_stack, "tape": run_tape}
    states = runs[self.kind](program, self.modulus, self.n_cells)
    from_one = int(self.indexing == "one")
    steps = " ".join(self._written(step, from_one) for step in program)
    if self.kind == "stack":
      answer, shown = str(states[-1][-1]), states
    else:
      answer, shown = splits.words_of(states[-1][1]), [(head + from_one, *cells) for head, cells in states]
    trace = " ; ".join(map(splits.words_of, shown)) if shows_trace else None
    return f"{self.kind} {self.indexing} {steps}", answer, trace

  def _written(self, step, from_one: int) -> str:
    name, *numbers = step
    return splits.words_of([name, *(number + from_one * (name != "push") for number in numbers)])

  def _draw_stack(self, rng) -> list:
    """Instructions that never take from an empty stack; the last computes where it can."""
    program, depth = [], 0
    for step in range(self.n_steps):
      last = step == self.n_steps - 1 and depth > 0
      names = [*ARITHMETIC] * (depth > 1) + ["copy"] * (0 < depth < self.n_cells)
      names += ["push"] * (2 if depth < self.n_cells and not last else 0)
      name = names[rng.integers(len(names))]
      bound = {"push": self.modulus, "copy": depth}.get(name)
      program.append((name,) if bound is None else (name, int(rng.integers(bound))))
      depth += 1 if bound is not None else -1
    return program

  def _draw_tape(self, rng) -> list:
    names = [MOVES[i] for i in rng.integers(len(MOVES), size=self.n_steps)]
    return [(name, int(rng.integers(self.n_cells))) if name == "goto" else (name,) for name in names]

  def grade(self, completion: str, reference: str) -> bool:
    """Exact match."""
    return exact_match(completion, reference)


def run_stack(program, modulus: int, n_cells: int) -> list:
  """The stack after each instruction, from its bottom, as lists."""
  stack, states = [], []
  for name, *numbers in program:
    if name == "push":
      stack = [*stack, numbers[0]]
    elif name == "copy":
      stack = [*stack, stack[-1 - numbers[0]]]
    else:
      stack = [*stack[:-2], ARITHMETIC[name](*stack[-2:]) % modulus]
    states.append(stack)
  return states


def run_tape(program, modulus: int, n_cells: int) -> list:
  """(place of the head, cells as a list) after each instruction."""
  head, cells = 0, [0] * n_cells
  states = []
  for name, *numbers in program:
    if name in ("inc", "dec"):
      cells = list(cells)
      cells[head] = (cells[head] + (1 if name == "inc" else -1)) % modulus
    else:
      head = numbers[0] if name == "goto" else (head + (1 if name == "right" else -1)) % n_cells
    states.append((head, cells))
  return states
