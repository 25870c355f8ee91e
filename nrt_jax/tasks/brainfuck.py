"""Brainf**k as a task: predict what a program writes, or write one (programs.py).

  question  "run standard , [ . , ] with 3 1 2"                     answer  "3 1 2"
  question  "write standard add where 3 1 2 gives 6 and 4 gives 4"  answer  ", [ [ - > + < ] , ] > ."

Each instruction is a word.
"""

import dataclasses

from nrt_jax.interpreters import brainfuck
from nrt_jax.interpreters.brainfuck import CLOSE, OPEN
from nrt_jax.tasks import splits
from nrt_jax.tasks.programs import Programs

REFERENCES = {
  "copy": ",[.,]",
  "reverse": ">,[>,]<[.<]",
  "add": ",[[->+<],]>.",
  # For each number n: a, b = b, a + b, n times, from a = 0 and b = 1; then a is written, and both are cleared.
  "fibonacci": ",[>>+<<[->>[->+<]<[->+<]>>[-<+<+>>]<<<]>.[-]>[-]<<,]",
  # For each n: the product moves to a third cell, of which each unit adds n to the next product; n counts down.
  "factorial": ",[>+<[>[->+<]>[-<<[->+>>+<<<]>>>[-<<<+>>>]<]<<-]>.[-]<,]",
}
# The tape in threes. A number n walks n threes to the right, where it counts its kind, and clears its path on the way
# back. Then a counter from `last` down and a number from 1 up walk along, and the number is written as often.
COUNT = ">>>,[[-[->>>+<<<]+>>>]>+<<<<[-<<<]>>>,]>>>"
WRITE = ">>+<<[>[>.<-]>[->>>+<<<]>>>+<<<<<-[->>>+<<<]>>>]"
STRAIGHT = [i for i in range(len(brainfuck.ALPHABET)) if i not in (OPEN, CLOSE)]
LOOP_SHARE = 0.25  # of a random program's places where a loop begins


@dataclasses.dataclass(frozen=True)
class Brainfuck(Programs):
  """Programs in Brainf**k (docs/interpreters.md has what the language leaves open)."""

  tape: int = 64  # cells of the tape
  cells: int = 256  # values of a cell: results are modulo this

  signs = tuple(brainfuck.ALPHABET)
  opposites = dict(zip("><+-", "<>-+"))
  memory = "tape"

  def __post_init__(self):
    splits.require(self, "tape", self.tape >= 1, "1 or more")
    splits.require(self, "cells", self.cells > self.last, f"more than the largest symbol ({self.last})")
    super().__post_init__()

  def limits_of(self, steps: int) -> brainfuck.Limits:
    """The interpreter's limits."""
    return brainfuck.Limits(steps=steps, outputs=self.n_symbols, tape=self.tape, cells=self.cells)

  def run_within(self, limits, program, inputs, path=None):
    """A run of ids."""
    return brainfuck.run(program, inputs, limits, path)

  def kept(self, value: int) -> int:
    """A cell's value."""
    return value % self.cells

  def reference(self) -> list[int]:
    """A program of this kind."""
    text = COUNT + "+" * self.last + WRITE if self.kind == "sort" else REFERENCES[self.kind]
    return brainfuck.encode(text)

  def printing(self, values) -> list[int]:
    """One cell that goes from each value to the next."""
    ways = [to - at for at, to in zip([0, *values], values)]
    return brainfuck.encode("".join(("+" if way > 0 else "-") * abs(way) + "." for way in ways))

  def random_program(self, rng) -> list[int]:
    """`n_instructions` instructions with loops inside one another up to `depth`."""
    return self._block(rng, self.n_instructions, self.depth)

  def _block(self, rng, size: int, depth: int) -> list[int]:
    program = []
    while len(program) < size:
      room = size - len(program) - 2
      if depth and room > 0 and rng.random() < LOOP_SHARE:
        program += [OPEN, *self._block(rng, int(rng.integers(1, room + 1)), depth - 1), CLOSE]
      else:
        program.append(STRAIGHT[rng.integers(len(STRAIGHT))])
    return program
