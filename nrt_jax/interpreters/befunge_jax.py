"""Befunge-93 in JAX: befunge.py's meaning of a program, for any number of programs inside one compiled program.

Axes: L program columns, I inputs, O outputs (`limits.outputs`), C test cases, N rows, M cells of a row's memory.

A row's memory is one array: the grid, the stack, a zero, the input, a -1, the output, and a cell for what goes
nowhere. An instruction reads five cells of it (its own, three of the stack, one of the grid or the input) and writes
two, whatever the sizes. Rows that have ended wait, unchanged, for the last one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.interpreters import batching, outcome
from nrt_jax.interpreters.befunge import END_OF_INPUT, FIRST, NEWLINE, RANDOM, Limits
from nrt_jax.interpreters.outcome import Outcome

NOTHING, QUOTED = 256, 257  # codes of no character: an instruction that does nothing, and a character inside quotes
CODES = 258
RANDOM_DX, RANDOM_DY = np.array(RANDOM, np.int32).T


def _table(**counts) -> np.ndarray:
  """Code -> number, from the characters that have it."""
  table = np.zeros(CODES, np.int32)
  for name, characters in counts.items():
    table[[ord(c) for c in characters]] = int(name[1:])
  return table


POPS = _table(_1="!:_|.,$", _2="+-*/%`g\\", _3="p")
PUSHES = _table(_1="0123456789&~+-*/%`g!", _2=":\\")
PUSHES[QUOTED] = 1


class Places(NamedTuple):
  """Where the parts of a row's memory begin."""

  stack: int
  zero: int
  inputs: int
  minus_one: int
  outputs: int
  nowhere: int


class Machine(NamedTuple):
  """All rows' state."""

  memory_NM: jax.Array
  x_N: jax.Array
  y_N: jax.Array
  dx_N: jax.Array
  dy_N: jax.Array
  quoted_N: jax.Array  # bool
  depth_N: jax.Array  # values on the stack
  taken_N: jax.Array  # values read
  written_N: jax.Array
  steps_N: jax.Array
  status_N: jax.Array  # RUNNING until it ends


def places(limits: Limits, inputs: int) -> Places:
  """The layout of the memory for I inputs."""
  stack = limits.width * limits.height
  first_input = stack + limits.stack + 1
  first_output = first_input + inputs + 1
  return Places(stack, first_input - 1, first_input, first_output - 1, first_output, first_output + limits.outputs)


def run(program_L, length, input_I, input_length, limits: Limits = Limits(), seed=0) -> Outcome:
  """Runs one program, int32 ids of which the first `length` count, on one input. `vmap` it over rows and cases.

  seed: of `?`, an int32. Returns int32 arrays: output [O], and scalars. Lengths are cut to the arrays'.
  """
  program_L, input_I = jnp.asarray(program_L, jnp.int32), jnp.asarray(input_I, jnp.int32)
  length, input_length = (
    jnp.clip(jnp.asarray(n, jnp.int32), 0, a.shape[0]) for n, a in ((length, program_L), (input_length, input_I))
  )
  grid, valid = grid_of(program_L, length, limits)
  layout = places(limits, input_I.shape[0])
  memory_M = jnp.zeros(layout.nowhere + 1, jnp.int32).at[: layout.stack].set(grid)
  memory_M = memory_M.at[layout.inputs : layout.minus_one].set(input_I).at[layout.minus_one].set(END_OF_INPUT)
  zero, one = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
  status = jnp.where(valid, outcome.RUNNING, outcome.INVALID).astype(jnp.int32)
  start = Machine(memory_M, zero, zero, one, zero, jnp.zeros((), bool), zero, zero, zero, zero, status)
  loop = batching.over_rows(functools.partial(_loop, limits, layout))
  seed = jnp.asarray(seed).astype(jnp.uint32)
  end = jax.tree.map(lambda a: a[0], loop(*jax.tree.map(lambda a: a[None], (seed, input_length, start))))
  return Outcome(end.memory_NM[layout.outputs : layout.nowhere], end.written_N, end.status_N, end.steps_N)


def grade_ids(program_L, length, cases: batching.Cases, limits: Limits = Limits(), seed=0):
  """The share of the cases that the program is right on: float32 []. Zero for an invalid program. Twin: `grade`."""
  return batching.share_right(run_cases(program_L, length, cases, limits, seed), cases)


def run_cases(program_L, length, cases: batching.Cases, limits: Limits = Limits(), seed=0) -> Outcome:
  """The program's run on each case: fields [C, ...]. For scoring.score_cases."""
  each = jax.vmap(lambda inputs, size: run(program_L, length, inputs, size, limits, seed))
  return each(cases.input_CI, cases.input_length_C)


def grid_of(program_L, length, limits: Limits):
  """The grid [width * height] of character codes at the start, and whether the program is valid."""
  column_L = jnp.arange(program_L.shape[0], dtype=jnp.int32)
  counts_L = column_L < length
  ends_L = (program_L == NEWLINE) & counts_L
  y_L = jnp.cumsum(ends_L.astype(jnp.int32))
  x_L = column_L - (jax.lax.cummax(jnp.where(ends_L, column_L, -1)) + 1)
  shown_L = counts_L & ~ends_L
  fits_L = (x_L < limits.width) & (y_L < limits.height) & (program_L >= 0) & (program_L < NEWLINE)
  cells = limits.width * limits.height
  target_L = jnp.where(shown_L & fits_L, y_L * limits.width + x_L, cells)
  grid = jnp.full(cells, FIRST, jnp.int32).at[target_L].set(program_L + FIRST, mode="drop")
  return grid, jnp.all(fits_L | ~shown_L)


def direction(seed, step):
  """See befunge.direction; arrays of any one shape."""
  x = seed + jnp.uint32(0x9E3779B9) * (step.astype(jnp.uint32) + 1)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  way = ((x ^ (x >> 16)) >> 30).astype(jnp.int32)
  return jnp.asarray(RANDOM_DX)[way], jnp.asarray(RANDOM_DY)[way]


def _loop(limits, layout, seed_N, input_length_N, start: Machine) -> Machine:
  step = functools.partial(_step, limits, layout, seed_N, input_length_N)
  return jax.lax.while_loop(lambda at: jnp.any(at.status_N == outcome.RUNNING), step, start)


def _step(limits, layout, seed_N, input_length_N, at: Machine) -> Machine:
  """One instruction in each row that still runs."""
  rows_N = jnp.arange(at.x_N.shape[0])
  code_N = at.memory_NM[rows_N, at.y_N * limits.width + at.x_N]
  op_N = jnp.where((code_N >= FIRST) & (code_N < 127), code_N, NOTHING)
  op_N = jnp.where(at.quoted_N & (op_N != ord('"')), QUOTED, op_N)

  def found(characters):
    return functools.reduce(jnp.logical_or, [op_N == ord(c) for c in characters])

  reads_N, writes_N, puts_N, fetches_N = found("&~"), found(".,"), op_N == ord("p"), op_N == ord("g")
  pushes_N = jnp.asarray(PUSHES)[op_N]
  base_N = jnp.maximum(at.depth_N - jnp.asarray(POPS)[op_N], 0)  # what the pops leave
  depth_N = base_N + pushes_N
  blocked_N = jnp.where((pushes_N > 0) & (depth_N > limits.stack), outcome.STACK_FULL, outcome.RUNNING)
  blocked_N = jnp.where(writes_N & (at.written_N == limits.outputs), outcome.OUTPUT_FULL, blocked_N)
  runs_N = at.status_N == outcome.RUNNING
  goes_N = runs_N & (blocked_N == outcome.RUNNING)

  # The three topmost values, a on top; then the cell (b, a) for g and p, or the next input.
  top_N3 = at.depth_N[:, None] - jnp.array([[1, 2, 3]])
  source_N3 = jnp.where(top_N3 >= 0, layout.stack + top_N3, layout.zero)
  a_N, b_N, c_N = at.memory_NM[rows_N[:, None], source_N3].T
  inside_N = (b_N >= 0) & (b_N < limits.width) & (a_N >= 0) & (a_N < limits.height)
  cell_N = jnp.where(inside_N, a_N * limits.width + b_N, layout.zero)
  left_N = at.taken_N < input_length_N
  source_N = jnp.where(left_N, layout.inputs + at.taken_N, layout.minus_one)
  source_N = jnp.where(fetches_N, cell_N, jnp.where(reads_N, source_N, layout.zero))
  fetched_N = at.memory_NM[rows_N, source_N]

  value_N = _value(op_N, code_N, a_N, b_N, c_N, fetched_N)
  target_N = jnp.where(pushes_N > 0, layout.stack + base_N, layout.nowhere)
  target_N = jnp.where(writes_N, layout.outputs + at.written_N, target_N)
  target_N = jnp.where(puts_N & inside_N, cell_N, target_N)
  above_N = jnp.where(pushes_N == 2, layout.stack + base_N + 1, layout.nowhere)
  second_N = jnp.where(op_N == ord(":"), a_N, b_N)
  target_N2 = jnp.where(goes_N[:, None], jnp.stack([target_N, above_N], 1), layout.nowhere)
  memory_NM = at.memory_NM.at[rows_N[:, None], target_N2].set(jnp.stack([value_N, second_N], 1))

  dx_N, dy_N = _heading(op_N, a_N, at, seed_N)
  far_N = 1 + (op_N == ord("#"))
  steps_N = at.steps_N + goes_N
  ended_N = jnp.where(steps_N == limits.steps, outcome.UNFINISHED, outcome.RUNNING)
  ended_N = jnp.where(op_N == ord("@"), outcome.FINISHED, ended_N)
  ended_N = jnp.where(goes_N, ended_N, blocked_N)

  def kept(new_N, old_N):
    return jnp.where(goes_N, new_N, old_N)

  return Machine(
    memory_NM,
    kept((at.x_N + dx_N * far_N) % limits.width, at.x_N),
    kept((at.y_N + dy_N * far_N) % limits.height, at.y_N),
    kept(dx_N, at.dx_N),
    kept(dy_N, at.dy_N),
    at.quoted_N ^ (goes_N & (op_N == ord('"'))),
    kept(depth_N, at.depth_N),
    at.taken_N + (goes_N & reads_N & left_N),
    at.written_N + (goes_N & writes_N),
    steps_N,
    jnp.where(runs_N, ended_N, at.status_N).astype(jnp.int32),
  )


def _value(op_N, code_N, a_N, b_N, c_N, fetched_N):
  """What an instruction pushes first, writes or puts; of no meaning for the others."""
  divisor_N = jnp.where(a_N == 0, 1, a_N)
  some_N = a_N != 0
  values = {
    "+": b_N + a_N,
    "-": b_N - a_N,
    "*": b_N * a_N,
    "/": jnp.where(some_N, jax.lax.div(b_N, divisor_N), 0),
    "%": jnp.where(some_N, jax.lax.rem(b_N, divisor_N), 0),
    "`": (b_N > a_N).astype(jnp.int32),
    "!": (~some_N).astype(jnp.int32),
    ":": a_N,
    "\\": a_N,
    ".": a_N,
    ",": a_N % 256,
    "p": c_N,
    **dict.fromkeys("g&~", fetched_N),
  }
  value_N = jnp.where(op_N == QUOTED, code_N, op_N - ord("0"))
  for character, one_N in values.items():
    value_N = jnp.where(op_N == ord(character), one_N, value_N)
  return value_N


def _heading(op_N, a_N, at: Machine, seed_N):
  """The direction (dx, dy) behind an instruction."""
  random_dx_N, random_dy_N = direction(seed_N, at.steps_N)
  sign_N = jnp.where(a_N == 0, 1, -1)  # right and down where the value is 0
  ways = {
    ">": (1, 0), "<": (-1, 0), "^": (0, -1), "v": (0, 1),
    "_": (sign_N, 0), "|": (0, sign_N), "?": (random_dx_N, random_dy_N),
  }  # fmt: skip
  dx_N, dy_N = at.dx_N, at.dy_N
  for character, (x, y) in ways.items():
    here_N = op_N == ord(character)
    dx_N, dy_N = jnp.where(here_N, x, dx_N), jnp.where(here_N, y, dy_N)
  return dx_N, dy_N
