"""What running a program comes to, the same in both languages, in Python and in JAX; and the checks of limits."""

import dataclasses
from typing import Any, NamedTuple

from nrt_jax import errors

# How a run ended. Only FINISHED is a success: what any other run has written is a part of an unknown whole.
FINISHED = 0  # the program ended by itself
UNFINISHED = 1  # the limit of steps was reached
OUTPUT_FULL = 2  # one value more was to be written than the output holds
STACK_FULL = 3  # one value more was to be pushed than the stack holds; Befunge only
INVALID = 4  # not a program, so nothing was executed: an id without a character, an unmatched bracket, too wide a line
NAMES = ("finished", "unfinished", "output full", "stack full", "invalid")
RUNNING = -1  # inside the JAX loops only

MOST = 2**30  # of any limit: sums of two of them fit int32


class Outcome(NamedTuple):
  """Of one run; with JAX of one run per row, where every field is an int32 array."""

  output: Any  # what was written: a tuple of int; with JAX [O], zeros behind `length`
  length: Any  # number of values written
  status: Any  # FINISHED ... INVALID
  steps: Any  # instructions executed; 0 if the status is INVALID


def succeeded(outcome: Outcome, expected) -> bool:
  """Whether a Python run ended by itself and wrote exactly the values `expected`."""
  return outcome.status == FINISHED and outcome.output == tuple(expected)


def require_limits(language: str, limits, lowest: dict) -> None:
  """Raises UserError for a field of `limits` that is no int from its lowest value to MOST."""
  for field in dataclasses.fields(limits):
    found, low = getattr(limits, field.name), lowest.get(field.name, 1)
    if type(found) is not int or not low <= found <= MOST:
      raise errors.UserError(f"{language} limits: {field.name}: found {found!r}, allowed: {low} to {MOST}")


def require_size(language: str, key: str, found: int) -> None:
  """Raises UserError for limits that make more cells than an array's index may count."""
  if found > MOST:
    raise errors.UserError(f"{language} limits: {key}: found {found}, allowed: {MOST} or fewer")
