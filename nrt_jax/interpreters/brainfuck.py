"""Brainf**k in plain Python: what defines the language here. brainfuck_jax.py gives the same for many programs at once.

A program is a list of ids, the places of its characters in ALPHABET. What the language leaves open:

- the tape is a ring of `tape` cells; the head starts at cell 0, and left of it is the last one
- a cell holds 0 to `cells` - 1 and counts in a circle; inputs are taken modulo `cells`
- `,` at the end of the input puts 0 into the cell
- an unmatched bracket, or an id that has no character, makes the program invalid: nothing of it is executed
- each executed instruction is a step, a bracket too. A program that ends with its last allowed step has finished
- `.` with a full output ends the run. It does nothing and is no step
"""

import dataclasses
from collections.abc import Iterable, Sequence

from nrt_jax.interpreters import outcome
from nrt_jax.interpreters.outcome import Outcome

ALPHABET = "><+-.,[]"  # id -> character
RIGHT, LEFT, MORE, LESS, WRITE, READ, OPEN, CLOSE = range(len(ALPHABET))
IDS = {character: i for i, character in enumerate(ALPHABET)}


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a run may use. UserError for values outside their range."""

  steps: int = 1000  # instructions executed
  outputs: int = 32  # values written
  tape: int = 64  # cells of the tape
  cells: int = 256  # values of a cell: 0 to cells - 1; 2 or more

  def __post_init__(self):
    outcome.require_limits("brainfuck", self, {"cells": 2})


def encode(text: str) -> list[int]:
  """The ids of a program. All other characters are comments, as in the language, and dropped."""
  return [IDS[character] for character in text if character in IDS]


def decode(program: Iterable[int]) -> str:
  """The text of a program; an id without a character is shown as "?"."""
  return "".join(ALPHABET[i] if 0 <= i < len(ALPHABET) else "?" for i in program)


def jumps(program: Sequence[int]) -> list[int] | None:
  """For each bracket the place of its partner, 0 elsewhere. None for a program that is invalid."""
  found, waiting = [0] * len(program), []
  for place, op in enumerate(program):
    if not 0 <= op <= CLOSE or (op == CLOSE and not waiting):
      return None
    if op == OPEN:
      waiting.append(place)
    elif op == CLOSE:
      partner = waiting.pop()
      found[place], found[partner] = partner, place
  return None if waiting else found


def run(
  program: Sequence[int], inputs: Iterable[int] = (), limits: Limits = Limits(), path: list | None = None
) -> Outcome:
  """Runs ids on input values. Never raises for any program, and always ends.

  path: a list to which the id of each executed instruction is added.
  """
  table = jumps(program)
  if table is None:
    return Outcome((), 0, outcome.INVALID, 0)
  tape, head, place, end, steps = [0] * limits.tape, 0, 0, len(program), 0
  source, written, cells = iter(inputs), [], limits.cells
  while place < end:
    op = program[place]
    if steps == limits.steps:
      return Outcome(tuple(written), len(written), outcome.UNFINISHED, steps)
    if op == WRITE and len(written) == limits.outputs:
      return Outcome(tuple(written), len(written), outcome.OUTPUT_FULL, steps)
    if op == RIGHT:
      head = (head + 1) % limits.tape
    elif op == LEFT:
      head = (head - 1) % limits.tape
    elif op == MORE:
      tape[head] = (tape[head] + 1) % cells
    elif op == LESS:
      tape[head] = (tape[head] - 1) % cells
    elif op == WRITE:
      written.append(tape[head])
    elif op == READ:
      tape[head] = next(source, 0) % cells
    elif (tape[head] == 0) == (op == OPEN):  # an empty cell leaves the loop, any other goes round
      place = table[place]
    if path is not None:
      path.append(op)
    place, steps = place + 1, steps + 1
  return Outcome(tuple(written), len(written), outcome.FINISHED, steps)


def grade(program: Sequence[int], pairs, limits: Limits = Limits()) -> float:
  """The share of (inputs, expected outputs) pairs that the program is right on."""
  return sum(outcome.succeeded(run(program, given, limits), expected) for given, expected in pairs) / len(pairs)
