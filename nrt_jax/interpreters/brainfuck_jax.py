"""Brainf**k in JAX: brainfuck.py's meaning of a program, for any number of programs inside one compiled program.

Axes: L program columns, I inputs, O outputs (`limits.outputs`), C test cases, N rows, M cells of a row's memory.

A row's memory is one array: the tape, the input, a zero, the output, and a cell for what goes nowhere. An instruction
reads one cell of it and writes one, so a step is two gathers and one scatter of an element per row. Rows that have
ended wait, unchanged, for the last one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax.interpreters import batching, outcome
from nrt_jax.interpreters.brainfuck import CLOSE, LEFT, LESS, MORE, OPEN, READ, RIGHT, WRITE, Limits
from nrt_jax.interpreters.outcome import Outcome

OPS = CLOSE + 1


class Machine(NamedTuple):
  """All rows' state."""

  memory_NM: jax.Array
  place_N: jax.Array  # of the next instruction
  head_N: jax.Array
  taken_N: jax.Array  # values read
  written_N: jax.Array
  steps_N: jax.Array
  status_N: jax.Array  # RUNNING until it ends


def run(program_L, length, input_I, input_length, limits: Limits = Limits()) -> Outcome:
  """Runs one program, int32 ids of which the first `length` count, on one input. `vmap` it over rows and cases.

  Returns int32 arrays: output [O], and scalars. Lengths are cut to the arrays'.
  """
  program_L, input_I = jnp.asarray(program_L, jnp.int32), jnp.asarray(input_I, jnp.int32)
  length, input_length = (
    jnp.clip(jnp.asarray(n, jnp.int32), 0, a.shape[0]) for n, a in ((length, program_L), (input_length, input_I))
  )
  code_L, valid = compile_(program_L, length)
  zero = jnp.zeros((), jnp.int32)
  memory_M = jnp.zeros(limits.tape + input_I.shape[0] + limits.outputs + 2, jnp.int32)
  memory_M = jax.lax.dynamic_update_slice(memory_M, input_I % limits.cells, (limits.tape,))
  status = jnp.where(valid, jnp.where(length > 0, outcome.RUNNING, outcome.FINISHED), outcome.INVALID)
  start = Machine(memory_M, zero, zero, zero, zero, zero, status.astype(jnp.int32))
  loop = batching.over_rows(functools.partial(_loop, limits))
  end = jax.tree.map(lambda a: a[0], loop(*jax.tree.map(lambda a: a[None], (code_L, length, input_length, start))))
  output_O = jax.lax.dynamic_slice_in_dim(end.memory_NM, limits.tape + input_I.shape[0] + 1, limits.outputs)
  return Outcome(output_O, end.written_N, end.status_N, end.steps_N)


def grade_ids(program_L, length, cases: batching.Cases, limits: Limits = Limits()):
  """The share of the cases that the program is right on: float32 []. Zero for an invalid program. Twin: `grade`."""
  return batching.share_right(run_cases(program_L, length, cases, limits), cases)


def run_cases(program_L, length, cases: batching.Cases, limits: Limits = Limits()) -> Outcome:
  """The program's run on each case: fields [C, ...]. For scoring.score_cases."""
  each = jax.vmap(lambda inputs, size: run(program_L, length, inputs, size, limits))
  return each(cases.input_CI, cases.input_length_C)


def compile_(program_L, length):
  """Each instruction with the place of its partner, as op + OPS * place, and whether the program is valid.

  Brackets of one depth take turns, open and close. Sorted by depth, and then by place, partners are neighbours.
  """
  size = program_L.shape[0]
  column_L = jnp.arange(size)
  counts_L = column_L < length
  known = jnp.all((program_L >= 0) & (program_L < OPS) | ~counts_L)
  opens_L, closes_L = ((program_L == op) & counts_L for op in (OPEN, CLOSE))
  inside_L = jnp.cumsum(opens_L.astype(jnp.int32) - closes_L.astype(jnp.int32))
  matched = jnp.all(inside_L >= 0) & (jnp.sum(opens_L) == jnp.sum(closes_L))
  depth_L = jnp.where(opens_L | closes_L, inside_L + closes_L, size + 1)
  order_L = jnp.argsort(depth_L, stable=True).astype(jnp.int32)
  partner_L = order_L[jnp.minimum(column_L ^ 1, max(size - 1, 0))]
  jump_L = jnp.zeros(size, jnp.int32).at[order_L].set(partner_L, unique_indices=True)
  return jnp.pad(jnp.where(counts_L, program_L, 0) + OPS * jump_L, (0, 1)), known & matched


def _loop(limits, code_NL, length_N, input_length_N, start: Machine) -> Machine:
  step = functools.partial(_step, limits, code_NL, length_N, input_length_N)
  return jax.lax.while_loop(lambda at: jnp.any(at.status_N == outcome.RUNNING), step, start)


def _step(limits, code_NL, length_N, input_length_N, at: Machine) -> Machine:
  """One instruction in each row that still runs."""
  rows_N, size = jnp.arange(at.place_N.shape[0]), at.memory_NM.shape[1]
  first_output = size - 1 - limits.outputs
  code_N = code_NL[rows_N, at.place_N]
  op_N, runs_N = code_N % OPS, at.status_N == outcome.RUNNING
  reads_N, writes_N = op_N == READ, op_N == WRITE
  left_N = at.taken_N < input_length_N
  source_N = jnp.where(reads_N, jnp.where(left_N, limits.tape + at.taken_N, first_output - 1), at.head_N)
  value_N = at.memory_NM[rows_N, source_N]
  full_N = writes_N & (at.written_N == limits.outputs)
  goes_N = runs_N & ~full_N

  new_N = value_N + (op_N == MORE) - (op_N == LESS)
  new_N = jnp.where(new_N == limits.cells, 0, jnp.where(new_N < 0, limits.cells - 1, new_N))
  target_N = jnp.where(writes_N, first_output + at.written_N, at.head_N)
  target_N = jnp.where(goes_N, target_N, size - 1)
  memory_NM = at.memory_NM.at[rows_N, target_N].set(new_N)

  head_N = at.head_N + (op_N == RIGHT) - (op_N == LEFT)
  head_N = jnp.where(head_N == limits.tape, 0, jnp.where(head_N < 0, limits.tape - 1, head_N))
  jumps_N = ((op_N == OPEN) & (value_N == 0)) | ((op_N == CLOSE) & (value_N != 0))
  place_N = jnp.where(jumps_N, code_N // OPS, at.place_N) + 1
  steps_N = at.steps_N + goes_N
  ended_N = jnp.where(steps_N == limits.steps, outcome.UNFINISHED, outcome.RUNNING)
  ended_N = jnp.where(place_N == length_N, outcome.FINISHED, ended_N)
  ended_N = jnp.where(full_N, outcome.OUTPUT_FULL, ended_N)
  return Machine(
    memory_NM,
    jnp.where(goes_N, place_N, at.place_N),
    jnp.where(goes_N, head_N, at.head_N),
    at.taken_N + (goes_N & reads_N & left_N),
    at.written_N + (goes_N & writes_N),
    steps_N,
    jnp.where(runs_N, ended_N, at.status_N).astype(jnp.int32),
  )
