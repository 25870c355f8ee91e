"""Befunge-93 in plain Python: what defines the language here. befunge_jax.py gives the same for many programs at once.

A program is a list of ids, the places of its characters in ALPHABET: printable ASCII from the blank on, and the end of
a line. Its lines are laid into a grid of blanks, `width` by `height`, from the corner where it starts, to the right.
What the language leaves open:

- a value is an integer of 32 bits that wraps around, on the stack, in the grid and in the output
- the grid is a torus, also for `#`. It holds any value; one that is no instruction does nothing
- `g` outside the grid pushes 0, `p` outside does nothing
- a pop from the empty stack gives 0; a push onto a full one (`stack` values) ends the run
- `/` rounds towards 0, `%` has the sign of the dividend; by 0 both are 0
- `&` and `~` both push the next input value, at the end of the input -1
- `.` and `,` both write one value; `,` writes it modulo 256. No blank follows a number: outputs are values, not text
- `?` in step n of the run goes where `direction(seed, n)` points
- a character that falls outside the grid, or an id without one, makes the program invalid: nothing is executed
- each visited cell is a step, blanks too; `#` and the cell that it jumps over are one. A program that ends with its
  last allowed step has finished. What ends the run by a full stack or output does nothing and is no step
"""

import dataclasses
from collections.abc import Iterable, Sequence

from nrt_jax.interpreters import outcome
from nrt_jax.interpreters.outcome import Outcome

FIRST = 32  # the code of the character with id 0
ALPHABET = "".join(map(chr, range(FIRST, 127))) + "\n"  # id -> character
NEWLINE = len(ALPHABET) - 1
IDS = {character: i for i, character in enumerate(ALPHABET)}
RIGHT, LEFT, UP, DOWN = (1, 0), (-1, 0), (0, -1), (0, 1)
TURNS = {">": RIGHT, "<": LEFT, "^": UP, "v": DOWN}
RANDOM = (RIGHT, LEFT, UP, DOWN)
END_OF_INPUT = -1


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a run may use. UserError for values outside their range."""

  steps: int = 1000  # cells visited
  outputs: int = 32  # values written
  stack: int = 64  # values on the stack
  width: int = 80  # columns of the grid
  height: int = 25  # lines of the grid

  def __post_init__(self):
    outcome.require_limits("befunge", self, {})
    outcome.require_size("befunge", "width * height", self.width * self.height)


def encode(text: str) -> list[int]:
  """The ids of a program. Raises ValueError for a character that the language does not have."""
  for character in text:
    if character not in IDS:
      raise ValueError(f"no character of Befunge: {character!r}")
  return [IDS[character] for character in text]


def decode(program: Iterable[int]) -> str:
  """The text of a program; an id without a character is shown as U+FFFD."""
  return "".join(ALPHABET[i] if 0 <= i < len(ALPHABET) else "\N{REPLACEMENT CHARACTER}" for i in program)


def grid_of(program: Sequence[int], limits: Limits) -> list[list[int]] | None:
  """The grid [height][width] of character codes at the start. None for a program that is invalid."""
  grid = [[FIRST] * limits.width for _ in range(limits.height)]
  x = y = 0
  for i in program:
    if i == NEWLINE:
      x, y = 0, y + 1
    elif not 0 <= i < NEWLINE or x >= limits.width or y >= limits.height:
      return None
    else:
      grid[y][x] = FIRST + i
      x += 1
  return grid


def wrapped(value: int) -> int:
  """The value as an integer of 32 bits, two's complement."""
  return (value + 2**31) % 2**32 - 2**31


def direction(seed: int, step: int) -> tuple[int, int]:
  """Where `?` points in a step: right, left, up or down, by the two highest bits of a mixed number of 32 bits."""
  x = (seed + 0x9E3779B9 * (step + 1)) % 2**32
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * factor % 2**32
  return RANDOM[(x ^ (x >> 16)) >> 30]


def divided(a: int, b: int) -> tuple[int, int]:
  """a / b rounded towards 0, and the rest; (0, 0) where b is 0."""
  if b == 0:
    return 0, 0
  quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
  return quotient, a - quotient * b


BINARY = {
  "+": lambda a, b: a + b,
  "-": lambda a, b: a - b,
  "*": lambda a, b: a * b,
  "/": lambda a, b: divided(a, b)[0],
  "%": lambda a, b: divided(a, b)[1],
  "`": lambda a, b: int(a > b),
}
# Instructions that may leave more values than they found: how many each takes, and leaves.
GROWS = {**dict.fromkeys("0123456789&~", (0, 1)), ":": (1, 2), "\\": (2, 2)}


class Machine:
  """The state of one run."""

  def __init__(self, grid, inputs, limits, seed):
    self.grid, self.inputs, self.limits, self.seed = grid, iter(inputs), limits, seed
    self.stack, self.output, self.steps = [], [], 0
    self.x, self.y, self.heading, self.quoted, self.far = 0, 0, RIGHT, False, 1

  def pop(self) -> int:
    return self.stack.pop() if self.stack else 0

  def fetch(self, x: int, y: int) -> int:
    return self.grid[y][x] if self.inside(x, y) else 0

  def inside(self, x: int, y: int) -> bool:
    return 0 <= x < self.limits.width and 0 <= y < self.limits.height

  def blocked(self, op: str) -> int | None:
    """The status with which the instruction ends the run before it is executed, or None."""
    if not self.quoted and op in ".,":
      return outcome.OUTPUT_FULL if len(self.output) == self.limits.outputs else None
    pops, pushes = (0, int(op != '"')) if self.quoted else GROWS.get(op, (0, 0))
    return outcome.STACK_FULL if pushes and max(len(self.stack) - pops, 0) + pushes > self.limits.stack else None

  def execute(self, op: str, code: int) -> None:
    """One instruction other than `@`; the move behind it is `advance`."""
    if op == '"':
      self.quoted = not self.quoted
    elif self.quoted:
      self.stack.append(code)
    elif op in "0123456789":
      self.stack.append(int(op))
    elif op in BINARY:
      b, a = self.pop(), self.pop()
      self.stack.append(wrapped(BINARY[op](a, b)))
    elif op in TURNS:
      self.heading = TURNS[op]
    elif op == "_":
      self.heading = LEFT if self.pop() else RIGHT
    elif op == "|":
      self.heading = UP if self.pop() else DOWN
    elif op == "?":
      self.heading = direction(self.seed, self.steps)
    elif op == "#":
      self.far = 2
    elif op in "&~":
      self.stack.append(wrapped(next(self.inputs, END_OF_INPUT)))
    elif op in ".,":
      self.output.append(self.pop() % 256 if op == "," else self.pop())
    else:
      self.rearrange(op)

  def rearrange(self, op: str) -> None:
    """Instructions that move values on the stack, or between stack and grid."""
    if op == "!":
      self.stack.append(int(not self.pop()))
    elif op == ":":
      self.stack += [self.pop()] * 2
    elif op == "\\":
      b, a = self.pop(), self.pop()
      self.stack += [b, a]
    elif op == "$":
      self.pop()
    elif op == "g":
      y, x = self.pop(), self.pop()
      self.stack.append(self.fetch(x, y))
    elif op == "p":
      y, x, value = self.pop(), self.pop(), self.pop()
      if self.inside(x, y):
        self.grid[y][x] = value

  def advance(self) -> None:
    dx, dy = self.heading
    self.x = (self.x + dx * self.far) % self.limits.width
    self.y = (self.y + dy * self.far) % self.limits.height
    self.far, self.steps = 1, self.steps + 1

  def ended(self, status: int) -> Outcome:
    return Outcome(tuple(self.output), len(self.output), status, self.steps)


def run(
  program: Sequence[int],
  inputs: Iterable[int] = (),
  limits: Limits = Limits(),
  seed: int = 0,
  path: list | None = None,
) -> Outcome:
  """Runs ids on input values. Never raises for any program, and always ends.

  seed: of `?`. path: a list to which the id of each visited cell that is no blank, or -1 without one, is added.
  """
  grid = grid_of(program, limits)
  if grid is None:
    return Outcome((), 0, outcome.INVALID, 0)
  machine = Machine(grid, inputs, limits, seed)
  while machine.steps < limits.steps:
    code = machine.grid[machine.y][machine.x]
    op = chr(code) if FIRST <= code < 127 else " "
    status = machine.blocked(op)
    if status is not None:
      return machine.ended(status)
    if path is not None and code != FIRST:
      path.append(IDS[op] if code >= FIRST and code < 127 else -1)
    if op == "@" and not machine.quoted:
      machine.steps += 1
      return machine.ended(outcome.FINISHED)
    machine.execute(op, code)
    machine.advance()
  return machine.ended(outcome.UNFINISHED)


def grade(program: Sequence[int], pairs, limits: Limits = Limits(), seed: int = 0) -> float:
  """The share of (inputs, expected outputs) pairs that the program is right on."""
  return sum(outcome.succeeded(run(program, given, limits, seed), expected) for given, expected in pairs) / len(pairs)
