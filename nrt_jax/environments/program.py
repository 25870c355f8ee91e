"""A program that is run where it was written: inside of the compiled step, on the example's test cases.

What stands behind the marker is the program, an instruction a token (`signs` of tasks/programs.py); the example's world
are its test cases, "3 1 gives 4 ; 2 2 gives 4 ;". The verdict is that of the task's own grader, within its own limits:
the interpreters of nrt_jax/interpreters do the same in Python and here.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nrt_jax.arrays import Prompts
from nrt_jax.data.prompts import completion_stops
from nrt_jax.environments.interface import Environment, Turn, world_tokens
from nrt_jax.environments.words import integers_of, token_of
from nrt_jax.errors import UserError, require_choice
from nrt_jax.interpreters import befunge, befunge_jax, brainfuck, brainfuck_jax
from nrt_jax.interpreters.batching import Cases
from nrt_jax.tasks.befunge import Befunge
from nrt_jax.tasks.brainfuck import Brainfuck
from nrt_jax.tasks.programs import CONVENTIONS, GIVES, NEXT

LANGUAGES = {"brainfuck": Brainfuck, "befunge": Befunge}
GRADES = {"brainfuck": brainfuck_jax.grade_ids, "befunge": befunge_jax.grade_ids}
NO_INSTRUCTION = -1


@dataclass(frozen=True)
class ProgramConfig:
  """`program`: runs what the policy writes behind the marker."""

  language: str = "brainfuck"  # brainfuck | befunge
  convention: str = "standard"  # as the task has it: standard | swapped
  max_length: int = 128  # instructions; a longer program is wrong
  step_limit: int = 500  # of a run, else it is wrong
  cases: int = 16  # test cases of every example
  inputs: int = 3  # values that a case gives at most
  outputs: int = 3  # values that a case wants at most
  share: bool = False  # True: the verdict is the share of the cases that are right; False: 1 if all are, else 0
  tape: int = 64  # brainfuck: cells of the tape
  cell_values: int = 256  # brainfuck: values of a cell
  width: int = 40  # befunge: columns of the grid
  height: int = 8  # befunge: lines of the grid
  stack: int = 64  # befunge: values that the stack holds
  max_world_length: int = 160  # tokens of an example's test cases

  def __post_init__(self):
    require_choice("environment.language", self.language, LANGUAGES)
    require_choice("environment.convention", self.convention, CONVENTIONS)
    keys = ("max_length", "step_limit", "cases", "inputs", "outputs", "max_world_length", "tape", "cell_values")
    for key in (*keys, "width", "height", "stack"):
      if getattr(self, key) < 1:
        raise UserError(f"environment.{key}: found {getattr(self, key)}, allowed: 1 or more")
    try:
      self.limits  # what the interpreter itself asks of them
    except UserError as error:
      raise UserError(f"environment: {error}") from error

  @property
  def limits(self):
    """The interpreter's."""
    if self.language == "brainfuck":
      return brainfuck.Limits(steps=self.step_limit, outputs=self.outputs, tape=self.tape, cells=self.cell_values)
    sizes = {"width": self.width, "height": self.height, "stack": self.stack}
    return befunge.Limits(steps=self.step_limit, outputs=self.outputs, **sizes)


@struct.dataclass
class Written:
  """What a row has written, and its test cases."""

  last_M: jax.Array  # int32, the last tokens before the program, as many as the marker has
  started: jax.Array  # bool [], the marker is complete
  id_L: jax.Array  # int32, the program's instructions
  length: jax.Array  # int32 [], of the program; above L where it is too long
  cases: Cases


class Program(Environment):
  """The interpreter of one run."""

  judges = True
  reads_world = True

  def __init__(
    self, config: ProgramConfig, marker_ids, end_ids, instructions: dict, values: dict, gives: int, next_: int
  ):
    """instructions: token -> id of the interpreter; values: token -> number; gives, next_: tokens of the world."""
    self.config, self.marker_ids, self.end_ids = config, tuple(marker_ids), tuple(end_ids)
    self.gives, self.next, self.values = gives, next_, values
    size = 1 + max((*instructions, *values, gives, next_, *marker_ids, *end_ids))
    self.id_V, self.value_V = _table(size, instructions, NO_INSTRUCTION), _table(size, values, 0)

  @classmethod
  def open(cls, config: ProgramConfig, tokenizer, form) -> "Program":
    characters = LANGUAGES[config.language](convention=config.convention).characters
    instructions = {token_of(tokenizer, "language", word): i for i, word in enumerate(characters) if word}
    separators = (token_of(tokenizer, "name", word) for word in (GIVES, NEXT))
    return cls(config, form.marker_ids, completion_stops(form), instructions, integers_of(tokenizer), *separators)

  def check_world(self, ids) -> str | None:
    c, sides, cases = self.config, [[]], []
    for token in ids:
      if token == self.gives and len(sides) == 1:
        sides.append([])
      elif token == self.next and len(sides) == 2:
        cases, sides = [*cases, sides], [[]]
      elif token in self.values:
        sides[-1].append(token)
      else:
        return f"found another word in the test cases, or one out of place, allowed: numbers {GIVES} numbers {NEXT}"
    if sides != [[]] or len(cases) != c.cases:
      return f"found {len(cases)} whole test cases, allowed: environment.cases, {c.cases}, each ended by {NEXT!r}"
    for key, side in (("inputs", 0), ("outputs", 1)):
      most = max(len(case[side]) for case in cases)
      if most > getattr(c, key):
        return f"found a test case of {most} {key}, allowed: environment.{key}, {getattr(c, key)}"
    return None

  def init(self, row: Prompts) -> Written:
    return Written(
      last_M=jnp.full(len(self.marker_ids), -1, jnp.int32),
      started=jnp.bool_(False),
      id_L=jnp.zeros(self.config.max_length, jnp.int32),
      length=jnp.int32(0),
      cases=self._cases(*world_tokens(row)),
    )

  def _cases(self, token_Q, length) -> Cases:
    """The test cases of a world."""
    c, valid_Q = self.config, jnp.arange(len(token_Q)) < length
    ends_Q, gives_Q = (token_Q == self.next) & valid_Q, (token_Q == self.gives) & valid_Q
    case_Q = jnp.cumsum(ends_Q) - ends_Q  # of each token
    wanted_Q = jnp.cumsum(gives_Q) > case_Q  # behind its case's word
    number_Q = valid_Q & ~ends_Q & ~gives_Q
    value_Q = jnp.asarray(self.value_V)[jnp.clip(token_Q, 0, len(self.value_V) - 1)]

    def side(own_Q, width):
      """Values `[cases, width]` of the numbers on this side, and how many there are of each case."""
      one_CQ = own_Q[None] & (case_Q[None] == jnp.arange(c.cases)[:, None])
      place_CQ = jnp.where(one_CQ, jnp.cumsum(one_CQ, axis=1) - 1, width)
      row_CQ = jnp.broadcast_to(jnp.arange(c.cases)[:, None], place_CQ.shape)
      values = jnp.zeros((c.cases, width), jnp.int32)
      values = values.at[row_CQ, place_CQ].set(jnp.broadcast_to(value_Q, place_CQ.shape), mode="drop")
      return values, one_CQ.sum(axis=1, dtype=jnp.int32)

    return Cases(*side(number_Q & ~wanted_Q, c.inputs), *side(number_Q & wanted_Q, c.outputs))

  def step(self, state: Written, token) -> Turn:
    ends = jnp.isin(token, jnp.asarray(self.end_ids, jnp.int32))
    writes = state.started & ~ends
    own = jnp.asarray(self.id_V)[jnp.clip(token, 0, len(self.id_V) - 1)]
    own = jnp.where(token < len(self.id_V), own, NO_INSTRUCTION)
    last_M = jnp.append(state.last_M[1:], token)
    last_M = jnp.where(state.started, state.last_M, last_M)
    after = state.replace(
      last_M=last_M,
      started=state.started | (last_M == jnp.asarray(self.marker_ids, jnp.int32)).all(),
      id_L=jnp.where(writes & (jnp.arange(len(state.id_L)) == state.length), own, state.id_L),
      length=state.length + writes,
    )
    return self.silent(after)

  def verdict(self, state: Written):
    c = self.config
    share = GRADES[c.language](state.id_L, state.length, state.cases, c.limits)
    right = state.started & (state.length <= c.max_length)
    return jnp.where(right, share if c.share else (share > 1 - 0.5 / c.cases).astype(jnp.float32), 0.0)


def _table(size: int, numbers: dict, default: int) -> np.ndarray:
  """token -> number as int32 `[size]`."""
  table = np.full(size, default, np.int32)
  for token, number in numbers.items():
    table[token] = number
  return table
