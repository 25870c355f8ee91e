"""Befunge-93 as a task: predict what a program writes, or write one (programs.py).

  question  "run standard & : 1 + ! # @ _ . with 3 1 2"             answer  "3 1 2"
  question  "write standard print 3 1 2"                            answer  "3 . 1 . 2 . @"

The words "blank" and "newline" stand for the two characters that are no words.
"""

import dataclasses

from nrt_jax.interpreters import befunge
from nrt_jax.tasks import splits
from nrt_jax.tasks.programs import Programs

COMMANDS = '0123456789+-*/%!`><^v?_|":\\$.,#gp&~@'
NAMED = {" ": "blank", "\n": "newline"}
WIDEST = 38  # columns of the widest reference program
HIGHEST = 7  # lines, with the two that keep numbers


def lay(*lines) -> str:
  """A text of lines, each a text or (column, text, column, text, ...)."""
  rows = []
  for line in lines:
    row = ""
    for column, piece in zip(line[::2], line[1::2]) if isinstance(line, tuple) else [(0, line)]:
      row = row.ljust(column) + piece
    rows.append(row)
  return "\n".join(rows)


# All read one number after another; -1, the end of the input, leaves the first line.
REFERENCES = {
  "copy": "&:1+!#@_.",
  "reverse": lay("&:1+!#v_", (6, "$"), (6, ">:!#@_.")),
  "add": lay("&:1+!#v_+", (6, ">$.@")),
  # For each n: the counter is in column 0 of line 6, b in column 1 while a + b is computed.
  "fibonacci": lay(">&:1+!#@_06p01v", (14, ">06g1-:06p!#v_:16p+16g\\"), (0, "^", 24, "$.<")),
  # For each n: n ... 2 1 on the stack, then products of the two topmost until nothing is below.
  "factorial": lay(">&:1+!#@_v", (9, ">:1-:!#v_"), (16, "$"), (16, r">\:!#v_*"), (0, "^", 19, ".$<")),
}


@dataclasses.dataclass(frozen=True)
class Befunge(Programs):
  """Programs in Befunge-93 (docs/interpreters.md has what the language leaves open)."""

  width: int = 40  # columns of the grid
  height: int = 8  # lines of the grid
  stack: int = 64  # values that the stack holds

  signs = tuple(c if c in COMMANDS else NAMED.get(c, "") for c in befunge.ALPHABET)
  opposites = dict(zip("><^v+-", "<>v^-+"))
  memory = "width"

  def __post_init__(self):
    splits.require(self, "width", self.width >= WIDEST, f"{WIDEST} or more")
    splits.require(self, "height", self.height >= HIGHEST, f"{HIGHEST} or more")
    splits.require(self, "stack", self.stack >= self.last + 4, f"the largest symbol and 4 ({self.last + 4}) or more")
    super().__post_init__()

  def limits_of(self, steps: int) -> befunge.Limits:
    """The interpreter's limits."""
    sizes = {"width": self.width, "height": self.height, "stack": self.stack}
    return befunge.Limits(steps=steps, outputs=self.n_symbols, **sizes)

  def run_within(self, limits, program, inputs, path=None):
    """A run of ids."""
    return befunge.run(program, inputs, limits, path=path)

  def kept(self, value: int) -> int:
    """A value of 32 bits."""
    return befunge.wrapped(value)

  def reference(self) -> list[int]:
    """A program of this kind."""
    return befunge.encode(sorting(self.last) if self.kind == "sort" else REFERENCES[self.kind])

  def printing(self, values) -> list[int]:
    """One line that writes one number after another."""
    return befunge.encode("".join(pushing(value) + "." for value in values) + "@")

  def random_program(self, rng) -> list[int]:
    """Lines of `n_instructions` instructions, one of them the end."""
    size = (max(self.depth, 1), min(self.n_instructions, self.width))
    signs = COMMANDS.replace("?", "").replace("@", "")  # a program must mean one thing, and it ends in one place
    grid = [[signs[i] for i in row] for row in rng.integers(len(signs), size=size)]
    grid[rng.integers(size[0])][rng.integers(size[1])] = "@"
    return befunge.encode("\n".join(map("".join, grid)))


def pushing(value: int) -> str:
  """Instructions that push a number that is not negative."""
  if value < 10:
    return str(value)
  nines, rest = divmod(value, 9)
  return f"{pushing(nines)}9*" + (f"{rest}+" if rest else "")


def sorting(last: int) -> str:
  """Counts each number n in column n of line 6, whose blanks are 32; then writes 1 to `last` as often as counted."""
  again = "<1+:" + pushing(last + 1) + "-"  # read to the left
  return lay(
    r"&:1+!#v_:6g1+\6p",
    (6, "$"),
    (6, "1"),
    (6, r">:6g48*-!#v_:.::6g1-\6p"),
    (6, "|".ljust(11 - len(again)) + again[::-1]),
    (6, "@"),
  )
