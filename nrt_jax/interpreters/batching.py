"""Loops over rows that `vmap` makes longer instead of slower, and test cases as arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import errors
from nrt_jax.interpreters import outcome


def over_rows(function):
  """A function of trees of arrays whose first axis is rows; under `vmap`, mapped axes are joined with that axis.

  `vmap` of a `while_loop` would choose between the old and the new value of everything that the loop carries, in each
  step: work in proportion to a row's whole memory, where an instruction touches one cell of it.
  """
  call = jax.custom_batching.custom_vmap(function)

  @call.def_vmap
  def rule(size, mapped, *trees):
    def joined(a, is_mapped):
      a = a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
      return a.reshape(size * a.shape[1], *a.shape[2:])

    found = call(*jax.tree.map(joined, trees, tuple(mapped)))
    parted = jax.tree.map(lambda a: a.reshape(size, a.shape[0] // size, *a.shape[1:]), found)
    return parted, jax.tree.map(lambda a: True, parted)

  return call


class Cases(NamedTuple):
  """Test cases of one program: what it is given, and what it must write."""

  input_CI: np.ndarray  # int32
  input_length_C: np.ndarray  # int32
  output_CO: np.ndarray  # int32; O is the `outputs` of the limits
  output_length_C: np.ndarray  # int32


def cases_of(pairs, outputs: int, input_size: int | None = None, count: int | None = None) -> Cases:
  """Arrays of (inputs, expected outputs) pairs.

  input_size: I, by default the longest input; count: C, by default the number of pairs. To fill up, the pairs are
  repeated from the first, which leaves the shares of the others equal if `count` is a multiple of their number.
  Raises UserError for no pairs, and for inputs and outputs that are too long.
  """
  pairs = [(tuple(given), tuple(expected)) for given, expected in pairs]
  if not pairs:
    raise errors.UserError("test cases: found none, allowed: 1 or more")
  pairs = [pairs[i % len(pairs)] for i in range(len(pairs) if count is None else count)]
  inputs, expected = zip(*pairs)
  with errors.at("test cases: input"):
    given = padded(inputs, max(map(len, inputs)) if input_size is None else input_size)
  with errors.at("test cases: output"):
    return Cases(*given, *padded(expected, outputs))


def padded(values, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Sequences of int as int32 [n, size], zeros behind each, and their lengths [n]. UserError for too long ones."""
  lengths = np.array([len(one) for one in values], np.int32)
  if max(lengths, default=0) > size:
    raise errors.UserError(f"found {max(lengths)} values, allowed: {size} or fewer")
  rows = np.zeros((len(values), size), np.int32)
  for row, one in zip(rows, values):
    row[: len(one)] = one
  return rows, lengths


def right(found: outcome.Outcome, cases: Cases):
  """Whether the run of each case finished and wrote exactly what it must: bool [C]."""
  behind_CO = jnp.arange(cases.output_CO.shape[1])[None] >= jnp.asarray(cases.output_length_C)[:, None]
  same_C = ((found.output == cases.output_CO) | behind_CO).all(1) & (found.length == cases.output_length_C)
  return same_C & (found.status == outcome.FINISHED)


def share_right(found: outcome.Outcome, cases: Cases):
  """The share of the cases that are right: float32 []."""
  return jnp.mean(right(found, cases), dtype=jnp.float32)
