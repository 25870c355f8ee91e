"""A graded score of a program, for a policy that hardly ever writes a right one: Brain Coder's (arXiv 1801.03526).

Each of C test cases adds 1 - d / (base * n), for the n values it expects, or 1 where it expects none:

  d = sum over places of |written - expected|, at most base; base for each value that is missing or too many

and, where the output is exact, `exact` + `short` * (1 - length / max_length). The sum is divided by the best possible
one, C * (1 + exact + short). A program that does not end by itself on every case gets `failure` in place of the sum.
"""

import dataclasses

import jax.numpy as jnp

from nrt_jax import errors
from nrt_jax.interpreters import batching, outcome


@dataclasses.dataclass(frozen=True)
class Scoring:
  """The weights. The defaults are those of the paper's code. UserError for values outside their range."""

  base: int = 256  # the number of values; the largest distance
  exact: float = 2.0  # of an exact output
  short: float = 1.0  # of an exact output by a program of length 0
  failure: float = -2.0  # of a program that does not end
  max_length: int = 100  # instructions from which on there is nothing for being short

  def __post_init__(self):
    for key, low in (("base", 2), ("max_length", 1), ("exact", 0), ("short", 0)):
      if not low <= getattr(self, key) < outcome.MOST:
        raise errors.UserError(f"scoring: {key}: found {getattr(self, key)!r}, allowed: {low} or more")
    if not -outcome.MOST < self.failure <= 0:
      raise errors.UserError(f"scoring: failure: found {self.failure!r}, allowed: 0 or less")

  @property
  def best(self) -> float:
    """What a case can add."""
    return 1 + self.exact + self.short


def score(runs, pairs, length: int, scoring: Scoring = Scoring()) -> float:
  """Of a program of this length, from its Python runs on (inputs, expected outputs) pairs."""
  if any(run.status != outcome.FINISHED for run in runs):
    return scoring.failure / (len(pairs) * scoring.best)
  bonus = scoring.exact + scoring.short * max(0.0, 1 - length / scoring.max_length)
  total = 0.0
  for run, (_, expected) in zip(runs, pairs, strict=True):
    apart = sum(min(abs(a - b), scoring.base) for a, b in zip(run.output, expected))
    apart += scoring.base * abs(len(run.output) - len(expected))
    total += 1 - apart / (scoring.base * max(len(expected), 1)) + bonus * (run.output == tuple(expected))
  return total / (len(pairs) * scoring.best)


def score_cases(found: outcome.Outcome, cases: batching.Cases, length, scoring: Scoring = Scoring()):
  """The same from JAX runs, one for each of the C cases: float32 []."""
  place_CO = jnp.arange(cases.output_CO.shape[1])[None]
  wanted_C = jnp.asarray(cases.output_length_C)
  both_CO = place_CO < jnp.minimum(found.length, wanted_C)[:, None]
  apart_CO = jnp.abs(found.output.astype(jnp.float32) - jnp.asarray(cases.output_CO, jnp.float32))
  apart_C = jnp.sum(jnp.where(both_CO, jnp.minimum(apart_CO, scoring.base), 0), 1)
  apart_C += scoring.base * jnp.abs(found.length - wanted_C)
  bonus = scoring.exact + scoring.short * jnp.maximum(0.0, 1 - length / scoring.max_length)
  total = jnp.sum(1 - apart_C / (scoring.base * jnp.maximum(wanted_C, 1)) + bonus * batching.right(found, cases))
  ended = jnp.all(found.status == outcome.FINISHED)
  return jnp.where(ended, total, scoring.failure).astype(jnp.float32) / (wanted_C.shape[0] * scoring.best)
